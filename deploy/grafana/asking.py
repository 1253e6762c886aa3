"""What the panels ask Prometheus: pieces of PromQL."""

from __future__ import annotations

from drawing import Query

# Of what is chosen above the dashboard; of the primary alone, whose callers they are.
HERE = 'job=~"$job", instance=~"$instance"'
PRIMARY = 'job="stt-primary", instance=~"$instance"'
RATE = "[$__rate_interval]"
PAGES = 'ALERTS{alertname=~"Stt.+", severity="page", alertstate="firing"}'


def rate(metric: str, labels: str = PRIMARY) -> str:
    return f"rate({metric}{{{labels}}}{RATE})"


def quantiles(metric: str, *shares: float, labels: str = PRIMARY) -> list[Query]:
    return [
        Query(
            f"histogram_quantile({share}, sum by (le, instance) "
            f"({rate(f'{metric}_bucket', labels)}))",
            f"p{100 * share:g} {{{{instance}}}}",
        )
        for share in shares
    ]


def quantile(metric: str, share: float, name: str, labels: str = PRIMARY) -> Query:
    """Of all instances together."""
    return Query(
        f"histogram_quantile({share}, sum by (le) ({rate(f'{metric}_bucket', labels)}))", name
    )


def decided(result: str) -> str:
    """Requests a second that ended in that result, by primary."""
    return rate("stt_fallback_total", f'{PRIMARY}, result="{result}"')
