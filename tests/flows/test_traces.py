"""A release's spans reach the collector that the environment names."""

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prefect.settings import PREFECT_API_URL


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.spans: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Post(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        sent = ExportTraceServiceRequest.FromString(body)
        for resource in sent.resource_spans:
            (service,) = [a.value.string_value for a in resource.resource.attributes
                          if a.key == "service.name"]  # fmt: skip
            spans = [span for scope in resource.scope_spans for span in scope.spans]
            self.server.spans += [(service, span.name) for span in spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("prefect_server")
def test_a_release_sends_a_span_per_flow_and_task(collector: Collector, tmp_path: Path) -> None:
    for name in ("recipes", "deployments", "constraints.txt"):
        (tmp_path / name).symlink_to(Path(name).absolute())
    env = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        "PYTHONPATH": str(Path.cwd()),
    }
    command = [sys.executable, "-m", "flows.release", "recipes/quickstart.yaml", "--dry-run"]
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = [name for service, name in collector.spans if service == "trainyard"]
    assert any(name.startswith("recipes/quickstart.yaml") for name in names), collector.spans
    assert any(name.startswith("plan") for name in names), collector.spans
