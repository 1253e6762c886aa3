"""What `deploy/systemd/install.sh` leaves on a host, with stand-ins for root's programs and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pages import ROOT

pytestmark = pytest.mark.process

# `-m venv DIR` makes an environment; its Python, called as pip, brings a library with a GPU's list,
# and its `stt config check` does not know the setting NEW. `-c` runs as in the Python named.
PYTHON = f"""#!/bin/sh
[ "$1" != -c ] || exec {sys.executable} -c "import sys; sys.version_info = $VERSION; $2"
mkdir -p "$3/bin"
printf '#!/bin/sh\\n! grep -sn ^NEW= "$3"\\n' > "$3/bin/stt"
cat > "$3/bin/python" <<EOF
#!/bin/sh
case "\\$*" in *requirements-gpu.txt) mkdir -p "$3/nvidia/cublas/lib"
  touch "$3/nvidia/cublas/lib/libcublas.so.12" ;; esac
EOF
chmod +x "$3/bin/stt" "$3/bin/python"
"""
STAND_INS = {
    "id": "echo 0",
    "getent": "exit 0",
    "chown": "exit 0",
    "systemctl": 'echo "$@" >> "$CALLS"',
    "python3": PYTHON.partition("\n")[2],
    # Without owners.
    "install": 'for w do shift; case $w in -o|-g) d=1;; root|stt) [ $d ] || set -- "$@" "$w";; '
    '*) set -- "$@" "$w";; esac; done; exec /usr/bin/install "$@"',
}
Install = Callable[..., list[str]]
GIT = shutil.which("git") or "git"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Where things lie; /opt/stt and the units are folders in it."""
    for name, body in STAND_INS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    shutil.copytree(ROOT / "deploy/systemd", tmp_path / "checkout/deploy/systemd")
    (tmp_path / "units").mkdir()
    script = tmp_path / "checkout/deploy/systemd/install.sh"
    text = script.read_text().replace("home=/opt/stt", f"home={tmp_path}/opt")
    script.write_text(text.replace("units=/etc/systemd/system", f"units={tmp_path}/units"))
    git(tmp_path / "checkout", "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run([GIT, *who, *words], cwd=folder, check=True, capture_output=True)


def commit(host: Path) -> None:
    """A new version of what is installed."""
    git(host / "checkout", "add", "--all")
    git(host / "checkout", "commit", "--quiet", "--allow-empty", "--message", "next")


@pytest.fixture
def install(host: Path) -> Install:
    """Run it; which calls of systemctl it made."""

    def install(*words: str, status: int = 0, version: str = "(3, 11)") -> list[str]:
        (host / "calls").write_text("")
        done = subprocess.run(
            ["/bin/sh", host / "checkout/deploy/systemd/install.sh", *words],
            env={
                "PATH": f"{host}/bin{os.pathsep}{os.environ['PATH']}",
                "CALLS": f"{host}/calls",
                "VERSION": version,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return (host / "calls").read_text().splitlines()

    return install


def for_gpus(host: Path) -> bool:
    """Whether the version in force has CUDA's libraries."""
    return (host / "opt/venv/cuda/libcublas.so.12").exists()


def test_a_new_version_on_a_host_with_gpus_is_for_gpus_without_being_told(
    host: Path, install: Install
) -> None:
    assert "enable --quiet stt-gpu.service" in install("--gpu")
    assert for_gpus(host)
    assert "DEVICE=cuda" in (host / "opt/stt_primary.env").read_text()
    commit(host)
    first = (host / "opt/venv").readlink()
    install()
    assert (host / "opt/venv").readlink() != first
    assert for_gpus(host)
    install("--rollback")
    assert (host / "opt/venv").readlink() == first


def test_a_python_that_is_too_old_is_refused_before_anything_is_made(
    host: Path, install: Install
) -> None:
    install(status=1, version="(3, 10, 12)")
    assert not (host / "opt").exists()


def test_a_gpu_may_come_to_a_host_later(host: Path, install: Install) -> None:
    assert not any("gpu" in call for call in install())
    assert not for_gpus(host)
    install("--gpu")
    assert for_gpus(host)
    assert (host / "units/stt-gpu.service").exists()
    install("--cpu")
    assert not for_gpus(host)


def test_a_new_version_on_a_host_of_one_tier_brings_no_other_one(
    host: Path, install: Install
) -> None:
    install("fallback")
    commit(host)
    calls = install()
    assert "enable --quiet stt-fallback.service" in calls
    assert not any("primary" in call for call in calls)
    assert not (host / "opt/stt_primary.env").exists()
    install("primary")
    assert (host / "units/stt-primary.service").exists()


def test_a_version_that_could_not_start_with_the_settings_is_not_gone_back_to(
    host: Path, install: Install
) -> None:
    install()
    commit(host)
    install()
    now = (host / "opt/venv").readlink()
    with (host / "opt/stt_fallback.env").open("a") as settings:
        settings.write("NEW=1\n")
    assert install("--rollback", status=1) == []
    assert (host / "opt/venv").readlink() == now
