"""The same alert rules in seconds instead of hours, so that a test can see them come and go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION = r"\d+[smhdwy]"
# In an expression durations are ranges, steps of subqueries, or offsets.
_IN_RANGE = re.compile(rf"\[({_DURATION})(:{_DURATION})?\]")
_IN_OFFSET = re.compile(rf"\boffset ({_DURATION})")


@dataclass(frozen=True)
class Scale:
    """How times become shorter: divided, and then within bounds.

    Attributes:
        factor: what an hour becomes a `factor`-th of.
        least: seconds of the shortest range; some scrapes must fit in.
        most: seconds of the longest range or offset.
        wait: seconds of the shortest `for`, so that an alert is seen pending.
    """

    factor: float = 300.0
    least: int = 5
    most: int = 30
    wait: int = 2

    def window(self, duration: str) -> str:
        return f"{min(max(round(seconds(duration) / self.factor), self.least), self.most)}s"

    def hold(self, duration: str) -> str:
        return f"{min(max(round(seconds(duration) / self.factor), self.wait), self.most)}s"

    def expression(self, expression: str) -> str:
        def shorter(match: re.Match[str]) -> str:
            return f"[{self.window(match[1])}{':1s' if match[2] else ''}]"

        expression = _IN_RANGE.sub(shorter, expression)
        return _IN_OFFSET.sub(lambda match: f"offset {self.window(match[1])}", expression)


FAST = Scale()


def seconds(duration: str) -> int:
    """Of one unit, as the rules here write it: `5m`.

    Raises:
        ValueError: it is written in another way.
    """
    if not re.fullmatch(_DURATION, duration):
        raise ValueError(f"not a duration of one unit: {duration}")
    return int(duration[:-1]) * SECONDS[duration[-1]]


def shorten(rules: Path, into: Path, scale: Scale = FAST) -> list[Path]:
    """Write every rule file of a folder into another one, with shorter times and nothing else new.

    Names stay as they are: `...rate1h` is then over some seconds.
    """
    into.mkdir(parents=True, exist_ok=True)
    written = []
    for file in sorted(rules.glob("*.yml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            _shorten_group(group, scale)
        target = into / file.name
        target.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        written.append(target)
    return written


def _shorten_group(group: dict[str, Any], scale: Scale) -> None:
    # Then it is evaluated as often as the others.
    group.pop("interval", None)
    for rule in group["rules"]:
        rule["expr"] = scale.expression(rule["expr"])
        if "for" in rule:
            rule["for"] = scale.hold(rule["for"])
