"""What a calibration comes to, in sentences, tables and lines for the `.env` file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stt_cascade.cascade.decision import TUNABLE, Gate
from stt_cascade.measure.routing import PICKS

SETTINGS: dict[Gate, str] = {
    "logprob": "CONF_LOGPROB_THRESHOLD",
    "langprob": "CONF_LANGPROB_THRESHOLD",
    "words": "MIN_WORDS_FOR_CONF",
    "weakest": "CONF_WEAKEST_THRESHOLD",
}
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def good(report: Report) -> bool:
    """Whether the thresholds can be used as they are."""
    return bool(
        report["recommended"]["reached"]
        and report["enough"]
        and report["steady"]
        and report["tells"]
        and not report["failed"]
        and not report["missing"]
    )


def sentences(report: Report) -> list[str]:
    """What it comes to, the most important first."""
    chosen, other = report["recommended"], report["other_pick"]
    held = chosen["held"]
    primary, fallback = report["primary"], report["fallback"]
    lines = [
        f"For {report['target']}: {_policy(chosen['thresholds'])}. That escalates "
        f"{_with_interval(chosen['escalation'], 1)} % of clips and has a WER of "
        f"{_with_interval(chosen['wer'])} %; the primary alone has "
        f"{primary['wer']['value']:.2f} %, the fallback alone {fallback['wer']['value']:.2f} %.",
        f"Against the fallback alone {_signed(chosen['minus_fallback'])} points of WER, and "
        f"{chosen['ms']['value']:.0f} ms of inference a clip instead of "
        f"{fallback['ms']['value']:.0f}. {_text_of(chosen['pick'])}",
        f"On held clips, over {held['splits']} splits, the escalation was {held['off']:.1f} points "
        f"off the promised one on average ({held['off_mean']['low']:+.1f} to "
        f"{held['off_mean']['high']:+.1f}), the WER {_signed(held['minus_fallback'])} points "
        "against the fallback's.",
        f"Errors are counted in {report['unit']}.",
    ]
    if (difference := report["best_minus_fallback_pick"]) is not None:
        how = "makes no difference that shows"
        if difference["high"] < 0 or difference["low"] > 0:
            how = "is better" if difference["high"] < 0 else "is worse"
        lines.append(
            f"Answering escalated clips with FINAL_PICK=best {how} on these clips: "
            f"{_signed(difference)} points of WER at the same thresholds."
        )
        if other["reached"]:
            lines.append(
                f"With FINAL_PICK={other['pick']} the target would take "
                f"{_policy(other['thresholds'])}: {other['escalation']['value']:.1f} % escalation, "
                f"{other['wer']['value']:.2f} % WER, {other['ms']['value']:.0f} ms."
            )
    if report["now"] is not None:
        lines += _now(report["now"])
    return lines


def _now(now: Report) -> Iterator[str]:
    held, weakest = now["held"], now["held_weakest"]
    yield (
        f"The thresholds in force, {_policy(now['thresholds'])}, escalate "
        f"{_with_interval(now['escalation'], 1)} % with a WER of {_with_interval(now['wer'])} %, "
        f"{_signed(now['minus_fallback'])} points against the fallback alone."
    )
    yield (
        f"On held clips, thresholds found for as many escalations had "
        f"{_signed(held['wer_minus_now'])} points of WER against them, at "
        f"{_signed(held['escalation_minus_now'], 1)} points of escalation, and fewer errors in "
        f"{held['fewer_errors_in']} of {held['splits']} splits. The weakest tokens alone had "
        f"{_signed(weakest['wer_minus_now'])} points, with a threshold of "
        f"{_with_interval(weakest['weakest_threshold'])}."
    )


def env(report: Report) -> str:
    """Lines for the primary's `.env` file."""
    chosen = report["recommended"]
    values = chosen["thresholds"]
    lines = [
        f"# {report['command']}",
        f"# {report['target']}: {chosen['escalation']['value']:.1f} % escalation, "
        f"WER {chosen['wer']['value']:.2f} %",
        *(f"{SETTINGS[gate]}={values[gate]:g}" for gate in TUNABLE),
        f"FINAL_PICK={chosen['pick']}",
    ]
    return "\n".join(lines) + "\n"


