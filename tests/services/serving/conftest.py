from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.serving.adapters import BASE, with_own_tokenizer, write_adapter
from trainyard.serving.engines import Running, start_local

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "tickets@0123456789ab": write_adapter(root / "a", seed=1),
        "v1.2": write_adapter(root / "b", seed=2, rank=4),
        "own-template": with_own_tokenizer(write_adapter(root / "c", seed=3), TEMPLATE),
    }


@pytest.fixture(scope="session")
def server(
    adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "engine.log"
    with start_local("cpu", base=BASE, base_name="base", adapters=adapters, log=log) as running:
        yield running


@pytest.fixture
def api(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client
