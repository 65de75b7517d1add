"""Prefect's server as a waiting release sees it: it may be away for a while."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from trainyard.errors import Unavailable

logger = logging.getLogger("trainyard.dispatch")

Answer = TypeVar("Answer")

AWAY_S = 900.0
"""How long a server may be away before a release gives up on it."""
RETRY_S = 5.0


class Server:
    """Asks the server, and asks again while it does not answer."""

    def __init__(self, away_s: float = AWAY_S) -> None:
        self.away_s = away_s
        self._stack = ExitStack()
        # our own waiting is steady; the client's doubles, and sleeps on when the server is back
        self._stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        self._client: SyncPrefectClient | None = None

    def ask(self, question: Callable[[SyncPrefectClient], Answer]) -> Answer:
        """Raises Unavailable when there was no answer for `away_s` seconds."""
        begin = time.monotonic()
        said = False
        while True:
            try:
                answer = question(self._connected())
                if said:
                    logger.info("Prefect's server answers again")
                return answer
            except (httpx.TransportError, PrefectHTTPStatusError, RuntimeError) as error:
                if not _is_away(error):
                    raise
                if time.monotonic() - begin > self.away_s:
                    raise Unavailable(
                        f"Prefect's server did not answer for {self.away_s:.0f} s: {error}"
                    ) from None
                if not said:
                    logger.warning("Prefect's server does not answer, waiting for it: %s", error)
                said = True
            time.sleep(RETRY_S)

    def _connected(self) -> SyncPrefectClient:
        if self._client is None:
            self._client = self._stack.enter_context(get_client(sync_client=True))
        return self._client

    def close(self) -> None:
        self._stack.close()


def _is_away(error: Exception) -> bool:
    if isinstance(error, PrefectHTTPStatusError):
        return error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    return isinstance(error, httpx.TransportError) or "Failed to reach API" in str(error)


@contextmanager
def server() -> Iterator[Server]:
    found = Server()
    try:
        yield found
    finally:
        found.close()