def tables(report: Report) -> Iterator[Table]:
    """The figures behind it."""
    chosen = report["recommended"]
    yield Table(
        "Recommended thresholds (95 % of resamples)",
        ("setting", "value", "range"),
        tuple(
            (SETTINGS[gate], f"{chosen['thresholds'][gate]:g}", _range(chosen["ranges"].get(gate)))
            for gate in TUNABLE
        ),
    )
    yield Table(
        "Escalation with and without the words gate",
        ("MIN_WORDS_FOR_CONF", "escalation %", "WER %", "minus fallback", "ms a clip"),
        tuple(
            (
                str(row["min_words"]),
                _with_interval(row["escalation"], 1),
                _with_interval(row["wer"]),
                _signed(row["minus_fallback"]),
                f"{row['ms']['value']:.0f}",
            )
            for row in report["words_gate"]
        ),
    )
    for pick in PICKS:
        yield Table(
            f"The fewest errors for a share of escalations, FINAL_PICK={pick}",
            (
                *("at most %", "gates", "thresholds", "escalation %", "WER %"),
                *("minus fallback", "held: escalation", "WER"),
            ),
            tuple(_at(row["share"], row["gates"], row[pick]) for row in _telling(report, pick)),
        )
    yield Table(
        "Languages",
        (
            *("language", "clips", "files or speakers", "primary WER %", "fallback", "routed"),
            *("minus fallback", "escalation %", "thresholds of its own"),
        ),
        tuple(
            (
                name,
                str(row["clips"]),
                str(row["groups"]),
                _with_interval(row["primary"]["wer"]),
                _with_interval(row["fallback"]["wer"]),
                _with_interval(row["wer"]),
                _signed(row["minus_fallback"]),
                _with_interval(row["escalation"], 1),
                "too few clips" if row["own"] is None else _own(row["own"]),
            )
            for name, row in report["languages"].items()
        ),
    )
    yield Table(
        "Noise",
        ("SNR, dB", "clips", "primary WER %", "fallback", "routed", "escalation %"),
        tuple(
            (
                "clean" if row["snr"] is None else f"{row['snr']:g}",
                str(row["clips"]),
                f"{row['primary_wer']:.2f}",
                f"{row['fallback_wer']:.2f}",
                f"{row['wer']:.2f}",
                f"{row['escalation']:.1f}",
            )
            for row in report["noise"]
        ),
    )
    yield Table(
        "How well a score tells a wrong text of the primary's",
        ("score", "clips", "AUROC, any error", "word errors in the 20 % it doubts most, %"),
        tuple(
            (
                name,
                str(row["clips"]),
                _with_interval(row["auroc"]),
                _with_interval(row["caught_in_20"], 0),
            )
            for name, row in report["scores"].items()
        ),
    )


def _telling(report: Report, pick: str) -> Iterator[Report]:
    """Without those that escalate nothing, and those that came to the same gates."""
    seen = set()
    for row in report["at"]:
        policy = row["share"], _policy(row[pick]["thresholds"])
        if row[pick]["escalation"]["value"] and policy not in seen:
            seen.add(policy)
            yield row


def _at(share: float, gates: str, row: Report) -> tuple[str, ...]:
    return (
        f"{share:g}",
        gates,
        _policy(row["thresholds"]),
        f"{row['escalation']['value']:.1f}",
        f"{row['wer']['value']:.2f}",
        _signed(row["minus_fallback"]),
        f"{row['held_escalation']:.1f}",
        f"{row['held_wer']:.2f}",
    )


def _own(own: Report) -> str:
    ranges = ", ".join(f"{gate} {_range(ends)}" for gate, ends in own["ranges"].items())
    return (
        f"{_policy(own['thresholds'])} ({ranges}): {own['escalation']['value']:.1f} %, "
        f"WER {own['wer']['value']:.2f}"
    )


def _policy(thresholds: Report) -> str:
    on = [f"{gate} {thresholds[gate]:g}" for gate in TUNABLE if thresholds[gate]]
    return " + ".join(on) or "no gate"


def _text_of(pick: str) -> str:
    if pick == "fallback":
        return "Escalated clips are answered with the fallback's text."
    return "Escalated clips are answered with the text whose weakest tokens are the stronger ones."


def _range(ends: Any) -> str:
    return "off" if ends is None else f"{ends[0]:g} to {ends[1]:g}"


def _with_interval(figure: Report, digits: int = 2) -> str:
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _signed(figure: Report, digits: int = 2) -> str:
    value, low, high = (f"{figure[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
