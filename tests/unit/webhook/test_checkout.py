import subprocess
from pathlib import Path

import pytest

from trainyard import housekeeping, lineage
from trainyard.errors import InputError, NotFound
from trainyard.rollout.state import Placed, Store
from trainyard.rollout.target import ServedVersion
from trainyard.webhook import checkout


@pytest.fixture
def commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    source = tmp_path / "source"
    git = ["git", "-C", str(source), "-c", "user.name=Ada", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(source)], check=True)
    for text in ("one", "two"):
        (source / "recipe").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", text], check=True)
    monkeypatch.setenv(checkout.SOURCE, str(source))
    monkeypatch.setenv(checkout.ADDRESS, "https://git.example/acme/models.git")
    done = subprocess.run([*git, "rev-list", "--reverse", "HEAD"], check=True, capture_output=True)
    return done.stdout.decode().split()


def test_a_run_sees_its_own_commit_the_shared_home_and_a_clean_tree(
    commits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root" / ".trainyard").mkdir(parents=True)
    monkeypatch.setenv(checkout.COMMIT, commits[0])
    folder = Path(checkout.at_commit(str(tmp_path / "root"))["directory"])
    assert (folder / "recipe").read_text() == "one"
    (folder / ".trainyard" / "file").write_text("x")
    assert (tmp_path / "root" / ".trainyard" / "file").exists()
    state = lineage.git_state(folder)
    assert state is not None
    assert (state.commit, state.dirty) == (commits[0], False)
    assert state.remote == "https://git.example/acme/models.git"
    assert checkout.at_commit(str(tmp_path / "root"))["directory"] == str(folder)  # a second run


def test_a_commit_that_is_gone_and_a_run_by_hand_are_said(
    commits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(checkout.COMMIT, "0" * 40)
    with pytest.raises(NotFound, match="git"):
        checkout.at_commit(str(tmp_path))
    monkeypatch.delenv(checkout.COMMIT)
    with pytest.raises(InputError, match="started by the webhook"):
        checkout.at_commit(str(tmp_path))


def test_a_checkout_that_is_served_from_stays(tmp_path: Path) -> None:
    home = tmp_path / ".trainyard"
    for sha in ("abc", "def"):
        (home / "checkouts" / sha / "base").mkdir(parents=True)
    store = Store(home / "environments" / "staging" / "serving" / "support")
    store.folder.mkdir(parents=True)
    base = home / "checkouts" / "abc" / "base"
    version = ServedVersion(name="support", digest="0" * 64, adapter=tmp_path, base=base)
    store.deploy(Placed(version=version, slot="blue"), None)
    assert checkout.is_served(home / "checkouts" / "abc", home)
    assert not checkout.is_served(home / "checkouts" / "def", home)
    assert "checkouts/abc" in set(housekeeping.roots(home))
