"""What a tier said to a clip, kept so that nobody has to ask again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stt_cascade.cascade.confidence import Scores
from stt_cascade.cascade.decision import TUNABLE
from stt_sdk import Transcription

# Such an answer has the text of another tier, whatever the thresholds.
NOT_ITS_OWN = ("language", "primary_error", "low_confidence")


class ForeignText(Exception):
    """A tier gave another one's text, because it doubted its own."""


@dataclass(frozen=True)
class Heard:
    """A tier's own text of a clip, how sure it was, and what it cost.

    Attributes:
        language_probability: None unless the language was detected.
        logprob, weakest: None where nobody speaks.
        reason: as the service gives it; see `NOT_ITS_OWN`.
        infer_ms: of the inference; 0 where there was none.
    """

    text: str
    language: str | None
    language_probability: float | None
    logprob: float | None
    weakest: float | None
    words: int
    reason: str
    infer_ms: float
    model: str

    @classmethod
    def of(cls, answer: Transcription) -> Heard:
        """Read an answer.

        Raises:
            ForeignText: it is not the text of the tier that was asked.
        """
        by_threshold = [gate for gate in answer.routing.below if gate in TUNABLE]
        if answer.routing.reason == "low_confidence" and by_threshold:
            raise ForeignText("it escalates by thresholds (" + ", ".join(by_threshold) + ")")
        times, own = answer.timings_ms, answer.routing.tier == "primary"
        return cls(
            text=answer.text,
            language=answer.language,
            language_probability=answer.language_probability,
            logprob=answer.confidence.logprob,
            weakest=answer.confidence.weakest,
            words=answer.confidence.words,
            reason=answer.routing.reason,
            infer_ms=(
                times.primary_infer
                if own or answer.routing.reason in NOT_ITS_OWN
                else times.fallback_infer
            )
            or 0.0,
            model=answer.model,
        )

    @property
    def own(self) -> bool:
        """Whether it is the tier's own text."""
        return self.reason not in NOT_ITS_OWN

    @property
    def scores(self) -> Scores | None:
        """What the gates look at; None: they were not asked."""
        if not self.own or self.logprob is None or self.weakest is None:
            return None
        return Scores(self.logprob, self.weakest, self.words, self.language_probability)


def key(audio: bytes, language: str | None) -> str:
    """What an answer depends on besides the tier.

    Args:
        language: that was sent along.
    """
    return f"{hashlib.sha256(audio).hexdigest()} {language or 'auto'}"


class Answers:
    """One tier's answers in a file, a line each, written as they come.

    The texts are what people said: the folder is for its owner alone.

    Args:
        folder: is made if it is not there.
        tier: whatever makes another tier of it: model, settings, versions.
    """

    def __init__(self, folder: Path, tier: Mapping[str, object]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = hashlib.sha256(json.dumps(tier, sort_keys=True).encode()).hexdigest()[:16]
        self.file = folder / f"{name}.jsonl"
        self._known: dict[str, Heard] = {}
        self._complete = True
        if self.file.exists():
            lines = self.file.read_bytes()
            self._complete = lines.endswith(b"\n")
            for line in lines.splitlines():
                # The last one of a run that was cut off, and the first one, which names the tier.
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    self._known[entry["key"]] = Heard(**entry["heard"])
        else:
            self._append({"tier": dict(tier)})

    def get(self, key: str) -> Heard | None:
        return self._known.get(key)

    def put(self, key: str, heard: Heard) -> None:
        self._append({"key": key, "heard": asdict(heard)})
        self._known[key] = heard

    def _append(self, entry: Mapping[str, object]) -> None:
        line = ("" if self._complete else "\n") + json.dumps(entry, ensure_ascii=False) + "\n"
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # In one piece, so that two runs at a time do not mix.
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        self._complete = True
