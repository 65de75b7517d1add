"""The hub's real client against a server on this machine that takes repositories and commits.

It is not the hub: no LFS, no quotas, no permissions beyond one token.
"""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainyard import files, hub, version
from trainyard.errors import InputError, Unavailable
from trainyard.process import free_port
from trainyard.recipe.register import HubSpec

TOKEN = "hf_" + "x" * 34


class Hub:
    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, HubSpec]]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    taken = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply(401, {"error": "Invalid username or password."})
            if self.path == "/api/repos/create":
                taken.created.append(json.loads(body))
                return self.reply(200, {"url": f"http://{self.headers['Host']}/team/support"})
            if "/preupload/" in self.path:
                named = [f["path"] for f in json.loads(body)["files"]]
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in named]
                return self.reply(200, {"files": modes})
            if "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                taken.commits.append(lines[0]["value"]["summary"])
                for line in lines[1:]:
                    content = base64.b64decode(line["value"]["content"])
                    taken.files[line["value"]["path"]] = content
                url = f"http://{self.headers['Host']}/team/support/commit/1"
                return self.reply(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
            return self.reply(200, {"errors": [], "warnings": []})  # validates a card's metadata

        def reply(self, status: int, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    yield taken, HubSpec(repository="team/support", endpoint=url)
    server.shutdown()
    server.server_close()


@pytest.fixture
def made(tmp_path: Path) -> version.Version:
    adapter = tmp_path / "adapter"
    files.write_text(adapter / "adapter_model.safetensors", "weights")
    parts: dict[str, Path | str] = {
        "README.md": "---\nlibrary_name: peft\n---\n# support\n",
        "lineage.json": "{}",
        "evaluation/answers.jsonl": "what customers asked",
    }
    digest = version.digest_of(adapter)
    return version.assemble(tmp_path / "home", "support", digest, adapter, parts)


def test_a_push_is_one_commit_of_adapter_card_and_lineage_without_the_questions(
    served: tuple[Hub, HubSpec], made: version.Version
) -> None:
    taken, spec = served
    url = hub.push(spec, made.folder)
    assert url.endswith("/team/support/commit/1")
    assert "private" in taken.created[0].values()
    assert taken.commits == [made.served_name]
    assert set(taken.files) == {
        "adapter_model.safetensors",
        "README.md",
        "lineage.json",
        "manifest.json",
    }
    assert taken.files["adapter_model.safetensors"] == b"weights"


def test_a_token_that_the_hub_refuses_is_bad_input_and_never_shown(
    served: tuple[Hub, HubSpec], made: version.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 34)
    with pytest.raises(InputError, match="refuses team/support") as caught:
        hub.push(served[1], made.folder)
    assert "yyyy" not in str(caught.value)


def test_a_silent_hub_is_unavailable(served: tuple[Hub, HubSpec], made: version.Version) -> None:
    away = served[1].model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(Unavailable):
        hub.push(away, made.folder)
