"""The page of the client names what there is: all of it, and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args

import httpx2
import pytest
from prometheus_client import CollectorRegistry

import stt_sdk
from fakes import FakeEngine
from pages import ROOT, blocks, codes, named, prose, rows
from running import Tiers
from stt_cascade.answer import Answer
from stt_cascade.errors import Refusal
from stt_sdk import (
    _answer,
    _budget,
    _dispatch,
    _exchange,
    _health,
    _pool,
    _reading,
    _retry,
    _source,
)
from stt_sdk._client import Transcriber
from stt_sdk._health import State
from stt_sdk._retry import GiveUp, Repeat, RetryPolicy, Situation, decide
from stt_sdk.hooks import PrometheusHook
from stt_sdk.hooks._prometheus import REASONS, STAGES
from tones import wav

PAGE = "docs/sdk.md"
CALLS = "## Clients and calls"
RETRIES = "## Deadline, retries and budget"
CLIENTS = (stt_sdk.STTClient, stt_sdk.STTPool, stt_sdk.SyncSTTClient)


def field_names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def test_every_public_name_is_on_the_page() -> None:
    text = (ROOT / PAGE).read_text()
    assert [name for name in stt_sdk.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_tree_of_errors_is_the_clients() -> None:
    tree = blocks(PAGE, "text")[0]
    assert tree.strip() in (inspect.getdoc(stt_sdk._errors) or "")
    path: list[type] = []
    seen = set()
    for line in tree.partition("\n\n")[0].splitlines():
        indent, name, status, type_, retryable = re.fullmatch(  # type: ignore[union-attr]
            r"([│├└─ ]*)(\w+) *(?:(\d{3}) (\w+))?.*?(retryable)?(?: \*)?", line
        ).groups()
        kind = getattr(stt_sdk, name)
        path[len(indent) // 4 :] = [kind]
        assert kind.__bases__[0] is (path[-2] if len(path) > 1 else Exception)
        assert kind.type == (type_ or "")
        error = kind("as it says")
        if type_:
            statuses = {each.type: str(each.status) for each in Refusal.__subclasses__()}
            assert statuses[type_] == status
            answer = httpx2.Response(int(status), headers={"X-Error-Type": type_})
            error = _answer.error_of(answer)
            assert type(error) is kind
        assert error.retryable is bool(retryable)
        seen.add(name)
    public = {name: getattr(stt_sdk, name) for name in stt_sdk.__all__}
    assert seen == {
        name
        for name, kind in public.items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }


def test_the_documented_message_is_what_the_error_says(tiers: Tiers, nobody: str) -> None:
    primary = tiers.primary(FakeEngine("hm"), fallback=nobody)
    with pytest.raises(stt_sdk.FallbackFailedError) as caught:
        stt_sdk.transcribe(wav(), base_url=primary.url)
    varies = r"127\.0\.0\.1:\d+|'127\.0\.0\.1', \d+|after [\d.]+ s|request \w+"
    said = re.sub(varies, "…", str(caught.value))
    assert re.sub(varies, "…", " ".join(blocks(PAGE, "text")[1].split())) == said


def test_every_attribute_of_an_error_has_a_row() -> None:
    assert set(named(PAGE, "## Errors")) == {"type", *vars(stt_sdk.STTError("x"))}
    usual = set(vars(stt_sdk.STTError("x")))
    text = " ".join((ROOT / PAGE).read_text().split())
    for kind, own in ((stt_sdk.ConnectionFailed, "sent"), (stt_sdk.TimedOut, "starved")):
        assert set(vars(kind("x"))) - usual == {own}
        assert re.search(rf"A `{kind.__name__}` (also )?has `{own}`", text)


def shown(default: object) -> str:
    return f'"{default}"' if isinstance(default, str) else repr(default)


def signature(name: str, function: Any) -> str:
    parameters = list(inspect.signature(function).parameters.values())
    listed = [
        p.name if p.default is p.empty else f"{p.name}={shown(p.default)}"
        for p in parameters
        if p.name != "self"
    ]
    return f"{name}({', '.join(listed)})"


def public(kind: type, *, methods: bool = True) -> dict[str, Any]:
    found = {name: value for name, value in vars(kind).items() if name[0] != "_"}
    return {n: v for n, v in found.items() if inspect.isfunction(v) is methods}


def test_every_method_has_a_row_with_its_signature() -> None:
    calls = {signature(name, method) for name, method in public(Transcriber).items()}
    assert set(named(PAGE, CALLS, 1)) == calls | {*public(Transcriber, methods=False)}
    pools = {name: value for name, value in vars(stt_sdk.STTPool).items() if name[0] != "_"}
    assert set(named(PAGE, "## The pool", 1)) | {"aclose()"} == {
        signature(name, value) if inspect.isfunction(value) else name
        for name, value in pools.items()
    }
    text = prose(ROOT / PAGE)
    assert signature("stt_sdk.transcribe", stt_sdk.transcribe) in codes(text)
    for name, method in public(stt_sdk.SyncSTTClient).items():
        twin = getattr(Transcriber, name, None)
        assert twin or f"`{signature(name, method)}`" in text
        assert twin is None or signature(name, method) == signature(name, twin)


def test_every_argument_of_a_client_has_a_row_with_its_default() -> None:
    found = {
        (name, p.default if p.default is p.empty else shown(p.default), client.__name__)
        for client in CLIENTS
        for name, p in inspect.signature(client).parameters.items()
    }
    documented = {
        (name, inspect.Parameter.empty if default == "required" else default.strip("`"), client)
        for argument, default, of, _ in rows(PAGE, CALLS)
        for name in codes(argument)
        for client in (codes(of) if of != "all" else [client.__name__ for client in CLIENTS])
    }
    assert documented == found
    policy = [(f.name, shown(f.default)) for f in dataclasses.fields(RetryPolicy)]
    assert [(codes(r[0])[0], r[1].strip("`")) for r in rows(PAGE, RETRIES, 1)] == policy


def test_every_field_of_a_value_has_a_row() -> None:
    answered = set(Answer.model_fields)
    extra = named(PAGE, "## Results")
    assert [name for name in field_names(stt_sdk.Transcription) if name not in answered] == extra
    assert answered < set(field_names(stt_sdk.Transcription))
    for part in ("Confidence", "Routing"):
        model = Answer.model_fields[part.lower()].annotation
        assert model is not None
        assert field_names(getattr(stt_sdk, part)) == list(model.model_fields)
    outcome = {*field_names(stt_sdk.Outcome), *public(stt_sdk.Outcome, methods=False)}
    assert set(named(PAGE, "## Many clips")) == outcome
    assert signature("Clip", stt_sdk.Clip) in codes(prose(ROOT / PAGE))
    assert named(PAGE, "## The pool", 2) == field_names(stt_sdk.HostView)
    assert named(PAGE, "## The pool") == list(get_args(State))
    assert named(PAGE, "## Stats") == field_names(stt_sdk.Stats)
    below = prose(ROOT / PAGE).partition("\n## Stats\n")[2].partition("\n## ")[0]
    assert set(field_names(stt_sdk.Quantiles)) <= set(codes(below.rpartition("|\n")[2]))


# What stands in the rows of the table, as errors.
HAPPENED: list[list[stt_sdk.STTError]] = [
    [stt_sdk.ConnectionFailed("x")],
    [
        stt_sdk.DrainingError("x", status=503, retryable=True),
        stt_sdk.NotReadyError("x", status=503, retryable=True),
    ],
    [
        stt_sdk.RateLimitedError("x", status=429, retryable=True),
        stt_sdk.OverloadedError("x", status=503, retryable=True),
        stt_sdk.ServiceError("x", status=503, retryable=True),
    ],
    [stt_sdk.ConnectionFailed("x", sent=True)],
    [
        stt_sdk.TimedOut("x"),
        stt_sdk.InvalidAnswerError("x", status=200),
        stt_sdk.InternalError("x", status=500),
        stt_sdk.ServiceError("x", status=502),
        stt_sdk.FallbackFailedError("x", status=502),
        stt_sdk.DeadlineExceededError("x", status=504),
        stt_sdk.InvalidAudioError("x", status=400),
    ],
]


def situation(error: stt_sdk.STTError, **facts: Any) -> Situation:
    usual = {"retries": 0, "lost": 1, "remaining": 60.0, "repeatable": True, "well": False}
    return Situation(**{"error": error, "jitter": 0.5, **usual, **facts})


def does(now: Situation, policy: RetryPolicy | None = None) -> str:
    step = decide(policy or RetryPolicy(), now)
    if isinstance(step, GiveUp):
        return "gives up"
    return "moves" if step.move else "waits"


def test_the_client_does_what_the_table_says() -> None:
    table = rows(PAGE, RETRIES)
    assert len(table) == len(HAPPENED)
    for (_, elsewhere, here), errors in zip(table, HAPPENED, strict=True):
        for error in errors:
            assert does(situation(error, well=True)) == elsewhere.removesuffix(", once in a call")
            assert does(situation(error)) == here
            for facts in ({"repeatable": False}, {"remaining": 0.0, "well": False}):
                assert does(situation(error, **{"well": True, **facts})) == "gives up"
            assert does(situation(error, well=True), RetryPolicy(0)) == "gives up"
            if here == "waits":
                assert does(situation(error, retries=2)) == "gives up"
    assert "once in a call" in table[3][1]
    assert does(situation(HAPPENED[3][0], well=True, lost=2)) == "gives up"


def test_pauses_are_as_documented() -> None:
    busy = stt_sdk.OverloadedError("x", status=503, retryable=True, retry_after=3.0)
    absurd = stt_sdk.OverloadedError("x", status=503, retryable=True, retry_after=61.0)
    policy = RetryPolicy(9)
    for error, well, retries, wait in (
        (busy, True, 0, 0.1),
        (busy, True, 2, 0.4),
        (busy, True, 8, 2.5),
        (busy, False, 0, 3.1),
        (absurd, False, 0, 0.1),
    ):
        step = decide(policy, situation(error, well=well, retries=retries))
        assert isinstance(step, Repeat)
        assert step.wait == pytest.approx(wait)
        assert not step.move


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    text = " ".join((ROOT / PAGE).read_text().split())
    share = 1 + 1 / _budget.CALLS_PER_RETRY
    for said in (
        f"not made within {_exchange.CONNECT_TIMEOUT_S:g} s",
        f"is told {_dispatch.MARGIN_S} s less, or a tenth less",
        f"on top of that, up to {_retry.LONGEST_RETRY_AFTER_S:g} s",
        f"Moves may run up to {_dispatch.MOVES_ON_CREDIT} into debt",
        f"sees {share:g} times the calls",
        f"{_health.FAILURES_TO_EJECT} calls in a row",
        f"or {_health.EJECTION_S:g} s \N{MULTIPLICATION SIGN} the number of ejections",
        f"{_health.FORGET_S:g} s without one",
        f"or {_dispatch.PAUSE_S:g} s if it gives none",
        f"has not said so again for {_health.REFUSAL_S:g} s",
        f"An answer is read up to {_answer.MAX_BYTES // 1024**2} MiB",
        f"looked up every {_pool.RESOLVE_INTERVAL_S:g} s",
        f"Up to {_source.SMALL // 1024**2} MiB",
        f"{_reading.CHUNK // 1024} KiB at a time",
    ):
        assert said in text
    assert (_dispatch.MARGIN_SHARE, _budget.CALLS_PER_RETRY, _budget.RESERVE) == (0.1, 5, 3)
    assert ("and a day at most" in text, _dispatch.LONGEST_TOLD_S) == (True, 24 * 60 * 60)
    assert "asked once a second" in text
    assert "though it had a second or more" in text
    assert (_pool.PROBE_INTERVAL_S, _dispatch.PATIENT_S) == (1.0, 1.0)


def test_every_event_has_a_row_with_its_fields() -> None:
    documented = {codes(row[0])[0]: row[2] for row in rows(PAGE, "## Telemetry")}
    assert list(documented) == [event.__name__ for event in get_args(stt_sdk.Event)]
    for event in get_args(stt_sdk.Event):
        names = field_names(event)
        assert names[0] == "request_id"
        assert [code for code in codes(documented[event.__name__]) if code in names] == names[1:]


def test_every_metric_of_the_client_has_a_row_with_its_type_and_labels() -> None:
    registry = CollectorRegistry()
    PrometheusHook(registry)
    documented = {codes(row[0])[0]: row for row in rows(PAGE, "### Prometheus")}
    expected = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in registry.collect()
    }
    assert {name: row[1] for name, row in documented.items()} == expected
    for name, row in documented.items():
        # The registry refuses other labels.
        collector = registry._names_to_collectors[name]
        assert codes(row[2]) == list(collector._labelnames)  # type: ignore[attr-defined]
    assert codes(documented["stt_client_escalations_total"][3]) == [*REASONS, "other"]
    assert codes(documented["stt_client_seconds"][3]) == list(STAGES)
