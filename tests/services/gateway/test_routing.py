"""Who answers: weights, sessions, keys, leases, and what a user may ask for."""

import hashlib
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.gateway.conftest import REPLAY, TOKEN, Gateway, certificate, variants
from trainyard.serving.gateway_config import GatewayConfig


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


def test_keys_are_asked_for_when_configured(gateway: Gateway, engines: Callable[..., str]) -> None:
    gateway.start(api_keys=[hashlib.sha256(b"secret").hexdigest()])
    gateway.route(engines())
    assert gateway.ask().status_code == 401
    assert gateway.ask(Authorization="Bearer wrong").status_code == 401
    assert gateway.ask(Authorization="Bearer secret").status_code == 200
    feedback = {"request_id": "r", "score": 1}
    assert httpx.post(gateway.url + "/v1/feedback", json=feedback).status_code == 401
    assert gateway.ask(**{"x-trainyard-replay": REPLAY}).status_code == 200


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
