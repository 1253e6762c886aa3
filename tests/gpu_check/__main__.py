"""The command. It needs nothing but Python until the wheels are installed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from gpu_check import parts

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".gpu-check"
PROJECT = "stt-cascade[server,tools,gpu]"


def options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make gpu-check", description="Check the engine on this machine's GPU."
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="few clips: does the check itself run")
    parser.add_argument("--only", action="append", default=[], help="a section; may be repeated")
    parser.add_argument("--again", action="store_true", help="also sections that have passed")
    parser.add_argument("--seconds", type=float, default=570.0, help="for all sections together")
    parser.add_argument("--weights", type=Path, help="folder of whisper-*-ct2; default: models/")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from")
    parser.add_argument(
        "--parts", type=Path, help="folder of what parts.py has cut: wheels/ and models/"
    )
    parser.add_argument(
        "--clips", type=Path, action="append", default=[], help="folder with a manifest.jsonl"
    )
    parser.add_argument("--out", type=Path, default=WORK / "result", help="folder of the results")
    return parser.parse_args(words)


def main() -> int:
    given = options()
    if given.parts:
        try:
            parts.join(given.parts, WORK / "files")
        except (OSError, ValueError) as error:
            sys.exit(f"gpu-check: {error}")
        brought = {"wheels": WORK / "files/wheels", "weights": WORK / "files/models"}
        for name, folder in brought.items():
            if getattr(given, name) is None and folder.is_dir():
                setattr(given, name, folder)
    python = Path(sys.executable)
    if given.wheels:
        python = installed(given.wheels)
    elif find_spec("ctranslate2") is None:
        sys.exit("gpu-check: nothing is installed: run `make gpu-check`, or name --wheels")
    if given.weights is None:
        given.weights = ROOT / "models"
    prepared = os.environ.get("STT_GPU_CHECK")
    if prepared != str(python):
        # Once more with that Python, and with CUDA's libraries where the linker looks for them.
        paths = [str(ROOT / "src"), str(ROOT / "tests")]
        environment = {
            **os.environ,
            "STT_GPU_CHECK": str(python),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        find = "from stt_cascade.cli.hardware import cuda_libraries as c; print(*c(), sep=':')"
        found = subprocess.run(
            [python, "-c", find], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        libraries = [*filter(None, [found, os.environ.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        os.execve(python, [str(python), "-m", "gpu_check", *sys.argv[1:]], environment)  # noqa: S606
    from gpu_check.run import run

    return run(given)


def installed(wheels: Path) -> Path:
    """The Python of an environment with what the wheels bring, without a network."""
    python = WORK / "venv/bin/python"
    mark = WORK / "venv/.installed"
    if not mark.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index"]
        pip += ["--find-links", str(wheels), PROJECT]
        for command in ([sys.executable, "-m", "venv", str(WORK / "venv")], pip):
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"gpu-check: {PROJECT} cannot be installed from {wheels}")
        mark.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
