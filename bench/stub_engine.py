"""An engine without a model: measures what stands in front of it, and misbehaves on demand.

`python -m bench.stub_engine PORT [--model NAME] [--behaviour FILE]`. The file, read at start, is a
JSON object with any of the fields of `Behaviour`.
"""

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    answer: str = '{"ok": true}'
    delay_s: float = 0.0
    """Median latency; drawn lognormal with sigma `spread`."""

    spread: float = 0.0
    fail: float = 0.0
    """Share of requests answered 500."""

    crash_after: int = 0
    """Requests after which the process ends at once; 0: never."""

    start_s: float = 0.0
    never_ready: bool = False
    chunks: int = 20
    chunk_s: float = 0.01
    break_off: bool = False
    """Close the connection in the middle of every answer."""

    hang: bool = False
    not_json: bool = False


class Engine:
    def __init__(self, model: str, how: Behaviour) -> None:
        self._model = model
        self._how = how
        self._count = 0
        self.cancelled = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/load_lora_adapter", self.admin)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/seen", self.seen)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self._how.never_ready else 200)

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._model}]})

    async def admin(self, _request: web.Request) -> web.Response:
        return web.Response(text="an administrator's path")

    async def seen(self, _request: web.Request) -> web.Response:
        return web.json_response({"requests": self._count, "cancelled": self.cancelled})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        how = self._how
        self._count += 1
        if how.crash_after and self._count > how.crash_after:
            os._exit(1)
        try:
            if how.hang:
                await asyncio.sleep(3600)
            if how.delay_s:
                await asyncio.sleep(how.delay_s * random.lognormvariate(0, how.spread))
            if random.random() < how.fail:
                return web.json_response({"error": {"message": "as asked"}}, status=500)
            return await (
                self._stream(request) if body.get("stream") else self._whole(request, body)
            )
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _whole(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        how = self._how
        text = "this is not JSON" if how.not_json else json.dumps(self._answer(body))
        if not how.break_off:
            return web.Response(text=text, content_type="application/json")
        out = web.StreamResponse(headers={"Content-Length": str(len(text))})
        await out.prepare(request)
        await out.write(text[: len(text) // 2].encode())
        assert request.transport is not None
        request.transport.close()
        return out

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._how.answer}
        return {
            "id": "cmpl-1",
            "object": "chat.completion",
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        how = self._how
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        for count in range(how.chunks):
            if how.break_off and count == how.chunks // 2:
                assert request.transport is not None
                request.transport.close()
                return out
            piece = {"choices": [{"delta": {"content": "x"}}], "sent": time.time()}
            await out.write(f"data: {json.dumps(piece)}\n\n".encode())
            await asyncio.sleep(how.chunk_s)
        await out.write(b"data: [DONE]\n\n")
        await out.write_eof()
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--model", default="stub")
    parser.add_argument("--behaviour", type=Path)
    given = parser.parse_args()
    told = json.loads(given.behaviour.read_text()) if given.behaviour else {}
    how = Behaviour(**told)
    time.sleep(how.start_s)
    web.run_app(
        Engine(given.model, how).app(),
        host="127.0.0.1",
        port=given.port,
        print=None,
        access_log=None,
        handler_cancellation=True,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
