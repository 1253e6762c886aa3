"""What thresholds come to: the arithmetic of `stt calibrate`."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import answer_of_fallback
from stt_cascade.audio.decode import decode
from stt_cascade.cascade.confidence import Scores
from stt_cascade.cascade.decision import Opinion, Policy
from stt_cascade.config import PrimaryConfig
from stt_cascade.config_file import load
from stt_cascade.engine.protocol import Samples
from stt_cascade.measure.answers import Answers, ForeignText, Heard, key
from stt_cascade.measure.calibration import analyse
from stt_cascade.measure.calibration_page import picture, whole_page
from stt_cascade.measure.calibration_text import env, good, sentences, tables
from stt_cascade.measure.choosing import GRID, Target, cross_validate, families, splits
from stt_cascade.measure.noise import KINDS, Noise, speech_level, wav
from stt_cascade.measure.reliability import auroc, caught, diagram, wilson
from stt_cascade.measure.routing import Clips, Routable, oracle, routes, worth
from stt_sdk import Transcription
from tones import silence, tone

# Noise


def decibel(ratio: float) -> float:
    return 20 * math.log10(ratio)


def test_pauses_do_not_lower_the_level_of_speech() -> None:
    spoken = tone(1.0)
    alone = speech_level(spoken)
    assert decibel(alone / 0.5) == pytest.approx(-3.01, abs=0.01)
    with_pauses = np.concatenate([silence(3), spoken, silence(5)])
    assert decibel(speech_level(with_pauses) / alone) == pytest.approx(0, abs=0.2)
    assert speech_level(silence(1)) == 0
    assert speech_level(tone(0.01)) > 0


def voices(count: int = 5) -> dict[str, Samples]:
    return {
        f"{n}.wav": tone(1.0 + n / 4, 200.0 * (n + 1), level=0.05 * (n + 1)) for n in range(count)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_as_far_under_the_speech_as_was_asked_for(kind: str) -> None:
    noise = Noise(kind, voices(), 1)  # type: ignore[arg-type]
    clip = np.concatenate([silence(1), tone(2.0, 330, level=0.1), silence(1)])
    for snr in (20, 10, 0):
        added = noise.added("other.wav", clip, snr) - clip
        level = float(np.sqrt(np.mean(added**2)))
        assert decibel(speech_level(clip) / level) == pytest.approx(snr, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_gets_the_same_noise_in_each_run_and_at_each_distance(kind: str) -> None:
    clip = tone(1.0, 330, level=0.1)
    first, again = (Noise(kind, voices(), 1) for _ in range(2))  # type: ignore[arg-type]
    loud = first.added("a.wav", clip, 0)
    assert np.array_equal(loud, again.added("a.wav", clip, 0))
    soft = first.added("a.wav", clip, 20)
    assert (soft - clip) * 10 == pytest.approx(loud - clip, abs=1e-5)
    assert not np.allclose(loud, first.added("b.wav", clip, 0))
    other_seed = Noise(kind, voices(), 2)  # type: ignore[arg-type]
    assert not np.allclose(loud, other_seed.added("a.wav", clip, 0))


def test_a_clip_is_not_made_noise_of_for_itself() -> None:
    """Its own tone would stand out among the others' in the noise."""
    noise = Noise("babble", voices(), 1)
    clip = tone(2.0, 330, level=0.1)
    added = noise.added("2.wav", clip, 0) - clip
    spectrum = np.abs(np.fft.rfft(added))
    own, another = (spectrum[2 * hertz - 2 : 2 * hertz + 3].max() for hertz in (600, 400))
    assert own < another / 5


def test_loud_noise_makes_the_clip_quieter_instead_of_clipping_it() -> None:
    mixed = Noise("white", {}, 1).added("a.wav", tone(1.0, level=0.9), -20)
    assert np.abs(mixed).max() == pytest.approx(1.0)


