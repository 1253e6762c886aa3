"""The page about who watches Prometheus and Alertmanager."""

from __future__ import annotations

from deploy.alertmanager import Alertmanager, Inbox, inbox
from deploy.prometheus import Server
from runbooks.shift import Row, Shift
from stt_cascade.cli.child import HOST

# A dead man's patience; an Alertmanager here is told every 2 s, and forgets after four times that.
PATIENCE_S = 12.0
MESSAGES = 50


async def silent(told: Inbox) -> bool:
    """Whether the dead man's service hears no more, after some last messages."""
    for _ in range(MESSAGES):
        if not await told.again("watchdog", PATIENCE_S):
            return True
    return False


async def watchdog(shift: Shift) -> None:
    async with inbox() as told:
        alertmanager = Alertmanager(shift.folder / "alertmanager", told.addresses)
        async with alertmanager:
            shift.servers["prometheus-alertmanager"] = alertmanager
            await shift.primary()
            await shift.fallback()
            await shift.watch(alertmanager=[f"{HOST}:{alertmanager.port}"])
            found = await shift.prometheus.alert("Watchdog", "firing")
            leads_to = found["annotations"]["runbook"]
            shift.report.check("leads to", leads_to, leads_to == "docs/runbooks/watchdog.md")
            seen = shift.seen.setdefault("Watchdog", {"firing"})

            async def heard() -> None:
                again = [await told.again("watchdog", 60) for _ in range(2)]
                shift.report.check(
                    "a dead man's service hears it, again and again", again, all(again)
                )

            async def dies(server: Server) -> None:
                await server.kill()
                quiet = await silent(told)
                shift.report.check("it hears no more", quiet, quiet)
                seen.update({"silent"} if quiet else ())
                await shift.check()

            await heard()
            await dies(shift.prometheus)
            await shift.do("How to mend", "Prometheus does not answer")
            await heard()
            await dies(alertmanager)
            await shift.do("How to mend", "Alertmanager does not answer")
            await heard()
            seen.add("heard again")
            people = {to for to, text in told.messages if "Watchdog" in text}
            shift.report.check("who was told of it", sorted(people), people == {"watchdog"})


ROWS = (
    Row(
        "watchdog",
        "Prometheus is killed; then Alertmanager is",
        watchdog,
        ("Watchdog",),
        states=frozenset({"firing", "silent", "heard again"}),
        needs=("prometheus", "alertmanager"),
    ),
)
