"""What Envoy does with the files of deploy/envoy/: a real one, in front of real tiers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from certificates import Authority
from faults import load
from faults.balancer import Balancer, missing
from faults.calls import primaries
from faults.envoy import envoy_rolling
from faults.lab import Lab, until
from faults.report import Report
from faults.stub import Stub
from faults.tiers import Tier
from stt_cascade.cli.child import HOST

pytestmark = [
    pytest.mark.engines,
    pytest.mark.process,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

Scenario = Callable[[Balancer, list[Tier]], Coroutine[Any, Any, None]]
SLOW = Stub(seconds=600.0)


def in_front(scenario: Scenario, *stubs: Stub, **settings: Any) -> None:
    """Run it with Envoy in front of primaries with these engines."""

    async def run() -> None:
        async with Lab("short") as lab:
            tiers = await primaries(lab, *(stubs or (Stub(),)), **settings)
            await scenario(await lab.balancer(tiers), tiers)

    asyncio.run(run())


async def ask(front: Balancer, sent: bytes) -> load.Answer:
    return await load.call(front.port, sent, tls=front.client)


def clip(*headers: str) -> bytes:
    return load.request(load.part("audio", load.CLIP, "c.wav") + load.END, load.FORM, *headers)


async def logged(front: Balancer, number: int) -> list[dict[str, Any]]:
    """The access log, once it has so many lines."""
    assert await until(lambda: len(front.lines) >= number)
    return front.lines


def said_by(tier: Tier) -> list[dict[str, Any]]:
    """The lines of the tier's own log about clips."""
    lines = [json.loads(line) for line in tier.log.read_text().splitlines() if line[:1] == "{"]
    return [line for line in lines if line.get("path") == "/v1/transcribe"]


async def line_of(tier: Tier) -> dict[str, Any]:
    """The one line about the one clip, which comes after its answer."""
    assert await until(lambda: bool(said_by(tier)))
    (line,) = said_by(tier)
    return line


def test_a_clip_gets_its_text_and_a_line_in_the_log_that_joins_both_services() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        answer = await ask(front, clip())
        assert (answer.status, json.loads(answer.body)["text"]) == (200, "one two three four")
        (line,) = await logged(front, 1)
        id_ = answer.headers["x-req-id"]
        assert line["request_id"] == id_ == (await line_of(tiers[0]))["request_id"]
        assert (line["status"], line["method"], line["path"]) == (200, "POST", "/v1/transcribe")
        assert line["client"] == HOST
        assert line["bytes_received"] > len(load.CLIP)
        assert line["bytes_sent"] == len(answer.body)
        assert line["duration_ms"] >= 50
        assert line["x_route_reason"] == "accepted"

    in_front(scenario)


def test_a_callers_id_names_the_request_whatever_header_it_comes_in() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        for headers, named in (
            (("X-Req-Id: ours-1",), "ours-1"),
            (("X-Request-Id: theirs-2",), "theirs-2"),
            (("X-Req-Id: ours-3", "X-Request-Id: theirs-3"), "ours-3"),
        ):
            assert (await ask(front, clip(*headers))).headers["x-req-id"] == named
        assert [line["request_id"] for line in await logged(front, 3)] == [
            *("ours-1", "theirs-2", "ours-3")
        ]

    in_front(scenario)


def test_an_error_of_the_service_is_logged_with_what_it_says() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        answer = await ask(front, load.request(b"", load.FORM))
        assert answer.status == 400
        (line,) = await logged(front, 1)
        assert line["x_error_type"] == "invalid_request"
        assert line["x_error_message"] == answer.headers["x-error-message"]

    in_front(scenario)


def test_callers_cannot_make_up_their_address_and_their_keys_are_not_logged() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        forged = clip("X-Forwarded-For: 203.0.113.9", "Authorization: Bearer sesame")
        assert (await ask(front, forged)).status == 200
        said = await line_of(tiers[0])
        assert said["client"] not in ("203.0.113.9", "unknown")
        await logged(front, 1)
        assert "sesame" not in front.log.read_text()

    # Envoy passes on an address of this machine for callers on the loopback device.
    in_front(scenario, TRUSTED_PROXIES=HOST)


def check_own(answer: load.Answer, status: int, type_: str) -> None:
    """That it has the form of the service's own errors."""
    assert answer.status == status
    error = json.loads(answer.body)["error"]
    assert error["type"] == answer.headers["x-error-type"] == type_
    assert error["message"] == answer.headers["x-error-message"]
    assert error["request_id"] == answer.headers["x-req-id"]


def test_the_metrics_are_for_the_inside() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        inside = ("/metrics", "/v1/metrics", "/v1/health/../metrics", "//metrics")
        for answer in await asyncio.gather(*(ask(front, load.get(path)) for path in inside)):
            check_own(answer, 404, "not_found")
        assert (await ask(front, load.get("/v1/%2e%2e%2fmetrics"))).status in (400, 404)
        for path in ("/v1/health", "/v1/ready", "/openapi.json"):
            assert (await ask(front, load.get(path))).status == 200
        async with httpx2.AsyncClient(trust_env=False) as http:
            for path, status in (("/metrics", 200), ("/quitquitquit", 404), ("/config_dump", 404)):
                url = f"http://{HOST}:{front.metrics_port}{path}"
                assert (await http.get(url)).status_code == status

    in_front(scenario)