def test_noise_of_too_few_clips_is_refused_unless_it_is_white() -> None:
    with pytest.raises(ValueError, match=r"at least 3 other clips .* there are 2; white noise"):
        Noise("shaped", voices(3), 1).added("0.wav", tone(), 10)
    Noise("white", {}, 1).added("0.wav", tone(), 10)


def test_what_is_sent_is_the_clip() -> None:
    clip = tone(0.7)
    assert decode(wav(clip), max_seconds=10) == pytest.approx(clip, abs=1e-4)


# Answers


def transcription(reason: str = "accepted", tier: str = "primary") -> Transcription:
    answer = answer_of_fallback()
    answer["routing"] = {**answer["routing"], "reason": reason, "tier": tier, "below": ["words"]}
    answer["timings_ms"] = {
        "queue_wait": 0.0,
        "primary_infer": 7.0 if tier == "primary" else None,
        "fallback_infer": 30.0 if tier == "fallback" else None,
        "total": 50.0,
    }
    return Transcription.from_json(answer)


def test_a_text_that_the_gates_sent_on_is_not_the_primarys() -> None:
    with pytest.raises(ForeignText, match="words"):
        Heard.of(transcription("low_confidence", "fallback"))
    assert Heard.of(transcription()).infer_ms == 7
    assert Heard.of(transcription(tier="fallback")).infer_ms == 30
    for gate in ("coverage", "loop"):  # no threshold turns these off
        sent_on = transcription("low_confidence", "fallback")
        routing = replace(sent_on.routing, below=(gate,))
        assert not Heard.of(replace(sent_on, routing=routing)).own
    foreign = Heard.of(transcription("language", "fallback"))
    assert (foreign.own, foreign.scores, foreign.infer_ms) == (False, None, 0)


def test_answers_outlast_a_run_and_one_that_was_cut_off(tmp_path: Path) -> None:
    heard = Heard.of(transcription())
    answers = Answers(tmp_path / "new", {"model": "base"})
    answers.put(key(b"one", None), heard)
    answers.put(key(b"two", "de"), heard)
    whole = answers.file.read_bytes()
    answers.file.write_bytes(whole[:-20])
    after = Answers(tmp_path / "new", {"model": "base"})
    assert after.get(key(b"one", None)) == heard
    assert after.get(key(b"two", "de")) is None
    after.put(key(b"two", "de"), heard)
    last = Answers(tmp_path / "new", {"model": "base"})
    assert last.get(key(b"one", None)) == last.get(key(b"two", "de")) == heard
    assert last.get(key(b"two", None)) is None
    assert Answers(tmp_path / "new", {"model": "small"}).get(key(b"one", None)) is None
    assert last.file.stat().st_mode & 0o077 == last.file.parent.stat().st_mode & 0o077 == 0


# Routing


def row(
    weakest: float = 0.5,
    *,
    wrong: int = 0,
    other: int = 0,
    group: str = "a",
    words: int = 4,
    theirs: float | None = 0.5,
    scores: Scores | None = None,
    always: bool = False,
    language: str = "en",
) -> Routable:
    return Routable(
        group=group,
        stratum=language,
        language=language,
        snr=None,
        words=words,
        scores=scores or Scores(0.9, weakest, 4, 0.98),
        always=always,
        ours=Opinion("en", (scores or Scores(0.9, weakest, 4, 0.98)).weakest, 4),
        theirs=Opinion("en", theirs, 4),
        primary_errors=wrong,
        fallback_errors=other,
        primary_ms=10.0,
        fallback_ms=100.0,
    )


chances = st.floats(0, 1).map(lambda value: round(value, 2))
some_scores = st.builds(Scores, chances, chances, st.integers(0, 6), st.none() | chances)


