"""The gateway's own HTTP client: aiohttp's connections and parser without aiohttp's session.

A session prepares each request for redirects, cookies, proxies, and uploads in a task of its own,
none of which an engine has: that took longer than all that the gateway itself does for a request.
"""

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import hdrs
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL


class Client:
    """Must be made, used and closed within one event loop."""

    def __init__(self, *, connect_s: float, idle_s: float) -> None:
        """`connect_s` and `idle_s`: longest connecting, and longest silence afterwards."""
        self.loop = asyncio.get_running_loop()
        self.connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
        self.timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=idle_s)
        # only ever read: it tells the connector whom to connect to
        self.target = lru_cache(64)(lambda url: aiohttp.ClientRequest("POST", URL(url)))

    async def close(self) -> None:
        await self.connector.close()


class Post:
    """JSON posted to an engine. Inside `async with`, the answer; its body may still be on its way.

    Raises aiohttp.ClientError or TimeoutError, also while the body is read. Whoever leaves before
    the end of the body ends the connection, and with it the engine's work.
    """

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader
    _connection: Connection

    def __init__(self, client: Client, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        self._client = client
        self._url = url
        self._body = body
        self._headers = headers

    async def __aenter__(self) -> Self:
        client = self._client
        target = client.target(self._url)
        self._connection = await client.connector.connect(target, [], client.timeout)
        try:
            await self._ask(target.url)
        except BaseException:
            self._connection.close()
            raise
        return self

    async def _ask(self, url: URL) -> None:
        protocol = self._connection.protocol
        assert protocol is not None
        protocol.set_response_params(
            auto_decompress=False, read_timeout=self._client.timeout.sock_read
        )
        headers = CIMultiDict(self._headers)
        headers[hdrs.HOST] = url.host_port_subcomponent or ""
        headers[hdrs.CONTENT_TYPE] = "application/json"
        headers[hdrs.CONTENT_LENGTH] = str(len(self._body))
        writer = StreamWriter(protocol, self._client.loop)
        await writer.write_headers(f"POST {url.raw_path_qs} HTTP/1.1", headers)
        # an engine may refuse a body that it has not read: nobody waits until it is sent
        await writer.write(self._body, drain=False)
        protocol.start_timeout()
        self.status = 100
        try:
            while self.status < 200:
                message, self.content = await protocol.read()
                self.status, self.headers = message.code, message.headers
        except HttpProcessingError as error:
            raise aiohttp.ClientPayloadError(f"no HTTP: {error.message}") from error

    async def read(self) -> bytes:
        content = self.content
        return content.read_nowait() if content.is_eof() else await content.read()

    @property
    def is_stream(self) -> bool:
        return self.headers.get(hdrs.CONTENT_TYPE, "").startswith("text/event-stream")

    async def __aexit__(
        self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if kind is None:
            self._connection.release()
        else:
            self._connection.close()
