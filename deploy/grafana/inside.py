"""The further rows: room, routing, texts, machines."""

from __future__ import annotations

from asking import HERE, PRIMARIES, PRIMARY, RATE, decided, rate
from drawing import Panel, Query, graph, heat, listing


def room() -> list[Panel]:
    return [
        graph(
            "Slots in use",
            "percentunit",
            [Query(f"stt_in_flight{{{HERE}}} / stt_max_concurrency{{{HERE}}}", "{{instance}}")],
            text="Inferences running, of MAX_CONCURRENCY.",
            top=1,
        ),
        graph(
            "Queue",
            "short",
            [
                Query(f"stt_queue_depth{{{HERE}}}", "{{instance}}"),
                Query(f"stt_max_queue{{{HERE}}}", "{{instance}}, room"),
            ],
            text="Requests that wait for a slot, and how many may.",
        ),
        graph(
            "In flight",
            "s",
            [Query(f"stt_in_flight_audio_seconds{{{HERE}}}", "{{instance}}, audio")],
            text="Seconds of audio being worked on.",
        ),
        graph(
            "Oldest inference",
            "s",
            [
                Query(f"stt_oldest_inference_seconds{{{HERE}}}", "{{instance}}"),
                Query(f"stt_infer_timeout_seconds{{{HERE}}} / 2", "{{instance}}, slow from here"),
            ],
            text="At half of INFER_TIMEOUT_S a tier is not ready, at all of it not healthy.",
        ),
        graph(
            "Nearest to its rate limit",
            "percentunit",
            [Query(f"stt_rate_limit_fullest_ratio{{{HERE}}}", "{{job}} {{instance}}")],
            text="How much of its burst the busiest caller has used up. At 1 it gets 429.",
            top=1,
            limit=0.8,
        ),
        graph(
            "Circuit breaker",
            "short",
            [Query(f"stt_fallback_breaker_open{{{PRIMARY}}}", "{{instance}}")],
            text="1: requests are kept from the fallback, and fail at once if they need it.",
            top=1,
        ),
    ]


def routing() -> list[Panel]:
    return [
        graph(
            "Fallback rate",
            "percentunit",
            [
                Query(
                    f"sum({decided('used')}) / sum({rate('stt_requests_total')})", "answered by it"
                ),
                Query(f"stt:escalations:ratio_rate15m{{{PRIMARIES}}}", "needed it, 15 min"),
            ],
            text="Of all requests, those that the fallback answered; of the decided ones, those "
            "that needed it.",
        ),
        graph(
            "Escalations by gate",
            "reqps",
            [Query(f"sum by (gate) ({rate('stt_conf_below_total')})", "{{gate}}")],
            text="Gates that texts failed. One text can fail several.",
        ),
        graph(
            "Escalations by reason",
            "reqps",
            [Query(f"sum by (reason) ({rate('stt_escalations_total')})", "{{reason}}")],
            text="primary_error is a broken primary, whatever its texts are worth.",
            stack=True,
        ),
        graph(
            "Cost saved against the fallback alone",
            "percentunit",
            [Query(f"stt:inference_saved:ratio_rate1h{{{PRIMARIES}}}", "saved")],
            text="Inference seconds not spent: both tiers' own, against what the fallback would "
            "take for all audio at the pace at which it works. Seconds in a slot: where a slot of "
            "the fallback has more of a processor, more is saved.",
            width=12,
        ),
        graph(
            "Inference",
            "s",
            [
                Query(f"stt:inference_seconds:rate1h{{{PRIMARIES}}}", "both tiers"),
                Query(
                    f"stt:inference_seconds_fallback_alone:rate1h{{{PRIMARIES}}}",
                    "the fallback alone",
                ),
            ],
            text="Seconds of inference a second, in the last hour: what the above is made of.",
            width=12,
        ),
    ]


def texts() -> list[Panel]:
    def confidence(score: str) -> Query:
        return Query(
            f'sum by (le) (increase(stt_confidence_bucket{{{PRIMARY}, score="{score}"}}{RATE}))',
            "{{le}}",
        )

    compared = "stt_shadow_disagreement"
    return [
        heat(
            "Confidence: weakest tokens",
            confidence("weakest"),
            text="The primary's texts. A cloud that sinks: noise, another language, another model.",
        ),
        heat(
            "Confidence: mean of all tokens",
            confidence("logprob"),
            text="The specification's score. It moves little with a wrong word.",
        ),
        graph(
            "Disagreement of accepted texts",
            "percentunit",
            [
                Query(
                    f"sum({rate(f'{compared}_sum')}) / sum({rate(f'{compared}_count')})",
                    "words, mean",
                ),
                Query(
                    f"""1 - sum({rate(f"{compared}_bucket", PRIMARY + ', le="0.0"')})"""
                    f" / sum({rate(f'{compared}_count')})",
                    "texts that differ",
                ),
                Query(f"stt:shadow_disagreement:mean6h{{{PRIMARIES}}}", "words, mean of 6 h"),
            ],
            text="With the fallback's, where SHADOW_RATE has them compared. Look for a change, not "
            "for zero.",
        ),
        graph(
            "Shadows",
            "reqps",
            [Query(f"sum by (result) ({rate('stt_shadow_total')})", "{{result}}")],
            text="Accepted clips drawn for the comparison.",
        ),
        graph(
            "Second looks, silence and picks",
            "reqps",
            [
                Query(f"sum({rate('stt_second_looks_total')})", "second looks"),
                Query(f"sum({rate('stt_full_context_retries_total')})", "encoded anew in full"),
                Query(f"sum({rate('stt_no_speech_total')})", "nobody speaks"),
                Query(f"sum by (tier) ({rate('stt_final_picks_total')})", "picked: {{tier}}"),
            ],
            text="Windows decoded or encoded again, clips without speech, and with FINAL_PICK=best "
            "whose text it was.",
        ),
    ]


def machines() -> list[Panel]:
    return [
        graph(
            "GPU",
            "percent",
            [
                Query(f"avg(stt_gpu_utilization_pct{{{HERE}}})", "mean"),
                Query(f"stt_gpu_utilization_pct{{{HERE}}}", "{{job}} {{instance}}"),
            ],
            text="Load; empty without GPUs.",
            top=100,
            limit=90,
        ),
        graph(
            "GPU memory",
            "percentunit",
            [
                Query(
                    f"stt_gpu_mem_used_mb{{{HERE}}} / stt_gpu_mem_total_mb{{{HERE}}}",
                    "{{job}} {{instance}}",
                )
            ],
            text="Used of what there is.",
            top=1,
            limit=0.95,
        ),
        graph(
            "Memory",
            "mbytes",
            [Query(f"stt_process_rss_mb{{{HERE}}}", "{{job}} {{instance}}")],
            text="Of each process and its decoding processes. A slope for hours is a leak.",
        ),
        graph(
            "Audio",
            "short",
            [Query(f"sum by (job) ({rate('stt_audio_seconds_total', HERE)})", "{{job}}")],
            text="Seconds of audio a second.",
        ),
        listing(
            "What runs",
            Query(f"stt_build_info{{{HERE}}}"),
            text="Version, commit, model and device of each.",
            width=16,
        ),
    ]
