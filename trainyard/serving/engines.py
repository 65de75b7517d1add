"""Engines as data: how each is started, asked for its health, given adapters, and measured.

Everything else about them is the OpenAI HTTP API. Also starts the CPU server as a process.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import httpx

from trainyard import files, process
from trainyard.errors import InputError, Unavailable

EngineName = Literal["cpu", "vllm", "tgi", "sglang"]

_START_S = 120.0
_STOP_S = 35.0
_CANNOT_START = 2
"""Exit status of our server for what its last line explains."""
_LOG_LINES = 15
_READY = re.compile(r"^ready (http\S+)$", re.MULTILINE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be served, wherever the engine runs; paths as the engine sees them."""

    base: str
    base_name: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Served name -> folder."""
    host: str = "127.0.0.1"
    port: int = 8000
    max_rank: int = 64
    """Largest LoRA rank among the adapters; unused by `cpu`."""
    extra: Sequence[str] = ()
    """More arguments of the engine's own."""


@dataclass(frozen=True, slots=True)
class Engine:
    name: EngineName
    command: Callable[[Launch], list[str]]
    env: Callable[[Launch], dict[str, str]]
    health: str
    load_path: str | None
    """POST {lora_name, lora_path} adds an adapter; None: adapters are given at start only."""
    unload_path: str | None
    lists_adapters: bool
    """Whether `/v1/models` names the adapters beside the base."""
    metrics: Mapping[str, str]
    """What is meant -> the engine's name of it."""
    image: str | None
    """Repository and tag; the recipe adds the digest."""
    request_model: Callable[[str, str], str] = lambda _base, adapter: adapter
    """`model` of a request for an adapter, from the base's and the adapter's served names."""
    note: str = ""


def _cpu_command(launch: Launch) -> list[str]:
    command = [sys.executable, "-m", "trainyard.serving.server"]
    command += ["--base", launch.base, "--name", launch.base_name]
    command += ["--host", launch.host, "--port", str(launch.port)]
    for name, folder in launch.adapters.items():
        command += ["--adapter", f"{name}={folder}"]
    return [*command, *launch.extra]


def _vllm_command(launch: Launch) -> list[str]:
    command = ["vllm", "serve", launch.base, "--served-model-name", launch.base_name]
    command += ["--host", launch.host, "--port", str(launch.port)]
    if launch.adapters:
        count = str(len(launch.adapters))
        command += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count]
        command += ["--max-lora-rank", str(_vllm_rank(launch.max_rank)), "--lora-modules"]
        command += [f"{name}={folder}" for name, folder in launch.adapters.items()]
    return [*command, *launch.extra]


def _vllm_rank(rank: int) -> int:
    allowed = (8, 16, 32, 64, 128, 256, 320, 512)
    found = next((one for one in allowed if one >= rank), None)
    if found is None:
        raise InputError(f"LoRA rank {rank} is above vLLM's largest, {allowed[-1]}")
    return found


def _tgi_command(launch: Launch) -> list[str]:
    command = ["text-generation-launcher", "--model-id", launch.base]
    command += ["--hostname", launch.host, "--port", str(launch.port)]
    return [*command, *launch.extra]


def _tgi_env(launch: Launch) -> dict[str, str]:
    env = {"HF_HUB_OFFLINE": "1", "USAGE_STATS": "off"}
    if launch.adapters:
        env["LORA_ADAPTERS"] = ",".join(f"{n}={folder}" for n, folder in launch.adapters.items())
    return env


def _sglang_command(launch: Launch) -> list[str]:
    command = ["python3", "-m", "sglang.launch_server", "--model-path", launch.base]
    command += ["--served-model-name", launch.base_name]
    command += ["--host", launch.host, "--port", str(launch.port), "--enable-metrics"]
    if launch.adapters:
        command += ["--enable-lora", "--max-lora-rank", str(launch.max_rank), "--lora-paths"]
        command += [f"{name}={folder}" for name, folder in launch.adapters.items()]
    return [*command, *launch.extra]


_VLLM_METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "ended": "vllm:request_success_total",
    "rejected": "vllm:admission_rejections_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "ttft": "vllm:time_to_first_token_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
}

ENGINES: Mapping[EngineName, Engine] = {
    "cpu": Engine(
        name="cpu",
        command=_cpu_command,
        env=lambda _launch: {"HF_HUB_OFFLINE": "1"},
        health="/health",
        load_path="/v1/load_lora_adapter",
        unload_path="/v1/unload_lora_adapter",
        lists_adapters=True,
        metrics=_VLLM_METRICS,
        image=None,
    ),
    "vllm": Engine(
        name="vllm",
        command=_vllm_command,
        env=lambda _launch: {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        health="/health",
        # only with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, which is not set here: adapters given at
        # start are there on every replica, one that is posted reaches one replica
        load_path="/v1/load_lora_adapter",
        unload_path="/v1/unload_lora_adapter",
        lists_adapters=True,
        metrics={**_VLLM_METRICS, "kv": "vllm:kv_cache_usage_perc"},
        image="vllm/vllm-openai:v0.33.0",
    ),
    "tgi": Engine(
        name="tgi",
        command=_tgi_command,
        env=_tgi_env,
        health="/health",
        load_path=None,
        unload_path=None,
        lists_adapters=False,
        metrics={
            "running": "tgi_batch_current_size",
            "waiting": "tgi_queue_size",
            "ended": "tgi_request_success",
            "generation_tokens": "tgi_request_generated_tokens",
            "e2e": "tgi_request_duration",
        },
        image="ghcr.io/huggingface/text-generation-inference:3.3.7",
        note="TGI is in maintenance since December 2025; 3.3.7 is its last release",
    ),
    "sglang": Engine(
        name="sglang",
        command=_sglang_command,
        env=lambda _launch: {"HF_HUB_OFFLINE": "1"},
        health="/health",
        load_path="/load_lora_adapter",
        unload_path="/unload_lora_adapter",
        lists_adapters=True,
        metrics={
            "running": "sglang:num_running_reqs",
            "waiting": "sglang:num_queue_reqs",
            "kv": "sglang:token_usage",
            "ttft": "sglang:time_to_first_token_seconds",
            "e2e": "sglang:e2e_request_latency_seconds",
        },
        image="lmsysorg/sglang:v0.5.23",
        request_model=lambda base, adapter: f"{base}:{adapter}",
    ),
}


def pinned_image(engine: Engine, digest: str) -> str:
    """The image by digest, as `repository:tag@sha256:…`. Raises InputError."""
    if engine.image is None:
        raise InputError(f"engine {engine.name} runs from this environment, not from an image")
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"image digest {digest!r} is not sha256: and 64 hex digits")
    return f"{engine.image}@{digest}"


