"""Data sets of a hub: its cache's layout, and a loopback server with its API and file endpoints."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40


def rows(text: str) -> bytes:
    return b"".join(
        json.dumps({"prompt": f"{text} {i}", "completion": f"answer {i}"}).encode() + b"\n"
        for i in range(20)
    )


FILES = {
    "README.md": b"# name\n",
    "data/train-00000-of-00001.jsonl": rows("train"),
    "data/test-00000-of-00001.jsonl": rows("test"),
}


class Hub(BaseHTTPRequestHandler):
    """`owner/name` at `main` and at its commit; anything else is not found."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)  # type: ignore[attr-defined]
        api = "/api/datasets/owner/name"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in FILES]
            self._json({"id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": False})
        elif path.startswith(f"{api}/tree/"):
            self._json(
                [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in FILES.items()
                ]
            )
        elif path.startswith(f"/datasets/owner/name/resolve/{COMMIT}/"):
            content = FILES[path.split(f"{COMMIT}/")[1]]
            self._say(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        else:
            missing = "RevisionNotFound" if path.startswith(api) else "RepoNotFound"
            self._say(404, b"{}", {"X-Error-Code": missing, "X-Error-Message": "not found"})

    def _json(self, value: object) -> None:
        self._say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _say(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def check(
    source: str, folder: Path, endpoint: str, offline: bool = False
) -> "subprocess.CompletedProcess[str]":
    """`trainyard check` in a process of its own: huggingface_hub reads its settings once."""
    home = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    env = os.environ | home | {"HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-m", "trainyard", "check", source, "--out", str(folder / "out")]
    return subprocess.run(
        [*command, "--json"], env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_data_set_of_the_hub_is_fetched_once_and_read_offline(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    source = f"hf://owner/name@{COMMIT}/data/train-*"
    done = check(source, tmp_path, endpoint)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["lines"], found["verdict"]) == (20, "pass")
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert row["source"]["file"] == f"hf://owner/name@{COMMIT}/data/train-00000-of-00001.jsonl"
    assert any(COMMIT in path for path in hub.asked)  # type: ignore[attr-defined]

    again = check(source, tmp_path, "http://127.0.0.1:9", offline=True)
    assert json.loads(again.stdout)["digest"] == found["digest"]


SAID = {
    "hf://owner/name": "has the splits test, train: say which with `split`",
    "hf://owner/name@main/nothing.jsonl": "no such file in the data set",
    "hf://owner/name@v9": "hf://owner/name@v9: ",
    "hf://owner/other": "hf://owner/other: ",
    "hf://owner": "hf://owner is not owner/name@revision",
}
PROGRAM = """
import json, pathlib, sys
from trainyard.data.locate import locate
from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec
for source in sys.argv[1:]:
    try:
        locate(SourceSpec(path=source), pathlib.Path())
    except InputError as error:
        print(json.dumps([source, str(error)]))
"""


def test_what_the_hub_has_not_is_one_sentence(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    env = os.environ | settings | {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", PROGRAM, *SAID]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert found.keys() == SAID.keys()
    for source, says in SAID.items():
        assert says in found[source]
        assert "\n" not in found[source]


def test_a_hub_that_is_away_is_named(tmp_path: Path) -> None:
    done = check("hf://owner/name", tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "not in the local cache and the hub did not answer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
