"""One message per release, and none that fails it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect import flow

from tasks import notify
from trainyard.errors import Refused
from trainyard.recipe import read_recipe
from trainyard.release.job import Job
from trainyard.run import Run


@pytest.fixture
def got(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    found: list[dict[str, str]] = []

    class Post(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Post)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("INBOX", f"json://127.0.0.1:{server.server_address[1]}/")
    yield found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("place", ["env:INBOX", "env:NOT_SET", "file:/does/not/exist"])
@pytest.mark.usefixtures("prefect_server")
def test_a_blocked_release_is_told_once_and_ends_as_it_would(
    tmp_path: Path, got: list[dict[str, str]], place: str
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
