"""Pages about the way to the fallback, and what it says."""

from __future__ import annotations

from typing import Any

from faults.stub import DOUBT, Stub
from runbooks.shift import Row, Shift
from runbooks.traffic import clip, is_status

DOUBTFUL = clip(prompt=DOUBT)
USED = is_status(200, x_fallback_used="true")
NOT_USED = is_status(200, x_fallback_used="false")


async def breaker_open(shift: Shift) -> None:
    fallback = await shift.fallback()
    primary = await shift.primary()
    await shift.watch()
    doubtful = await shift.callers(primary, request=DOUBTFUL)
    await doubtful.see("the fallback's text", USED)
    await fallback.kill()
    await doubtful.see("the cause", is_status(502, x_fallback_error="unreachable"))
    await doubtful.see("the breaker", is_status(502, x_fallback_error="breaker_open"))
    sure = await shift.callers(primary, callers=1)
    await sure.see("clips without a doubt answered", NOT_USED)
    await shift.firing("SttBreakerOpen")
    await shift.check()
    await shift.do("How to mend")
    await doubtful.see("the fallback's text again", USED, times=3)
    await shift.resolved("SttBreakerOpen")
    log = primary.tier.log.read_text()
    shift.report.check("logged", "circuit breaker closed", "circuit breaker closed" in log)


async def failure_spike(shift: Shift) -> None:
    tight: dict[str, Any] = {"RATE_LIMIT_RPS": 0.5, "RATE_LIMIT_BURST": 2}
    fallback = await shift.fallback(**tight)
    primary = await shift.primary()
    await shift.watch()
    callers = await shift.callers(primary, request=DOUBTFUL, callers=3)
    await callers.see("its 429", is_status(502, x_fallback_error="overloaded"))
    await shift.firing("SttFallbackFailureSpike")
    await shift.check()
    await shift.do("How to mend", "Overloaded by its rate limit")
    await callers.see("the fallback's text", USED, times=10)
    await shift.resolved("SttFallbackFailureSpike")

    fallback.write(MAX_UPLOAD_MB=0.001)
    await fallback.restart()
    await callers.see("its 413", is_status(502, x_fallback_error="rejected"))
    await shift.firing("SttFallbackFailureSpike")
    await shift.do("How to mend", "Rejected by its limits")
    await callers.see("the fallback's text", USED, times=10)

    primary.write(FALLBACK_URL="http://127.0.0.1:9")
    await primary.restart()
    await callers.see("nobody there", is_status(502, x_fallback_error="unreachable"))
    await shift.do("How to mend", "Unreachable")
    await callers.see("the fallback's text", USED, times=10)
    await shift.resolved("SttFallbackFailureSpike")


async def fallback_budget(shift: Shift) -> None:
    await shift.fallback(Stub(seconds=0.8))
    primary = await shift.primary(FALLBACK_TIMEOUT_S=0.4)
    await shift.watch()
    callers = await shift.callers(primary, request=DOUBTFUL)
    await callers.see("the timeout", is_status(502, x_fallback_error="timeout"))
    await shift.firing("SttFallbackBudgetBurn")
    await shift.check()
    await shift.do("How to mend", "Timeout")
    await callers.see("the fallback's text", USED, times=5)
    await shift.resolved("SttFallbackBudgetBurn")


async def availability_budget(shift: Shift) -> None:
    fallback = await shift.fallback()
    primary = await shift.primary()
    await shift.watch()
    callers = await shift.callers(primary, request=DOUBTFUL, callers=3)
    await fallback.stop()
    await callers.see("an error", is_status(502, x_error_type="fallback_failed"))
    await shift.firing("SttAvailabilityBudgetBurn")
    await shift.check()
    await shift.do("How to mend", "The fallback fails")
    degraded = await callers.see("the doubtful text", is_status(200), times=10)
    shift.report.check("marked", '"degraded":true', b'"degraded":true' in degraded.body)
    await shift.resolved("SttAvailabilityBudgetBurn")


async def always_falling_back(shift: Shift) -> None:
    await shift.fallback()
    primary = await shift.primary(Stub(text="yes please"))
    await shift.watch()
    callers = await shift.callers(primary, callers=4)
    await callers.see("the gate", is_status(200, x_conf_below="words", x_fallback_used="true"))
    await shift.firing("SttAlwaysFallingBack")
    await shift.check()
    await shift.do("How to mend", "Very short clips")
    await callers.see("the primary's text", NOT_USED, times=10)
    await shift.resolved("SttAlwaysFallingBack")

    primary.replace_model(Stub(language_sure=0.4))
    await primary.restart()
    await callers.see("the gate", is_status(200, x_conf_below="langprob", x_fallback_used="true"))
    await shift.firing("SttAlwaysFallingBack")
    await shift.do("How to mend", "The language is guessed")
    callers.request = clip(language="en")
    await callers.see("the primary's text", NOT_USED, times=10)
    await shift.resolved("SttAlwaysFallingBack")


async def disagreement(shift: Shift) -> None:
    fallback = await shift.fallback(Stub(seconds=0.005))
    primary = await shift.primary(Stub(seconds=0.005), SHADOW_RATE=1)
    await shift.watch()
    await shift.callers(primary, pause=0.02)
    await shift.sees("stt:shadow_disagreement:mean6h offset 1d")  # a past to compare with
    before = Stub(seconds=0.005)
    fallback.replace_model(Stub(seconds=0.005, text="one two three fourteen"))
    await fallback.restart()
    await shift.firing("SttDisagreementDrift")
    await shift.check()
    fallback.replace_model(before)
    await shift.do("How to mend", "A tier was changed")
    # A week later it would resolve all the same, by comparing what is wrong with what is wrong.
    await shift.sees("stt:shadow_disagreement:mean6h < 0.01")
    await shift.resolved("SttDisagreementDrift")


ROWS = (
    Row(
        "breaker-open",
        "the fallback is killed",
        breaker_open,
        ("SttBreakerOpen",),
        short=True,
    ),
    Row(
        "fallback-failure-spike",
        "the fallback's rate limit is too low, then its upload limit, then its address is wrong",
        failure_spike,
        ("SttFallbackFailureSpike",),
    ),
    Row(
        "fallback-budget-burn",
        "the fallback takes longer than it is given",
        fallback_budget,
        ("SttFallbackBudgetBurn",),
    ),
    Row(
        "availability-budget-burn",
        "the fallback stops, and doubtful clips are 502",
        availability_budget,
        ("SttAvailabilityBudgetBurn",),
    ),
    Row(
        "always-falling-back",
        "clips of two words; then a language that is hard to tell",
        always_falling_back,
        ("SttAlwaysFallingBack",),
    ),
    Row(
        "disagreement-drift",
        "the fallback gets another model",
        disagreement,
        ("SttDisagreementDrift",),
    ),
)
