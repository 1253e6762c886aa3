"""Which GPU this process uses, and where the kernels are kept that the driver compiles for it.

CUDA reads its environment once, when it starts. Both are settled there before the engine loads.
"""

from __future__ import annotations

import os
import re
from itertools import takewhile

import structlog

from stt_cascade.config import ConfigError, TierConfig

log = structlog.get_logger("stt.gpu")

VISIBLE = "CUDA_VISIBLE_DEVICES"
CACHE = "CUDA_CACHE_PATH"
# An index, or a UUID, whose end may be missing. CUDA ignores any other entry and all after it.
_DEVICE = re.compile(r"\d+|GPU-[0-9A-Fa-f-]+|MIG-[0-9A-Za-z/-]+")


def visible() -> list[str] | None:
    """The GPUs that `CUDA_VISIBLE_DEVICES` lists, by index or UUID; None: it is not set.

    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    listed = os.environ.get(VISIBLE)
    if listed is None:
        return None
    return list(takewhile(_DEVICE.fullmatch, map(str.strip, listed.split(","))))


def claim(config: TierConfig) -> TierConfig:
    """Hide all GPUs but the one of `DEVICE_INDEX`, and keep the driver's compiled kernels.

    CTranslate2 selects the GPU for its own threads only. In any other thread that frees or copies
    memory, CUDA would open a context on GPU 0, which takes hundreds of MB there.

    Returns:
        The settings with the index that the GPU has now: 0.

    Raises:
        ConfigError: `CUDA_VISIBLE_DEVICES` lists fewer GPUs than that.
    """
    if config.device == "cpu":
        return config
    if config.cache_dir is not None and CACHE not in os.environ:
        kernels = config.cache_dir.absolute() / "cuda"
        try:
            kernels.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("compiled GPU kernels cannot be kept", path=str(kernels), reason=str(error))
        else:
            os.environ[CACHE] = str(kernels)
    names = visible()
    index = config.device_index
    if names is None:
        os.environ[VISIBLE] = str(index)
    elif index < len(names):
        os.environ[VISIBLE] = names[index]
    elif names or config.device == "cuda":
        allowed = f"at most {len(names) - 1} is allowed" if names else "it lists no GPU"
        raise ConfigError(
            f"{config.source or 'settings'}: DEVICE_INDEX={index} counts within "
            f"{VISIBLE}={os.environ[VISIBLE]!r}: {allowed}; change one of the two, or unset "
            f"{VISIBLE}; DEVICE=cpu needs no GPU"
        )
    return config.model_copy(update={"device_index": 0})
