"""What is checked, a function a section. Each runs in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from gpu_check import report
from gpu_check.report import Section
from stt_cascade.bench import engine as bench
from stt_cascade.bench.contenders import Setup
from stt_cascade.config import FallbackConfig
from stt_cascade.engine import cuda
from stt_cascade.engine.encoding import ShortForm
from stt_cascade.engine.loading import threads_for
from stt_cascade.engine.protocol import SAMPLE_RATE, Options, Samples, Utterance
from stt_cascade.engine.whisper import WhisperEngine
from stt_cascade.labelled import Labelled, joined, read_manifest, word_errors
from stt_cascade.measure.versions import samples_of
from stt_cascade.telemetry import process
from stt_cascade.telemetry.gpu import Gpu

ROOT = Path(__file__).parents[2]
AUSTEN = "He might even have been made amiable himself."
JFK = (
    "And so, my fellow Americans, ask not what your country can do for you, ask what you can do "
    "for your country."
)
# What a device is asked for, and the CPU's format that has the same weights.
FORMATS = {
    "cuda": {"float16": "float32", "int8_float16": "int8"},
    "cpu": {"float32": "float32", "int8": "int8"},
}
# Two machines round differently: so many of 100 words may be others, by the CPU's format.
OTHER_WORDS = {"float32": 3.0, "int8": 6.0}
# Of a probability, in the median.
SCORE = 0.03
# Seconds between the times of the same word, in the median and at the 95th percentile.
WORD_S, FAR_WORD_S = 0.05, 0.4
WORKERS = 2
LONGEST_S = 28.0
GROWTH_MIB = {"rss": 100.0, "gpu": 64.0}
CALLERS = (1, 2, 4, 8, 16, 32)
OURS, PLAIN, BATCHED = "ours", "faster-whisper tuned", "faster-whisper batched"

Clip = tuple[Labelled, Samples]


@dataclass(frozen=True)
class Setting:
    """What the sections work with; paths as text, so that it travels as JSON."""

    device: str
    short: bool
    weights: str
    clips: tuple[str, ...]

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Setting:
        row = json.loads(text)
        return cls(**{**row, "clips": tuple(row["clips"])})

    def model(self, *names: str) -> Path:
        """The folder of the first of these models that is there."""
        for name in names:
            folder = Path(self.weights) / f"whisper-{name}-ct2"
            if (folder / "model.bin").is_file():
                return folder
        raise FileNotFoundError(
            f"no model in {self.weights}: whisper-base-ct2 has to be there, "
            "whisper-small-ct2 and whisper-medium-ct2 may be"
        )

    @property
    def primary(self) -> Path:
        return self.model("small", "base")

    @property
    def fallback(self) -> Path:
        return self.model("medium", "base")

    def models(self) -> dict[str, str]:
        return {"primary": self.primary.name, "fallback": self.fallback.name}

    def environment(self, out: Path) -> dict[str, str]:
        """What the sections' processes have besides: compiled kernels are kept between them."""
        kept = out.resolve() / "cuda"
        kept.mkdir(parents=True, exist_ok=True)
        return {cuda.CACHE: str(kept)}

    def lacks(self, what: What) -> str:
        """Why a section cannot run here; empty: it can."""
        return "it needs a GPU" if what.gpu and self.device == "cpu" else ""

    def some(self, few: int, many: int) -> int:
        return few if self.short else many

    @property
    def formats(self) -> dict[str, str]:
        return FORMATS[self.device]

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def engine(self, compute_type: str, *, device: str | None = None) -> WhisperEngine:
        """The primary's engine, as a tier loads it, and warm."""
        device = device or self.device
        engine = WhisperEngine(
            self.primary,
            device=device,
            compute_type=compute_type,
            cpu_threads=threads_for(device, self.cores, WORKERS),
            workers=WORKERS,
            doubt_beam_size=5,
            short=ShortForm(),
            cache=Path(os.environ[cuda.CACHE]),
        )
        engine.warm_up()
        return engine

    def labelled(self) -> list[Clip]:
        """Clips in which somebody speaks: the samples, and those of the given folders."""
        samples = ROOT / "samples"
        clips = [
            Labelled(samples / "jfk.flac", JFK, "en", "samples"),
            Labelled(samples / "austen.flac", AUSTEN, "en", "samples"),
        ]
        clips += [
            clip for folder in self.clips for clip in read_manifest(Path(folder)) if clip.text
        ]
        heard = [(clip, samples_of(clip.file)) for clip in clips[: self.some(2, 1000)]]
        return [(clip, each) for clip, each in heard if len(each) <= LONGEST_S * SAMPLE_RATE]


