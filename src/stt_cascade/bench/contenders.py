"""What is measured: our engine, and faster-whisper as people run it.

Each contender lives in a process of its own, so that its memory is its own, and is idle while
another one works.
"""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from stt_cascade.engine.encoding import ShortForm
from stt_cascade.engine.languages import LANGUAGES
from stt_cascade.engine.protocol import Clip, Options, Samples

# For one clip, however long and however slow the machine.
PATIENCE_S = 3600

Transcribe = Callable[[Samples, str], "Heard"]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """The same for all contenders."""

    model: Path
    device: str
    compute_type: str
    threads: int
    concurrency: int


@dataclass(frozen=True)
class Heard:
    """A text, the seconds that it took, and how many windows were encoded anew in full."""

    text: str
    seconds: float = 0.0
    retries: int = 0


@dataclass(frozen=True)
class Batch:
    """What became of some clips worked on together: wall-clock seconds, peak memory in MiB."""

    heard: list[Heard]
    seconds: float
    peak_rss_mib: float


def ours(
    setup: Setup,
    form: ShortForm | None = ShortForm(),  # noqa: B008  # it is frozen
    *,
    beam_size: int = 1,
    doubt_beam_size: int = 5,
) -> Transcribe:
    """This project's engine as a tier uses it: speech detection, slots, language detected."""
    from stt_cascade.admission.deadline import Deadline
    from stt_cascade.admission.slots import Slots
    from stt_cascade.audio.speech import detect
    from stt_cascade.cascade.recognise import recognise
    from stt_cascade.engine.whisper import WhisperEngine

    # As a service has them by default: at least two, which share the threads.
    workers = max(2, setup.concurrency)
    engine = WhisperEngine(
        setup.model,
        device=setup.device,
        compute_type=setup.compute_type,
        cpu_threads=max(1, setup.concurrency * setup.threads // workers),
        workers=workers,
        short=form,
        beam_size=beam_size,
        doubt_beam_size=doubt_beam_size,
    )
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    slots = Slots("inference", workers, queue=setup.concurrency)

    def transcribe(samples: Samples, language: str) -> Heard:
        clip = Clip(samples, detect(samples))
        if not clip.speech:
            return Heard("")
        work = recognise(engine, clip, Options(), slots, Deadline(PATIENCE_S), lambda waited: None)
        transcript = asyncio.run_coroutine_threadsafe(work, loop).result()
        return Heard(transcript.text, retries=transcript.full_context_retries)

    return transcribe


def shipped(setup: Setup) -> Transcribe:
    """faster-whisper with its defaults: beam 5, language detected, timestamps, temperatures."""
    model = _faster_whisper(setup)

    def transcribe(samples: Samples, language: str) -> Heard:
        segments, _ = model.transcribe(samples)
        return Heard(" ".join(segment.text.strip() for segment in segments))

    return transcribe


def tuned(setup: Setup) -> Transcribe:
    """faster-whisper set for speed: greedy, one temperature, no timestamps, language given, VAD."""
    model = _faster_whisper(setup)

    def transcribe(samples: Samples, language: str) -> Heard:
        segments, _ = model.transcribe(
            samples,
            # Where the manifest names none, or none of Whisper's, it is detected, as ours does.
            language=language if language in LANGUAGES else None,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=True,
        )
        return Heard(" ".join(segment.text.strip() for segment in segments))

    return transcribe


def batched(setup: Setup) -> Transcribe:
    """faster-whisper's batched pipeline, greedy, language detected."""
    from faster_whisper import BatchedInferencePipeline

    pipeline = BatchedInferencePipeline(_faster_whisper(setup))

    def transcribe(samples: Samples, language: str) -> Heard:
        segments, _ = pipeline.transcribe(samples, beam_size=1, temperature=0.0, batch_size=8)
        return Heard(" ".join(segment.text.strip() for segment in segments))

    return transcribe


CONTENDERS: dict[str, Callable[[Setup], Transcribe]] = {
    "ours": ours,
    "faster-whisper as shipped": shipped,
    "faster-whisper tuned": tuned,
    "faster-whisper batched": batched,
}


PEERS = tuple(CONTENDERS)

# One constant at a time, away from what is in force; docs/engine.md has the table.
ABLATIONS: dict[str, dict[str, Any]] = {
    "30 s encoding": {"form": None},
    "as in force": {},
    "no second look": {"doubt_beam_size": 1},
    "beam of 5 for all": {"beam_size": 5},
    "margin 2 s, every 2nd of the tail": {"form": ShortForm(margin=2.0, stride=2)},
    "margin 3 s, every 3rd of the tail": {"form": ShortForm(margin=3.0, stride=3)},
    "margin 3 s": {"form": ShortForm(margin=3.0)},
    "margin 7 s": {"form": ShortForm(margin=7.0)},
    "edge 0 s": {"form": ShortForm(edge=0.0)},
    "edge 1 s": {"form": ShortForm(edge=1.0)},
    "whole tail": {"form": ShortForm(stride=1)},
    "every 8th of the tail": {"form": ShortForm(stride=8)},
    "silence tail": {"form": ShortForm(spoken_tail=False)},
}
CONTENDERS |= {name: partial(ours, **change) for name, change in ABLATIONS.items()}


def _faster_whisper(setup: Setup) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(
        str(setup.model),
        device=setup.device,
        compute_type=setup.compute_type,
        cpu_threads=setup.threads,
        num_workers=setup.concurrency,
    )


class Unusable(Exception):
    """A contender cannot run the model as the setup says, or a clip; the message says why."""


class Contender:
    """A contender in its own process."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        self._setup = setup
        # A fresh interpreter: a forked one would carry this one's memory along.
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def start(self) -> None:
        """Load the model.

        Raises:
            Unusable: it cannot run it so.
        """
        self._do(_start, self.name, self._setup)

    def run(self, clips: Sequence[tuple[Samples, str]]) -> Batch:
        """Transcribe (samples, language) pairs, as many at once as the setup says.

        Raises:
            Unusable: it cannot.
        """
        return self._do(_run, list(clips))

    def close(self) -> None:
        self._process.shutdown()

    def _do(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._process.submit(work, *args, **kwargs).result()
        except (OSError, RuntimeError, ValueError) as error:
            raise Unusable(f"{self.name}: {error}") from error


_transcribe: Transcribe
_threads: ThreadPoolExecutor


def _start(name: str, setup: Setup) -> None:
    global _transcribe, _threads
    _transcribe = CONTENDERS[name](setup)
    _threads = ThreadPoolExecutor(setup.concurrency)


def _run(clips: list[tuple[Samples, str]]) -> Batch:
    def one(clip: tuple[Samples, str]) -> Heard:
        began = time.perf_counter()
        heard = _transcribe(*clip)
        return Heard(heard.text, time.perf_counter() - began, heard.retries)

    began = time.perf_counter()
    heard = list(_threads.map(one, clips))
    seconds = time.perf_counter() - began
    return Batch(heard, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
