"""Both tiers asked for their own texts of all clips, once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stt_cascade.cascade.decision import Opinion
from stt_cascade.cli.endpoint import Endpoint
from stt_cascade.cli.hardware import Recipe
from stt_cascade.cli.measuring import Stop
from stt_cascade.labelled import word_errors
from stt_cascade.measure.answers import Answers, ForeignText, Heard, key
from stt_cascade.measure.routing import Routable
from stt_cascade.measure.versions import Sound, Version
from stt_sdk import Clip, STTClient, STTError, UnauthorizedError

Identity = dict[str, object]
# Clips that one tier is asked before it is the other's turn: what is asked in an interrupted run
# is then complete, and a tier that is alone on the machine shows what it costs.
TURN = 16
# A tier that fails so often in a row is not asked any more.
MOST_FAILURES = 16
NAMES = ("primary", "fallback")
OFF = {"logprob": 0, "langprob": 0, "words": 0, "weakest": 0}
# What decides on a text and its scores besides weights and settings.
ROOMS = (
    *("config.py", "audio", "engine", "answer.py"),
    *("cascade/hearing.py", "cascade/recognise.py", "cascade/confidence.py"),
)


class Unusable(Exception):
    """A tier cannot be asked; the message says why."""


class WrongTier(Unusable):
    """A tier does not answer each clip with its own text; the message says what to do."""


class Asked:
    """What both tiers said, by version: from the cache, or asked now.

    Args:
        tiers: what the answers of each depend on, the primary's first.
        cache: folder of all answers.
        fresh: ask anew, whatever is in it.

    Raises:
        OSError, ValueError: as `Sound.of`.
    """

    def __init__(
        self,
        all_: Sequence[Version],
        sound: Sound,
        tiers: Sequence[Identity],
        cache: Path,
        fresh: bool,
    ) -> None:
        self.failed: dict[Version, str] = {}
        self._failures = [0] * len(tiers)  # in a row
        self._sound = sound
        self._answers = [Answers(cache, tier) for tier in tiers]
        # A clip's versions in a row, since decoding it takes longest.
        files = sorted(all_, key=lambda each: each.clip.file)
        keys = {each: key(sound.of(each), each.language) for each in files}
        self._keys = {each: keys[each] for each in all_}
        self._missing = [
            [each for each in all_ if fresh or answers.get(self._keys[each]) is None]
            for answers in self._answers
        ]
        self._answered = [len(missing) < len(all_) for missing in self._missing]

    @property
    def missing(self) -> int:
        """Answers that are not there yet."""
        return sum(map(len, self._missing))

    def heard(self) -> Iterator[tuple[Version, Heard, Heard]]:
        """What is known of both tiers."""
        for version_, name in self._keys.items():
            mine, theirs = (answers.get(name) for answers in self._answers)
            if version_ not in self.failed and mine is not None and theirs is not None:
                yield version_, mine, theirs

    def models(self) -> list[str]:
        """The model of each tier, as its answers name it."""
        first = next(self.heard(), None)
        return ["", ""] if first is None else [first[1].model, first[2].model]

    async def ask(
        self,
        stop: Stop,
        tiers: Sequence[Endpoint],
        concurrency: int,
        advance: Callable[[], None],
    ) -> None:
        """Ask for what is missing, the tiers in turns.

        Raises:
            Unusable, WrongTier: a tier answers nothing, or not with its own texts.
        """
        left = [list(missing) for missing in self._missing]
        while any(left) and not stop.asked:
            # Both are asked for the same clips, whichever lacks them.
            turn = set(list(dict.fromkeys(each for missing in left for each in missing))[:TURN])
            for n, tier in enumerate(tiers):
                if stop.asked:
                    return
                now = [each for each in left[n] if each in turn]
                left[n] = [each for each in left[n] if each not in turn]
                await self._ask(n, tier, now, stop, concurrency, advance)

    async def _ask(
        self,
        n: int,
        tier: Endpoint,
        now: Sequence[Version],
        stop: Stop,
        concurrency: int,
        advance: Callable[[], None],
    ) -> None:
        last = ""
        clips = (Clip(self._sound.source(each), each.language) for each in now)
        async with STTClient(tier.url, api_key=tier.key) as client:
            asked = client.transcribe_many(clips, concurrency=concurrency)
            async with aclosing(asked):
                async for outcome in asked:
                    each = now[outcome.index]
                    if outcome.error is None:
                        try:
                            heard = Heard.of(outcome.result)
                        except ForeignText as error:
                            raise _foreign(NAMES[n], tier.url, str(error)) from error
                        self._answers[n].put(self._keys[each], heard)
                        self._answered[n], self._failures[n] = True, 0
                    else:
                        last = f"{NAMES[n]}: {outcome.error}"
                        self.failed[each] = last
                        self._failures[n] += 1
                    advance()
                    if stop.asked:
                        return
        if now and (not self._answered[n] or self._failures[n] >= MOST_FAILURES):
            raise Unusable(f"{self._failures[n]} calls in a row failed at {tier.url}; {last}")


async def running(tiers: Sequence[Endpoint], metrics_key: str | None) -> list[Identity]:
    """What the answers of tiers depend on that run already, as far as they say so.

    Raises:
        Unusable, WrongTier: one does not answer, or would answer with another tier's texts.
    """
    return [
        await _running(name, tier, metrics_key) for name, tier in zip(NAMES, tiers, strict=True)
    ]


async def _running(name: str, tier: Endpoint, metrics_key: str | None) -> Identity:
    try:
        async with STTClient(tier.url, api_key=tier.key) as client:
            health = await client.health()
        async with STTClient(tier.url, api_key=metrics_key) as client:
            thresholds = (await client.metrics()).get("thresholds", "unknown")
    except UnauthorizedError as error:
        raise Unusable(
            f"the {name} at {tier.url} shows its thresholds only to holders of a key of "
            "METRICS_KEYS: --metrics-key"
        ) from error
    except (STTError, ValueError) as error:
        raise Unusable(f"the {name} at {tier.url}: {error}") from error
    # A fallback has none.
    if thresholds is not None and thresholds != OFF:
        raise _foreign(name, tier.url, f"its thresholds are {_shown(thresholds)}")
    return {
        "url": tier.url,
        "model": health.model,
        "device": health.device,
        "commit": health.commit,
        "version": health.version,
    }


def routable(heard: Iterable[tuple[Version, Heard, Heard]], folder: Path) -> list[Routable]:
    """What both tiers said, counted."""
    return [_routable(each, mine, theirs, folder) for each, mine, theirs in heard]


def _routable(version_: Version, mine: Heard, theirs: Heard, folder: Path) -> Routable:
    clip = version_.clip
    # A text that another tier gave is none of the primary's.
    own = word_errors(clip.text, mine.text if mine.own else "", clip.language)
    other = word_errors(clip.text, theirs.text, clip.language)
    language = clip.language if clip.text else ""
    return Routable(
        group=f"speaker {clip.speaker}" if clip.speaker else os.path.relpath(clip.file, folder),
        stratum=f"{clip.source} {language}",
        language=language,
        snr=version_.snr,
        words=own.words,
        scores=mine.scores,
        always=not mine.own,
        ours=Opinion.of(mine.text, mine.language, mine.weakest),
        theirs=Opinion.of(theirs.text, theirs.language, theirs.weakest),
        primary_errors=own.errors,
        fallback_errors=other.errors,
        primary_ms=mine.infer_ms,
        fallback_ms=theirs.infer_ms,
    )


def started_here(recipe: Recipe, weights: Path) -> Identity:
    """What the answers of a tier depend on that `stt up` would start so."""
    room = Path(__file__).parents[1]
    code = hashlib.sha256()
    for name in ROOMS:
        for file in sorted([room / name] if name.endswith(".py") else (room / name).rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                code.update(file.read_bytes())
    return {
        "settings": recipe.settings(),
        "model": recipe.model,
        "weights": {
            file.name: [file.stat().st_size, file.stat().st_mtime_ns]
            for file in sorted(weights.iterdir())
        },
        "engine": {name: version(name) for name in ("ctranslate2", "faster-whisper")},
        "code": code.hexdigest(),
    }


def _foreign(name: str, url: str, how: str) -> WrongTier:
    return WrongTier(
        f"the {name} at {url} does not answer each clip with its own text: {how}. Run it for this "
        "with CONF_LOGPROB_THRESHOLD=0, CONF_LANGPROB_THRESHOLD=0, MIN_WORDS_FOR_CONF=0 and "
        "CONF_WEAKEST_THRESHOLD=0, or leave the addresses out: then both tiers are started here"
    )


def _shown(thresholds: Any) -> str:
    if not isinstance(thresholds, dict):
        return str(thresholds)
    return ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
