"""When a call is made once more, and when not: the decision alone, then what a server sees."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, formatdate
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import answer_of_fallback
from stt_sdk import (
    ConnectionFailed,
    InvalidAnswerError,
    OverloadedError,
    RetryPolicy,
    STTClient,
    STTError,
    STTPool,
    TimedOut,
    Transcription,
)
from stt_sdk._answer import retry_after
from stt_sdk._errors import BY_TYPE, NOT_WORKED_ON
from stt_sdk._retry import LONGEST_RETRY_AFTER_S, GiveUp, Repeat, Situation, believed, decide

STATUS = {"rate_limited": 429, "overloaded": 503, "draining": 503, "not_ready": 503}
ABSURD = [-1.0, -math.inf, math.inf, math.nan, 61.0, 1e9]


@st.composite
def errors(draw: st.DrawFn) -> STTError:
    asked_to_wait = draw(st.none() | st.floats())
    type_ = draw(st.sampled_from([*BY_TYPE, ""]))
    if not type_:
        return draw(
            st.sampled_from([TimedOut("x"), InvalidAnswerError("x")])
            | st.builds(ConnectionFailed, st.just("x"), sent=st.booleans())
        )
    status = STATUS.get(type_, 500)
    retryable = status in NOT_WORKED_ON
    return BY_TYPE[type_]("x", status=status, retryable=retryable, retry_after=asked_to_wait)


policies = st.builds(
    RetryPolicy,
    retries=st.integers(0, 5000),
    backoff=st.just(0.0) | st.floats(1e-6, 1e6),
    max_backoff=st.floats(0, 1e6),
)
situations = st.builds(
    Situation,
    error=errors(),
    retries=st.integers(0, 5000),
    lost=st.integers(1, 3),
    remaining=st.floats(-10, 1000),
    repeatable=st.booleans(),
    well=st.booleans(),
    jitter=st.floats(0, 1, exclude_max=True),
)


@given(policies, situations)
def test_no_attempt_begins_at_the_deadline_or_after_it(policy: RetryPolicy, now: Situation) -> None:
    step = decide(policy, now)
    assert isinstance(step, GiveUp) or 0 <= step.wait < now.remaining


@given(policies, situations)
def test_what_may_have_been_worked_on_is_not_repeated_but_for_one_lost_connection(
    policy: RetryPolicy, now: Situation
) -> None:
    step = decide(policy, now)
    if isinstance(step, Repeat) and not now.error.retryable:
        assert isinstance(now.error, ConnectionFailed) and now.error.sent
        assert now.lost == 1
        assert now.well and step.move  # so it goes to another host


@given(policies, situations)
def test_a_stream_that_is_consumed_is_never_sent_again(policy: RetryPolicy, now: Situation) -> None:
    assert isinstance(decide(policy, replace(now, repeatable=False)), GiveUp)


@given(policies, situations)
def test_no_more_retries_than_were_allowed_and_moves_only_where_a_host_is_well(
    policy: RetryPolicy, now: Situation
) -> None:
    assert isinstance(decide(replace(policy, retries=0), now), GiveUp)
    step = decide(policy, now)
    if isinstance(step, Repeat):
        assert now.well if step.move else now.retries < policy.retries
        assert step.wait == 0 or not step.move


@given(policies, situations)
def test_the_pause_is_random_up_to_the_backoff_doubled_each_time(
    policy: RetryPolicy, now: Situation
) -> None:
    now = replace(now, error=OverloadedError("x", status=503, retryable=True), remaining=math.inf)
    most = min(policy.max_backoff, policy.backoff * 2 ** min(now.retries, 100))
    step = decide(policy, replace(now, repeatable=True))
    if isinstance(step, Repeat):
        assert step.wait == now.jitter * most


def pauses(error: STTError, *, well: bool) -> list[float]:
    """The shortest and the longest wait before the first retry with the usual policy."""
    waits = []
    for jitter in (0.0, 1.0):
        step = decide(
            RetryPolicy(),
            Situation(error, 0, 0, remaining=1e12, repeatable=True, well=well, jitter=jitter),
        )
        assert isinstance(step, Repeat)
        waits.append(step.wait)
    return waits


def busy(seconds: float | None) -> OverloadedError:
    return OverloadedError("x", status=503, retryable=True, retry_after=seconds)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 59.9, LONGEST_RETRY_AFTER_S])
def test_retry_after_is_honoured_by_a_random_time_more(seconds: float) -> None:
    assert pauses(busy(seconds), well=False) == [seconds, pytest.approx(seconds + 0.2)]


@pytest.mark.parametrize("seconds", ABSURD)
def test_an_absurd_retry_after_is_not_believed(seconds: float) -> None:
    assert believed(seconds) == 0
    assert pauses(busy(seconds), well=False) == pauses(busy(None), well=False) == [0, 0.2]


def test_what_a_host_asks_for_does_not_hold_up_the_call_to_another_one() -> None:
    assert pauses(busy(30.0), well=True) == [0, 0.2]


@pytest.mark.parametrize("kind", ["draining", "not_ready"])
def test_from_a_host_that_is_going_the_call_moves_at_once_if_another_one_is_well(kind: str) -> None:
    refused = BY_TYPE[kind]("x", status=503, retryable=True, retry_after=5.0)
    assert pauses(refused, well=True) == pauses(ConnectionFailed("x"), well=True) == [0, 0]
    assert pauses(refused, well=False) == [5, 5.2]


def test_an_error_says_why_it_was_not_tried_again_where_it_might_have_been() -> None:
    def why(error: STTError, **facts: Any) -> str:
        known: dict[str, Any] = {
            **{"retries": 0, "lost": 0, "remaining": 60.0, "repeatable": True},
            **{"well": False, "jitter": 0.5, **facts},
        }
        step = decide(RetryPolicy(), Situation(error, **known))
        assert isinstance(step, GiveUp)
        return step.why

    broke = ConnectionFailed("x", sent=True)
    assert why(busy(30.0), remaining=10.0) == (
        "the next attempt would begin 30.1 s from now, after the deadline"
    )
    assert "0.1 s from now, after the deadline" in why(busy(None), remaining=0.1)
    assert why(busy(None), repeatable=False) == "a stream cannot be sent twice"
    assert why(busy(None), remaining=0.0) == "the deadline has passed"
    assert "no other host" in why(broke, lost=1)
    assert "twice" in why(broke, lost=2, well=True)
    assert why(TimedOut("x")) == ""


@pytest.mark.parametrize("retries", [-1, True, 1.0, "2", None])
def test_a_number_of_retries_that_makes_no_sense_is_refused(retries: Any) -> None:
    with pytest.raises(ValueError, match="retries must be a whole number, at least 0, not"):
        RetryPolicy(retries)
    with pytest.raises(ValueError, match="retries must be a whole number"):
        STTClient("http://localhost", retries=retries)


@pytest.mark.parametrize("name", ["backoff", "max_backoff"])
@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf, "1", None])
def test_a_pause_that_makes_no_sense_is_refused(name: str, seconds: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a number of seconds, at least 0, not"):
        RetryPolicy(**{name: seconds})


# What a service may write into Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("0", 0.0), ("1", 1.0), ("2.5", 2.5), (" 3 ", 3.0), ("1e9", 1e9)],
        *[("-1", None), ("nan", None), ("inf", None), ("-inf", None), ("1e999", None)],
        *[("", None), (None, None), ("soon", None), ("1; 2", None), ("0x10", None)],
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0.0),  # which Python takes for local time
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    value: str | None, seconds: float | None
) -> None:
    assert retry_after(value) == seconds


def test_a_date_in_the_future_is_so_many_seconds_away(monkeypatch: pytest.MonkeyPatch) -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    for date in (format_datetime(later, usegmt=True), formatdate(later.timestamp())):
        for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            seconds = retry_after(date)
            assert seconds is not None and 0 < seconds <= 100
    monkeypatch.undo()
    time.tzset()
    far = retry_after("Fri, 31 Dec 9999 23:59:59 GMT")
    assert far is not None and believed(far) == 0


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} [\d:]{0,9} ?\S*"))
def test_no_retry_after_breaks_the_reading(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


# What a service in trouble sees

OUTCOMES = ("ok", "busy", "limited", "unready", "refused", "lost", "broken", "foreign")


def reply(outcome: str) -> httpx2.Response:
    if outcome == "refused":
        raise httpx2.ConnectError("nobody there")
    if outcome == "lost":
        raise httpx2.ReadError("gone")
    status, type_ = {
        "ok": (200, ""),
        "busy": (503, "overloaded"),
        "limited": (429, "rate_limited"),
        "unready": (503, "not_ready"),
        "broken": (500, "internal"),
        "foreign": (503, ""),
    }[outcome]
    body = answer_of_fallback() if status == 200 else {}
    return httpx2.Response(status, json=body, headers={"X-Error-Type": type_} if type_ else {})


async def traffic(outcomes: list[str], calls: int, retries: int) -> list[int]:
    """How many attempts a service has seen after each call, if it does so in turn."""
    turn = itertools.cycle(outcomes)
    attempts, seen = 0, []

    def handle(request: httpx2.Request) -> httpx2.Response:
        nonlocal attempts
        attempts += 1
        return reply(next(turn))

    async with STTClient(
        "http://primary",
        retries=RetryPolicy(retries, backoff=0.0),
        transport=httpx2.MockTransport(handle),
    ) as stt:
        for _ in range(calls):
            with suppress(STTError):
                await stt.transcribe(b"clip")
            seen.append(attempts)
    return seen


@given(
    outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=40),
    calls=st.integers(1, 60),
    retries=st.integers(0, 50),
)
def test_at_no_time_does_it_see_more_than_a_fifth_more_than_the_calls_and_three(
    outcomes: list[str], calls: int, retries: int
) -> None:
    for number, attempts in enumerate(asyncio.run(traffic(outcomes, calls, retries)), 1):
        assert attempts <= 1.2 * number + 3


@pytest.mark.parametrize("outcome", ["busy", "refused", "unready", "foreign"])
def test_a_service_that_is_down_sees_as_many_as_that(outcome: str) -> None:
    assert asyncio.run(traffic([outcome], 100, retries=2))[-1] in range(120, 124)


def test_a_lone_failure_is_always_tried_again() -> None:
    outcomes = ["busy", *["ok"] * 5] * 10
    calls = 50
    assert asyncio.run(traffic(outcomes, calls, retries=1))[-1] == len(outcomes)


def test_good_times_save_up_for_no_more_than_three_retries() -> None:
    seen = asyncio.run(traffic(["ok"] * 100 + ["busy"] * 100, 110, retries=2))
    assert seen[-1] - seen[99] <= 10 * 1.2 + 3


@pytest.mark.parametrize("outcome", ["lost", "broken"])
def test_what_was_perhaps_worked_on_is_seen_once(outcome: str) -> None:
    assert asyncio.run(traffic([outcome], 10, retries=5))[-1] == 10


def test_a_host_that_may_have_worked_on_a_clip_never_gets_it_again() -> None:
    asked: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(200, json={"ready": True, "state": "ready"})
        asked.append(request.url.host)
        return reply(["lost", "busy", "busy", "ok"][len(asked) - 1])

    async def scenario() -> Transcription:
        async with STTPool(
            ["http://one", "http://other"],
            retries=RetryPolicy(5, backoff=0.0),
            transport=httpx2.MockTransport(handle),
        ) as stt:
            return await stt.transcribe(b"clip")

    assert asyncio.run(scenario()).attempts == 4
    assert sorted(asked[:2]) == ["one", "other"]
    assert asked[1:] == [asked[1]] * 3
