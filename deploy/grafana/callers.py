"""The first rows: what callers get, how fast, and what fails."""

from __future__ import annotations

from asking import HERE, INGRESS, OURS, PAGES, PRIMARIES, WITHIN, decided, quantile, quantiles, rate
from drawing import Panel, Query, figure, graph, listing


def now() -> list[Panel]:
    return [
        figure(
            "Pages",
            "short",
            Query(f"count({PAGES}) or vector(0)"),
            text="Alerts that fire and got somebody up. Below is which.",
            colours=[("green", None), ("red", 1)],
        ),
        figure(
            "Tiers that answer",
            "percentunit",
            Query(f'avg(up{{{WITHIN}, job=~"stt-primary|stt-fallback|envoy"}})'),
            text="Of all that Prometheus knows, Envoy included: who could be scraped.",
            colours=[("red", None), ("orange", 0.5), ("green", 1)],
        ),
        figure(
            "Availability, 1 h",
            "percentunit",
            Query(f"1 - stt:availability_errors:ratio_rate1h{{{PRIMARIES}}}"),
            text="Answers with 200 of those with 200 or 5xx. The objective is 99.9 %.",
            colours=[("red", None), ("orange", 0.99), ("green", 0.999)],
            decimals=2,
        ),
        figure(
            "Short clips within 1 s, 1 h",
            "percentunit",
            Query(f"1 - stt:slow_answers:ratio_rate1h{{{PRIMARIES}}}"),
            text="Clips of up to SLO_CLIP_SECONDS. The objective is 95 %.",
            colours=[("red", None), ("orange", 0.9), ("green", 0.95)],
            decimals=1,
        ),
        figure(
            "Fallback failures, 1 h",
            "percentunit",
            Query(f"stt:fallback_failures:ratio_rate1h{{{PRIMARIES}}}"),
            text="Requests that needed the fallback and got no text of it. The objective: < 0.5 %.",
            colours=[("green", None), ("orange", 0.0025), ("red", 0.005)],
            decimals=2,
        ),
        figure(
            "Requests",
            "reqps",
            Query(f"sum({rate('stt_requests_total')})"),
            text="To the primaries, refused ones included.",
            colours=[("blue", None)],
            decimals=1,
        ),
        listing(
            "Alerts",
            Query(f"ALERTS{{{OURS}}}"),
            text="Pending ones come into force if they last. docs/runbooks has a page for each.",
        ),
        graph(
            "Throughput",
            "reqps",
            [Query(f"sum by (instance) ({rate('stt_requests_total')})", "{{instance}}")],
            text="Requests to each primary. One that gets none is out of the load balancer.",
        ),
        graph(
            "Budgets: how fast",
            "short",
            [
                Query(f"stt:availability_errors:ratio_rate1h{{{PRIMARIES}}} / 0.001", "5xx"),
                Query(f"stt:slow_answers:ratio_rate1h{{{PRIMARIES}}} / 0.05", "slow"),
                Query(
                    f"stt:fallback_failures:ratio_rate1h{{{PRIMARIES}}} / 0.005",
                    "fallback failures",
                ),
            ],
            text="1 uses up the budget in 30 days. At 14.4 for an hour somebody is got up.",
            limit=14.4,
        ),
        graph(
            "5xx at the ingress",
            "reqps",
            [
                Query(
                    f"sum by (status) ({rate('http_requests_total', INGRESS)})",
                    "{{status}}",
                )
            ],
            text="What Envoy answers its callers; empty without Envoy.",
        ),
    ]


def speed() -> list[Panel]:
    return [
        graph(
            "Latency by primary",
            "s",
            quantiles("stt_request_total_seconds", 0.5, 0.95, 0.99),
            text="End to end, answers with 200, clips of all lengths.",
            limit=1,
        ),
        graph(
            "Where the time goes, p95",
            "s",
            [
                quantile("stt_queue_wait_seconds", 0.95, "queue"),
                quantile("stt_primary_infer_seconds", 0.95, "primary's inference"),
                quantile("stt_fallback_infer_seconds", 0.95, "fallback's round trip"),
                quantile(
                    "stt_fallback_infer_seconds",
                    0.95,
                    "fallback's inference",
                    f'{WITHIN}, job="stt-fallback"',
                ),
            ],
            text="Long queues want slots or machines; a slow inference fewer threads or another "
            "disk; a round trip far above the inference is the fallback's queue or the network.",
        ),
        graph(
            "Short clips, p95",
            "s",
            [quantile("stt_slo_request_seconds", 0.95, "up to SLO_CLIP_SECONDS")],
            text="The objective is 1 s.",
            limit=1,
        ),
    ]


def failures() -> list[Panel]:
    return [
        graph(
            "Errors by type",
            "reqps",
            [
                Query(
                    f"sum by (job, type) ({rate('stt_requests_exceptions_total', HERE)}) > 0",
                    "{{job}} {{type}}",
                )
            ],
            text="Answers other than 200; the fallback's own come to no caller, but the primary's "
            "fallback_failed may be one of them. fallback_failed is 502, overloaded, draining and "
            "not_ready are 503, deadline_exceeded is 504, internal is 500; the others are the "
            "callers' own.",
            stack=True,
        ),
        graph(
            "Fallback failures",
            "reqps",
            [
                Query(
                    f"sum by (instance) ({decided('failed')})",
                    "{{instance}}",
                )
            ],
            text="Requests that needed the fallback and got nothing of it, by primary.",
            limit=0.5,
        ),
        graph(
            "Why the fallback gave no text",
            "reqps",
            [Query(f"sum by (cause) ({rate('stt_fallback_errors_total')})", "{{cause}}")],
            text="unreachable, broken_off, timeout, error and invalid are its own faults and open "
            "the breaker; overloaded and rejected show that it works.",
            stack=True,
        ),
        graph(
            "Refused",
            "reqps",
            [
                Query(
                    f"sum by (job, reason) ({rate('stt_rejected_total', HERE)})",
                    "{{job}} {{reason}}",
                )
            ],
            text="Turned away for lack of permission, room or time.",
            stack=True,
            width=12,
        ),
        graph(
            "Callers who left",
            "reqps",
            [
                Query(
                    f"sum by (instance) ({rate('stt_requests_abandoned_total', HERE)})",
                    "{{instance}}",
                )
            ],
            text="Before their answer. They count in no objective: many of them beside a long "
            "queue are callers who lost patience.",
            width=12,
        ),
    ]
