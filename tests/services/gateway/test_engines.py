"""What engines do to users and to the record: streams, faults, copies, metrics, logs."""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.services.gateway.conftest import BODY, CHAT, Gateway, until
from trainyard import process


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


def test_what_is_no_engine_is_not_passed_on(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start()
    said = [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"]

    def answer(server: socket.socket) -> None:
        for words in said:
            with server.accept()[0] as connection:
                connection.recv(10_000)
                connection.sendall(words)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=[server], daemon=True).start()
        gateway.route(engines(), f"http://127.0.0.1:{server.getsockname()[1]}", weight=100)
        for _ in said:
            assert gateway.ask().headers["x-trainyard-variant"] == "champion"
    assert [r["why"] for r in gateway.records("canary")] == ["connection"] * 3
