"""What services count, from one look to the next: their Prometheus series as increments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from stt_cascade.errors import FAILURES
from stt_cascade.measure.compare import Histogram

TRANSCRIBE = "/v1/transcribe"
LATENCY = "stt_request_total_seconds_bucket"
SECONDS = "stt_request_total_seconds_sum"
FALLBACK = "stt_fallback_total"
REQUESTS = "stt_requests_total"
ERRORS = "stt_requests_exceptions_total"
DISAGREEMENT = "stt_shadow_disagreement_bucket"
AUDIO = "stt_audio_seconds_total"
NAMES = (LATENCY, SECONDS, FALLBACK, REQUESTS, ERRORS, DISAGREEMENT, AUDIO)
# The label of each that tells its series apart.
LABELS = {LATENCY: "le", FALLBACK: "result", ERRORS: "type", DISAGREEMENT: "le"}
# Texts that differ in more than this share of their words disagree.
DISAGREES = 0.2

# Name and the label that matters: its counter.
Sample = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Silence:
    """There is no sample of an instance, and why."""

    why: str


Looked = Mapping[str, Sample | Silence]


def series(name: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
    """The key of a series in a sample; None: it is of no interest."""
    if name not in NAMES or labels.get("endpoint", TRANSCRIBE) != TRANSCRIBE:
        return None
    return name, labels.get(LABELS.get(name, ""), "")


def increase(before: Sample, after: Sample) -> tuple[Sample, bool]:
    """What was counted between two samples of one instance, and whether it began anew.

    It did if any counter has fallen: then all of them began at 0. What it counted between the
    first sample and its end is lost.
    """
    anew = any(value < before.get(key, 0.0) for key, value in after.items())
    since: Sample = {} if anew else before
    return {key: value - since.get(key, 0.0) for key, value in after.items()}, anew


@dataclass(frozen=True)
class Tally:
    """What was counted in some time; zero where a service has no such counter."""

    counted: Sample = field(default_factory=dict)

    def __sub__(self, other: Tally) -> Tally:
        return Tally({key: n - other.counted.get(key, 0.0) for key, n in self.counted.items()})

    def __add__(self, other: Sample) -> Tally:
        total: Counter[tuple[str, str]] = Counter()
        for one in (self.counted, other):
            for key, value in one.items():
                total[key] += value  # type: ignore[assignment]  # a Counter takes floats as well
        return Tally(dict(total))

    @cached_property
    def latency(self) -> Histogram:
        """Of answers with a text, seconds."""
        return Histogram(self._buckets(LATENCY), self.counted.get((SECONDS, "")))

    @property
    def answered(self) -> float:
        return self.latency.total

    @property
    def requests(self) -> float:
        return self.counted.get((REQUESTS, ""), 0.0)

    @property
    def faults(self) -> float:
        """Requests that the service failed, as the objective of availability counts them."""
        return sum(self.counted.get((ERRORS, kind), 0.0) for kind in FAILURES)

    @property
    def served(self) -> float:
        """The requests that the objective counts: those with a text, and those that failed."""
        return self.answered + self.faults

    @property
    def decided(self) -> float:
        """Requests that reached a decision."""
        return sum(count for (name, _), count in self.counted.items() if name == FALLBACK)

    @property
    def failed(self) -> float:
        """Of these: the fallback was needed and gave no text."""
        return self.counted.get((FALLBACK, "failed"), 0.0)

    @property
    def escalated(self) -> float:
        """Of these: the fallback was needed."""
        return self.failed + self.counted.get((FALLBACK, "used"), 0.0)

    @cached_property
    def compared(self) -> float:
        """Accepted texts that were compared with the fallback's."""
        buckets = self._buckets(DISAGREEMENT)
        return buckets[-1][1] if buckets else 0.0

    @cached_property
    def disagreeing(self) -> float:
        """Of these: they differ in more than `DISAGREES` of their words."""
        below = [count for bound, count in self._buckets(DISAGREEMENT) if bound <= DISAGREES]
        return self.compared - (below[-1] if below else 0.0)

    @property
    def shadowed(self) -> bool:
        """Whether the service has that counter at all."""
        return any(name == DISAGREEMENT for name, _ in self.counted)

    @property
    def mean_seconds(self) -> float | None:
        """Of audio, by request that reached a decision."""
        return self.counted.get((AUDIO, ""), 0.0) / self.decided if self.decided else None

    def _buckets(self, name: str) -> Sequence[tuple[float, float]]:
        found = sorted((float(le), n) for (of, le), n in self.counted.items() if of == name)
        return found if found and math.isinf(found[-1][0]) else []


@dataclass
class Side:
    """Baseline or canary: its instances, and what they counted since the watch began.

    Attributes:
        total: of all of them.
        restarts: of all of them.
        well: how many of them told their counts at the last look.
        silent: for how many looks in a row each of the others has been silent, and why.
    """

    total: Tally = field(default_factory=Tally)
    restarts: int = 0
    well: int = 0
    silent: dict[str, tuple[int, str]] = field(default_factory=dict)
    _last: dict[str, Sample] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Of all instances that were seen."""
        return {*self._last, *self.silent}

    def take(self, looked: Looked) -> None:
        """A look. Counters go on counting while nobody looks, so that a gap loses nothing."""
        self.silent = {
            name: (self.silent.get(name, (0, ""))[0] + 1, found.why)
            for name, found in looked.items()
            if isinstance(found, Silence)
        }
        self.well = len(looked) - len(self.silent)
        for name, found in looked.items():
            if isinstance(found, Silence):
                continue
            # What it counted before it was seen first belongs to others.
            gained, anew = increase(self._last.get(name, found), found)
            self._last[name] = found
            self.total += gained
            self.restarts += anew
