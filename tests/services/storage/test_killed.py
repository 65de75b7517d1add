"""Register and upload killed with SIGKILL at twenty moments: real S3, real MLflow file.

The moments are drawn before: a byte on its way up, a request on its way, or a time after the
archive is done. A process that is warm forks each attempt, so that none spends its life importing.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.services.storage.conftest import MIB, archive
from tests.services.storage.servers import Gateway, Proxy
from trainyard import lineage, storage, version
from trainyard.recipe.register import MlflowRegistry, RegisterSpec
from trainyard.registry import open_registry
from trainyard.storage.s3 import S3Store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

KILLS = 20
SEED = 20261121

FORKS = """
import os, sys
from pathlib import Path
import mlflow, sqlalchemy.dialects.sqlite, trainyard.storage.s3
from trainyard import lineage, registration
from trainyard.recipe.register import RegisterSpec
from trainyard.registry import open_registry

def attempt(home, run, spec):
    facts = lineage.read(run / "lineage.json")
    parts = {"gate.json": run / "gate.json"}
    made = registration.publish(spec, home, facts, run / "adapter", parts, who="ci")
    registry = open_registry(spec.registry, home)
    registry.promote("support", made.record.digest, who="ci", why="a test")

print("warm", flush=True)
for line in sys.stdin:
    home, run, spec = line.rstrip("\\n").split("\\t")
    if not (child := os.fork()):
        attempt(Path(home), Path(run), RegisterSpec.model_validate_json(spec))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Attempts:
    """Publishes and promotes one run after another, each in a process that may be killed."""

    def __init__(self, process: "subprocess.Popen[str]", home: Path, spec: RegisterSpec) -> None:
        self.process, self.home, self.spec = process, home, spec
        self.pid: int | None = None

    def begin(self, run: Path) -> None:
        assert self.process.stdin is not None
        line = "\t".join([str(self.home), str(run), self.spec.model_dump_json()])
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.pid = int(self.line())

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        code = int(self.line())
        self.pid = None
        return code

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def attempts(home: Path, spec: RegisterSpec) -> Iterator[Attempts]:
    with (
        (home / "attempts.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        made = Attempts(process, home, spec)
        assert made.line() == "warm\n"
        yield made


def make_run(folder: Path) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(6 * MIB))
    (folder / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    (folder / "gate.json").write_text('{"verdict": "PASS"}')
    facts = lineage.Lineage(
        name="support",
        digest=version.digest_of(folder / "adapter"),
        created="2026-11-20T10:00:00+00:00",
        run_id=folder.name,
        git=lineage.Git(commit="c" * 40, branch="main", remote=None, dirty=False),
        recipe=lineage.recipe_facts("recipes/support.yaml", "name: support\n", {"name": "support"}),
        base_model=lineage.BaseModelFacts(ref="owner/base@r1", revision="r1", digest="b" * 64),
        data=lineage.DataFacts(digest="d" * 64, sources={"train.jsonl": "e" * 64}, train=8),
        training={"backend": "trl", "seed": 7},
        environment=lineage.environment(),
        scores={"tickets/exact_match": 0.94},
        verdict="PASS",
        gates=({"id": "tickets", "verdict": "PASS", "reason": "0.94 > 0.9"},),
    )
    (folder / "lineage.json").write_text(json.dumps(facts.model_dump(mode="json")))
    return folder


def test_killed_at_twenty_moments_there_is_one_version_one_champion_and_nothing_half(
    moto_url: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    gateway = Gateway(moto_url)
    proxy = Proxy(gateway.url)
    store = S3Store(archive(moto_url, "killed"))
    spec = RegisterSpec(archive=archive(proxy.url, "killed"), keep_inputs="none")
    chance = random.Random(SEED)
    done: list[str] = []
    kills = {"byte": 0, "request": 0, "registry": 0}
    with attempts(home, spec) as trial:
        # one run that nobody kills says how many bytes, requests and seconds there are
        moments = _Moments(trial, gateway, proxy)
        first = make_run(tmp_path / "run-0")
        assert moments.attempt(first, None) == 0, (home / "attempts.log").read_text()
        done.append(_digest(first))
        _check(store, home, done)
        while sum(kills.values()) < KILLS:
            run = make_run(tmp_path / f"run-{len(done)}")
            for kind in [*chance.choices(["byte", "request", "registry"], k=3), None]:
                code = moments.attempt(run, kind, chance.random())
                assert code in {0, -signal.SIGKILL}, (home / "attempts.log").read_text()
                if kind and code:
                    kills[kind] += 1
                _check(store, home, [*done, _digest(run)] if code == 0 else done, _digest(run))
                if code == 0:
                    break
            done.append(_digest(run))
            shutil.rmtree(run)
    assert min(kills.values()) > 1, kills
    assert storage.sweep(store, grace=timedelta(seconds=-60)) == []
    assert store.client.unfinished("killed", "") == []
    proxy.close()
    gateway.close()


class _Moments:
    """Kills an attempt at a byte, a request or a time; each as a part of an attempt's whole."""

    def __init__(self, trial: Attempts, gateway: Gateway, proxy: Proxy) -> None:
        self.trial, self.gateway, self.proxy = trial, gateway, proxy
        self.bytes = self.requests = 0
        self.seconds = 0.0
        gateway.rule = self._request
        proxy.up = self._block
        self.at: tuple[str | None, float] = (None, 0.0)
        self.timer: threading.Timer | None = None

    def attempt(self, run: Path, kind: str | None, part: float = 0.0) -> int:
        totals = (self.bytes, self.requests, self.seconds)
        scale = dict(zip(("byte", "request", "registry"), totals, strict=True))
        self.at = (kind, part * scale[kind] if kind else 0.0)
        self.seen_bytes = self.seen_requests = 0
        self.archived: float | None = None
        self.trial.begin(run)
        code = self.trial.end()
        if self.timer:
            self.timer.cancel()
        if not self.bytes:
            assert self.archived is not None
            self.seconds = time.monotonic() - self.archived
            self.bytes, self.requests = self.seen_bytes, self.seen_requests
        return code

    def _block(self, block: bytes) -> bytes:
        self.seen_bytes += len(block)
        if self.at[0] == "byte" and self.seen_bytes > self.at[1]:
            self.trial.kill()
        return block

    def _request(self, method: str, path: str) -> tuple[int, str] | None:
        self.seen_requests += 1
        if self.at[0] == "request" and self.seen_requests > self.at[1]:
            self.trial.kill()
        if path.endswith("/manifest.json") and self.archived is None and self._complete(method):
            self.archived = time.monotonic()
            if self.at[0] == "registry":
                self.timer = threading.Timer(self.at[1], self.trial.kill)
                self.timer.start()
        return None

    def _complete(self, method: str) -> bool:
        return method == "PUT" or self.seen_requests > 1  # written, or read a second time


def _digest(run: Path) -> str:
    return str(json.loads((run / "lineage.json").read_text())["digest"])


def _check(store: S3Store, home: Path, done: list[str], under_way: str | None = None) -> None:
    """What any reader sees is whole; what was done before stays; one champion at most."""
    shown = set(storage.list_versions(store, "support"))
    assert set(done) <= shown <= {*done, under_way}
    for digest in shown - set(done[:-2]):
        storage.verify_tree(store, version.key("support", digest))
    registry = open_registry(MlflowRegistry(), home)
    registered = [record.digest for record in registry.versions("support")]
    assert len(registered) == len(set(registered))
    assert set(done) <= set(registered) <= shown
    champion = registry.aliases("support").get("production")
    assert champion in ([done[-1], under_way] if done else [None])
