"""HTTP face of the CPU server: OpenAI routes, server-sent events, errors as OpenAI-shaped JSON."""

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from trainyard.errors import InputError, NotFound, Unavailable
from trainyard.serving.server_answers import Answer
from trainyard.serving.server_engine import Engine, QueueFull
from trainyard.serving.server_metrics import Metrics
from trainyard.serving.server_request import (
    Asked,
    ChatBody,
    CompletionBody,
    TooLong,
    read_body,
    read_chat,
    read_completion,
)
from trainyard.serving.server_sequence import Event, Sequence, Served

log = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20
_LARGE_BODY = 1 << 16
"""Bytes from which a body is parsed and tokenized off the event loop."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,199}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Feed = asyncio.Queue[tuple[int, Event]]


class Failed(Exception):
    """A step of this request failed inside the model."""


def problem(
    status: int, message: str, *, code: str | None = None, retry_after_s: int | None = None
) -> web.Response:
    kinds = {404: "NotFoundError", 429: "RateLimitError", 503: "ServiceUnavailableError"}
    kind = kinds.get(status, "InternalServerError" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": code or status}
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response({"error": error}, status=status, headers=headers)


@web.middleware
async def _as_openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TooLong as error:
        return problem(400, str(error), code="context_length_exceeded")
    except InputError as error:
        return problem(400, str(error))
    except NotFound as error:
        return problem(404, str(error), code="model_not_found")
    except QueueFull as error:
        wait = int(error.args[0])
        return problem(429, f"the queue is full; try again in {wait} s", retry_after_s=wait)
    except Unavailable as error:
        return problem(503, str(error), retry_after_s=5)
    except Failed as error:
        return problem(500, str(error))
    except web.HTTPRequestEntityTooLarge:
        return problem(413, f"the body has more than {MAX_BODY} bytes")
    except web.HTTPException as error:
        text = f"{request.method} {request.path}: {error.reason}"
        return problem(error.status, text)
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception:  # whatever it is, a client gets JSON and the operator the traceback
        log.exception("%s %s failed", request.method, request.path)
        return problem(500, "the server failed on this request; its log says why")


class Api:
    def __init__(self, engine: Engine, metrics: Metrics, *, admin: bool) -> None:
        self._engine = engine
        self._metrics = metrics
        self._admin = admin
        self._started = int(time.time())

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_as_openai_errors])
        app.router.add_post("/v1/chat/completions", functools.partial(self.complete, ChatBody))
        app.router.add_post("/v1/completions", functools.partial(self.complete, CompletionBody))
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        if self._admin:
            app.router.add_post("/v1/load_lora_adapter", self.load)
            app.router.add_post("/v1/unload_lora_adapter", self.unload)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        if self._engine.draining:
            return problem(503, "this server is shutting down")
        if not self._engine.is_alive():
            return problem(503, "the engine's thread has ended; see the log")
        return web.json_response({"status": "ok"})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), content_type="text/plain", charset="utf-8")

    async def models(self, _request: web.Request) -> web.Response:
        base = self._engine.model.base
        rows = [
            {
                "id": served.name,
                "object": "model",
                "created": self._started,
                "owned_by": "trainyard",
                "root": str(served.folder),
                "parent": None if served is base else base.name,
                "max_model_len": self._engine.model.max_len,
            }
            for served in self._engine.served.values()
        ]
        return web.json_response({"object": "list", "data": rows})

    async def load(self, request: web.Request) -> web.Response:
        body = await _admin_body(request)
        name, folder = str(body.get("lora_name") or ""), str(body.get("lora_path") or "")
        if not _NAME.fullmatch(name) or not folder:
            raise InputError("lora_name and lora_path must name an adapter and its folder")
        await self._engine.load(name, Path(folder))
        log.info("loaded adapter %s from %s", name, folder)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        name = str((await _admin_body(request)).get("lora_name") or "")
        await self._engine.unload(name)
        log.info("unloaded adapter %s", name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def complete(
        self, kind: type[ChatBody] | type[CompletionBody], request: web.Request
    ) -> web.StreamResponse:
        raw = await request.read()
        if len(raw) > _LARGE_BODY:
            asked = await asyncio.to_thread(self._understand, kind, raw)
        else:
            asked = self._understand(kind, raw)
        feed: Feed = asyncio.Queue()
        sequences = _sequences(asked, feed)
        try:
            self._engine.submit(sequences)
        except QueueFull:
            self._metrics.reject()
            raise
        try:
            if asked.stream:
                return await _stream(request, asked, sequences, feed)
            return web.json_response(await _whole(asked, sequences, feed))
        finally:
            # nothing to do for sequences that ended; the others have lost their reader
            self._engine.cancel(sequences)

    def _understand(self, kind: type[ChatBody] | type[CompletionBody], raw: bytes) -> Asked:
        body = read_body(kind, _parse(raw))
        served = self._served(body.model)
        max_len = self._engine.model.max_len
        if isinstance(body, ChatBody):
            return read_chat(body, served, max_len)
        return read_completion(body, served, max_len)

    def _served(self, name: str) -> Served:
        served = self._engine.served.get(name)
        if served is None:
            known = ", ".join(self._engine.served)
            raise NotFound(f"model {name} is not served here; there is {known}")
        return served


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from None


async def _admin_body(request: web.Request) -> dict[str, Any]:
    # a web page can post a form to a port of this machine, but not JSON
    if request.content_type != "application/json":
        raise InputError(f"content type is {request.content_type}; send application/json")
    body = _parse(await request.read())
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    return body


def _sequences(asked: Asked, feed: Feed) -> list[Sequence]:
    sequences: list[Sequence] = []
    for prompt_ids in asked.prompts:
        for nth in range(asked.n):
            index = len(sequences)
            sequences.append(
                Sequence(
                    model=asked.served.name,
                    key=asked.served.key,
                    prompt_ids=prompt_ids,
                    sampling=asked.sampling.nth(nth),
                    tokenizer=asked.served.template.tokenizer,
                    deliver=functools.partial(_put, feed, index),
                    streams=asked.stream,
                )
            )
    return sequences


def _put(feed: Feed, index: int, event: Event) -> None:
    feed.put_nowait((index, event))


async def _events(sequences: list[Sequence], feed: Feed) -> AsyncIterator[tuple[int, Event]]:
    """Events until every sequence has ended. Raises Failed for a sequence that failed."""
    left = len(sequences)
    while left:
        index, event = await feed.get()
        if event.error is not None:
            raise Failed(f"the model failed on this request: {event.error}")
        yield index, event
        left -= event.last


async def _whole(asked: Asked, sequences: list[Sequence], feed: Feed) -> dict[str, Any]:
    texts, reasons = [""] * len(sequences), [""] * len(sequences)
    async for index, event in _events(sequences, feed):
        texts[index] += event.text
        if event.reason is not None:
            reasons[index] = event.reason.value
    return Answer(asked).whole(sequences, texts, reasons)


async def _stream(
    request: web.Request, asked: Asked, sequences: list[Sequence], feed: Feed
) -> web.StreamResponse:
    """Send events as they come. The first is awaited, so that an early failure has its status."""
    answer = Answer(asked)
    events = _events(sequences, feed)
    opened: set[int] = set()
    response: web.StreamResponse | None = None
    try:
        async for index, event in events:
            if response is None:
                response = await _open_stream(request)
            sequence = sequences[index]
            if index not in opened:
                opened.add(index)
                await _send(response, answer.opening(index, sequence))
            await _send(response, answer.chunk(index, sequence, event))
    except Failed as error:
        if response is None:
            raise
        await _send(response, {"error": {"message": str(error), "type": "InternalServerError"}})
    assert response is not None
    await _send(response, answer.closing(sequences))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _open_stream(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, chunk: dict[str, Any] | None) -> None:
    if chunk is not None:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
