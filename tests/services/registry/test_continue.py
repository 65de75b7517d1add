"""A training that starts from a registered version."""

from pathlib import Path

import pytest

from tests.services.registry.test_registration import (
    candidate,  # noqa: F401  (a fixture)
    publish,
)
from trainyard import base_model
from trainyard.errors import InputError, NotFound
from trainyard.lineage import BaseModelFacts
from trainyard.recipe import read_recipe
from trainyard.release.job import Job
from trainyard.release.training import inputs, start_of

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

RECIPE = Path("recipes/quickstart.yaml")


def job_from(home: Path, start: str) -> Job:
    recipe = read_recipe(RECIPE, {"train.continue_from": start})
    return Job(recipe=recipe, recipe_path=str(RECIPE), run_id="r", home=home)


def test_a_version_by_its_alias_is_where_training_starts(home: Path, candidate: Path) -> None:  # noqa: F811
    base = base_model.resolve("recipes/quickstart/base", home)
    facts = BaseModelFacts(ref=base.ref, revision=base.revision, digest=base.digest)
    made = publish(home, candidate, base_model=facts)
    job = job_from(home, "support@candidate")
    found = start_of(job)
    assert found is not None
    weights = (found / "adapter" / "adapter_model.safetensors").read_bytes()
    assert weights == (candidate / "adapter" / "adapter_model.safetensors").read_bytes()
    by_digest = job_from(home, f"support@{made.record.digest[:12]}")
    assert inputs(job, "d")["continue_from"] == inputs(by_digest, "d")["continue_from"]


def test_a_version_of_another_base_or_of_none_is_refused(home: Path, candidate: Path) -> None:  # noqa: F811
    publish(home, candidate)
    with pytest.raises(InputError, match="was trained on owner/base@r1"):
        start_of(job_from(home, "support@candidate"))
    with pytest.raises(NotFound):
        start_of(job_from(home, "support@production"))
