"""A server on this machine that the real W&B client talks to. Not W&B: see wandb_state.py."""

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.services.registry.wandb_operations import answer
from tests.services.registry.wandb_state import Rejected, State

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
_STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")


@contextmanager
def serve(folder: Path) -> Iterator[State]:
    state = State(folder)
    handler = type("LoopbackHandler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        if path == "/graphql":
            return self._graphql(json.loads(body))
        if found := _STREAM.fullmatch(path):
            return self._stream(tuple(unquote(part) for part in found.groups()), body)
        return self._unknown()

    def do_PUT(self) -> None:
        key = self._blob_key()
        body = self._body()
        path = self.state.folder / "blobs" / hashlib.sha256(key.encode()).hexdigest()
        path.write_bytes(body)
        self.state.blobs[key] = path
        self._send(200, b"", headers={"ETag": hashlib.md5(body).hexdigest()})

    def do_GET(self) -> None:
        found = self.state.blobs.get(self._blob_key())
        if found is None:
            return self._unknown()
        return self._send(200, found.read_bytes())

    def _graphql(self, request: dict[str, object]) -> None:
        found = _OPERATION.search(str(request["query"]))
        operation = found[1] if found else "?"
        given = request.get("variables") or {}
        assert isinstance(given, dict)
        # some operations come with flat variables, others with {"input": {...}}
        flat = {**given, **(given.get("input") or {})}
        try:
            with self.state.lock:
                data = answer(self.state, operation, flat)
        except Rejected as error:
            return self._json({"errors": [{"message": str(error)}], "data": None})
        if data is None:
            self.state.unknown.append(operation)
            return self._json({"errors": [{"message": f"not modelled: {operation}"}], "data": None})
        return self._json({"data": data})

    def _stream(self, run: tuple[str, ...], body: bytes) -> None:
        sent = json.loads(body or b"{}")
        with self.state.lock:
            for name, part in (sent.get("files") or {}).items():
                self.state.streams[run][name].update(enumerate(part["content"], part["offset"]))
            if sent.get("complete"):
                self.state.runs[run] |= {"complete": True, "exitcode": sent.get("exitcode")}
        self._json({"exitcode": None, "limits": {}})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _blob_key(self) -> str:
        path = urlsplit(self.path).path
        if found := re.match(r"/artifacts(?:V2)?/.*/([0-9a-f]{32})(?:/|$)", path):
            return f"object/{found[1]}"
        return unquote(path.removeprefix("/_blob/"))

    def _unknown(self) -> None:
        self.state.unknown.append(f"{self.command} {self.path}")
        self._send(404, b"{}")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
