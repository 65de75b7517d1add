"""From a passed candidate to a registered version: real archive folder, real MLflow file."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.registry.conftest import key_pair
from trainyard import attestation, lineage, registration, storage, version
from trainyard.errors import NotFound, Refused, Unavailable
from trainyard.process import free_port
from trainyard.recipe.register import MlflowRegistry, RegisterSpec
from trainyard.registry import open_registry

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

SPEC = RegisterSpec(allow_dirty=True)
Publish = Callable[..., registration.Published]


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(3 << 20))
    (folder / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "scores.jsonl").write_text('{"value": 1.0}\n')
    (folder / "gate.json").write_text('{"verdict": "PASS"}')
    return folder


def facts(candidate: Path, **changes: object) -> lineage.Lineage:
    found = lineage.Lineage(
        name="support",
        digest=version.digest_of(candidate / "adapter"),
        created="2026-11-20T10:00:00+00:00",
        run_id="support-1",
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
    return found.model_copy(update=changes)


def publish(
    home: Path, candidate: Path, spec: RegisterSpec = SPEC, **changes: object
) -> registration.Published:
    evidence = {"evaluation": candidate / "evaluation", "gate.json": candidate / "gate.json"}
    return registration.publish(
        spec, home, facts(candidate, **changes), candidate / "adapter", evidence, who="ci"
    )


def test_a_published_version_is_archived_registered_and_explained(
    home: Path, candidate: Path
) -> None:
    made = publish(home, candidate)
    store = storage.open_store(SPEC.archive, home)
    assert storage.list_versions(store, "support") == [made.record.digest]
    found = open_registry(SPEC.registry, home).resolve("support", "candidate")
    assert found == made.record
    manifest = attestation.check(made.folder, found.manifest_sha256)
    assert {
        "README.md",
        "attestation.json",
        "evaluation/scores.jsonl",
        "gate.json",
        "lineage.json",
    } < set(manifest.files)
    card = (made.folder / "README.md").read_text()
    assert "base_model: owner/base" in card
    assert "| tickets | PASS | 0.94 > 0.9 |" in card


def test_publishing_again_changes_nothing(home: Path, candidate: Path) -> None:
    first = publish(home, candidate)
    again = publish(home, candidate, run_id="support-2")
    assert (first.already, again.already) == (False, True)
    assert again.record == first.record
    assert len(open_registry(SPEC.registry, home).versions("support")) == 1


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "INVALID"])
def test_what_did_not_pass_is_not_registered(home: Path, candidate: Path, verdict: str) -> None:
    with pytest.raises(Refused, match=f"its gates said {verdict}"):
        publish(home, candidate, verdict=verdict)
    assert not (home / "archive").exists()


def test_a_dirty_tree_is_refused_unless_the_recipe_allows_it(home: Path, candidate: Path) -> None:
    dirty = lineage.Git(commit="c" * 40, branch="main", remote=None, dirty=True, diff="+x")
    with pytest.raises(Refused, match="changes in no commit"):
        publish(home, candidate, RegisterSpec(), git=dirty)
    with pytest.raises(Refused, match="outside a git repository"):
        publish(home, candidate, RegisterSpec(), git=None)
    assert publish(home, candidate, SPEC, git=dirty).record.digest


def test_a_registry_that_is_away_parks_the_version_and_the_next_run_registers_it(
    home: Path, candidate: Path
) -> None:
    away = RegisterSpec(
        registry=MlflowRegistry(uri=f"http://127.0.0.1:{free_port()}"), allow_dirty=True
    )
    with pytest.raises(Unavailable, match="is parked in"):
        publish(home, candidate, away)
    (waiting,) = registration.parked(home)
    assert waiting.record.run_id == "support-1"
    assert registration.register_parked(home) == []  # still away
    made = publish(home, candidate)  # the server is replaced by the embedded one
    assert made.record.digest == waiting.record.digest
    assert registration.parked(home) == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("adapter/adapter_config.json", "adapter/adapter_config.json was changed"),
        ("gate.json", "gate.json"),
        ("attestation.json", "attestation.json"),
    ],
)
def test_a_version_altered_after_its_release_is_refused(
    home: Path, candidate: Path, place: str, said: str
) -> None:
    made = publish(home, candidate)
    path = made.folder / place
    content = path.read_text()
    path.unlink()
    path.write_text(content.replace("8", "9").replace("PASS", "FAIL").replace("support", "spport"))
    with pytest.raises(Refused, match=said):
        attestation.check(made.folder)


def test_a_version_resealed_with_another_verdict_is_refused(home: Path, candidate: Path) -> None:
    made = publish(home, candidate)
    path = made.folder / "lineage.json"
    changed = json.loads(path.read_text()) | {"verdict": "FAIL"}
    path.unlink()
    path.write_text(json.dumps(changed))
    version.seal(made.folder, "support", made.record.digest)
    with pytest.raises(Refused, match="its gates said FAIL"):
        attestation.check(made.folder)
    with pytest.raises(Refused, match="its manifest differs"):
        attestation.check(made.folder, made.record.manifest_sha256)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_statement_is_what_in_toto_and_slsa_define(home: Path, candidate: Path) -> None:
    pytest.importorskip("in_toto_attestation", reason="the extra `signing` is not installed")
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    made = publish(home, candidate)
    text = (made.folder / attestation.FILE).read_text()
    found = json_format.Parse(text, statement_pb2.Statement())  # refuses unknown fields
    Statement.copy_from_pb(found).validate()
    predicate = json.dumps(json.loads(text)["predicate"])
    provenance = json_format.Parse(predicate, provenance_pb2.Provenance())
    build = provenance.build_definition
    assert build.build_type == "urn:trainyard:release:v1"
    assert provenance.run_details.builder.id
    dependencies = {d.uri: dict(d.digest) for d in build.resolved_dependencies}
    assert dependencies["train.jsonl"] == {"sha256": "e" * 64}
    assert {"gitCommit": "c" * 40} in dependencies.values()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_keys_a_version_is_published_signed_and_checked_by_key(
    home: Path, candidate: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    keys = key_pair(tmp_path, "team")
    made = publish(home, candidate, SPEC.model_copy(update={"sign": keys}))
    checked = attestation.check(made.folder, made.record.manifest_sha256, sign=keys)
    assert version.SIGNATURE in checked.files
    other = key_pair(tmp_path, "other")
    with pytest.raises(Refused, match="does not hold"):
        attestation.check(made.folder, sign=other)


PUBLISH = """
import json, sys, warnings
from pathlib import Path
from trainyard import lineage, registration
from trainyard.recipe.register import RegisterSpec
from trainyard.registry import open_registry

