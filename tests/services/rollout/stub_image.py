"""An image with Python's standard library and an engine without a model, built from this machine.

Nothing is downloaded: the interpreter of the system and the libraries it loads are packed into a
tar and imported.
"""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import docker

PYTHON = Path("/usr/bin/python3")
TAG = "trainyard-stub-engine:1"

ENGINE = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = sys.argv[1]
HOW = json.load(open("/models/adapter/behaviour.json"))
COUNT = 0

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.say(200, {"data": [{"id": NAME}]})

    def do_POST(self):
        global COUNT
        COUNT += 1
        if HOW.get("crash_after") and COUNT > HOW["crash_after"]:
            print("a kernel died", flush=True)
            os._exit(7)
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(HOW.get("delay_s", 0))
        if HOW.get("fail"):
            return self.say(500, {"error": {"message": "as asked"}})
        message = {"role": "assistant", "content": HOW.get("answer", "fine")}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.say(200, {"model": NAME, "choices": [choice], "env": os.environ.get("TOLD")})

    def log_message(self, *_):
        pass

if HOW.get("dies_at_start"):
    sys.exit("the adapter does not fit the base")
ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def build(client: docker.DockerClient) -> str:
    """Import the image unless it is there; returns its tag."""
    tag = TAG
    if any(tag in image.tags for image in client.images.list()):
        return tag
    changes = ['ENTRYPOINT ["/usr/bin/python3", "/engine.py"]']
    repository, version = tag.split(":")
    client.api.import_image_from_data(_root(), repository, version, changes=changes)
    return tag


def _root() -> bytes:
    real = PYTHON.resolve()
    library = Path("/usr/lib") / real.name
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(real, PYTHON.as_posix())
        for path in _libraries([real, *library.glob("lib-dynload/*.so")]):
            tar.add(path.resolve(), path.as_posix())
        tar.add(library, library.as_posix(), filter=_wanted)
        engine = tarfile.TarInfo("engine.py")
        engine.size = len(ENGINE.encode())
        tar.addfile(engine, io.BytesIO(ENGINE.encode()))
    return out.getvalue()


def _libraries(binaries: list[Path]) -> set[Path]:
    said = subprocess.run(
        ["ldd", *map(os.fspath, binaries)], capture_output=True, text=True, check=True
    ).stdout
    return {Path(word) for word in said.split() if word.startswith("/") and not word.endswith(":")}


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    skip = ("/test", "/__pycache__", "/idlelib", "/lib2to3", "/tkinter", "/ensurepip")
    return None if any(part in f"/{entry.name}" for part in skip) else entry
