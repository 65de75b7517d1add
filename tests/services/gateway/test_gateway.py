"""The gateway as a process, in front of stub engines that misbehave on demand."""

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

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


def test_an_answer_names_its_version_and_variant_and_the_request(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines())
    found = gateway.ask(**{"x-request-id": "r-1"})
    assert found.status_code == 200
    assert found.json()["model"] == "m@a", "the stable name became the version's"
    assert found.headers["x-trainyard-variant"] == "champion"
    assert found.headers["x-trainyard-version"] == "a" * 64
    assert found.headers["x-request-id"] == "r-1"


def test_weight_is_the_share_of_requests(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start()
    gateway.route(engines(), engines(), weight=25)
    found = variants(gateway, 120)
    assert 12 <= found["canary"] <= 52  # 30 expected, sd 4.7


def test_a_session_stays_and_a_growing_weight_only_adds_sessions(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(), engines(), weight=20)
    sessions = [f"user-{i}" for i in range(40)]

    def on_canary() -> set[str]:
        asked = {s: gateway.ask(**{"x-session-id": s}).headers for s in sessions}
        return {s for s, headers in asked.items() if headers["x-trainyard-variant"] == "canary"}

    first = on_canary()
    assert on_canary() == first
    assert gateway.tell("POST", "/-/weight", json={"weight": 60}).status_code == 200
    second = on_canary()
    assert first < second


def test_without_a_session_the_key_decides(gateway: Gateway, engines: Callable[..., str]) -> None:
    keys = [f"key-{i}" for i in range(12)]
    gateway.start(api_keys=[hashlib.sha256(key.encode()).hexdigest() for key in keys])
    gateway.route(engines(), engines(), weight=50)

    def variant(key: str) -> str:
        return gateway.ask(Authorization=f"Bearer {key}").headers["x-trainyard-variant"]

    first = [variant(key) for key in keys]
    assert set(first) == {"champion", "canary"}
    assert [variant(key) for key in keys] == first


def test_a_header_forces_the_variant_and_leaves_the_evidence_alone(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(), engines(), weight=0)
    assert variants(gateway, 5, **{"x-trainyard-variant": "canary"}) == {"canary": 5}
    assert {r["source"] for r in gateway.records("canary")} == {"forced"}
    assert gateway.ask(**{"x-trainyard-variant": "b"}).status_code == 400


def test_only_the_rollout_may_mark_requests_as_replayed(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines())
    assert gateway.ask(**{"x-trainyard-replay": "guess"}).status_code == 403
    assert gateway.ask(**{"x-trainyard-replay": REPLAY}).status_code == 200
    assert [r["source"] for r in gateway.records("champion")] == ["replay"]


def test_events_pass_one_by_one(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start()
    gateway.route(engines(chunks=5, chunk_s=0.2))
    delays = []
    with httpx.stream("POST", gateway.url + CHAT, json=BODY | {"stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                delays.append(time.time() - json.loads(line[6:])["sent"])
    assert len(delays) == 5
    assert max(delays) < 0.15, "an event waited for a later one"
    assert gateway.records("champion")[0]["ttft_s"] is not None


def test_a_client_that_hangs_up_cancels_the_engines_work(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(idle_timeout_s=60)
    url = engines(hang=True)
    gateway.route(url)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(gateway.url + CHAT, json=BODY, timeout=0.5)
    until(lambda: httpx.get(url + "/seen").json() == {"requests": 1, "cancelled": 1})
    assert gateway.records("champion") == [], "a client's leaving says nothing about the engine"


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/metrics", "/-/routes", "/"],
)
def test_nothing_but_the_offered_paths_reaches_an_engine(
    gateway: Gateway, engines: Callable[..., str], path: str
) -> None:
    gateway.start()
    url = engines()
    gateway.route(url)
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert httpx.request(method, gateway.url + path).status_code == 404
    assert httpx.post(gateway.url + "//v1/load_lora_adapter").status_code == 404
    assert httpx.get(url + "/seen").json()["requests"] == 0


def test_the_admin_port_wants_its_token(gateway: Gateway) -> None:
    gateway.start()
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.get(gateway.admin + "/-/routes", headers=headers).status_code == 401
    assert gateway.tell("GET", "/-/routes").status_code == 200


@pytest.mark.parametrize(
    "routes",
    [
        {"weight": 5},
        {"champion": {"url": "http://x", "model": "m", "digest": "d"}, "weight": 5},
        {"champion": {"url": "http://x", "model": "m", "digest": "d"}, "weight": 105},
        {"canary": {"url": "http://x", "model": "m", "digest": "d"}},
        {"champoin": None},
    ],
)
def test_routes_that_make_no_sense_are_refused(gateway: Gateway, routes: dict[str, Any]) -> None:
    gateway.start()
    assert gateway.tell("PUT", "/-/routes", json=routes).status_code == 400


def test_without_a_champion_the_gateway_says_so(gateway: Gateway) -> None:
    gateway.start()
    found = gateway.ask()
    assert found.status_code == 503
    assert found.json()["error"]["message"] == "no champion is being served"
    assert httpx.get(gateway.url + "/health").status_code == 503
    assert httpx.get(gateway.url + "/v1/models").json()["data"] == []


@pytest.mark.parametrize(
    "behaviour",
    [{"fail": 1.0}, {"break_off": True}, {"not_json": True}, {"hang": True}, None],
    ids=["answers 500", "breaks off", "not JSON", "hangs", "not there"],
)
def test_a_broken_canary_costs_no_user_an_answer(
    gateway: Gateway, engines: Callable[..., str], behaviour: dict[str, Any] | None
) -> None:
    gateway.start()
    nowhere = f"http://127.0.0.1:{process.free_port()}"
    gateway.route(engines(), nowhere if behaviour is None else engines(**behaviour), weight=100)
    for _ in range(3):
        found = gateway.ask()
        assert (found.status_code, found.headers["x-trainyard-variant"]) == (200, "champion")
    assert [r["ok"] for r in gateway.records("canary")] == [False] * 3
    assert [r["ok"] for r in gateway.records("champion")] == [True] * 3


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(break_off=True))
    lines: list[str] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("POST", gateway.url + CHAT, json=BODY | {"stream": True}) as answer,
    ):
        lines.extend(answer.iter_lines())
    assert '"error"' in lines[-1] or '"error"' in lines[-2]
    assert "data: [DONE]" not in lines
    assert [r["ok"] for r in gateway.records("champion")] == [False]


def test_a_champion_that_hangs_is_answered_for_in_time(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(idle_timeout_s=0.5)
    gateway.route(engines(hang=True))
    found = gateway.ask()
    assert found.status_code == 503
    assert "did not answer" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object, not list"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "cannot be passed on"),
        (b'{"a": "\\ud83d"}', 400, "not JSON"),
        (b'{"model": "other"}', 404, "model 'other' is not here; this is 'm'"),
        (b'{"model": ["m"]}', 404, "is not here"),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', 413, "at most 1048576"),
    ],
    ids=[
        "cut",
        "empty",
        "list",
        "bytes",
        "deep",
        "nested",
        "half-pair",
        "other",
        "list-model",
        "big",
    ],
)
def test_a_bad_request_gets_one_clear_sentence(
    gateway: Gateway, engines: Callable[..., str], body: bytes, status: int, says: str
) -> None:
    gateway.start(max_body_mib=1)
    gateway.route(engines())
    found = gateway.ask(body)
    assert found.status_code == status
    assert says in found.json()["error"]["message"]
    assert gateway.ask().status_code == 200
    assert [r["code"] for r in gateway.records("champion")] == [200]


def test_a_body_of_100_mb_without_a_length_is_cut_short(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(max_body_mib=1)
    gateway.route(engines())

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * (1 << 20)

    with contextlib.suppress(httpx.WriteError):  # it may hang up while we are still sending
        assert httpx.post(gateway.url + CHAT, content=chunks()).status_code == 413
    assert gateway.process is not None
    assert psutil.Process(gateway.process.pid).memory_info().rss < 200 << 20
    assert gateway.ask().status_code == 200


SLOW_CLIENTS = int(os.environ.get("TRAINYARD_SLOW_CLIENTS", "1500"))
"""Connections that send nothing more; this process and the gateway need a file for each."""


def test_slow_clients_hold_up_nobody(gateway: Gateway, engines: Callable[..., str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(SLOW_CLIENTS, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 200)), hard))
    gateway.start(body_timeout_s=20.0, max_inflight=count + 10)
    gateway.route(engines())
    host, port = gateway.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + b"{"
    slow = []
    try:
        for _ in range(count):
            slow.append(socket.create_connection((host, int(port)), timeout=60))
            slow[-1].sendall(head)
        assert gateway.ask().status_code == 200
        assert gateway.process is not None
        assert psutil.Process(gateway.process.pid).memory_info().rss < (150 + count / 20) * 2**20
        for connection in slow:
            connection.settimeout(120)
            assert b" 408 " in connection.recv(100)
    finally:
        for connection in slow:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert gateway.ask().status_code == 200


def test_tenfold_overload_is_shed_and_survived(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(max_inflight=20, idle_timeout_s=20)
    gateway.route(engines(delay_s=0.1))

    async def flood() -> Counter[int]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> int:
                async with session.post(gateway.url + CHAT, json=BODY) as answer:
                    if answer.status == 429:
                        assert answer.headers["Retry-After"] == "1"
                    await answer.read()
                    return answer.status

            return Counter(await asyncio.gather(*(one() for _ in range(200))))

    found = asyncio.run(flood())
    assert set(found) <= {200, 429}
    assert found[200] >= 20
    assert gateway.ask().status_code == 200


def test_a_lease_that_nobody_renews_ends_the_canary(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(), engines())
    begun = gateway.tell("POST", "/-/weight", json={"weight": 100, "lease_s": 0.6})
    assert begun.json()["weight"] == 100
    assert variants(gateway, 3) == {"canary": 3}
    time.sleep(0.7)
    assert variants(gateway, 3) == {"champion": 3}
    late = gateway.tell("POST", "/-/weight", json={"lease_s": 30}).json()
    assert (late["weight"], late["lease_until"]) == (0, None), "a late renewal gives nothing back"


def test_a_restarted_gateway_goes_on_with_its_routes(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(), engines(), weight=100)
    gateway.tell("POST", "/-/weight", json={"weight": 100, "lease_s": 60})
    gateway.stop(signal.SIGKILL)
    gateway.start()
    assert variants(gateway, 3) == {"canary": 3}


def test_a_restarted_gateway_honours_a_lease_that_ran_out_meanwhile(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(), engines(), weight=100)
    gateway.tell("POST", "/-/weight", json={"weight": 100, "lease_s": 0.3})
    gateway.stop(signal.SIGKILL)
    time.sleep(0.3)
    gateway.start()
    assert variants(gateway, 3) == {"champion": 3}


def test_requests_in_progress_are_finished_before_the_gateway_ends(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(idle_timeout_s=20)
    gateway.route(engines(delay_s=1.0))
    assert gateway.process is not None
    pid = gateway.process.pid

    async def ask_then_stop() -> int:
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(session.post(gateway.url + CHAT, json=BODY))
            await asyncio.sleep(0.4)
            os.kill(pid, signal.SIGTERM)
            async with await task as answer:
                return answer.status

    assert asyncio.run(ask_then_stop()) == 200


def test_keys_are_asked_for_when_configured(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start(api_keys=[hashlib.sha256(b"secret").hexdigest()])
    gateway.route(engines())
    assert gateway.ask().status_code == 401
    assert gateway.ask(Authorization="Bearer wrong").status_code == 401
    assert gateway.ask(Authorization="Bearer secret").status_code == 200
    feedback = {"request_id": "r", "score": 1}
    assert httpx.post(gateway.url + "/v1/feedback", json=feedback).status_code == 401
    assert gateway.ask(**{"x-trainyard-replay": REPLAY}).status_code == 200


def test_the_log_is_redacted_and_feedback_is_kept(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start(log_fraction=1.0)
    gateway.route(engines())
    asked = {"messages": [{"role": "user", "content": "I am ann@example.org"}]}
    request_id = gateway.ask(asked).headers["x-request-id"]
    log = gateway.folder / "requests.jsonl"
    until(lambda: log.exists() and log.read_text().endswith("\n"))  # the answer does not wait
    row = json.loads(log.read_text())
    assert row["messages"] == [{"role": "user", "content": "I am <email>"}]
    assert (row["request_id"], row["version"]) == (request_id, "a" * 64)
    given = {"request_id": request_id, "score": -1, "correction": "better"}
    assert httpx.post(gateway.url + "/v1/feedback", json=given).status_code == 202
    assert httpx.post(gateway.url + "/v1/feedback", json={"score": 9}).status_code == 400
    kept = json.loads((gateway.folder / "feedback.jsonl").read_text())
    assert kept["correction"] == "better"


def test_metrics_tell_the_variants_apart(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start()
    gateway.route(engines(), engines(answer=""), weight=50)
    for variant in ("champion", "canary"):
        gateway.ask(**{"x-trainyard-variant": variant})
    text = httpx.get(gateway.admin + "/metrics").text
    samples = {
        (s.name, s.labels.get("variant"), s.labels.get("flag") or s.labels.get("code")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    assert samples["gateway_requests_total", "canary", "200"] == 1
    assert samples["gateway_flagged_total", "canary", "empty"] == 1
    assert samples["gateway_weight_pct", "canary", None] == 50
    assert samples["gateway_request_seconds_count", "champion", None] == 1


def test_copies_reach_the_canary_and_no_user_notices(
    gateway: Gateway, engines: Callable[..., str]
) -> None:
    gateway.start()
    gateway.route(engines(), engines(delay_s=0.3, answer="other"), shadow=100)
    began = time.monotonic()
    found = [gateway.ask() for _ in range(5)]
    assert time.monotonic() - began < 1.2, "nobody waits for a copy"
    assert {answer.headers["x-trainyard-variant"] for answer in found} == {"champion"}
    until(lambda: len(gateway.records("canary")) == 5)
    assert {record["source"] for record in gateway.records("canary")} == {"shadow"}


def test_copies_are_dropped_under_load(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start(max_shadow=2)
    canary = engines(hang=True)
    gateway.route(engines(), canary, shadow=100)
    assert [gateway.ask().status_code for _ in range(6)] == [200] * 6
    assert httpx.get(canary + "/seen").json()["requests"] == 2
    assert "gateway_shadow_dropped_total 4.0" in httpx.get(gateway.admin + "/metrics").text


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


def test_tls_is_spoken_when_a_certificate_is_given(
    gateway: Gateway, engines: Callable[..., str], tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path, "IP:127.0.0.1")
    gateway.start(tls_cert=cert, tls_key=key)
    gateway.route(engines())
    assert gateway.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(cert))
    assert httpx.get(gateway.url + "/health", verify=trusted).status_code == 200


def test_a_certificate_that_is_none_is_one_sentence(gateway: Gateway, tmp_path: Path) -> None:
    config = GatewayConfig(
        name="m", port=0, folder=tmp_path, token=TOKEN, replay_token=REPLAY,
        tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.pem",
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = [sys.executable, "-m", "trainyard.serving.gateway", "--config"]
    done = subprocess.run(
        [*program, str(tmp_path / "config.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot use certificate" in done.stderr
    assert "Traceback" not in done.stderr
