"""The gateway as a process, in front of stub engines that misbehave on demand."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from trainyard import process
from trainyard.serving.gateway_config import GatewayConfig

TOKEN = "admin-token-0123456789"
REPLAY = "replay-token-0123456789"
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Gateway:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.url = self.admin = ""
        self._client = httpx.Client(timeout=20)

    def start(self, **options: Any) -> None:
        given: dict[str, Any] = {"name": "m", "port": 0, "folder": self.folder, "token": TOKEN}
        given |= {"replay_token": REPLAY, "idle_timeout_s": 1.0} | options
        config = GatewayConfig(**given)
        path = self.folder / "config.json"
        path.write_text(config.model_dump_json())
        ready = self.folder / "gateway.ready.json"
        ready.unlink(missing_ok=True)
        program = [sys.executable, "-m", "trainyard.serving.gateway", "--config", str(path)]
        self.process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        until(ready.exists)
        found = json.loads(ready.read_text())
        self.url, self.admin = found["url"], found["admin_url"]

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self._client.close()

    def ask(self, body: Any = BODY, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._client.post(self.url + CHAT, content=content, headers=headers)

    def tell(self, method: str, path: str, **given: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.request(method, self.admin + path, headers=headers, **given)

    def route(
        self, champion: str | None, canary: str | None = None, weight: float = 0, shadow: float = 0
    ) -> None:
        def variant(url: str | None, name: str) -> dict[str, str] | None:
            return url and {"url": url, "model": f"m@{name}", "digest": name * 64}  # type: ignore[return-value]

        routes = {"champion": variant(champion, "a"), "canary": variant(canary, "b")}
        given = {**routes, "weight": weight, "shadow": shadow, "salt": "s"}
        answer = self.tell("PUT", "/-/routes", json=given)
        assert answer.status_code == 200, answer.text

    def records(self, variant: str) -> list[dict[str, Any]]:
        found = self.tell("GET", "/-/records").json()["records"]
        return [record for record in found if record["variant"] == variant]


def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def engine(folder: Path, **behaviour: Any) -> Iterator[str]:
    port = process.free_port()
    path = folder / f"behaviour-{port}.json"
    path.write_text(json.dumps(behaviour))
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.stub_engine", str(port), "--behaviour", str(path)]
    )
    try:
        until(lambda: process.port_in_use(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        yield lambda **behaviour: stack.enter_context(engine(tmp_path, **behaviour))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    found = Gateway(tmp_path)
    yield found
    found.stop()
    found.close()


def variants(gateway: Gateway, count: int, **headers: str) -> Counter[str]:
    return Counter(gateway.ask(**headers).headers["x-trainyard-variant"] for _ in range(count))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is needed to make a certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=tls"]
    command += ["-addext", f"subjectAltName={name}"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key
