"""What this machine offers a model, and how both tiers make use of it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# More threads than this make one inference of a small model slower.
MOST_THREADS = 16
# Several inferences with few threads each get more done than one with many.
MOST_SLOTS = 4


@dataclass(frozen=True)
class Recipe:
    """How one tier runs here; the terms are those of its settings."""

    model: str
    device: str
    compute_type: str
    beam_size: int
    max_concurrency: int
    cpu_threads: int

    def __str__(self) -> str:
        how = "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"
        where = "the GPU" if self.device == "cuda" else "the CPU"
        return f"Whisper {self.model}, {self.compute_type}, {how}, on {where}"

    def settings(self) -> dict[str, object]:
        return {
            "DEVICE": self.device,
            "COMPUTE_TYPE": self.compute_type,
            "BEAM_SIZE": self.beam_size,
            "MAX_CONCURRENCY": self.max_concurrency,
            "CPU_THREADS": self.cpu_threads,
        }


def recipes(primary: str, fallback: str, *, cores: int, gpu: bool) -> tuple[Recipe, Recipe]:
    """How the primary and the fallback run with these models on such a machine.

    Where both tiers have the same model, the fallback runs in the more exact number format: with
    its beam, that makes it a second opinion. A bigger model is one by itself, and runs in int8.
    """
    if gpu:
        exact = "float16"
        first = Recipe(primary, "cuda", "float16", 1, max_concurrency=2, cpu_threads=2)
    else:
        exact = "float32"
        slots = min(cores, MOST_SLOTS)
        first = Recipe(
            primary,
            "cpu",
            "int8",
            1,
            max_concurrency=slots,
            cpu_threads=min(cores // slots, MOST_THREADS),
        )
    second = Recipe(
        fallback,
        first.device,
        exact if primary == fallback else "int8",
        5,
        max_concurrency=1,
        cpu_threads=2 if gpu else min(cores, MOST_THREADS),
    )
    return first, second


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpu() -> tuple[bool, str | None]:
    """Whether a GPU can be used, and what to tell a user who has one that cannot."""
    import ctranslate2

    if ctranslate2.get_cuda_device_count() == 0:
        return False, None
    if _loadable("libcublas.so.12") or any(
        (folder / "libcublas.so.12").exists() for folder in cuda_libraries()
    ):
        return True, None
    return False, (
        "There is a GPU, but not CUDA's libraries: pip install '.[gpu]' in a checkout brings them. "
        "For now, the CPU does it."
    )


def cuda_libraries() -> list[Path]:
    """Folders of CUDA's libraries as pip installs them, where no linker looks by itself."""
    found = find_spec("nvidia")
    roots = (found.submodule_search_locations if found else None) or ()
    return sorted(folder for root in roots for folder in Path(root).glob("*/lib"))


def _loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
