"""A real webhook that keeps what people are told."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Inbox(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.got: list[dict[str, Any]] = []
        self.delay_s = 0.0
        self.status = 200

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.server_address[1]}/a-secret-path"


class Post(BaseHTTPRequestHandler):
    server: Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.delay_s)
        self.server.got.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    server = Inbox()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("INBOX", server.address)
    yield server
    server.shutdown()
    server.server_close()
