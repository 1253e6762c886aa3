"""The counters of services: straight from `/metrics`, or from a Prometheus that collects them."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2

from stt_cascade.measure.counts import NAMES, REQUESTS, Looked, Sample, Silence, series
from stt_sdk import STTClient, STTError, UnauthorizedError
from stt_sdk._transport import NoCookies

PATIENCE_S = 5.0


class Source(Protocol):
    """One side of a comparison."""

    async def look(self) -> Looked:
        """The counters of all its instances now.

        Raises:
            LookupError: nobody who could tell answers.
        """
        ...


@dataclass(frozen=True)
class Services:
    """Instances at known addresses, each with its client."""

    clients: Mapping[str, STTClient]

    async def look(self) -> Looked:
        found = await asyncio.gather(*map(_one, self.clients.values()))
        return dict(zip(self.clients, found, strict=True))


async def _one(client: STTClient) -> Sample | Silence:
    try:
        return parsed(await client.prometheus())
    except UnauthorizedError as error:
        return Silence(f"{error.message}: a key of METRICS_KEYS is needed")
    except (STTError, ValueError) as error:
        return Silence(str(error))


@dataclass(frozen=True)
class Prometheus:
    """What a Prometheus scrapes that has these labels, such as `job="stt-primary",role="canary"`.

    The counters are read as they are, each instance by itself: what `increase()` gives is
    extrapolated, and its fractions are no counts.
    """

    http: httpx2.AsyncClient
    url: str
    selector: str
    key: str | None = field(default=None, repr=False)

    async def look(self) -> Looked:
        """An instance that Prometheus no longer knows of is left out: it was taken away."""
        found: defaultdict[str, dict[tuple[str, str], float]] = defaultdict(dict)
        up = await self._query(f"up{{{self.selector}}}")
        counted = await self._query(f'{{__name__=~"{"|".join(NAMES)}",{self.selector}}}')
        for labels, value in counted:
            if (key := series(labels.get("__name__", ""), labels)) is not None:
                found[_instance(labels)][key] = value
        return {
            name: found[name] if value and found[name] else Silence(_why(value))
            for labels, value in up
            for name in [_instance(labels)]
        }

    async def _query(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        url = f"{self.url.rstrip('/')}/api/v1/query"
        try:
            answer = await _get(self.http, url, self.key, query)
        except LookupError as error:
            raise LookupError(f"Prometheus at {self.url}: {error}") from None
        try:
            result: Any = answer.json()["data"]["result"]
            return [(one["metric"], float(one["value"][1])) for one in result]
        except (KeyError, TypeError, ValueError):
            raise LookupError(f"{self.url} does not answer as Prometheus does") from None


@asynccontextmanager
async def services(*sides: Sequence[str], key: str | None) -> AsyncIterator[list[Source]]:
    """Each side's instances, straight from their addresses.

    Args:
        key: of `METRICS_KEYS`, where they want one.
    """
    async with AsyncExitStack() as stack:
        found: list[Source] = []
        for urls in sides:
            clients = {url: STTClient(url, api_key=key, timeout=PATIENCE_S) for url in urls}
            for client in clients.values():
                await stack.enter_async_context(client)
            found.append(Services(clients))
        yield found


@asynccontextmanager
async def prometheus(url: str, *selectors: str, key: str | None) -> AsyncIterator[list[Source]]:
    """Each side by its labels, from a Prometheus."""
    async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, cookies=NoCookies()) as http:
        yield [Prometheus(http, url, selector.strip().strip("{}"), key) for selector in selectors]


def parsed(text: str) -> Sample:
    """The counters in what `/metrics` answers.

    Raises:
        ValueError: it is not in that form, or of another service.
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[tuple[str, str], float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = series(sample.name, sample.labels)
                if key is not None and math.isfinite(sample.value):
                    found[key] = sample.value
    except ValueError as error:
        raise ValueError(f"its /metrics cannot be read: {error}") from None
    if (REQUESTS, "") not in found:
        raise ValueError(f"its /metrics have no {REQUESTS}")
    return found


async def _get(http: httpx2.AsyncClient, url: str, key: str | None, query: str) -> httpx2.Response:
    """Raises LookupError: there is no answer 200."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = await http.get(url, headers=headers, params={"query": query})
    except httpx2.TimeoutException:
        raise LookupError(f"no answer within {PATIENCE_S:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise LookupError(str(error) or type(error).__name__) from None
    if answer.status_code != 200:
        said = answer.json().get("error", "") if _is_json(answer) else ""
        raise LookupError(f"it answers {answer.status_code}{f': {said}' if said else ''}")
    return answer


def _is_json(answer: httpx2.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("application/json")


def _instance(labels: Mapping[str, str]) -> str:
    return "/".join(labels[name] for name in ("job", "instance") if name in labels)


def _why(up: float) -> str:
    return "Prometheus knows none of its counters" if up else "Prometheus cannot scrape it"
