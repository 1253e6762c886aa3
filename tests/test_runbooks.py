"""`make runbooks` in short, and that pages, rows and alerts belong together."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import yaml

from deploy import engines
from faults.report import Report
from pages import named
from runbooks.page import ALERT, FOLDER, OPERATION, Block, Page, commands, matches, settings
from runbooks.rows import ROWS
from runbooks.shift import Row, Shift, run

RULES = engines.ROOT / "deploy" / "prometheus" / "rules"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
INDEX = "docs/runbooks/README.md"


def alerts() -> dict[str, set[str]]:
    """The pages that each alert leads to."""
    found: dict[str, set[str]] = {}
    for file in RULES.glob("*.yml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    runbook = rule["annotations"]["runbook"]
                    found.setdefault(rule["alert"], set()).add(runbook)
    return found


@pytest.mark.parametrize("row", [row for row in ROWS if row.short], ids=lambda row: row.page)
@pytest.mark.engines
@pytest.mark.process
def test_a_page_that_is_followed_leads_out_of_its_fault(row: Row) -> None:
    if missing := [name for name in row.needs if name in engines.missing()]:
        pytest.skip(f"not installed: {', '.join(missing)}; `make check-deploy` installs it")
    report = asyncio.run(run(row))
    assert report.holds, [str(check) for check in report.checks]


def test_every_page_is_followed_by_a_row_and_every_row_follows_a_page() -> None:
    assert sorted(row.page for row in ROWS) == PAGES


def test_every_alert_leads_to_the_page_that_has_it_in_its_title() -> None:
    assert alerts()
    for alert, leads_to in alerts().items():
        (path,) = leads_to
        assert alert in Page.read(Path(path).stem).alerts, f"{alert}: {path}"
        assert path == f"docs/runbooks/{Path(path).name}"


def test_every_alert_is_seen_firing_by_its_pages_row() -> None:
    rows = {alert: row.page for row in ROWS for alert in row.alerts}
    assert rows == {alert: Path(next(iter(path))).stem for alert, path in alerts().items()}


def test_a_title_names_the_alerts_of_its_row() -> None:
    for row in ROWS:
        assert Page.read(row.page).alerts == set(row.alerts), row.page


def test_every_page_tells_all_there_is_to_tell_in_that_order() -> None:
    for name in PAGES:
        page = Page.read(name)
        expected = ALERT if page.alerts else OPERATION
        assert page.headings == list(expected), name


def test_every_page_and_alert_is_in_the_index() -> None:
    assert sorted(named(INDEX, "## Alerts")) == sorted(alerts())
    text = (engines.ROOT / INDEX).read_text()
    for name in PAGES:
        assert f"({name}.md)" in text


def test_the_way_back_has_the_same_name_wherever_it_is_told() -> None:
    docs = engines.ROOT / "docs"
    told = {
        release
        for path in docs.rglob("*.md")
        for release in re.findall(r"helm rollback ([\w-]+)", path.read_text(encoding="utf-8"))
    }
    installed = re.findall(r"helm upgrade --install ([\w-]+)", (docs / "deploy.md").read_text())
    assert told == set(installed)


def test_every_part_of_a_mend_is_tried_or_only_points_elsewhere() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("runbooks/*.py"))
    for name in PAGES:
        page = Page.read(name)
        heading = "How to mend" if page.alerts else "What to do"
        for part in re.findall(r"^### (.+)$", page.section(heading), re.MULTILINE):
            tried = f'"{heading}", "{part}"' in source
            assert tried or not page.blocks(heading, part), f"{name}: {part}"


@pytest.mark.process
def test_a_command_that_shows_something_else_or_fails_is_noticed() -> None:
    row = next(row for row in ROWS if not row.needs)
    page = Page(row.page, "## When\n```console\n$ echo one\none\n$ echo two\nthree\n$ false\n```\n")

    async def follow() -> Report:
        async with Shift(row) as shift:
            shift.page = page
            await shift.do("When")
            return shift.report

    report = asyncio.run(follow())
    assert [check.holds for check in report.checks] == [True, False, False]
    assert not report.holds


@pytest.mark.process
def test_a_row_that_sees_less_than_its_alert_come_and_go_fails() -> None:
    async def nothing(shift: Shift) -> None:
        shift.report.check("something", "seen", True)

    row = Row("breaker-open", "none", nothing, ("SttBreakerOpen",))
    assert not asyncio.run(run(row)).holds


# What reads the pages


PAGE = Page(
    "x",
    """# A title: `SttOne`

## What you see
## How to check

```console
$ first \\
  command
one 1.5 line
$ second
```

## How to mend

### This

```ini
# /opt/stt/stt_primary.env
KEY=a=b
OTHER=1
```

### That

```promql
up
```
""",
)


def test_a_page_is_read_as_it_is_written() -> None:
    assert PAGE.alerts == {"SttOne"}
    (block,) = PAGE.blocks("How to check")
    first, second = commands(block.text)
    assert (first.line.split(), first.shows) == (["first", "command"], ("one 1.5 line",))
    assert (second.line, second.shows) == ("second", ())
    (ini,) = PAGE.blocks("How to mend", "This")
    assert settings(ini.text) == ("primary", {"KEY": "a=b", "OTHER": "1"})
    assert PAGE.blocks("How to mend", "That") == [Block("promql", "up\n")]
    assert len(PAGE.blocks("How to mend")) == 2


def test_a_heading_or_a_file_that_is_not_there_is_noticed() -> None:
    for heading, part in (("How to cook", None), ("How to mend", "Something else")):
        with pytest.raises(LookupError):
            PAGE.blocks(heading, part)
    with pytest.raises(LookupError):
        settings("KEY=value\n")


@pytest.mark.parametrize(
    ("shown", "output", "expected"),
    [
        ('{"ready":true}', '{"ready":true}\n', True),
        ('{"ready":true}', '{"ready":false}\n', False),
        ('"rss_mb":…,"cpu_s":…', '"rss_mb":12.5,"cpu_s":1', True),
        ("7 times in … s", "7 times in 10 s", True),
        ("200", "404", False),
        ("…", "", True),
    ],
)
def test_what_came_back_is_held_against_what_the_page_shows(
    shown: str, output: str, expected: bool
) -> None:
    assert matches(shown, output) is expected
