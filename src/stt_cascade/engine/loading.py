"""From the settings to an engine."""

from __future__ import annotations

import os

import ctranslate2
import structlog

from stt_cascade.config import TierConfig
from stt_cascade.engine import cuda
from stt_cascade.engine.encoding import ShortForm
from stt_cascade.engine.protocol import Engine
from stt_cascade.engine.whisper import WhisperEngine

log = structlog.get_logger("stt.engine")

# With a GPU, more threads on the host only get in each other's way.
GPU_THREADS = 2


def load_whisper(config: TierConfig) -> Engine:
    """Whisper as the settings say. Takes seconds; call it in a thread.

    Raises:
        OSError, RuntimeError, ValueError: as `WhisperEngine`.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    cores = len(os.sched_getaffinity(0))
    threads = config.cpu_threads or threads_for(device, cores, config.max_concurrency)
    if device == "cpu" and threads * config.max_concurrency > cores:
        log.warning(
            "more threads than cores: inferences will slow each other down",
            max_concurrency=config.max_concurrency,
            cpu_threads=threads,
            cores=cores,
        )
    try:
        return WhisperEngine(
            config.model_path,
            device=device,
            device_index=config.device_index,
            compute_type=config.compute_type,
            cpu_threads=threads,
            workers=config.max_concurrency,
            beam_size=config.beam_size,
            doubt_beam_size=config.doubt_beam_size,
            patient=config.tier == "fallback",
            short=ShortForm() if config.short_clip_encoding else None,
            languages=frozenset(config.languages),
            cache=config.cache_dir,
        )
    except RuntimeError as error:
        if device == "cuda" and not ctranslate2.get_cuda_device_count():
            raise RuntimeError(
                f"{error}. CUDA finds no GPU with {cuda.VISIBLE}={os.environ.get(cuda.VISIBLE)}: "
                "compare `nvidia-smi --list-gpus` with DEVICE_INDEX, start a container with "
                "`--gpus all`, or set DEVICE=cpu"
            ) from error
        raise


def threads_for(device: str, cores: int, workers: int) -> int:
    """Threads of one inference where the settings say nothing: all cores, shared fairly."""
    return GPU_THREADS if device == "cuda" else max(1, cores // workers)
