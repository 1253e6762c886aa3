"""Scores: log-probabilities of the chosen tokens, and a clip's windows taken together."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stt_cascade.engine.protocol import SAMPLE_RATE, Segment, Span, Utterance
from stt_cascade.engine.scores import chosen_logprobs, weakest_logprob
from stt_cascade.engine.transcript import join
from stt_cascade.engine.windows import MAX_PAUSE_SECONDS, MAX_WINDOW_SECONDS, windows

logprob = st.floats(-50, 0)


def heard(
    seconds: float, avg_logprob: float, tokens: int, weakest: float
) -> tuple[Span, Utterance]:
    """A window and what an engine heard in it."""
    segment = Segment(0.0, seconds, "yes", avg_logprob, 0.0)
    utterance = Utterance("en", None, (segment,), avg_logprob, tokens, weakest)
    return Span(0, round(seconds * SAMPLE_RATE)), utterance


windows_heard = st.builds(
    heard,
    seconds=st.floats(0.1, 30),
    avg_logprob=logprob,
    tokens=st.integers(1, 200),
    weakest=st.floats(0, 1),
)


def test_the_weakest_three_tokens_are_averaged() -> None:
    assert weakest_logprob([-0.1, -5.0, -0.2, -3.0, -1.0]) == pytest.approx(-3.0)


@pytest.mark.parametrize(
    ("tokens", "mean"), [([], 0.0), ([-2.0], -2.0), ([-2.0, -4.0], -3.0), ([-1.0, -2.0, -6.0], -3)]
)
def test_of_fewer_than_three_tokens_all_count(tokens: list[float], mean: float) -> None:
    assert weakest_logprob(tokens) == mean


@given(st.lists(logprob, min_size=1), logprob)
def test_one_more_token_never_makes_three_others_surer(tokens: list[float], more: float) -> None:
    if len(tokens) >= 3:
        assert weakest_logprob([*tokens, more]) <= weakest_logprob(tokens) + 1e-9


@given(arrays(np.float32, (5, 40), elements=st.floats(-30, 30, width=32)))
def test_log_probabilities_of_a_step_add_up_to_certainty(steps: npt.NDArray[np.float32]) -> None:
    for step in steps:
        total = sum(math.exp(chosen_logprobs([step], [token])[0]) for token in range(40))
        assert total == pytest.approx(1, abs=1e-4)


def test_the_end_tokens_step_is_left_out() -> None:
    steps = [np.array([5, 0, 0], np.float32)] * 3
    assert len(chosen_logprobs(steps, [0, 1])) == 2


def test_logits_that_differ_by_a_constant_say_the_same() -> None:
    step = np.array([1, 2, 3], np.float32)
    near, far = chosen_logprobs([step, step + 1000], [1, 1])
    assert near == pytest.approx(far, abs=1e-3)


def test_a_suppressed_token_is_impossible_and_harms_no_other() -> None:
    step = np.array([0, 0, -np.inf], np.float32)
    assert chosen_logprobs([step], [0])[0] == pytest.approx(math.log(0.5))


def test_windows_weigh_by_their_tokens_and_by_their_length() -> None:
    joined = join([heard(30, -1.0, 30, 0.2), heard(10, -2.0, 10, 0.8)])
    assert joined.logprob == pytest.approx(math.exp(-1.25))
    assert joined.weakest == pytest.approx(0.35)


@given(st.lists(windows_heard, min_size=1, max_size=5))
def test_a_clip_is_as_sure_as_its_windows(several: list[tuple[Span, Utterance]]) -> None:
    joined = join(several)
    single = [join([one]) for one in several]
    assert min(one.logprob for one in single) <= joined.logprob * (1 + 1e-9) + 1e-12
    assert joined.logprob <= max(one.logprob for one in single) * (1 + 1e-9) + 1e-12
    assert min(one.weakest for one in single) - 1e-9 <= joined.weakest
    assert joined.weakest <= max(one.weakest for one in single) + 1e-9


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    with pytest.raises(ArithmeticError, match="no numbers"):
        join([heard(1, score, 5, 0.5)])


def span(start: float, end: float) -> Span:
    return Span(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))


@pytest.mark.parametrize(
    ("speech", "expected"),
    [
        ([], []),
        ([(1, 5)], [(1, 5)]),
        ([(1, 5), (6, 9)], [(1, 9)]),
        ([(1, 5), (9, 12)], [(1, 5), (9, 12)]),  # a pause of more than 3 s
        ([(0, 20), (21, 35)], [(0, 20), (21, 35)]),  # more than 30 s together
        ([(0, 70)], [(0, 30), (30, 60), (60, 70)]),
    ],
)
def test_stretches_of_speech_become_windows(
    speech: list[tuple[float, float]], expected: list[tuple[float, float]]
) -> None:
    assert windows([span(*one) for one in speech]) == [span(*one) for one in expected]


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 80)), max_size=12))
def test_windows_hold_all_speech_in_order_and_are_short_enough(
    gaps: list[tuple[float, float]],
) -> None:
    speech, now = [], 0.0
    for pause, length in gaps:
        speech.append(span(now + pause, now + pause + length))
        now += pause + length
    result = windows(speech)
    assert all(0 < window.seconds <= MAX_WINDOW_SECONDS for window in result)
    assert all(a.end <= b.start for a, b in pairwise(result))
    for one in speech:
        covered = sum(
            max(0, min(one.end, window.end) - max(one.start, window.start)) for window in result
        )
        assert covered == one.end - one.start
    silent = sum(window.seconds for window in result) - sum(one.seconds for one in speech)
    assert silent <= MAX_PAUSE_SECONDS * len(speech) + 1e-6
