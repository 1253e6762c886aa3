"""`stt bench sdk`: what its table says must be what was measured."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stt_cascade.bench import primaries
from stt_cascade.bench.sdk import BASELINE, cost
from stt_cascade.cli.app import app
from stt_sdk import STTClient


def test_a_cost_is_compared_within_its_round() -> None:
    spent = {BASELINE: [1e-3, 4e-3, 2e-3], "ours": [2e-3, 2e-3, 3e-3]}
    row = cost(spent)["ours"]
    assert (row["us"], row["own_us"]) == (2000, 1000)
    assert (row["ratio"], row["ratio_least"], row["ratio_most"]) == (1.5, 0.5, 2.0)
    assert cost(spent)[BASELINE]["ratio"] == 1


@pytest.mark.process
def test_the_stub_primaries_answer_as_the_contract_says() -> None:
    async def scenario() -> None:
        async with primaries.running(2, 2, 0.02) as urls:
            assert len(set(urls)) == 2
            async with STTClient(urls[0]) as stt:
                assert (await stt.ready()).ready
                results = await asyncio.gather(*(stt.transcribe(bytes(1000)) for _ in range(10)))
        assert {(one.text.split()[0], one.routing.tier) for one in results} == {("one", "primary")}

    asyncio.run(scenario())


@pytest.mark.process
def test_the_command_tells_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = {"--service-ms": 5, "--seconds": 0.2, "--calls": 10, "--rounds": 2, "--json": file}
    quick = [str(word) for option in options.items() for word in option]
    result = CliRunner().invoke(app, ["bench", "sdk", "--hosts", "1", "--hosts", "2", *quick])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert [row["hosts"] for row in report["throughput"]] == [1, 2]
    assert all(0 < row["of_linear"] <= 1.5 for row in report["throughput"])
    assert report["cost"][BASELINE]["ratio"] == 1
    assert all(row["us"] > 0 for row in report["cost"].values())
    for shown in ("of linear", "STTPool of 3, a hook", BASELINE):
        assert shown in result.output


@pytest.mark.parametrize("option", ["--hosts", "--rounds"])
def test_nothing_cannot_be_measured(option: str) -> None:
    assert CliRunner().invoke(app, ["bench", "sdk", option, "0"]).exit_code == 2
