"""`make fuzz`: mutated audio files through a running tier, and what became of them.

The tier is a process of its own, with its own decoding processes and speech detection; only the
engine is a fake. Whatever a file is, its answer must be a text, a 400 or a 413, and the service
must be the same process afterwards, no larger than before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import structlog
import uvicorn

from fakes import FakeEngine
from mutations import Mutant, Source, mutant, sources
from running import TRANSCRIBE, fallback_config, until
from stt_cascade.audio.decoders import Decoders
from stt_cascade.engine.protocol import Clip, Options, Samples, Span, Utterance
from stt_cascade.errors import Refusal
from stt_cascade.http.app import create_app
from stt_cascade.http.protocol import Protocol
from stt_cascade.telemetry import logs

CALLERS = 4
# Longer than the deadline of a request: who gets no answer until then gets none.
HANGS_S = 90.0
# Memory of all processes of the tier together is looked at so often, and compared by its least: the
# most is a matter of which files come at the same time. What comes first warms up. Detecting speech
# in the longest clips leaves the service larger by up to 100 MB, once.
LOOKS, WARMING_LOOKS = 40, 10
MAX_GROWTH_BYTES = 200 * 1024 * 1024
# How many of the slowest files are measured once more, alone.
SLOWEST = 5
ALLOWED = {(400, "invalid_audio"), (413, "audio_too_long"), (413, "payload_too_large")}
# Of a decoder's death, in the message for the caller and in the log.
ENDED = "a file ended its decoder"
UNEXPECTED = "decoding failed in an unexpected way"


class Forgetful(FakeEngine):
    """Keeps nothing of what it hears: a million files must not make the service grow."""

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        return self._utterance(Clip(samples, (Span(0, len(samples)),)), options)


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        answer: the status, and of an error its message without its numbers.
        complaint: what is wrong with that; empty: nothing.
    """

    mutant: Mutant
    answer: str
    seconds: float
    complaint: str = ""


@dataclass
class Report:
    """What became of all of them.

    Attributes:
        failures: what must not be, a sentence each.
    """

    answers: Counter[str] = field(default_factory=Counter)
    slowest: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    growth_bytes: int = 0


def send(client: httpx2.Client, file: Mutant) -> Outcome:
    """One file, and what is wrong with its answer."""
    began = time.monotonic()
    # The type says nothing, so that only the name can mean G.722.
    part = (file.name, file.data, "application/octet-stream")
    try:
        response = client.post(TRANSCRIBE, files={"audio": part})
    except httpx2.HTTPError as error:
        answer = type(error).__name__
        return Outcome(file, answer, time.monotonic() - began, f"no answer: {error!r}")
    seconds = time.monotonic() - began
    if response.status_code == 200:
        return Outcome(file, "200", seconds)
    refusal = response.json()["error"]
    answer = f"{response.status_code} {re.sub(r'[0-9]+', 'N', refusal['message'])}"
    known = (response.status_code, refusal["type"]) in ALLOWED
    return Outcome(file, answer, seconds, "" if known else f"answered {response.status_code}")


def fuzz(
    url: str, pid: int, seed: int, numbers: Sequence[int], originals: Sequence[Source], keep: Path
) -> Report:
    """Send the mutants of these numbers, several at once.

    Args:
        pid: of the service; it and its children are watched.
        keep: where a file goes whose answer must not be.
    """
    report = Report()
    sizes: list[int] = []
    client = httpx2.Client(base_url=url, timeout=HANGS_S, trust_env=False)
    with client, ThreadPoolExecutor(CALLERS) as callers:
        for done, outcome in enumerate(
            callers.map(lambda number: send(client, mutant(seed, number, originals)), numbers)
        ):
            report.answers[outcome.answer] += 1
            report.slowest.append(outcome)
            report.slowest.sort(key=lambda each: -each.seconds)
            del report.slowest[SLOWEST:]
            if outcome.complaint:
                kept = keep / f"{seed}-{numbers[done]}"
                kept.write_bytes(outcome.mutant.data)
                report.failures.append(f"{outcome.mutant.name}: {outcome.complaint}; see {kept}")
            if done % max(1, len(numbers) // LOOKS) == 0:
                sizes.append(resident(pid))
        try:
            client.get("/v1/health").raise_for_status()
        except httpx2.HTTPError as error:
            report.failures.append(f"the service does not work afterwards: {error!r}")
    report.growth_bytes = growth(sizes)
    if report.growth_bytes > MAX_GROWTH_BYTES:
        report.failures.append(f"the tier grew by {report.growth_bytes >> 20} MiB")
    return report


def growth(sizes: Sequence[int]) -> int:
    """Bytes by which the later ones of these are above the earlier ones, once warm."""
    warm = sizes[WARMING_LOOKS:]
    half = len(warm) // 2
    return min(warm[half:]) - min(warm[:half]) if half else 0


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children have; 0 of one that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(child) for child in children)


@contextmanager
def tier(log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A tier as a process of its own: its address, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdout=output,
        )
    try:
        with httpx2.Client(base_url=url, timeout=HANGS_S, trust_env=False) as client:
            until(lambda: client.get("/v1/ready").status_code == 200, "the tier is ready")
        yield url, process
    finally:
        process.terminate()
        process.wait()


def serve(descriptor: int) -> None:
    logs.configure("json")
    config = fallback_config(vad=True, rate_limit_rps=1e6, rate_limit_burst=1_000_000)
    app = create_app(config, Forgetful())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=Protocol))
    server.run([socket.socket(fileno=descriptor)])


def events(log: Path) -> Iterator[dict[str, str]]:
    """The tier's log lines."""
    with log.open(encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def processor_seconds(file: Mutant) -> str:
    """What decoding it takes of a process of its own, and how that ends."""
    one = Decoders(1)
    one.start()
    process = one._idle.get()
    assert process is not None
    one._idle.put(process)
    statistics = Path(f"/proc/{process._child.pid}/stat")

    def used() -> float:
        fields = statistics.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    try:
        heard = one.decode(file.data, raw_g722=file.name.endswith(".g722"), max_seconds=600)
        how = f"{len(heard.samples) / 16_000:.1f} s of audio"
    except Refusal as refusal:
        how = refusal.message
    try:
        return f"{used() - before:.2f} s of processor time, {how}"
    except OSError:
        return how
    finally:
        one.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--keep", type=Path, help="where failing files go; default: a new folder")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return 0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    keep = options.keep or Path(tempfile.mkdtemp(prefix="stt-fuzz-"))
    log = keep / "tier.log"
    originals = sources()
    print(f"==> {options.count} files made of {len(originals)}, seed {options.seed}; log: {log}")
    began = time.monotonic()
    with tier(log) as (url, process):
        pid = process.pid
        report = fuzz(url, pid, options.seed, range(options.count), originals, keep)
        if process.poll() is not None:
            report.failures.append(f"the service ended with status {process.returncode}")
    seen = Counter(event["message"] for event in events(log))
    for answer, times in report.answers.most_common():
        print(f"{times:7} {answer}")
    print(f"decoders that died: {seen[ENDED]}; unexpected errors in them: {seen[UNEXPECTED]}")
    print(f"the tier grew by {report.growth_bytes / 2**20:.1f} MiB; its process is still {pid}")
    for outcome in report.slowest:
        print(f"{outcome.seconds:.2f} s: {outcome.mutant.name}, {len(outcome.mutant.data)} bytes")
        print(f"        alone: {processor_seconds(outcome.mutant)}")
    print(f"{time.monotonic() - began:.0f} s")
    for failure in report.failures:
        print(f"FAILED: {failure}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
