"""Real S3 servers on this machine, and a proxy that cuts, delays and corrupts what they say."""

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from trainyard.process import free_port

ACCESS, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@contextmanager
def moto() -> Iterator[str]:
    """S3's semantics in memory; it accepts any key."""
    port = free_port()
    program = Path(sys.executable).with_name("moto_server")
    with _running([str(program), "-H", "127.0.0.1", "-p", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def rclone(folder: Path, *arguments: str) -> Iterator[str]:
    """Real files below `folder` and real signatures: a wrong key is refused."""
    program = Path(sys.executable).with_name("rclone")
    port = free_port()
    listen = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS},{SECRET}", *arguments]
    with _running([str(program), "serve", "s3", *listen, str(folder)], port):
        yield f"http{'s' if '--cert' in arguments else ''}://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not listen"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=120)


Fault = Callable[[bytes], bytes]
"""What becomes of a block on its way; raise to cut the connection."""


class Proxy:
    """A TCP proxy; `up` and `down` may change or cut what passes."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.up: Fault | None = None
        self.down: Fault | None = None
        self.passed_up = 0
        self.connections = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self.target)
            for source, sink, upwards in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass, args=(source, sink, upwards), daemon=True
                ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with suppress(OSError, Cut):
            while block := source.recv(1 << 16):
                fault = self.up if upwards else self.down
                if fault:
                    block = fault(block)
                sink.sendall(block)
                if upwards:
                    with self.lock:
                        self.passed_up += len(block)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Cut(Exception):
    """Ends a connection in the middle."""


def cut_after(size: int) -> Fault:
    """Let `size` bytes pass, over all connections, then cut every one."""
    left = [size]

    def fault(block: bytes) -> bytes:
        left[0] -= len(block)
        if left[0] < 0:
            raise Cut
        return block

    return fault


def available(program: str) -> bool:
    return shutil.which(program, path=str(Path(sys.executable).parent)) is not None


class Gateway:
    """An HTTP server in front of another one: it writes down requests and may answer itself.

    `rule` gets the method and the path with its query, and returns an answer of S3, as status and
    error code, or None to pass the request on.
    """

    def __init__(self, target: str) -> None:
        gateway = self
        where = target.removeprefix("http://")
        self.requests: list[tuple[str, str, int]] = []
        """Method, path with query, bytes of the body; only what was passed on."""
        self.rule: Callable[[str, str], tuple[int, str] | None] = lambda _method, _path: None
        self.lose: Callable[[str, str], bool] = lambda _method, _path: False
        """Whether the request is passed on and its answer never comes."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if refused := gateway.rule(self.command, self.path):
                    status, code = refused
                    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                    self.answer(status, {"Content-Type": "application/xml"}, text)
                    return
                gateway.requests.append((self.command, self.path, len(body)))
                with closing(HTTPConnection(where, timeout=60)) as passed:
                    passed.request(self.command, self.path, body, dict(self.headers))
                    found = passed.getresponse()
                    text = found.read()
                if gateway.lose(self.command, self.path):
                    self.close_connection = True
                    return
                self.answer(found.status, dict(found.headers), text)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                given = {k.lower(): v for k, v in headers.items()}
                given.pop("transfer-encoding", None)
                given.setdefault("date", self.date_time_string())
                if self.command != "HEAD":
                    given["content-length"] = str(len(body))
                given.pop("connection", None)
                for name, value in given.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle(self) -> None:
                with suppress(ConnectionError):  # the client was killed
                    super().handle()

            def finish(self) -> None:
                with suppress(ConnectionError):
                    super().finish()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
