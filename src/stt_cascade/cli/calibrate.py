"""`stt calibrate`: thresholds from labelled clips, and what they are worth."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stt_cascade.cli.measuring import (
    HtmlFile,
    JsonFile,
    LabelledFolder,
    PngFile,
    Stop,
    as_json,
    keep,
    labelled_in,
    measure,
)
from stt_cascade.cli.terminal import Terminal, echo
from stt_cascade.cli.transcribe import CONCURRENCY
from stt_cascade.cli.up import Fallback, FallbackPort, Models, Port, Primary, prepare
from stt_cascade.engine.languages import whisper_code
from stt_cascade.labelled import Labelled

if TYPE_CHECKING:
    from stt_cascade.cli.asking import Asked

# Beyond it nothing is left of the noise, or of the speech.
MOST_DB = 100.0
# All gates off: each clip is answered with the primary's own text.
GATES_OFF: dict[str, object] = {
    "CONF_LOGPROB_THRESHOLD": 0,
    "CONF_LANGPROB_THRESHOLD": 0,
    "MIN_WORDS_FOR_CONF": 0,
    "CONF_WEAKEST_THRESHOLD": 0,
}


def calibrate(
    folder: LabelledFolder,
    target: Annotated[
        str,
        typer.Option(
            help="'fallback': no worse than it alone at the lowest cost; or a share such as '15%': "
            "the fewest errors with at most that many escalations."
        ),
    ] = "fallback",
    noise: Annotated[
        str,
        typer.Option(help="Each clip also with noise, the speech so many dB louder: 10,5,0."),
    ] = "",
    kind: Annotated[
        str,
        typer.Option("--noise-kind", help="shaped or babble, made of the set's clips; or white."),
    ] = "shaped",
    only: Annotated[
        list[str] | None,
        typer.Option("--language", help="Clips of this language only; may be repeated."),
    ] = None,
    forced: Annotated[
        bool, typer.Option("--force-language", help="Send each clip's language along.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="A primary's .env file: compare with the thresholds in force there."),
    ] = None,
    primary: Primary = "base",
    fallback: Fallback = "base",
    models: Models = Path("models"),
    port: Port = 8081,
    fallback_port: FallbackPort = 8082,
    primary_url: Annotated[
        str | None,
        typer.Option(help="Ask this primary, whose thresholds are all 0; start none here."),
    ] = None,
    primary_key: Annotated[
        str | None, typer.Option(envvar="STT_API_KEY", help="Its bearer key.")
    ] = None,
    fallback_url: Annotated[str | None, typer.Option(help="Ask this fallback.")] = None,
    fallback_key: Annotated[
        str | None, typer.Option(envvar="STT_FALLBACK_KEY", help="The fallback's bearer key.")
    ] = None,
    metrics_key: Annotated[
        str | None, typer.Option(help="Key of their metrics, where they want one.")
    ] = None,
    number: Annotated[
        int, typer.Option("--splits", min=2, max=200, help="Of the cross-validation.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, splits and resamples.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=64)] = CONCURRENCY,
    cache: Annotated[
        Path | None, typer.Option(help="Where answers are kept; default: in ~/.cache.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask anew, whatever is kept.")] = False,
    json_file: JsonFile = None,
    html: HtmlFile = None,
    png: PngFile = None,
) -> None:
    """Find the thresholds for a target, from labelled clips and both tiers' own texts of them.

    Starts both tiers like `stt up`, unless --primary-url and --fallback-url name running ones.
    Exit status 1: the thresholds should not be used as they are.
    """

    from stt_cascade.cascade.decision import Policy
    from stt_cascade.cli import asking
    from stt_cascade.cli.endpoint import Endpoint
    from stt_cascade.cli.stack import StackError
    from stt_cascade.config import ConfigError, PrimaryConfig
    from stt_cascade.config_file import load
    from stt_cascade.measure.calibration import analyse
    from stt_cascade.measure.choosing import Target
    from stt_cascade.measure.noise import KINDS
    from stt_cascade.measure.routing import Clips
    from stt_cascade.measure.versions import Sound
    from stt_cascade.measure.versions import versions as versions_of

    try:
        wanted = Target.parse(target)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--target") from None
    if kind not in KINDS:
        raise typer.BadParameter(f"allowed are {', '.join(KINDS)}", param_hint="--noise-kind")
    if (primary_url is None) != (fallback_url is None):
        raise typer.BadParameter("--primary-url and --fallback-url belong together")
    try:
        now = None if against is None else Policy.of(load(PrimaryConfig, against))
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--against") from None
    clips = _clips(folder, only or [])
    versions = versions_of(clips, _levels(noise), forced=forced, seed=seed)
    sound = Sound(folder, clips, kind, seed)
    answers = cache or _cache()

    def known(tiers: Sequence[asking.Identity]) -> Asked:
        with Terminal(stderr=True).status("Reading the clips"):
            return asking.Asked(versions, sound, tiers, answers, fresh)

    async def ask(stop: Stop) -> Asked:
        if primary_url is not None and fallback_url is not None:
            ends = Endpoint(primary_url, primary_key), Endpoint(fallback_url, fallback_key)
            asked = known(await asking.running(ends, metrics_key))
            await _ask(asked, stop, ends, concurrency)
            return asked
        asked = known([asking.started_here(each, stack.weights(each)) for each in stack.recipes])
        if asked.missing:
            async with stack:
                ends = (
                    Endpoint(stack.url, stack.key),
                    Endpoint(stack.fallback_url, stack.fallback_key),
                )
                try:
                    await _ask(asked, stop, ends, concurrency)
                finally:
                    stack.check()  # a tier that has ended says why it has
        return asked

    if primary_url is None:
        stack = prepare(
            primary,
            fallback,
            models,
            port=port,
            fallback_port=fallback_port,
            primary_settings=GATES_OFF,
            tell=_tell,
        )
    try:
        asked = measure(ask)
    except asking.WrongTier as error:
        raise typer.BadParameter(str(error)) from None
    except (asking.Unusable, StackError) as error:
        echo(error, err=True)
        raise typer.Exit(1) from None
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{folder}: {error}") from None
    clips_heard = asking.routable(asked.heard(), folder)
    if not any(clip.words for clip in clips_heard):
        echo("No clip has answers of both tiers, so there is nothing to calibrate.", err=True)
        raise typer.Exit(1)
    report = {
        # Not as it was typed: there may be keys in it.
        "command": shlex.join(
            [
                *("stt", "calibrate", str(folder), "--target", target),
                *(["--noise", noise, "--noise-kind", kind] if noise else []),
                *(word for code in only or () for word in ("--language", code)),
                *(["--force-language"] if forced else []),
                *("--splits", str(number), "--seed", str(seed)),
            ]
        ),
        "tiers": dict(zip(asking.NAMES, asked.models(), strict=True)),
        "versions": len(versions),
        "missing": len(versions) - len(clips_heard),
        "failed": [
            {"file": str(each.clip.file), "snr": each.snr, "error": error}
            for each, error in asked.failed.items()
        ],
        **analyse(Clips(clips_heard), wanted, number=number, seed=seed, now=now),
    }
    _show(report, json_file, html, png)


async def _ask(asked: Asked, stop: Stop, tiers: Sequence[Any], concurrency: int) -> None:
    """Ask for what is missing, with a progress bar on a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Terminal(stderr=True)
    with Progress(
        TextColumn("asking both tiers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=asked.missing)
        await asked.ask(stop, tiers, concurrency, lambda: progress.advance(task))


def _show(
    report: dict[str, Any], json_file: Path | None, html: Path | None, png: Path | None
) -> None:
    """Print it, and write what is wanted.

    Raises:
        typer.Exit: 1, if the thresholds should not be used.
    """
    from rich.table import Table
    from rich.text import Text

    from stt_cascade.measure import calibration_text as text

    if report["missing"]:
        report["warnings"].insert(
            0, f"{report['missing']} of {report['versions']} clips have no answers of both tiers."
        )
    kept = keep((json_file, lambda: as_json(report)))
    if html is not None or png is not None:
        from stt_cascade.measure import calibration_page, page

        figure = calibration_page.picture(report)
        kept &= keep(
            (html, lambda: calibration_page.whole_page(report, figure).html()),
            (png, lambda: page.png(figure)),
        )
    console = Terminal()
    for sentence in text.sentences(report):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for warning in report["warnings"]:
        console.print(Text("Warning:", "yellow"), warning, highlight=False, soft_wrap=True)
    for failure in report["failed"][:10]:
        said = f"{failure['file']}: {failure['error']}"
        console.print(Text("failed", "red"), said, soft_wrap=True)
    for each in text.tables(report):
        table = Table(*each.head, title=each.title, title_justify="left")
        for row in each.rows:
            table.add_row(*row)
        console.print(table)
    echo(text.env(report), nl=False)
    raise typer.Exit(0 if text.good(report) and kept else 1)


def _clips(folder: Path, languages: Sequence[str]) -> list[Labelled]:
    """The manifest's clips of these languages; those where nobody speaks belong to all."""
    clips = labelled_in(folder)
    wanted = {whisper_code(language) or language for language in languages}
    clips = [clip for clip in clips if not wanted or not clip.text or clip.language in wanted]
    if not any(clip.text for clip in clips):
        raise typer.BadParameter(f"{folder}: nobody speaks in any of these clips")
    return clips


def _levels(text: str) -> list[float]:
    try:
        found = list(dict.fromkeys(float(word) for word in text.split(",") if word.strip()))
    except ValueError:
        found = [math.nan]
    if not all(abs(level) <= MOST_DB for level in found):  # no number is not, either
        raise typer.BadParameter(f"{text!r} is no list of dB such as 10,5,0", param_hint="--noise")
    return found


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stt-cascade" / "calibrate"


def _tell(line: str) -> None:
    echo(line, err=True)