def adapter_rank(adapter: Path) -> int:
    """Return the rank of a LoRA adapter. Raises InputError when its config does not tell."""
    path = adapter / "adapter_config.json"
    try:
        return int(files.read_json(path)["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not tell the rank of the adapter: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Probe:
    """A question whose answer is known: proof that these very weights answer."""

    messages: Sequence[Mapping[str, str]] = ({"role": "user", "content": "ping"},)
    max_tokens: int = 8
    answer: str | None = None
    """The text to expect at temperature 0; None accepts any."""


@dataclass(frozen=True)
class Running:
    """An engine that runs on this machine and was ready. Leaving its `with` stops it."""

    url: str
    process: process.ProcessRecord
    log: Path
    _child: "subprocess.Popen[bytes]" = field(repr=False)

    def stop(self, *, grace_s: float = _STOP_S) -> None:
        """End it: SIGTERM lets requests finish, SIGKILL comes after `grace_s`."""
        process.stop(self.process, grace_s=grace_s)
        self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_local(
    engine: EngineName,
    *,
    base: Path,
    base_name: str,
    adapters: Mapping[str, Path],
    log: Path,
    port: int = 0,
    threads: int = 1,
    start_s: float = _START_S,
    detached: bool = False,
    options: Sequence[str] = (),
) -> Running:
    """Start an engine on this machine and wait until it serves; its output goes to `log`.

    It dies with the thread that called this, unless `detached`. `options` are the engine's own.
    Raises InputError for what the caller can fix (port taken, adapter that does not fit the base)
    and Unavailable with the end of the log when it does not become ready within `start_s`.
    """
    if engine != "cpu":
        raise InputError(f"engine {engine} runs as a container; only cpu starts as a process here")
    launch = Launch(
        base=str(base),
        base_name=base_name,
        adapters={name: str(folder) for name, folder in adapters.items()},
        port=port,
        extra=("--threads", str(threads), *options),
    )
    child = _spawn(ENGINES[engine], launch, log, detached=detached)
    try:
        url = _await_ready(child, log, start_s)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    return Running(url=url, process=process.record(child.pid, engine), log=log, _child=child)


def _spawn(
    engine: Engine, launch: Launch, log: Path, *, detached: bool
) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        return subprocess.Popen(
            engine.command(launch),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=None if detached else process.die_with_parent,
            env={**os.environ, **engine.env(launch), "PYTHONUNBUFFERED": "1"},
        )


def _await_ready(child: "subprocess.Popen[bytes]", log: Path, start_s: float) -> str:
    """The URL it prints."""
    deadline = time.monotonic() + start_s
    while True:
        code = child.poll()
        text = log.read_text(encoding="utf-8", errors="replace")
        found = _READY.search(text)
        if found is not None:
            return found[1]
        last = text.splitlines()[-_LOG_LINES:]
        if code == _CANNOT_START:
            raise InputError(last[-1] if last else f"the server could not start; see {log}")
        if code is not None:
            ending = "\n".join(last)
            raise Unavailable(f"the server ended with {code}; {log} ends with:\n{ending}")
        if time.monotonic() > deadline:
            ending = "\n".join(last)
            raise Unavailable(
                f"the server was not ready after {start_s:g} s; {log} ends with:\n{ending}"
            )
        time.sleep(0.05)


def not_ready(
    url: str, engine: Engine, model: str, *, base_name: str = "", probe: Probe | None = None
) -> str | None:
    """Why `model` cannot be asked at `url`; None when health, model list and probe all agree."""
    try:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            code = client.get(engine.health).status_code
            if code != 200:
                return f"{engine.health} answers {code}"
            if engine.lists_adapters:
                models = [row["id"] for row in client.get("/v1/models").json()["data"]]
                if model not in models:
                    return f"/v1/models lists {', '.join(models)}, not {model}"
            asked = model if model == base_name else engine.request_model(base_name, model)
            return _probe(client, asked, probe or Probe())
    except httpx.HTTPError as error:
        return f"no answer: {error or type(error).__name__}"
    except (KeyError, IndexError, ValueError, TypeError) as error:
        return f"an answer that is no OpenAI answer: {error!r}"


def _probe(client: httpx.Client, model: str, probe: Probe) -> str | None:
    body = {
        "model": model,
        "messages": list(probe.messages),
        "max_tokens": probe.max_tokens,
        "temperature": 0,
        "seed": 0,
    }
    answer = client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return f"the probe got {answer.status_code}: {answer.text[:200]}"
    text = answer.json()["choices"][0]["message"]["content"] or ""
    if probe.answer is not None and text != probe.answer:
        return f"the probe got {text!r} instead of {probe.answer!r}"
    return None
