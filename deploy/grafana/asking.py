"""What the panels ask Prometheus: pieces of PromQL."""

from __future__ import annotations

from drawing import Query

# Of what is chosen above the dashboard; of the primary alone, whose callers they are.
# Without namespaces all that is chosen is everything, which matches what has no such label.
WITHIN = 'namespace=~"$namespace"'
HERE = f'{WITHIN}, job=~"$job", instance=~"$instance"'
PRIMARY = f'{WITHIN}, job="stt-primary", instance=~"$instance"'
# Of all instances together, as the rules record it.
PRIMARIES = f'{WITHIN}, job="stt-primary"'
# What Envoy answers the primary's callers.
INGRESS = f'{WITHIN}, app="stt-primary"'
RATE = "[$__rate_interval]"
OURS = f'{WITHIN}, alertname=~"Stt.+"'
PAGES = f'ALERTS{{{OURS}, severity="page", alertstate="firing"}}'


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