def start(section: Section, setting: Setting) -> None:
    """A second start finds the kernels that the first one had compiled."""
    with tempfile.TemporaryDirectory() as kept:
        os.environ[cuda.CACHE] = kept
        for which in ("first", "second"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                section.figure(f"{which}_start_s", fresh.submit(_ready, setting).result())
        size = sum(file.stat().st_size for file in Path(kept).rglob("*") if file.is_file())
    section.figure("kept_kernels_mib", round(size / 2**20, 1))
    capability = float(nvidia_smi("compute_cap")[0][0])
    section.figure("compute_capability", capability)
    first, second = section.figures["first_start_s"], section.figures["second_start_s"]
    section.check("a second start takes no longer", f"{second} s", second <= 1.2 * first + 1)
    if capability >= 9:  # the wheel has code for 8.9 and older
        section.check("kernels are kept", f"{size} bytes", size > 0)


def formats(section: Section, setting: Setting) -> None:
    """Each number format hears the samples, and two workers hear the same as one."""
    clips = setting.labelled()
    for name in setting.formats:
        began = time.perf_counter()
        engine = setting.engine(name)
        section.figure(f"{name} ready_s", round(time.perf_counter() - began, 2))
        hear = partial(_heard, engine)
        began = time.perf_counter()
        alone = list(map(hear, clips))
        single = time.perf_counter() - began
        began = time.perf_counter()
        with ThreadPoolExecutor(WORKERS) as callers:
            together = list(callers.map(hear, clips))
        both = time.perf_counter() - began
        section.figure(f"{name} two workers, times the throughput of one", round(single / both, 2))
        section.figure(f"{name} WER %", _wer([clip.text for clip, _ in clips], alone, clips))
        right = _wer([clip.text for clip, _ in clips[:2]], alone[:2], clips[:2])
        section.check(f"{name} hears the samples", f"WER {right} %", right <= 10)
        changed = _wer(list(map(_text, alone)), together, clips)
        section.check(f"{name}: two workers hear as one", f"{changed} % others", changed <= 1)
    with_a_beam = WhisperEngine(
        setting.fallback,
        device=setting.device,
        compute_type=list(setting.formats)[-1],
        cpu_threads=threads_for(setting.device, setting.cores, 1),
        beam_size=5,
    )
    with_a_beam.warm_up()
    heard = [_heard(with_a_beam, clip) for clip in clips[:2]]
    wer = _wer([clip.text for clip, _ in clips[:2]], heard, clips[:2])
    section.check("the fallback hears the samples", f"WER {wer} %", wer <= 10)


def encoding(section: Section, setting: Setting) -> None:
    """The short encoding's texts and scores are those of the CPU."""
    clips = setting.labelled()[: setting.some(4, 40)]
    for name, cpu in setting.formats.items():
        ours, theirs = setting.engine(name), setting.engine(cpu, device="cpu")
        heard = [_heard(ours, clip) for clip in clips]
        expected = [_heard(theirs, clip) for clip in clips]
        other = _wer(list(map(_text, expected)), heard, clips)
        section.check(f"{name}: the words", f"{other} % others", other <= OTHER_WORDS[cpu])
        scores: dict[str, Callable[[Utterance], float]] = {
            "logprob": lambda one: float(np.exp(one.avg_logprob)),
            "weakest": lambda one: one.weakest,
        }
        for score, of in scores.items():
            far = [abs(of(one) - of(two)) for one, two in zip(heard, expected, strict=True)]
            middle = round(statistics.median(far), 4)
            section.check(f"{name}: {score}, difference in the median", middle, middle <= SCORE)
            section.figure(f"{name} {score} at most apart", round(max(far), 4))


def words(section: Section, setting: Setting) -> None:
    """Words have the CPU's times, in order, within the clip."""
    clips = setting.labelled()[: setting.some(3, 30)]
    name, cpu = next(iter(setting.formats.items()))
    ours, theirs = setting.engine(name), setting.engine(cpu, device="cpu")
    apart: list[float] = []
    compared = disordered = 0
    for clip in clips:
        mine, other = (_words(_heard(one, clip, "word")) for one in (ours, theirs))
        starts = [start for _, start, _ in mine]
        seconds = len(clip[1]) / SAMPLE_RATE
        late = any(not 0 <= start <= end <= seconds for _, start, end in mine)
        disordered += starts != sorted(starts) or late
        if [word for word, *_ in mine] == [word for word, *_ in other]:
            compared += 1
            apart += [
                abs(a - b)
                for one, two in zip(mine, other, strict=True)
                for a, b in ((one[1], two[1]), (one[2], two[2]))
            ]
    section.figure("clips whose words are the same", compared)
    section.check("times are in order and in the clip", f"{disordered} are not", not disordered)
    section.check(
        "clips can be compared", f"{compared} of {len(clips)}", compared * 2 >= len(clips)
    )
    middle, far = (round(float(np.percentile(apart or [np.inf], p)), 3) for p in (50, 95))
    section.check("median distance", f"{middle} s", middle <= WORD_S)
    section.check("95 % of distances", f"{far} s", far <= FAR_WORD_S)


def windows(section: Section, setting: Setting) -> None:
    """Windows that are decoded together are heard as alone."""
    english = [clip for clip in setting.labelled() if clip[0].language == "en"]
    (jfk, austen), pause = english[:2], np.zeros(SAMPLE_RATE // 2, np.float32)
    chosen = [samples for _, samples in joined(english, 25.0)][: setting.some(2, 4)]
    if len(chosen) < 2:
        pair = [jfk[1], pause, austen[1]]
        chosen = [np.concatenate(pair), np.concatenate(pair[::-1])]
    for name in setting.formats:
        engine = setting.engine(name)
        known = Options(language="en")
        encodings = [engine.encode(samples) for samples in chosen]
        began = time.perf_counter()
        alone = [engine.decode([one], known)[0] for one in encodings]
        single = time.perf_counter() - began
        began = time.perf_counter()
        together = engine.decode(encodings, known)
        batch = time.perf_counter() - began
        section.figure(f"{name} {len(chosen)} windows, alone / together", round(single / batch, 2))
        clips = [jfk] * len(chosen)
        other = _wer(list(map(_text, alone)), together, clips)
        section.check(f"{name}: the words", f"{other} % others", other <= 3)


def memory(section: Section, setting: Setting) -> None:
    """After 500 clips the process and the GPU hold no more than after the first of them."""
    clips = setting.labelled()
    engine = setting.engine(next(iter(setting.formats)))
    gpu = Gpu.open(0) if setting.device == "cuda" else None

    def held() -> dict[str, float]:
        reading = gpu.read() if gpu else None
        on_gpu = reading.mem_used_mb if reading else None
        return {"rss": process.snapshot()["rss_mb"]} | ({} if on_gpu is None else {"gpu": on_gpu})

    def work(count: int) -> None:
        with ThreadPoolExecutor(WORKERS) as callers:
            list(callers.map(partial(_heard, engine), islice(cycle(clips), count)))

    work(setting.some(len(clips), 2 * len(clips)))
    before = held()
    count = setting.some(4, 500)
    work(count)
    after = held()
    section.figure("clips", count)
    for name, value in after.items():
        grown = round(value - before[name], 1)
        section.figure(f"{name}_mib", [round(before[name], 1), round(value, 1)])
        section.check(f"{name} after {count} clips", f"{grown:+} MiB", grown <= GROWTH_MIB[name])


def throughput(section: Section, setting: Setting) -> None:
    """Texts a second and latency by callers, in turns with faster-whisper, plain and batched."""
    clips = [clip for clip in setting.labelled() if len(clip[1]) <= 12 * SAMPLE_RATE]
    compute_type = next(iter(setting.formats)) if setting.device == "cuda" else "int8"
    rows: list[dict[str, Any]] = []
    for callers in CALLERS[: setting.some(2, len(CALLERS))]:
        threads = threads_for(setting.device, setting.cores, callers)
        setup = Setup(setting.primary, setting.device, compute_type, threads, callers)
        count = setting.some(4, max(32, 4 * callers))
        results = bench.run([OURS, PLAIN, BATCHED], setup, list(islice(cycle(clips), count)))
        found = bench.report(results, list(islice(cycle(clips), count)), PLAIN)["contenders"]
        rows += [
            {
                "callers": callers,
                "contender": name,
                "clips_per_s": row["clips_per_s"],
                "p50_ms": row["p50_ms"],
                "p95_ms": row["p95_ms"],
                "wer": row["wer"]["value"],
            }
            for name, row in found.items()
        ]
        section.figure("by callers", rows)
        lost = found[OURS]["lost_clips"]
        section.check(f"{callers}: each clip has a text", f"{len(lost)} have none", not lost)
        if not setting.short:  # a few clips say nothing of speed
            ratio = round(found[OURS]["clips_per_s"] / found[PLAIN]["clips_per_s"], 2)
            section.check(
                f"{callers}: as quick as plain", f"{ratio} x its throughput", ratio >= 0.9
            )


def gauges(section: Section, setting: Setting) -> None:
    """The gauges say what `nvidia-smi` says, and only the chosen GPU is used."""
    before = [float(used) for (used,) in nvidia_smi("memory.used")]
    chosen = len(before) - 1
    # As a tier does at its start; the engine finds this GPU alone.
    cuda.claim(FallbackConfig(model_path=setting.fallback, device="cuda", device_index=chosen))
    engine = setting.engine(next(iter(setting.formats)))
    gpu = Gpu.open(0)
    if gpu is None:
        section.check("NVML finds the GPU", "not found: is nvidia-ml-py installed?", False)
        return
    clips, over = setting.labelled(), threading.Event()

    def work() -> None:
        for clip in cycle(clips):
            if over.is_set():
                return
            _heard(engine, clip)

    pairs = []
    with ThreadPoolExecutor(WORKERS) as busy:
        working = [busy.submit(work) for _ in range(WORKERS)]
        for _ in range(setting.some(3, 10)):
            over.wait(0.5)  # NVML's averages are over up to a second
            reading = gpu.read()
            asked = ("memory.used", "memory.reserved", "memory.total", "utilization.gpu")
            pairs.append((reading, nvidia_smi(*asked)[chosen]))
        over.set()
        for each in working:
            each.result()
    section.figure("pairs", [str(pair) for pair in pairs])
    seen = [(reading, told) for reading, told in pairs if reading is not None]
    section.check("the gauges are there", f"{len(seen)} of {len(pairs)}", len(seen) == len(pairs))
    for name, at, allowed in (("mem_used_mb", 0, 64.0), ("mem_total_mb", 2, 64.0)):
        # NVML counts what the driver has reserved as used; nvidia-smi names it by itself.
        far = statistics.median(
            min(
                abs(getattr(reading, name) - _number(told[at])),
                abs(getattr(reading, name) - _number(told[at]) - _number(told[1])),
            )
            for reading, told in seen
        )
        section.check(f"{name} is nvidia-smi's", f"{far:.0f} MiB apart", far <= allowed)
    loads = [(each.utilization_pct, told[3]) for each, told in seen]
    told = [(ours, _number(theirs)) for ours, theirs in loads if ours is not None]
    if told:
        far = abs(statistics.mean(a for a, _ in told) - statistics.mean(b for _, b in told))
        section.check("utilization is nvidia-smi's", f"{far:.0f} points apart", far <= 25)
    else:
        supported = any(theirs.replace(".", "").isdigit() for _, theirs in loads)
        section.check("utilization is told by neither", loads, not supported)
    after = [float(used) for (used,) in nvidia_smi("memory.used")]
    for index, (was, now) in enumerate(zip(before, after, strict=True)):
        if index != chosen:
            section.check(f"GPU {index} is not used", f"{now - was:+.0f} MiB", now - was <= 50)


def nvidia_smi(*fields: str) -> list[list[str]]:
    """These fields of each GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line]


def _number(cell: str) -> float:
    """What `nvidia-smi` says; 0 where it says `[N/A]`."""
    try:
        return float(cell)
    except ValueError:
        return 0.0


def _ready(setting: Setting) -> float:
    """Seconds until an engine is loaded and warm."""
    began = time.perf_counter()
    setting.engine(next(iter(setting.formats)))
    return round(time.perf_counter() - began, 2)


def _heard(engine: WhisperEngine, clip: Clip, timestamps: Any = "none") -> Utterance:
    return engine.transcribe(clip[1], Options(language=clip[0].language, timestamps=timestamps))


def _text(utterance: Utterance) -> str:
    return " ".join(segment.text for segment in utterance.segments)


def _words(utterance: Utterance) -> list[tuple[str, float, float]]:
    return [
        (word.word, word.start, word.end)
        for segment in utterance.segments
        for word in segment.words
    ]


def _wer(texts: Sequence[str], heard: Sequence[Utterance], clips: Sequence[Clip]) -> float:
    """Of 100 words of the texts, how many were heard otherwise."""
    counts = [
        word_errors(text, _text(one), clip.language)
        for text, one, (clip, _) in zip(texts, heard, clips, strict=True)
    ]
    total = sum(count.words for count in counts)
    return round(100 * sum(count.errors for count in counts) / max(1, total), 2)


@dataclass(frozen=True)
class What:
    """A section. `seconds`: the most that it may take; `gpu`: it says nothing of a CPU."""

    run: Callable[[Section, Setting], None]
    seconds: float
    gpu: bool = False


# In ten minutes all of them.
SECTIONS = {
    "start": What(start, 60, gpu=True),
    "formats": What(formats, 70),
    "encoding": What(encoding, 70),
    "words": What(words, 50),
    "windows": What(windows, 40),
    "memory": What(memory, 60),
    "gauges": What(gauges, 30, gpu=True),
    "throughput": What(throughput, 190),
}


def main(name: str, setting: Setting, file: Path) -> None:
    """Run a section; its results are in the file, also if it does not come to its end."""
    section = Section(name, keep=lambda kept: report.write(file, kept.as_dict()))
    SECTIONS[name].run(section, setting)
    section.settle()
    section.keep(section)


if __name__ == "__main__":
    main(sys.argv[1], Setting.of(sys.argv[2]), Path(sys.argv[3]))