@given(st.lists(st.none() | some_scores, min_size=1, max_size=8))
def test_each_combination_of_thresholds_escalates_what_the_service_would(
    scores: list[Scores | None],
) -> None:
    clips = Clips([replace(row(), scores=each, always=n == 3) for n, each in enumerate(scores)])
    grid = {gate: GRID[gate][::4] for gate in GRID}
    found = routes(clips, grid)
    for index in range(len(found)):
        assert np.array_equal(found.escalated[index], clips.escalated(found.policy(index)))
    masks = {each.tobytes() for each in found.escalated}
    assert len(masks) == len(found)


def test_of_thresholds_that_escalate_the_same_the_lowest_counts() -> None:
    found = routes(Clips([row(0.3), row(0.6)]), {"weakest": (0.2, 0.4, 0.5, 0.7)})
    assert [found.policy(n).weakest for n in range(len(found))] == [0.0, 0.4, 0.7]


def test_errors_and_costs_are_counted_by_weight() -> None:
    clips = Clips([row(0.3, wrong=4, other=1), row(0.6, wrong=1, other=2, group="b")])
    escalated = np.array([[False, False], [True, False], [True, True]])
    found = worth(clips, escalated, np.array([[1.0, 2.0], [1.0, 0.0]]))
    assert found.escalation.tolist() == [[0, 0], [0.5, 1], [1, 1]]
    assert found.errors.tolist() == [[5, 8], [2, 2], [3, 2]]
    assert found.wer.tolist() == [[5 / 8, 1], [2 / 8, 2 / 8], [3 / 8, 2 / 8]]
    assert found.ms.tolist() == [[10, 10], [60, 110], [110, 110]]


@pytest.mark.parametrize(
    ("mine", "theirs", "errors"), [(0.6, 0.5, 3), (0.5, 0.5, 1), (0.4, 0.5, 1), (0.6, None, 1)]
)
def test_the_best_text_is_the_one_with_the_stronger_weakest_tokens(
    mine: float, theirs: float | None, errors: int
) -> None:
    clips = Clips([row(mine, wrong=3, other=1, theirs=theirs)])
    assert clips.final("best").tolist() == [errors]
    assert clips.final("fallback").tolist() == [1]


def test_the_oracle_asks_for_what_gains_most_first() -> None:
    clips = Clips([row(wrong=1, other=3), row(wrong=4, other=0), row(wrong=2, other=1)])
    share, wer = oracle(clips)
    assert share.tolist() == [0, 1 / 3, 2 / 3, 1]
    assert (wer * 12).round().tolist() == [7, 3, 2, 4]


# Choosing


def separable(count: int = 60, *, languages: Sequence[str] = ("en",)) -> Clips:
    """Texts with weakest tokens under 0.4 are wrong, and the fallback knows better; a file each."""
    random = np.random.default_rng(7)
    rows = []
    for n in range(count):
        weakest = float(np.round(random.uniform(0.05, 0.95), 4))
        doubtful = weakest < 0.4
        rows.append(
            row(
                weakest,
                wrong=2 if doubtful else 0,
                other=0 if doubtful else n % 5 == 0,
                group=f"{n}.wav",
                language=languages[n % len(languages)],
            )
        )
    return Clips(rows)


