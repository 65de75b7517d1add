"""An engine that answers at once, for measuring what stands in front of it and for faults.

`python -m bench.stub_engine PORT [--delay S] [--chunks N]`: JSON, or N events 10 ms apart, each
carrying the time at which it was sent.
"""

import argparse
import asyncio
import json
import time

import uvloop
from aiohttp import web

_ANSWER = {
    "id": "cmpl-1",
    "object": "chat.completion",
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": '{"ok": true}'},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}


def app(delay_s: float, chunks: int) -> web.Application:
    whole = json.dumps(_ANSWER).encode()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if delay_s:
            await asyncio.sleep(delay_s)
        if not body.get("stream"):
            return web.Response(body=whole, content_type="application/json")
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        for _ in range(chunks):
            piece = {"choices": [{"delta": {"content": "x"}}], "sent": time.time()}
            await out.write(f"data: {json.dumps(piece)}\n\n".encode())
            await asyncio.sleep(0.01)
        await out.write(b"data: [DONE]\n\n")
        await out.write_eof()
        return out

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    found = web.Application(client_max_size=1 << 30)
    found.router.add_post("/v1/chat/completions", complete)
    found.router.add_get("/health", health)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--chunks", type=int, default=20)
    given = parser.parse_args()
    web.run_app(
        app(given.delay, given.chunks),
        host="127.0.0.1",
        port=given.port,
        print=None,
        access_log=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
