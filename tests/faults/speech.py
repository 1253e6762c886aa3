"""The soak with the real engine: both tiers as `stt up` runs them, on real speech, for minutes."""

from __future__ import annotations

from pathlib import Path

from faults import load
from faults.lab import Lab, rated
from faults.real import Whisper
from faults.report import Report, Row
from faults.soak import SHARE, soaked
from faults.tiers import TESTS, Tier
from stt_cascade.cli.child import HOST
from stt_cascade.labelled import MANIFEST, read_manifest

WEIGHTS = TESTS.parent / "models" / "whisper-base-ct2"
CLIPS = TESTS.parent.parent / "shared" / "speech"
# So often every clip is heard before R is measured.
WARM_ROUNDS = 3
# Clips that come for half of it have well over 20 MB, on a busy machine too.
LEAK_S = 300.0


def missing(weights: Path, clips: Path) -> str:
    """What is not there of what it needs; empty: nothing."""
    if not (weights / "model.bin").is_file():
        return f"no weights in {weights}: stt models pull base"
    if not (clips / MANIFEST).is_file():
        return f"no labelled speech in {clips}"
    return ""


class Rounds:
    """Uploads of all clips of a folder, in another order each round; always the same orders."""

    def __init__(self, clips: Path) -> None:
        files = [clip.file for clip in read_manifest(clips)]
        self.uploads = [load.upload(file.read_bytes(), file=file.name) for file in files]

    def __len__(self) -> int:
        """Of a round."""
        return len(self.uploads)

    def __call__(self, number: int) -> bytes:
        round_, place = divmod(number, len(self.uploads))
        order = list(range(len(self.uploads)))
        load.seeded(round_).shuffle(order)
        return self.uploads[order[place]]


async def _warmed_up(lab: Lab, primary: Whisper, rounds: Rounds) -> tuple[list[Tier], float]:
    """A primary and its fallback that have heard every clip, and the rated load R after that.

    Memory grows for some minutes, until clips of all lengths have met.
    """
    fallback = await lab.fallback(Whisper(primary.weights))
    tier = await lab.primary(primary, FALLBACK_URL=f"http://{HOST}:{fallback.port}")
    await rated(tier, requests=rounds, most=WARM_ROUNDS * len(rounds))
    rate, _ = await rated(tier, requests=rounds, most=len(rounds))
    return [tier, fallback], rate


async def speech(lab: Lab, report: Report) -> None:
    report.missing = missing(WEIGHTS, CLIPS)
    if report.missing:
        return
    seconds = 60 * lab.soak_minutes or lab.pick(180, 180, 900)
    rounds = Rounds(CLIPS)
    tiers, rate = await _warmed_up(lab, Whisper(WEIGHTS), rounds)
    trends, answers = await soaked(tiers, rounds, SHARE * rate, seconds)
    report.note(f"{seconds / 60:.1f} min at {SHARE:g} R, R = {rate:.2f}/s of {len(rounds)} clips")
    p50, p95 = load.quantile(answers, 0.5), load.quantile(answers, 0.95)
    report.note(f"p50 {p50:.1f} s, p95 {p95:.1f} s")
    given = load.statuses(answers)
    report.check("answers", load.told(given), set(given) == {"200"})
    refusals = [one.headers.get("x-error-message", one.how) for one in answers if one.status != 200]
    for refusal in sorted(set(refusals))[:3]:
        report.note(refusal)
    escalated = sum(one.headers.get("x-fallback-used") == "true" for one in answers)
    report.check("of them from the fallback", escalated, escalated > 0)
    for tier, trend in zip(tiers, trends, strict=True):
        report.check(f"{tier.name}, second half", f"{trend}; at most +20 MB, +3", trend.flat)
        await tier.close()
    leaky, rate = await _warmed_up(lab, Whisper(WEIGHTS, keeps=True), rounds)
    (trend, _), _ = await soaked(leaky, rounds, SHARE * rate, LEAK_S)
    figure = f"{trend} in {LEAK_S / 60:g} min"
    report.check("a primary that keeps all it hears fails this", figure, not trend.flat)


ROWS = (
    Row(
        "speech",
        "0.8 R of real speech through both real tiers, and the same with a build that leaks",
        "memory growth <= 20 MB in the second half, descriptors flat; the leak is noticed",
        speech,
        short=False,
        usual=False,
        extra_s=1200.0,
    ),
)