home, run = Path(sys.argv[1]), Path(sys.argv[2])
facts = lineage.read(run / "lineage.json")
spec = RegisterSpec(allow_dirty=True)
print("begin", flush=True)
parts = {"gate.json": run / "gate.json"}
made = registration.publish(spec, home, facts, run / "adapter", parts, who="ci")
registry = open_registry(spec.registry, home)
registry.promote("support", made.record.digest, who="ci", why="a test")
"""


def test_killed_at_any_moment_the_next_run_leaves_one_version_and_one_champion(
    home: Path, candidate: Path
) -> None:
    (candidate / "lineage.json").write_text(facts(candidate).model_dump_json())
    command = [sys.executable, "-c", PUBLISH, str(home), str(candidate)]
    chance = random.Random(20261120)
    store = storage.open_store(SPEC.archive, home)
    for _ in range(8):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 3.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for digest in storage.list_versions(store, "support"):
            storage.verify_tree(store, version.key("support", digest))
    subprocess.run(command, check=True, capture_output=True)
    registry = open_registry(SPEC.registry, home)
    (record,) = registry.versions("support")
    assert storage.list_versions(store, "support") == [record.digest]
    assert registry.aliases("support")["production"] == record.digest
    storage.verify_tree(store, version.key("support", record.digest))


def test_an_archive_that_lost_a_version_says_so(home: Path, candidate: Path) -> None:
    made = publish(home, candidate)
    store = storage.open_store(SPEC.archive, home)
    storage.delete_tree(store, version.key("support", made.record.digest))
    with pytest.raises(NotFound, match="has no finished"):
        storage.get_tree(store, version.key("support", made.record.digest), home / "back")
