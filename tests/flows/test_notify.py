"""One message per release, and none that fails it."""

from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from tasks import notify
from tests.inbox import Inbox, inbox
from trainyard.errors import Refused
from trainyard.recipe import read_recipe
from trainyard.release.job import Job
from trainyard.run import Run

__all__ = ["inbox"]


@pytest.fixture
def got(inbox: Inbox) -> list[dict[str, Any]]:
    return inbox.got


@pytest.mark.parametrize("place", ["env:INBOX", "env:NOT_SET", "file:/does/not/exist"])
@pytest.mark.usefixtures("prefect_server")
def test_a_blocked_release_is_told_once_and_ends_as_it_would(
    tmp_path: Path, got: list[dict[str, Any]], place: str
) -> None:
    recipe = read_recipe(Path("recipes/quickstart.yaml"), {"notify.to": [place]})

    @flow
    def release() -> None:
        with Run.opened(tmp_path, recipe.name, "r.yaml") as run:
            job = Job(recipe=recipe, recipe_path="r", run_id=run.summary.run_id, home=tmp_path)
            try:
                with run.stage("gate"):
                    run.summary.verdict = "FAIL"
                    raise Refused("FAIL: exact_match 0.5 < 0.9")
            finally:
                notify.tell_release(job, run)

    with pytest.raises(Refused, match="exact_match"):
        release()
    if place == "env:INBOX":
        assert [message["title"] for message in got] == ["quickstart: FAIL at gate, nothing ships"]
        assert "exact_match 0.5 < 0.9" in got[0]["message"]
    else:
        assert got == []
