"""The `stt` command.

A base install has the SDK alone, so this module imports nothing heavier: each command says which
extra it needs instead of failing with an ImportError.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

# What each command needs beyond the base install: the extras, and modules that only they bring.
NEEDS: dict[str, tuple[str, ...]] = {
    "up": ("server", "fastapi"),
    "demo": ("server", "fastapi"),
    "config": ("server", "pydantic_settings"),
    "models": ("tools", "huggingface_hub"),
    "score": ("tools", "jiwer"),
    # It starts tiers, too, and decides as they do.
    "calibrate": ("server,tools", "fastapi", "jiwer"),
    # It runs the service's engine, and primaries that answer as the service does.
    "bench": ("server,tools", "fastapi", "jiwer"),
    "transcribe": ("tools", "rich"),
    "load": ("tools", "kneed"),
    "soak": ("tools", "scipy"),
    "canary": ("tools", "scipy"),
}


def main() -> None:
    """Entry point of the `stt` script."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    extra, *modules = NEEDS.get(command or "", ("tools",))
    if any(find_spec(module) is None for module in ("typer", *modules)):
        what = f"`stt {command}`" if command in NEEDS else "`stt`"
        sys.exit(
            f"{what} needs the extra {extra}: pip install '.[{extra}]' in a checkout of stt-cascade"
        )
    try:
        from stt_cascade.cli.app import app

        app()
    except KeyboardInterrupt:  # before a command could take it
        sys.exit(130)
