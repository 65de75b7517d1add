"""The weekly sweep, as Prefect runs it."""

import os
import time
from pathlib import Path

import pytest

from flows.housekeeping import housekeeping
from tasks import housekeeping as tasks
from trainyard.errors import Refused
from trainyard.housekeeping import Swept


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result of Prefect's own that nobody reads any more, in a home of the test's own."""
    monkeypatch.chdir(tmp_path)
    result = tmp_path / ".trainyard" / "prefect" / "storage" / "0123456789abcdef"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    before = time.time() - 40 * 86400
    os.utime(result, (before, before))
    return result


@pytest.mark.usefixtures("prefect_server")
def test_by_default_the_flow_only_says_what_would_go(old: Path) -> None:
    assert [item.id for item in housekeeping().items] == [f"prefect/storage/{old.name}"]
    assert old.exists()
    assert [item.deleted for item in housekeeping(delete=True).items] == [True]
    assert not old.exists()


def test_a_disk_that_fills_up_fails_the_run() -> None:
    full = Swept(days=30, items=[], kept=0, alarm="the disk of /data has 1 GiB of 100 GiB left")
    with pytest.raises(Refused, match="1 GiB of 100 GiB"):
        tasks.must_have_room.fn(full)
