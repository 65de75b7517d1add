"""Planted secrets, searched for in everything that a passing and a failing release leave behind."""

import logging
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from flows.release import release
from tests.flows import stored
from tests.flows.test_approval import GATES
from tests.inbox import Inbox, inbox
from trainyard import rollout

__all__ = ["inbox"]

# mlflow maps its tables while a release runs; a warning as an error would stop that for good
pytestmark = pytest.mark.filterwarnings("default")

PLANTED = {"KEY": "pl4nted-user-key-7731", "ALERTS": "pl4nted-address-9052"}
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


def hits(folder: Path, text: str) -> list[str]:
    """Where any planted value is: in text, every file of the home, every cell of the database."""
    values = [*PLANTED.values(), IN_FILE, IN_BLOCK]
    found = [f"log: {line}" for line in text.splitlines() if any(v in line for v in values)]
    for path in (folder / ".trainyard").rglob("*"):
        if path.is_file() and any(v.encode() in path.read_bytes() for v in values):
            found.append(str(path))
    database = PREFECT_API_DATABASE_CONNECTION_URL.value()
    assert database
    with sqlite3.connect(str(database).partition("///")[2]) as rows:
        tables = rows.execute("select name from sqlite_master where type = 'table'").fetchall()
        assert len(tables) > 20
        for (table,) in tables:
            for row in rows.execute(f'select * from "{table}"'):
                found += [f"{table}: {cell}" for cell in row if any(v in str(cell) for v in values)]
    return found


def test_no_planted_secret_is_found_after_a_passing_and_a_failing_release(
    folder: Path, inbox: Inbox, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trainyard")
    told = {"notify.to": ["env:ALERTS", "file:secret", "block:planted"]}
    recipe = stored.recipe_file(Path("recipe.yaml"), GATES, seed=1)
    stored.Finished(recipe).evaluate(recipe, parity=None)
    passed = release(recipe=str(recipe), overrides={**told, "deploy.api_keys": ["env:KEY"]},
                     return_state=True)  # fmt: skip
    assert passed.is_completed(), passed.message
    assert len(inbox.got) == 3  # the values were used, all of them

    leak = {"train.backend": "command", "train.command": [sys.executable, "leak.py"]}
    failed = release(recipe=str(recipe), overrides={**told, **leak, "deploy.api_keys": ["env:KEY"]},
                     return_state=True)  # fmt: skip
    assert failed.is_failed()
    assert "***" in (failed.message or "")
    assert len(inbox.got) == 6
    logging.getLogger("trainyard").warning("a value in a record: %s", PLANTED["KEY"])
    APILogHandler().flush()
    told_people = " ".join(message["title"] + message["message"] for message in inbox.got)
    assert hits(folder, capfd.readouterr().err + caplog.text + told_people) == []
