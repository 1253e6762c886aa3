"""Pages about what is done on purpose."""

from __future__ import annotations

import asyncio
from typing import Any

from faults import load
from faults.calls import offer, pool_of, told
from faults.lab import until
from faults.stub import DOUBT, Stub
from runbooks.shift import Row, Shift
from runbooks.traffic import clip, is_status

OLD, NEW = "primary_key_abc", "primary_key_new"
RATE = 8.0
USED = is_status(200, x_fallback_used="true")


async def start_stop(shift: Shift) -> None:
    fallback = await shift.fallback()
    primary = await shift.primary(Stub(seconds=1.5))
    await shift.watch()
    await primary.stop()
    await fallback.stop()
    await shift.firing_elsewhere("SttTierDown")
    await shift.do("What to do", "Start")
    await shift.resolved("SttTierDown")
    begun = asyncio.create_task(load.call(primary.port, clip()))
    await until(lambda: primary.tier.counts.live > 0)
    stopping = asyncio.create_task(shift.do("What to do", "Stop"))
    await primary.tier.until("/v1/ready", 503)
    refused = await load.call(primary.port, clip())
    word = refused.headers.get("x-error-type")
    shift.report.check("new ones are refused", word, word == "draining")
    answer = await begun
    shift.report.check("what had begun", answer.status, answer.status == 200)
    await stopping


async def rolling_update(shift: Shift) -> None:
    old = await shift.fallback(SERVER_COMMIT="old")
    primaries = [await shift.primary(SERVER_COMMIT="old") for _ in range(2)]
    await shift.watch()
    await shift.check()
    over = asyncio.Event()
    async with pool_of([primary.tier for primary in primaries]) as pool:

        def doubtful(id_: str) -> Any:
            return pool.transcribe(load.CLIP, prompt=DOUBT, request_id=id_)

        calling = asyncio.create_task(offer(doubtful, rate=RATE, until=over.is_set))
        new = await shift.fallback(SERVER_COMMIT="new")
        await shift.do("What to do", "The fallback first")
        for primary in primaries:
            with shift.alone(primary, old, new):
                primary.write(SERVER_COMMIT="new")
                await shift.do("What to do", "Then the primaries, one after the other")
            again = await primary.until_asked()
            shift.report.check("has requests again", again, again)
        await until(lambda: new.tier.counts.begun > RATE)
        asked = old.tier.counts.begun
        await until(lambda: new.tier.counts.begun > 3 * RATE)
        quiet = old.tier.counts.begun == asked
        shift.report.check("the old fallback is asked no more", quiet, quiet)
        await old.stop()
        shift.retire(old)
        shift.aim()
        await until(lambda: new.tier.counts.begun > 4 * RATE)
        over.set()
        calls = await calling
    failed = sum(call.how != "ok" for call in calls)
    shift.report.check(f"failed, of {len(calls)} calls", told(calls), not failed)
    await shift.sees('count(count by (job) (stt_build_info{commit="new"})) == 2')
    shift.report.check("both tiers have", "the new version", True)


async def key_rotation(shift: Shift) -> None:
    keys = {
        shift.folder / "keys" / name: key
        for name, key in (
            ("primary/api.keys", OLD),
            ("primary/fallback.key", "fb_key_123"),
            ("fallback/api.keys", "fb_key_123"),
        )
    }
    for file, key in keys.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(key)  # an editor may have left out the end of the line
        file.chmod(0o640)
    await shift.fallback(API_KEYS_FILE="/opt/stt/keys/fallback/api.keys")
    files: dict[str, Any] = {
        "API_KEYS_FILE": "/opt/stt/keys/primary/api.keys",
        "FALLBACK_API_KEY_FILE": "/opt/stt/keys/primary/fallback.key",
    }
    primary = await shift.primary(**files)
    moved = await shift.callers(primary, request=clip(key=OLD, prompt=DOUBT))
    await moved.see("the fallback's text", USED)
    await shift.check()
    await shift.do("What to do", "Add the new one")
    moved.request = clip(key=NEW, prompt=DOUBT)
    await moved.see("the fallback's text", USED, times=3)
    await shift.do("What to do", "Remove the old one")
    await shift.do("What to do", "Between the tiers")
    await moved.see("the fallback's text", USED, times=3)
    wrong = [answer for answer in moved.answers if answer.status != 200]
    shift.report.check(f"failed of {len(moved.answers)} requests", len(wrong), not wrong)
    snapshot = await primary.tier.snapshot()
    shift.report.check("keys in force", list(snapshot["keys"]), len(snapshot["keys"]) == 1)
    modes = [f"{file.stat().st_mode & 0o777:o}" for file in keys]
    shift.report.check("who may read the files", modes, set(modes) == {"640"})


ROWS = (
    Row("start-stop", "both tiers are down; then a clip is in work as they stop", start_stop),
    Row("rolling-update", "a new version of both tiers, under load", rolling_update),
    Row(
        "key-rotation",
        "both keys are replaced, under load",
        key_rotation,
        short=True,
        needs=(),
    ),
)