@pytest.mark.parametrize("text", ["", "15", "101%", "-1%", "primary", "15 % of all"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 15%"):
        Target.parse(text)


def test_a_share_is_spent_where_it_saves_most() -> None:
    clips = separable()
    found = families(clips)["weakest"]
    all_ = worth(clips, found.escalated, clips.once())
    for share in (0.0, 0.1, 0.2):
        index, reached = Target(share).choose(all_, clips.fallback @ clips.once())
        escalation = all_.escalation[index[0], 0]
        assert share - 1 / 30 <= escalation <= share
        assert reached.all()
    # More than what is doubtful only costs.
    index, _ = Target(1.0).choose(all_, clips.fallback @ clips.once())
    assert found.policy(int(index[0])).weakest == pytest.approx(0.4, abs=0.03)


def test_the_fallbacks_quality_is_bought_at_the_lowest_cost() -> None:
    clips = separable()
    found = families(clips)["weakest"]
    all_ = worth(clips, found.escalated, clips.once())
    index, reached = Target(None).choose(all_, clips.fallback @ clips.once())
    errors = all_.errors[index[0], 0]
    assert reached.all()
    assert errors <= clips.fallback.sum()
    cheaper = all_.escalation[:, 0] < all_.escalation[index[0], 0]
    assert cheaper.any()
    assert (all_.errors[cheaper, 0] > clips.fallback.sum()).all()


def test_a_target_that_nothing_reaches_is_said_to_be_missed() -> None:
    """The primary always escalates a third of these clips, whatever the thresholds."""
    clips = Clips([replace(row(), always=n % 3 == 0, group=str(n)) for n in range(30)])
    found = families(clips)["weakest"]
    all_ = worth(clips, found.escalated, clips.once())
    index, reached = Target(0.1).choose(all_, clips.fallback @ clips.once())
    assert not reached.any()
    assert found.policy(int(index[0])).weakest == 0


@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 99))
def test_a_split_keeps_a_groups_clips_together_and_halves_each_stratum(
    groups: int, copies: int, seed: int
) -> None:
    rows = [
        row(group=str(n), language=("en", "de")[n % 3 == 0])
        for n in range(groups)
        for _ in range(copies)
    ]
    clips = Clips(rows)
    chosen = splits(clips, 4, seed)
    assert np.array_equal(chosen, splits(clips, 4, seed))
    by_group = chosen.reshape(groups, copies, 4)
    assert (by_group == by_group[:, :1]).all()
    assert (chosen[:, ::2] ^ chosen[:, 1::2]).all()
    for language in ("en", "de"):
        those = np.array([each.language == language for each in rows])
        count = by_group[those.reshape(groups, copies)[:, 0], 0].sum(axis=0)
        assert (np.abs(2 * count - those.sum() / copies) <= 1).all()


def test_thresholds_keep_on_held_clips_what_they_promise() -> None:
    clips = separable(500)
    found = families(clips)
    held = cross_validate(clips, found, splits(clips, 20, 1), Target(0.15), "fallback", 1)
    assert np.abs(held.off).mean() < 0.05
    assert (held.promised <= 0.15).all()
    assert (held.wer < (clips.primary.sum() / clips.words.sum())).mean() > 0.9
    assert set(held.families) <= {"weakest", "all but words", "all"}


# Reliability


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=20
    )
)
def test_auroc_is_how_often_a_wrong_text_scores_lower(rows: list[tuple[int, int, int]]) -> None:
    score, errors, weights = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs = [
        (low_weight * high_weight, 1.0 if low < high else 0.5 if low == high else 0.0)
        for low, wrong, low_weight in rows
        for high, right, high_weight in rows
        if wrong and not right
    ]
    total = sum(weight for weight, _ in pairs)
    found = auroc(score, errors, weights[:, None])[0]
    if total:
        assert found == pytest.approx(sum(weight * won for weight, won in pairs) / total)
    else:
        assert found == 0.5


def test_errors_are_looked_for_in_the_clips_that_are_doubted_most() -> None:
    score, errors = np.array([0.9, 0.1, 0.5, 0.7, 0.3]), np.array([1.0, 6.0, 0, 0, 3])
    once = np.ones((5, 1))
    assert caught(score, errors, once, 0.2)[0] == pytest.approx(0.6)
    assert caught(score, errors, once, 0.3)[0] == pytest.approx(0.75)
    assert caught(score, errors, once, 1.0)[0] == pytest.approx(1)


def test_a_reliability_diagram_has_clips_of_like_scores_together() -> None:
    score = np.linspace(0, 1, 100)
    errors = (score < 0.5).astype(float)
    bins = diagram(score, errors, np.full(100, 2.0))
    assert [each.clips for each in bins] == [10] * 10
    assert [each.right for each in bins] == [0] * 5 + [1] * 5
    assert bins[0].words_right == 0.5
    assert wilson(0.5, 100) == pytest.approx((0.404, 0.596), abs=0.001)


