"""A scripted server that speaks the OpenAI protocol over real HTTP on a free loopback port."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Reply = Callable[[str, dict[str, Any]], tuple[int, Any, dict[str, str]]]


@dataclass
class Served:
    """One running server: where it is and what it was asked."""

    models: list[str]
    reply: Reply
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for a delayed ACK

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in served.models]}, {})

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                running += 1
                served.most_at_once = max(served.most_at_once, running)
                served.seen.append({"path": self.path, "headers": dict(self.headers), **body})
            try:
                answer = served.reply(self.path, body)
            finally:
                with lock:
                    running -= 1
            self._send(*answer)

        def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"content-type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextmanager
def _running(served: Served) -> Iterator[Served]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def openai_server() -> Iterator[Callable[..., Served]]:
    """`openai_server(reply, models=["m"])` starts a server; `reply` gives status, body, headers."""
    with ExitStack() as stack:

        def start(reply: Reply, models: list[str] | None = None) -> Served:
            return stack.enter_context(_running(Served(models or ["m"], reply)))

        yield start


@pytest.fixture(scope="session")
def chat() -> Callable[..., dict[str, Any]]:
    """The body of a chat completion."""

    def body(text: str | None, *, model: str = "m", finish: str = "stop") -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        }

    return body