def test_nobody_gets_in_without_tls() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        answer = await load.call(front.port, clip("Authorization: Bearer sesame"))
        assert answer.status == 0
        assert said_by(tiers[0]) == []

    in_front(scenario)


def test_a_body_that_is_too_large_is_refused_by_its_length_and_by_count() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        announced = b"POST /v1/transcribe HTTP/1.1\r\nHost: t\r\nContent-Length: 16842753\r\n\r\n"
        check_own(await ask(front, announced), 413, "payload_too_large")
        assert said_by(tiers[0]) == []
        counted = clip().replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX-Length")
        head, _, body = counted.partition(b"\r\n\r\n")
        body += bytes(17 * 1024 * 1024)
        answer = await ask(front, head + b"\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert (answer.status, answer.headers["x-error-type"]) == (413, "payload_too_large")
        assert len(said_by(tiers[0])) == 1

    in_front(scenario)


def test_where_no_primary_is_ready_that_is_503_not_ready() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        os.kill(tiers[0].pid, signal.SIGKILL)
        await front.until_healthy(0)
        answer = await ask(front, clip())
        check_own(answer, 503, "not_ready")
        assert answer.headers["retry-after"] == "1"
        assert (await front.stats())["envoy_http_downstream_rq_xx 5"] == 1

    in_front(scenario)


def test_what_a_primary_may_have_worked_on_is_not_sent_again() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        asking = asyncio.create_task(ask(front, clip()))
        assert await until(lambda: any(tier.counts.live for tier in tiers))
        busy = next(tier for tier in tiers if tier.counts.live)
        os.kill(busy.pid, signal.SIGKILL)
        check_own(await asking, 502, "internal")
        assert sum(tier.counts.begun for tier in tiers) == 1

    in_front(scenario, SLOW, SLOW)


@dataclass
class Says:
    """A host that is ready, and answers each clip with that error before it has read it all."""

    status: int
    type: str
    port: int = 0
    asked: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = b"/v1/ready" in await reader.readuntil(b"\r\n\r\n")
        if not ready:
            self.asked += 1
            await reader.readexactly(10_000)
        status = 200 if ready else self.status
        headers = f"X-Error-Type: {self.type}\r\nConnection: close\r\nContent-Length: 0"
        writer.write(f"HTTP/1.1 {status} x\r\n{headers}\r\n\r\n".encode())
        await writer.drain()
        while await reader.read(65536):  # else what is unread takes the answer along
            pass
        writer.close()


def beside(host: Says, scenario: Scenario) -> None:
    """Run it with Envoy in front of that host and of a primary."""

    async def run() -> None:
        async with Lab("short") as lab, await asyncio.start_server(host, HOST, 0) as server:
            host.port = server.sockets[0].getsockname()[1]
            tiers = await primaries(lab, Stub())
            await scenario(await lab.balancer([*tiers, host]), tiers)

    asyncio.run(run())


@pytest.mark.parametrize("type_", ["draining", "not_ready"])
def test_an_upload_that_has_begun_goes_on_to_another_primary(type_: str) -> None:
    host = Says(503, type_)
    large = load.upload(load.CLIP + bytes(3 * 1024 * 1024))

    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        calls = 0
        while not host.asked and calls < 40:  # chance has to choose it
            calls += 1
            answer = await ask(front, large)
            assert (answer.status, json.loads(answer.body)["text"]) == (200, "one two three four")
        assert host.asked == 1
        last = (await logged(front, calls))[-1]
        assert (last["status"], last["attempts"]) == (200, 2)

    beside(host, scenario)


@pytest.mark.parametrize(
    ("status", "type_", "left_out"),
    [(500, "internal", True), (503, "overloaded", False), (502, "fallback_failed", False)],
)
def test_who_fails_is_left_out_and_who_is_busy_is_not(
    status: int, type_: str, left_out: bool
) -> None:
    host = Says(status, type_)

    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        for _ in range(80):
            answer = await ask(front, clip())
            assert answer.status in (200, status)
            if host.asked == 8:
                break
        out = (await front.stats())["envoy_cluster_outlier_detection_ejections_active"]
        assert (host.asked, out) == ((5, 1) if left_out else (8, 0))

    beside(host, scenario)


def test_a_callers_deadline_reaches_the_service() -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        answer = await ask(front, clip("X-Deadline-Ms: 200"))
        assert (answer.status, answer.headers["x-error-type"]) == (504, "deadline_exceeded")
        assert (await line_of(tiers[0]))["status"] == 504

    in_front(scenario, SLOW)


def test_a_new_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    async def scenario(front: Balancer, tiers: list[Tier]) -> None:
        other = Authority(tmp_path / "new")
        front.show(other.issue(HOST, f"IP:{HOST}"))
        context = ssl.create_default_context(cafile=str(other.cert))
        for _ in range(200):  # nothing says that Envoy has read it
            answer = await load.call(front.port, clip(), tls=context)
            if answer.status == 200:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the new certificate is never shown: {answer}")

    in_front(scenario)


def test_a_rolling_restart_fails_no_request_in_short() -> None:
    report = Report()

    async def run() -> None:
        async with Lab("short") as lab:
            await envoy_rolling(lab, report)

    asyncio.run(run())
    assert [str(check) for check in report.checks if not check.holds] == []
    assert report.checks
