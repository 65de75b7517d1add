"""Planted secrets, searched for in everything that a passing and a failing release leave behind."""

import base64
import logging
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.blocks.system import Secret
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)

from flows.release import release
from tests.flows import stored
from tests.flows.test_approval import GATES
from tests.inbox import Inbox, inbox
from tests.services.registry.wandb_loopback import serve
from tests.services.registry.wandb_state import TEAM, State
from trainyard import rollout
from trainyard.process import free_port
from trainyard.release import training

__all__ = ["inbox"]

# mlflow maps its tables while a release runs; a warning as an error would stop that for good
pytestmark = pytest.mark.filterwarnings("default")

PLANTED = {"KEY": "pl4nted-user-key-7731", "ALERTS": "pl4nted-address-9052",
           "TRACKER": "pl4nted-tracker-key-3309-" + "x" * 20}  # fmt: skip
IN_FILE, IN_BLOCK = "pl4nted-file-4410", "pl4nted-block-6628"
LEAK = """
import logging, os, sys
print("the keys are", os.environ["KEY"], os.environ["ALERTS"], open("secret").read())
sys.exit(os.environ["KEY"])
"""


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inbox: Inbox, prefect_server: None
) -> Iterator[Path]:
    repository = Path.cwd()
    monkeypatch.chdir(tmp_path)
    stored.make_folder(tmp_path, repository)
    address = inbox.address.removesuffix("a-secret-path")
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value if name == "KEY" else f"{address}{value}")
    (tmp_path / "secret").write_text(f"{address}{IN_FILE}")
    Secret(value=f"{address}{IN_BLOCK}").save("planted", overwrite=True)
    (tmp_path / "leak.py").write_text(LEAK)
    yield tmp_path
    rollout.down(stored.HOME)


@pytest.fixture
def wandb_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder / f".trainyard/wandb-{name}"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with serve(folder / ".trainyard/wandb-server") as state:
        state.create_registry("model")
        yield state


def texts(folder: Path, tracked: State) -> Iterator[tuple[str, bytes]]:
    """What was left behind: every file of the home, every cell of the database, W&B's memory."""
    for path in (folder / ".trainyard").rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
    for path in PREFECT_LOCAL_STORAGE_PATH.value().rglob("*"):
        yield f"result {path.name}", base64.decodebytes(path.read_bytes())  # a pickle
    database = PREFECT_API_DATABASE_CONNECTION_URL.value()
    assert database
    with sqlite3.connect(str(database).partition("///")[2]) as rows:
        tables = rows.execute("select name from sqlite_master where type = 'table'").fetchall()
        assert len(tables) > 20
        for (table,) in tables:
            for row in rows.execute(f'select * from "{table}"'):
                yield from ((table, str(cell).encode()) for cell in row)
    for name, memory in vars(tracked).items():
        yield f"wandb {name}", repr(memory).encode()


def hits(folder: Path, tracked: State, told: str) -> list[str]:
    values = [value.encode() for value in (*PLANTED.values(), IN_FILE, IN_BLOCK)]
    found = [("told", line.encode()) for line in told.splitlines()] + [*texts(folder, tracked)]
    return [f"{where}: {text[:300]!r}" for where, text in found if any(v in text for v in values)]


def tracker(url: str) -> dict[str, Any]:
    mirror = {"kind": "wandb", "entity": TEAM, "project": "support", "base_url": url,
              "api_key": "env:TRACKER", "connect_timeout_s": 10}  # fmt: skip
    return {"register.mirror": mirror}


def asks_with_a_key(address: str) -> Any:
    """A library's own error, with one secret in its words and one in the request it carries."""

    def run(*_: Any, **__: Any) -> None:
        bearer = {"Authorization": f"Bearer {PLANTED['TRACKER']}"}
        httpx.post(f"{address}/?key={PLANTED['KEY']}", headers=bearer, json={}).raise_for_status()

    return run


def test_no_planted_secret_is_found_after_passing_and_failing_releases(
    folder: Path, inbox: Inbox, wandb_server: State, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG, "trainyard")
    told = {"notify.to": ["env:ALERTS", "file:secret", "block:planted"],
            "deploy.api_keys": ["env:KEY"], **tracker(wandb_server.url)}  # fmt: skip
    recipe = stored.recipe_file(Path("recipe.yaml"), GATES, seed=1)
    stored.Finished(recipe).evaluate(recipe, parity=None)
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: folder / "results"}):
        passed = release(recipe=str(recipe), overrides=told, return_state=True)
        assert passed.is_completed(), passed.message
        assert len(inbox.got) == 3  # the values were used, all of them

        leak = {"train.backend": "command", "train.command": [sys.executable, "leak.py"],
                **tracker(f"http://127.0.0.1:{free_port()}")}  # fmt: skip
        failed = release(recipe=str(recipe), overrides={**told, **leak}, return_state=True)
        assert failed.is_failed()
        assert "***" in (failed.message or "")
        assert len(inbox.got) == 6

        told_people = " ".join(message["title"] + message["message"] for message in inbox.got)
        inbox.status = 500
        monkeypatch.setattr(training, "run", asks_with_a_key(inbox.address.replace("json", "http")))
        again = {**told, "train.seed": 9}
        foreign = release(recipe=str(recipe), overrides=again, return_state=True)
        assert foreign.is_failed()
        assert "exception: MaskedError: HTTPStatusError: Server error" in (foreign.message or "")
        assert "***" in (foreign.message or "")

        logging.getLogger("trainyard").warning("a value in a record: %s", PLANTED["KEY"])
        APILogHandler().flush()
        left = [*texts(folder, wandb_server)]
        for there in ("flow_run_state", "log", "result ", "wandb streams", "offline-run-"):
            assert any(there in where for where, _ in left), there  # it was looked at
        assert any(b"MaskedError" in t for where, t in left if where.startswith("result "))
        seen = capfd.readouterr().err + caplog.text + told_people
        assert hits(folder, wandb_server, seen) == []
