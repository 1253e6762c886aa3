"""Which metrics a tier exports, with which labels and values: asked of one in this process."""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from structlog.testing import capture_logs

from fakes import FakeEngine
from stt_cascade.config import PrimaryConfig
from stt_cascade.config_file import load
from stt_cascade.http.app import create_app
from stt_cascade.http.service import Service
from stt_cascade.telemetry.gpu import Gpu, Reading

PATIENCE_S = 60.0
# By sample, such as stt_confidence_bucket: the values of each label.
Labels = dict[str, dict[str, set[str]]]


class SomeGpu:
    """A machine without one has no gauges of it."""

    def read(self) -> Reading:
        return Reading(1.0, 2.0, 3.0)

    def others(self) -> int:
        return 0

    def close(self) -> None:
        pass


@functools.cache
def exported() -> Labels:
    """Of a tier with a GPU; both have the same."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(Gpu, "open", lambda _: SomeGpu()),
        capture_logs(),
    ):
        settings = Path(folder, "primary.env")
        settings.write_text(
            f"CT2_SMALL_PATH={folder}\nFALLBACK_URL=http://127.0.0.1:9\nDEVICE=cuda\nVAD=off\n"
        )
        engine = FakeEngine(device="cuda")
        service = create_app(load(PrimaryConfig, settings), engine).state.service
        families = asyncio.run(_collected(service))
    found: Labels = {}
    for family in families:
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for name, value in sample.labels.items():
                labels[name].add(value)
    return found


async def _collected(service: Service) -> list[Any]:
    async with service.lifespan():
        end = time.monotonic() + PATIENCE_S
        while service.state != "ready":
            if time.monotonic() > end:
                raise TimeoutError(f"the tier is {service.state}")
            await asyncio.sleep(0.02)
        return list(service.metrics.registry.collect())
