"""Versions that stub engines serve, and users who ask whatever target serves them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from trainyard.recipe.deploy import Canary
from trainyard.rollout.target import ServedVersion, Target

QUICK = Canary(steps=(20, 50), min_requests=8, requests=12, margin=0.1, look_s=0.4)
REPLAY = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(20)]

# nothing is kept open: nobody closes it
USER = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def version(folder: Path, digest: str, **behaviour: Any) -> ServedVersion:
    """A version whose stub engine behaves as told; see bench/stub_engine.py."""
    adapter = folder / digest
    adapter.mkdir()
    (adapter / "behaviour.json").write_text(json.dumps(behaviour))
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    return ServedVersion(name="m", digest=digest * 8, adapter=adapter, base=folder)


def ask(target: Target, **headers: str) -> httpx.Response:
    return USER.post(
        f"{target.endpoint()}/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        headers=headers,
        timeout=60,
    )


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