# The whole of it


def report_of(clips: Clips, target: str = "fallback", **options: object) -> dict[str, object]:
    figures = analyse(clips, Target.parse(target), number=20, seed=1, **options)  # type: ignore[arg-type]
    return {"command": "stt calibrate DIR", "failed": [], "missing": 0, **figures}


def test_good_scores_give_thresholds_that_can_be_used(tmp_path: Path) -> None:
    now = Policy(0.55, 0.7, 3, 0.25)
    report = report_of(separable(120, languages=("en", "en", "de")), "fallback", now=now)
    assert good(report)
    assert report["warnings"] == [
        "Too few clips for thresholds of their own: de "
        "(each needs 20 files or speakers and 20 wrong texts)."
    ]
    file = tmp_path / "primary.env"
    file.write_text(env(report) + "CT2_SMALL_PATH=x\nFALLBACK_URL=http://x\n")
    policy = Policy.of(load(PrimaryConfig, file))
    assert 0.2 < policy.weakest < 0.45
    assert (policy.logprob, policy.langprob, policy.words) == (0, 0, 0)
    said = sentences(report)
    assert said[0].startswith("For no worse than the fallback alone at the lowest cost: weakest 0.")
    assert any("thresholds in force" in line for line in said)


def test_the_page_has_the_picture_and_every_table() -> None:
    report = report_of(separable(60))
    page = whole_page(report, picture(report)).html().decode()
    assert "data:image/png;base64," in page
    for table in tables(report):
        assert html.escape(table.title) in page
        assert {len(cells) for cells in table.rows} == {len(table.head)}
    assert "CONF_WEAKEST_THRESHOLD=" in page


def test_scores_that_tell_nothing_are_not_recommended() -> None:
    random = np.random.default_rng(3)
    rows = [
        replace(each, scores=Scores(0.9, float(random.uniform(0, 1)), 4, 0.98))
        for each in separable(120).rows
    ]
    report = report_of(Clips(rows), "30%")
    assert not good(report)
    assert any("do not find wrong texts" in line for line in report["warnings"])  # type: ignore[attr-defined]


def test_a_fallback_that_knows_nothing_better_is_not_asked() -> None:
    rows = [replace(each, fallback_errors=each.primary_errors + 1) for each in separable(120).rows]
    report = report_of(Clips(rows), "30%")
    assert "no gate" in sentences(report)[0]
    assert any("do not show that the fallback is better" in line for line in report["warnings"])  # type: ignore[attr-defined]


def test_too_few_clips_are_said_to_be_too_few() -> None:
    report = report_of(separable(12))
    assert not good(report)
    assert any("12 files or speakers" in line for line in report["warnings"])  # type: ignore[attr-defined]


def test_answering_with_the_better_text_is_recommended_where_it_is_better() -> None:
    """In every fifth doubtful clip the fallback's text is worse, and its tokens show that."""
    rows = [
        replace(each, fallback_errors=8, theirs=Opinion("en", 0.0, 4))
        if n % 5 == 0
        else replace(each, theirs=Opinion("en", 0.99, 4))
        for n, each in enumerate(separable(200).rows)
    ]
    report = report_of(Clips(rows), "40%")
    assert report["recommended"]["pick"] == "best"  # type: ignore[index]
    assert report["best_minus_fallback_pick"]["high"] < 0  # type: ignore[index]
    assert "with FINAL_PICK=best is better" in " ".join(sentences(report))


def test_the_words_gate_is_shown_with_and_without() -> None:
    rows = [
        replace(each, scores=replace(each.scores, words=1 + n % 4))  # type: ignore[type-var]
        for n, each in enumerate(separable(80).rows)
    ]
    table = report_of(Clips(rows))["words_gate"]
    escalation = [each["escalation"]["value"] for each in table]  # type: ignore[attr-defined]
    assert [each["min_words"] for each in table] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert escalation[0] == escalation[1] < escalation[2] < escalation[3]
