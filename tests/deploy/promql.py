"""What is in PromQL expressions.

The parser is an engine, so this file is also a program of the engines' own Python: a JSON list of
expressions on standard input, what was found in each on standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Selector:
    """One selector of series.

    Attributes:
        metric: "" where it selects by labels alone.
        labels: name, operator and value of each.
    """

    metric: str
    labels: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Parsed:
    """An expression; `error` says why it is none."""

    error: str = ""
    selectors: list[Selector] = field(default_factory=list)


def parse(expressions: Sequence[str]) -> list[Parsed]:
    """Each of them, by promql-parser.

    Raises:
        MissingEngine: it is not installed.
        subprocess.CalledProcessError: it does not work.
    """
    from deploy import engines

    engines.path("promql-parser")
    done = subprocess.run(
        [engines.PYTHON / "bin/python", Path(__file__)],
        input=json.dumps(list(expressions)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [
        Parsed(each["error"], [Selector(name, labels) for name, labels in each["selectors"]])
        for each in json.loads(done.stdout)
    ]


def _look(expression: str, parser: Any) -> dict[str, Any]:
    found = []

    def visit(node: Any) -> None:
        if isinstance(node, parser.VectorSelector):
            labels = [
                (one.name, OPERATORS[str(one.op)], one.value) for one in node.matchers.matchers
            ]
            found.append((node.name or "", labels))

    try:
        parser.walk(parser.parse(expression), visit)
    except ValueError as error:
        return {"error": str(error), "selectors": []}
    return {"error": "", "selectors": found}


OPERATORS = {
    "MatchOp.Equal": "=",
    "MatchOp.NotEqual": "!=",
    "MatchOp.Re": "=~",
    "MatchOp.NotRe": "!~",
}


def main() -> None:
    import promql_parser

    json.dump([_look(each, promql_parser) for each in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
