"""TLS between the tiers as docs/deploy.md sets it up, word by word."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from certificates import Authority, Pair
from fakes import FakeEngine
from faults.balancer import Balancer, missing
from faults.lab import Lab
from faults.lab import until as lines_come
from faults.stub import Counts, Stub
from pages import ROOT, SRC, blocks, page_command
from ports import own_port
from running import Tiers, env_file, until
from stt_cascade.cli.child import HOST
from test_contract_fallback import check_502

# What the page calls otherwise: no name leads from here to a host `stt-fallback`.
NAME = "localhost"
STUB = f"{sys.executable} -m uvicorn --factory faults.stub:fallback"


def here(line: str, folder: Path, port: int) -> str:
    """A line of the page, with this test's ports and folders."""
    for shown, real in (
        ("DNS:stt-fallback", f"DNS:{NAME}"),
        ("/stt-fallback:8443", f"/{NAME}:{port}"),
        ("--port 8443", f"--port {port}"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104  # it is what is replaced
        ("/opt/stt", str(folder)),
        ("configs/cpu", str(folder)),
        (
            " uvicorn stt_fallback:app",
            f" exec {sys.executable} -m uvicorn --factory faults.stub:fallback",
        ),
    ):
        line = line.replace(shown, real)
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the page's commands have made certificates."""
    for line in (
        page_command("Load balancer and TLS", "mkdir -p -m 700 tls"),
        page_command("Load balancer and TLS", "openssl req -x509 -subj '/CN=stt authority'"),
        page_command("Load balancer and TLS", "openssl req -x509 -subj /CN=stt-fallback"),
        page_command("Load balancer and TLS", "openssl req -x509 -subj /CN=stt-primary"),
    ):
        made = subprocess.run(
            ["/bin/bash", "-c", here(line, tmp_path, 0)],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
    return tmp_path


@contextmanager
def started(line: str, folder: Path) -> Iterator[None]:
    """A fallback with a stub engine, started by that line."""
    settings = env_file(
        folder / "stt_fallback.env",
        CT2_MEDIUM_PATH="m",
        DEVICE="cpu",
        **Stub().settings("fallback"),
    )
    Stub().write(settings)
    Counts(settings)
    paths = os.pathsep.join((str(SRC), str(ROOT / "tests")))
    process = subprocess.Popen(
        ["/bin/bash", "-c", line], cwd=folder, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def settings_of_the_page(folder: Path, port: int) -> dict[str, Any]:
    (block,) = (b for b in blocks("docs/deploy.md", "ini") if "FALLBACK_CA_FILE" in b)
    lines = here(block, folder, port).splitlines()
    return {name.lower(): value for name, _, value in (line.partition("=") for line in lines)}


def asked(tiers: Tiers, settings: dict[str, Any]) -> httpx2.Response:
    url = str(settings.pop("fallback_url"))
    return tiers.primary(FakeEngine("hm"), fallback=url, **settings).transcribe()


@pytest.mark.process
def test_the_fallback_terminates_tls_by_itself(tiers: Tiers, folder: Path) -> None:
    port = own_port()
    line = here(
        page_command("Load balancer and TLS", "CONFIG_PATH=configs/cpu/stt_fallback.env uvicorn"),
        folder,
        port,
    )
    primary = Pair(folder / "tls/primary.crt", folder / "tls/primary.key")
    context = primary.client(folder / "tls/ca.crt")

    def ready() -> bool:
        try:
            url = f"https://{NAME}:{port}/v1/ready"
            return httpx2.get(url, verify=context, trust_env=False).status_code == 200
        except httpx2.ConnectError:
            return False

    with started(here(line, folder, port), folder):
        until(ready, "the fallback is ready")
        settings = settings_of_the_page(folder, port)
        answer = asked(tiers, dict(settings))
        assert (answer.status_code, answer.headers["X-Fallback-Used"]) == (200, "true")
        del settings["fallback_cert_file"], settings["fallback_key_file"]
        check_502(asked(tiers, settings), "TLS")


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("shown", ["stt-primary", "another-service", "nobody", "expired"])
@pytest.mark.engines
def test_envoy_in_front_of_the_fallback_lets_in_primaries_only(
    tiers: Tiers, tmp_path: Path, shown: str
) -> None:
    authority = Authority(tmp_path / "authority")

    def answer(front: Balancer) -> httpx2.Response:
        settings: dict[str, Any] = {"fallback_ca_file": authority.cert}
        if shown != "nobody":
            expired = shown == "expired"
            pair = authority.issue("stt-primary" if expired else shown, days=-1 if expired else 2)
            settings |= {"fallback_cert_file": pair.cert, "fallback_key_file": pair.key}
        return asked(tiers, {"fallback_url": f"https://{HOST}:{front.port}", **settings})

    async def run() -> None:
        async with Lab("short") as lab:
            fallback = await lab.fallback()
            front = await lab.balancer([fallback], "fallback.yaml", authority)
            got = await asyncio.to_thread(answer, front)
            if shown == "stt-primary":
                assert (got.status_code, got.headers["X-Fallback-Used"]) == (200, "true")
                assert await lines_come(lambda: bool(front.lines))
                (line,) = front.lines
                assert (line["status"], line["certificate"]) == (200, f"CN={shown}")
                assert line["request_id"] == got.headers["X-Req-Id"]
            else:
                check_502(got, "TLS: ")
                assert "certificate" in got.headers["X-Fallback-Error"]
            assert fallback.counts.begun == (shown == "stt-primary")

    asyncio.run(run())


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.engines
def test_no_primary_stays_at_a_fallback_that_goes(tmp_path: Path) -> None:
    """The next connection leads to another one: the fallback's own words for it end at Envoy."""
    authority = Authority(tmp_path / "authority")
    context = authority.issue("stt-primary").client(authority.cert)

    async def run() -> None:
        async with Lab("short") as lab:
            front = await lab.balancer([await lab.fallback()], "fallback.yaml", authority)
            url = f"https://{HOST}:{front.port}/v1/transcribe"
            async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
                answer = await client.get(url)
                assert answer.status_code == 405
                assert answer.headers.get("Connection") == "close"

    asyncio.run(run())
