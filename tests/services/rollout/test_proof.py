"""What a release rolls out proves itself at the moment of deployment and in each step after it."""

from pathlib import Path

import pytest

from tests.unit.test_lineage import sample
from trainyard import attestation, files, version
from trainyard.errors import Refused
from trainyard.recipe import read_recipe
from trainyard.recipe.register import KeySigning
from trainyard.release import rollout
from trainyard.release.job import Job
from trainyard.release.version import Registered

OVERRIDES = {"name": "support", "deploy.port": 0}


@pytest.fixture
def registered(tmp_path: Path) -> Registered:
    adapter = tmp_path / "adapter"
    files.write_text(adapter / "adapter_model.safetensors", "weights")
    digest = version.digest_of(adapter)
    facts = sample().model_copy(update={"digest": digest})
    files.write_text(tmp_path / "evaluation" / "scores.jsonl", "")
    parts: dict[str, Path | str] = {
        "lineage.json": facts.model_dump_json(),
        "gate.json": '{"verdict": "PASS"}',
        "evaluation": tmp_path / "evaluation",
    }
    files.write_json(tmp_path / "a.json", attestation.statement(facts, adapter))
    parts[attestation.FILE] = tmp_path / "a.json"
    made = version.assemble(tmp_path / "home" / "versions", "support", digest, adapter, parts)
    return Registered(
        name="support",
        digest=digest,
        folder=made.folder,
        url="file:///archive",
        manifest_sha256=files.digest_file(made.folder / version.MANIFEST),
        skipped=False,
    )


@pytest.fixture
def job(tmp_path: Path) -> Job:
    recipe = read_recipe(Path("recipes/quickstart.yaml"), OVERRIDES)
    found = Job(recipe=recipe, recipe_path="r.yaml", run_id="support-1", home=tmp_path / "home")
    found.folder.mkdir(parents=True)
    return found


def alter(folder: Path) -> None:
    (folder / "gate.json").unlink()
    files.write_json(folder / "gate.json", {"verdict": "FAIL"})


def test_a_version_altered_before_its_rollout_is_refused(job: Job, registered: Registered) -> None:
    alter(registered.folder)
    with pytest.raises(Refused, match=r"gate\.json"):
        rollout.begin(job, registered)


def test_one_sealed_again_after_its_registration_is_refused(
    job: Job, registered: Registered
) -> None:
    alter(registered.folder)
    version.seal(registered.folder, "support", registered.digest)
    with pytest.raises(Refused, match="its manifest differs"):
        rollout.begin(job, registered)


def test_one_altered_after_its_rollout_began_gets_no_traffic(
    job: Job, registered: Registered
) -> None:
    controlled = rollout.begin(job, registered)
    alter(registered.folder)
    record = controlled.step()
    assert (record.step, record.decision) == ("start", "abort")
    assert "gate.json" in record.reason
    assert controlled.state.phase == "aborted"
    with pytest.raises(Refused, match=r"ended aborted: .*gate\.json"):
        rollout.end(job, registered, controlled, "a test")


def test_an_unsigned_one_is_refused_where_keys_are_configured(
    job: Job, registered: Registered, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed")
    public = tmp_path / "public.pem"
    public.write_text("a key")
    keys = KeySigning(private_key="env:KEY", public_key=str(public))
    register = job.recipe.register.model_copy(update={"sign": keys})
    recipe = job.recipe.model_copy(update={"register": register})
    with pytest.raises(Refused, match="is not signed"):
        rollout.begin(job.model_copy(update={"recipe": recipe}), registered)
