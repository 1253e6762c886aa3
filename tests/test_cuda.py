"""Which GPU a tier's process uses, and what of it is bounded and warmed: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from faster_whisper import WhisperModel
from structlog.testing import capture_logs

from conftest import model
from stt_cascade.config import ConfigError, FallbackConfig
from stt_cascade.engine import cuda, decoding, encoding
from stt_cascade.engine.protocol import Options
from stt_cascade.engine.whisper import WhisperEngine
from stt_cascade.measure.capacity import _most
from stt_cascade.telemetry.gpu import Gpu

UUIDS = [
    "GPU-0a000000-1111-2222-3333-444444444444",
    "GPU-0b000000-1111-2222-3333-444444444444",
    "GPU-0b0fffff-1111-2222-3333-444444444444",
]
MIG = "MIG-5c000000-1111-2222-3333-444444444444"
KEPT = ("CUDA_VISIBLE_DEVICES", "CUDA_CACHE_PATH", "CUDA_DEVICE_ORDER")


class Machine(ModuleType):
    """`pynvml` of a machine with three GPUs, one of them with a MIG instance."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.watched: str | None = None
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= len(UUIDS):
            raise self.NVMLError("Invalid Argument")
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in (*UUIDS, MIG):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self.watched = handle
        return SimpleNamespace(gpu=0)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=0, total=0)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What is set in it is as before after the test."""
    for name in KEPT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return monkeypatch


@pytest.fixture
def machine(environment: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    environment.setitem(sys.modules, "pynvml", machine)
    return machine


def settings(**changes: object) -> FallbackConfig:
    return FallbackConfig(model_path=Path("nowhere"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listed", "index", "seen", "watched"),
    [
        (None, 0, "0", UUIDS[0]),
        (None, 2, "2", UUIDS[2]),
        ("1,2", 1, "2", UUIDS[2]),
        (" 2 , 0 ", 0, "2", UUIDS[2]),
        (f"{UUIDS[1]},{UUIDS[0]}", 1, UUIDS[0], UUIDS[0]),
        ("GPU-0a", 0, "GPU-0a", UUIDS[0]),  # CUDA takes as much of a UUID as tells it apart
        ("GPU-0b0f,0", 0, "GPU-0b0f", UUIDS[2]),
        (MIG, 0, MIG, MIG),
        ("0,-1,1", 0, "0", UUIDS[0]),
    ],
)
def test_cuda_sees_one_gpu_only_which_is_the_one_that_is_watched(
    environment: pytest.MonkeyPatch,
    machine: Machine,
    listed: str | None,
    index: int,
    seen: str,
    watched: str,
) -> None:
    if listed is not None:
        environment.setenv("CUDA_VISIBLE_DEVICES", listed)
    config = cuda.claim(settings(device_index=index))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    assert config.device_index == 0  # for the engine, which finds no other
    gpu = Gpu.open(config.device_index)
    assert gpu is not None
    gpu.read()
    assert machine.watched == watched
    gpu.close()
    assert machine.open == 0


@pytest.mark.parametrize(
    ("listed", "index", "allowed"),
    [
        ("0,1", 2, "at most 1 is allowed"),
        ("0,-1,1", 1, "at most 0 is allowed"),  # CUDA ignores what follows an invalid entry
        (MIG, 1, "at most 0 is allowed"),
        ("", 0, "it lists no GPU"),
        ("-1", 0, "it lists no GPU"),
        ("NoDevFiles", 0, "it lists no GPU"),
    ],
)
def test_an_index_beyond_the_visible_gpus_is_refused_by_name(
    environment: pytest.MonkeyPatch, listed: str, index: int, allowed: str
) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", listed)
    with pytest.raises(ConfigError, match=f"DEVICE_INDEX={index} counts within") as refused:
        cuda.claim(settings(device_index=index))
    assert allowed in str(refused.value)
    assert f"CUDA_VISIBLE_DEVICES='{listed}'" in str(refused.value)


def test_without_a_visible_gpu_auto_takes_the_cpu(
    environment: pytest.MonkeyPatch, machine: Machine
) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", "")
    config = cuda.claim(settings(device="auto"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert Gpu.open(config.device_index) is None


@pytest.mark.parametrize("listed", ["7", "GPU-ffff", "GPU-0b", "MIG-ffffffff"])
def test_a_gpu_that_nvml_cannot_tell_apart_is_not_watched(
    environment: pytest.MonkeyPatch, machine: Machine, listed: str
) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", listed)
    with capture_logs() as lines:
        assert Gpu.open(0) is None
    assert [(line["event"], line["gpu"]) for line in lines] == [
        ("the GPU cannot be watched", listed)
    ]
    assert machine.open == 0


def test_where_cuda_counts_in_another_order_no_other_gpu_is_watched_instead(
    environment: pytest.MonkeyPatch, machine: Machine
) -> None:
    environment.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with capture_logs() as lines:
        assert Gpu.open(1) is None
    assert "list UUIDs in CUDA_VISIBLE_DEVICES" in lines[0]["reason"]
    environment.setenv("CUDA_VISIBLE_DEVICES", UUIDS[1])
    assert Gpu.open(0) is not None


def test_a_tier_on_the_cpu_leaves_the_environment_alone(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = settings(device="cpu", device_index=3, cache_dir=tmp_path)
    assert cuda.claim(config) is config
    assert not {"CUDA_VISIBLE_DEVICES", "CUDA_CACHE_PATH"} & os.environ.keys()


def test_compiled_kernels_are_kept_in_the_cache_folder(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuda.claim(settings(cache_dir=tmp_path / "cache"))
    assert os.environ["CUDA_CACHE_PATH"] == str(tmp_path / "cache/cuda")
    assert (tmp_path / "cache/cuda").is_dir()
    cuda.claim(settings(cache_dir=tmp_path / "other"))  # what is set, stays
    assert os.environ["CUDA_CACHE_PATH"] == str(tmp_path / "cache/cuda")


def test_a_cache_folder_that_cannot_be_made_is_told_and_stops_nothing(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with capture_logs() as lines:
        cuda.claim(settings(cache_dir=tmp_path / "file"))
    assert [line["event"] for line in lines] == ["compiled GPU kernels cannot be kept"]
    assert "CUDA_CACHE_PATH" not in os.environ


@pytest.mark.process
def test_a_tier_settles_its_gpu_when_it_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "fallback.env"
    file.write_text("CT2_MEDIUM_PATH=nowhere\nDEVICE=cuda\nDEVICE_INDEX=1\n", encoding="utf-8")

    def imported(listed: str) -> subprocess.CompletedProcess[str]:
        code = "import stt_fallback, os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
        environment = {
            **os.environ,
            "CONFIG_PATH": str(file),
            "CUDA_VISIBLE_DEVICES": listed,
        }
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert imported(f"{UUIDS[0]},{UUIDS[2]}").stdout.splitlines()[-1] == UUIDS[2]
    refused = imported("0")
    assert refused.returncode != 0
    assert f"{file}: DEVICE_INDEX=1 counts within CUDA_VISIBLE_DEVICES='0'" in refused.stderr


def test_a_step_of_which_no_load_is_known_has_none() -> None:
    assert _most([None, 3.0, 2.0]) == 3.0
    assert _most([None]) is None


# Logits


class Model:
    """A `WhisperModel` on a GPU, as far as bounds need one."""

    def __init__(self, device: str, compute_type: str) -> None:
        self.model = SimpleNamespace(device=device, compute_type=compute_type)
        self.hf_tokenizer = SimpleNamespace(get_vocab_size=lambda: 51865)


@pytest.mark.parametrize(
    ("device", "compute_type", "beam", "windows"),
    [
        ("cuda", "float16", 1, 5),
        ("cuda", "int8_float16", 1, 5),
        ("cuda", "int8_bfloat16", 1, 5),
        ("cuda", "float32", 1, 2),
        ("cuda", "int8_float32", 1, 2),
        ("cuda", "float32", 5, sys.maxsize),  # a beam hands none over
        ("cpu", "float32", 1, sys.maxsize),
    ],
)
def test_logits_on_a_gpu_are_bounded(
    device: str, compute_type: str, beam: int, windows: int
) -> None:
    on_gpu = cast("WhisperModel", Model(device, compute_type))
    assert decoding.windows_at_once(on_gpu, decoding.MAX_TOKENS, beam) == windows


@pytest.mark.weights
def test_windows_decoded_in_parts_are_those_decoded_together(
    short: WhisperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    stack = encoding.stack

    def stacked(encodings: Sequence[Any]) -> Any:
        sizes.append(len(encodings))
        return stack(encodings)

    monkeypatch.setattr(decoding, "stack", stacked)
    noise = np.random.default_rng(1)
    encodings = [short.encode(noise.normal(0, 0.01, 16_000).astype(np.float32)) for _ in range(5)]
    options = Options(language="en")
    together = short.decode(encodings, options)
    assert 5 in sizes
    sizes.clear()
    monkeypatch.setattr(decoding, "windows_at_once", lambda *_: 2)
    apart = short.decode(encodings, options)
    assert sizes[:3] == [2, 2, 1]
    texts = [[segment.text for segment in one.segments] for one in together]
    assert texts == [[segment.text for segment in one.segments] for one in apart]


# Warm-up


@pytest.mark.weights
@pytest.mark.process
def test_the_warm_up_reaches_every_worker() -> None:
    engine = WhisperEngine(model("tiny.en"), compute_type="int8", cpu_threads=1, workers=3)
    workers = engine._model.model
    done = threading.Event()

    def busiest() -> int:
        """The most jobs that workers had at once, while none had to wait for one."""
        most = 0
        while not done.wait(0.001):
            if workers.num_queued_batches == 0:
                most = max(most, workers.num_active_batches)
        return most

    with ThreadPoolExecutor(1) as watching:
        found = watching.submit(busiest)
        engine.warm_up()
        done.set()
        assert found.result() == 3
