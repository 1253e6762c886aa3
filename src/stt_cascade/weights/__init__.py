"""Weights: which models there are, where they come from, and how they reach the disk.

    from pathlib import Path
    from stt_cascade import weights

    folder = weights.pull("base", Path("models"))

Nothing lands under its final name before the SHA-256 of every file has been compared with the table
in `catalog`. What can go wrong:

    WeightsError
    ├── UnknownModelError    no such model in the table
    ├── SourceError          one source could not deliver; another may
    │   └── DigestError      it delivered other bytes than the table promises
    └── StorageError         the disk is full, or the folder cannot be written
"""

from __future__ import annotations

from stt_cascade.weights.catalog import MODELS, File, Spec, Wheel, find
from stt_cascade.weights.errors import (
    DigestError,
    SourceError,
    StorageError,
    UnknownModelError,
    WeightsError,
)
from stt_cascade.weights.fetch import Progress, Silent
from stt_cascade.weights.store import Source, installed, pull, verify

__all__ = [
    "MODELS",
    "DigestError",
    "File",
    "Progress",
    "Silent",
    "Source",
    "SourceError",
    "Spec",
    "StorageError",
    "UnknownModelError",
    "WeightsError",
    "Wheel",
    "find",
    "installed",
    "pull",
    "verify",
]

for _public in (
    *(File, Spec, Wheel, Progress, Silent),
    *(DigestError, SourceError, StorageError, UnknownModelError, WeightsError),
):
    _public.__module__ = __name__
