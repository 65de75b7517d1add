"""An OpenAI-compatible server: one call with a deadline, tried again only where time can heal."""

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from trainyard.errors import InputError, Unavailable

TRIES = 3
LONGEST_WAIT_S = 60.0
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Reply:
    """A JSON answer and what it took."""

    body: Mapping[str, Any]
    seconds: float
    """Of the last try alone."""


class NotAnswered(Exception):
    """This request has no answer, though the server is there; the message says why."""


class Endpoint:
    """Calls to one server. Use as an async context manager."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        connections: int = 8,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        await asyncio.sleep(0)  # a closed transport lets go of its socket in the next turn

    async def models(self) -> list[str]:
        """Names that the server answers to. Raises Unavailable, or InputError for no such API."""
        try:
            response = await self._client.get(f"{self.base_url}/v1/models")
            names = [str(entry["id"]) for entry in response.json()["data"]]
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.base_url} did not answer: {_named(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.base_url}/v1/models answered {response.status_code} without a list of "
                "models; is this an OpenAI-compatible server?"
            ) from error
        return names

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """POST and parse. Raises NotAnswered for this request, Unavailable when nobody listens."""
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            started = time.perf_counter()
            try:
                # the deadline covers the whole exchange: a server that trickles bytes never times
                # out by httpx's per-read limit
                async with asyncio.timeout(self._timeout_s):
                    response = await self._client.post(f"{self.base_url}{path}", json=dict(body))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if last:
                    raise Unavailable(f"{self.base_url} did not answer: {_named(error)}") from error
                await asyncio.sleep(_backoff(attempt))
                continue
            except (httpx.HTTPError, TimeoutError) as error:
                if last:
                    raise NotAnswered(f"{TRIES} tries failed, last {_named(error)}") from error
                await asyncio.sleep(_backoff(attempt))
                continue
            seconds = time.perf_counter() - started
            if response.status_code in _PASSING and not last:
                await asyncio.sleep(_wait(response, attempt))
                continue
            return Reply(_parsed(response), seconds)
        raise NotAnswered(f"{TRIES} tries failed")


def _parsed(response: httpx.Response) -> Mapping[str, Any]:
    if response.is_success:
        try:
            body = response.json()
        except ValueError as error:
            kind = response.headers.get("content-type", "no content type")
            raise NotAnswered(f"answer is no JSON ({kind}): {response.text[:80]!r}") from error
        if isinstance(body, dict):
            return body
    raise NotAnswered(f"HTTP {response.status_code}: {response.text[:200]}")


def _wait(response: httpx.Response, attempt: int) -> float:
    """Seconds until the next try: what the server asked for, else full-jitter backoff."""
    given = response.headers.get("retry-after", "").strip()
    if given.isdigit():
        return min(float(given), LONGEST_WAIT_S)
    try:
        when = email.utils.parsedate_to_datetime(given).timestamp()
    except ValueError:
        return _backoff(attempt)
    return min(max(when - time.time(), 0.0), LONGEST_WAIT_S)


def _backoff(attempt: int) -> float:
    return random.uniform(0, min(2.0**attempt, LONGEST_WAIT_S))


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
