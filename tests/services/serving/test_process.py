"""The server as a process: adapters that come and go, overload, hanging up, start and end."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.services.serving.adapters import BASE, write_adapter
from trainyard import process
from trainyard.errors import InputError, Unavailable
from trainyard.serving.engines import ENGINES, Probe, Running, not_ready, start_local

LONG = {"max_tokens": 400, "temperature": 0, "ignore_eos": True}


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


def metric(client: httpx.Client, name: str) -> float:
    """Sum over the labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith((name + "{", name + " "))
    )


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return held


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Running]:
    """One sequence at a time, and one that may wait."""
    with start_local(
        "cpu",
        base=BASE,
        base_name="base",
        adapters={},
        log=tmp_path / "engine.log",
        options=("--max-batch", "1", "--max-queue", "1"),
    ) as running:
        yield running


@contextlib.contextmanager
def streaming(url: str, **more: Any) -> Iterator[Iterator[str]]:
    with (
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
        client.stream(
            "POST", "/v1/chat/completions", json=chat("base", stream=True, **more)
        ) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        yield lines


def test_an_adapter_comes_answers_and_goes(api: httpx.Client, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "new", seed=9)
    load = {"lora_name": "new@1", "lora_path": str(folder)}
    assert api.post("/v1/load_lora_adapter", json=load).status_code == 200
    ask = chat("new@1", max_tokens=8, temperature=0)
    first = api.post("/v1/chat/completions", json=ask).json()["choices"]
    assert api.post("/v1/unload_lora_adapter", json={"lora_name": "new@1"}).status_code == 200
    assert api.post("/v1/chat/completions", json=ask).status_code == 404
    assert 'model_name="new@1"' not in api.get("/metrics").text
    api.post("/v1/load_lora_adapter", json={**load, "lora_name": "new@2"})
    again = api.post("/v1/chat/completions", json={**ask, "model": "new@2"}).json()["choices"]
    assert again == first
    assert api.post("/v1/unload_lora_adapter", json={"lora_name": "new@2"}).status_code == 200


def test_an_unloaded_adapter_finishes_what_it_began(server: Running, api: httpx.Client) -> None:
    folder = server.log.parent / "leaving"
    load = {"lora_name": "leaving", "lora_path": str(write_adapter(folder, seed=4))}
    api.post("/v1/load_lora_adapter", json=load)
    answers: list[httpx.Response] = []
    ask = chat("leaving", **LONG)
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as other:
        asking = threading.Thread(
            target=lambda: answers.append(other.post("/v1/chat/completions", json=ask))
        )
        asking.start()
        assert wait_for(lambda: metric(api, "vllm:num_requests_running") > 0)
        assert api.post("/v1/unload_lora_adapter", json={"lora_name": "leaving"}).is_success
        asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == LONG["max_tokens"]


def test_unloading_gives_the_memory_back(api: httpx.Client, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "wide", seed=5, rank=512)
    size = (folder / "adapter_model.safetensors").stat().st_size

    def cycle() -> None:
        load = {"lora_name": "wide", "lora_path": str(folder)}
        assert api.post("/v1/load_lora_adapter", json=load).is_success
        assert api.post("/v1/chat/completions", json=chat("wide", max_tokens=2)).is_success
        assert api.post("/v1/unload_lora_adapter", json={"lora_name": "wide"}).is_success

    cycle()
    cycle()
    before = metric(api, "process_resident_memory_bytes")
    for _ in range(8):
        cycle()
    assert metric(api, "process_resident_memory_bytes") - before < 2 * size


def test_a_full_queue_is_429_and_says_when_to_come_back(small: Running) -> None:
    with (
        httpx.Client(base_url=small.url, timeout=60, trust_env=False) as client,
        streaming(small.url, **LONG),
        streaming_later(small.url),
    ):
        assert wait_for(lambda: metric(client, "vllm:num_requests_waiting") == 1)
        refused = client.post("/v1/chat/completions", json=chat("base", max_tokens=1))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert metric(client, "vllm:admission_rejections_total") == 1


@contextlib.contextmanager
def streaming_later(url: str) -> Iterator[None]:
    """A request that waits in the queue until the client hangs up."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(chat("base", **LONG)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        yield


def test_a_client_that_hangs_up_frees_its_place(small: Running) -> None:
    with httpx.Client(base_url=small.url, timeout=60, trust_env=False) as client:
        with streaming(small.url, **LONG):
            assert wait_for(lambda: metric(client, "vllm:num_requests_running") == 1)
        assert wait_for(lambda: metric(client, "vllm:num_requests_running") == 0, 60)
        with streaming_later(small.url):
            assert wait_for(lambda: metric(client, "vllm:num_requests_running") == 1)
        assert wait_for(lambda: metric(client, "vllm:num_requests_running") == 0, 60)
        ended = client.get("/metrics").text
        assert 'finished_reason="abort",model_name="base"} 2.0' in ended


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(small: Running) -> None:
    with (
        httpx.Client(base_url=small.url, timeout=60, trust_env=False) as client,
        streaming(small.url, **LONG) as lines,
    ):
        psutil.Process(small.process.pid).send_signal(signal.SIGTERM)
        assert wait_for(lambda: client.get("/health").status_code == 503)
        refused = client.post("/v1/chat/completions", json=chat("base"))
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        rest = list(lines)
    assert "data: [DONE]" in rest
    assert wait_for(lambda: not process.is_alive(small.process))


def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from trainyard.serving.engines import start_local
running = start_local("cpu", base=Path({str(BASE)!r}), base_name="base", adapters={{}},
                      log=Path({str(tmp_path)!r}) / "engine.log")
print(running.process.model_dump_json(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        started = process.ProcessRecord.model_validate_json(parent.stdout.readline())
        parent.kill()
    assert wait_for(lambda: not process.is_alive(started), 60)


def test_a_port_that_is_taken_is_an_input_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"):
            start(tmp_path, port=port)


def test_an_adapter_of_another_base_is_an_input_error(tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", seed=1, narrower=8)
    with pytest.raises(InputError, match=r"does not fit the base: .* features, the adapter"):
        start(tmp_path, adapters={"other": other})


def test_a_server_that_is_not_ready_in_time_is_unavailable_and_ended(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"not ready after 0\.2 s"):
        start(tmp_path, start_s=0.2)


def test_ready_means_health_and_the_model_and_the_expected_answer(server: Running) -> None:
    cpu = ENGINES["cpu"]
    assert not_ready(server.url, cpu, "v1.2") is None
    assert "not v9" in str(not_ready(server.url, cpu, "v9"))
    assert "instead of" in str(not_ready(server.url, cpu, "v1.2", probe=Probe(answer="no")))
    assert "no answer" in str(not_ready("http://127.0.0.1:1", cpu, "v1.2"))


def start(folder: Path, **more: Any) -> Running:
    log = folder / "engine.log"
    return start_local(
        "cpu", **{"base": BASE, "base_name": "b", "adapters": {}, "log": log, **more}
    )
