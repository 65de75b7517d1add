"""What every registry promises, held against each of them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.utils import validation
from wandb.sdk.artifacts._validators import validate_artifact_name, validate_artifact_type

from trainyard.errors import InputError, NotFound, Refused
from trainyard.recipe.register import MlflowRegistry
from trainyard.registry import ALIASES, Registry, VersionRecord, open_registry
from trainyard.registry.mlflow import Mlflow
from trainyard.release.tracking import CURVES

# mlflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

Release = Callable[..., VersionRecord]


@pytest.fixture(params=["mlflow file", "mlflow server", "wandb"])
def registry(request: pytest.FixtureRequest, home: Path) -> Registry:
    if request.param == "mlflow file":
        return open_registry(MlflowRegistry(), home)
    if request.param == "wandb":
        return open_registry(request.getfixturevalue("wandb_spec"), home)
    server = Mlflow(MlflowRegistry(uri=request.getfixturevalue("mlflow_server")), home)
    if server.versions("support"):  # of the test before
        server.client.delete_registered_model("support")
    return server


def test_a_registered_version_is_found_with_all_its_facts(
    registry: Registry, release: Release
) -> None:
    record = release(registry, "a")
    assert registry.versions("support") == [record]


def test_registering_twice_leaves_one_version(registry: Registry, release: Release) -> None:
    first = release(registry, "a")
    release(registry, "a", run_id="another run")
    assert registry.versions("support") == [first]


def test_versions_come_oldest_first(registry: Registry, release: Release) -> None:
    made = [release(registry, weights) for weights in "abc"]
    assert registry.versions("support") == made


def test_an_unknown_model_has_nothing(registry: Registry) -> None:
    assert registry.versions("nobody") == []
    assert registry.aliases("nobody") == {}
    assert registry.history("nobody") == []


def test_lookup_by_alias_digest_run_and_commit(registry: Registry, release: Release) -> None:
    a = release(registry, "a")
    b = release(registry, "b", commit="deadbeef" + "0" * 32)
    registry.set_alias("support", "candidate", b.digest, who="ci", why="passed its gates")
    for ref in (
        "candidate",
        b.digest,
        b.digest[:12],
        f"support@{b.digest[:12]}",
        "run-b",
        "deadbeef",
    ):
        assert registry.resolve("support", ref) == b
    assert registry.resolve("support", f"sha256-{a.digest}") == a


def test_what_is_not_there_is_said_with_what_is(registry: Registry, release: Release) -> None:
    a = release(registry, "a")
    with pytest.raises(NotFound, match=a.digest[:12]):
        registry.resolve("support", "0123456789ab")
    with pytest.raises(NotFound, match="has no production"):
        registry.resolve("support", "production")


def test_a_reference_that_fits_two_versions_is_refused(
    registry: Registry, release: Release
) -> None:
    release(registry, "a", commit="deadbeef" + "0" * 32)
    release(registry, "b", commit="deadbeef" + "0" * 32)
    with pytest.raises(InputError, match="fits several versions"):
        registry.resolve("support", "deadbeef")


def test_an_alias_cannot_point_at_a_version_that_is_not_registered(
    registry: Registry, release: Release
) -> None:
    release(registry, "a")
    with pytest.raises(NotFound, match="has no version 000000000000"):
        registry.set_alias("support", "production", "0" * 64, who="ci", why="a test")
    assert registry.aliases("support") == {}


def test_promotion_keeps_the_former_champion_as_previous(
    registry: Registry, release: Release
) -> None:
    a, b = release(registry, "a"), release(registry, "b")
    registry.promote("support", a.digest, who="ci", why="first version")
    assert registry.aliases("support") == {"production": a.digest}
    registry.promote("support", b.digest, who="ci", why="better on tickets")
    assert registry.aliases("support") == {"production": b.digest, "previous": a.digest}


def test_promoting_the_champion_again_changes_nothing(registry: Registry, release: Release) -> None:
    a, b = release(registry, "a"), release(registry, "b")
    for record in (a, b, b):
        registry.promote("support", record.digest, who="ci", why="again")
    assert registry.aliases("support") == {"production": b.digest, "previous": a.digest}
    assert len(registry.history("support")) == 3


def test_a_promotion_killed_half_way_has_one_champion_and_can_be_finished(
    registry: Registry, release: Release
) -> None:
    a, b = release(registry, "a"), release(registry, "b")
    registry.promote("support", a.digest, who="ci", why="first version")
    registry.set_alias("support", "previous", a.digest, who="ci", why="promotion, killed here")
    assert registry.resolve("support", "production") == a
    registry.promote("support", b.digest, who="ci", why="run again")
    assert registry.aliases("support") == {"production": b.digest, "previous": a.digest}


def test_putting_the_former_champion_back_is_safe_to_repeat(
    registry: Registry, release: Release
) -> None:
    a, b = release(registry, "a"), release(registry, "b")
    registry.promote("support", a.digest, who="ci", why="first version")
    registry.promote("support", b.digest, who="ci", why="better")
    for _ in range(2):
        assert registry.put_back("support", who="monitor", why="errors rose") == a
    assert registry.resolve("support", "production") == a


def test_history_says_who_moved_what_from_where_and_why(
    registry: Registry, release: Release
) -> None:
    a, b = release(registry, "a"), release(registry, "b")
    registry.promote("support", a.digest, who="ci", why="first version")
    registry.promote("support", b.digest, who="erik", why="better on tickets")
    moves = [(m.alias, m.former, m.digest, m.who, m.why) for m in registry.history("support")]
    assert moves == [
        ("production", None, a.digest, "ci", "first version"),
        ("previous", None, a.digest, "erik", "better on tickets"),
        ("production", a.digest, b.digest, "erik", "better on tickets"),
    ]


def test_a_kept_version_and_one_with_an_alias_cannot_be_forgotten(
    registry: Registry, release: Release
) -> None:
    a, b, c = (release(registry, weights) for weights in "abc")
    registry.set_alias("support", "candidate", a.digest, who="ci", why="passed")
    registry.keep("support", b.digest, "the auditors want it")
    assert registry.kept("support") == {b.digest: "the auditors want it"}
    with pytest.raises(Refused, match="is candidate"):
        registry.forget("support", a.digest)
    with pytest.raises(Refused, match="is kept"):
        registry.forget("support", b.digest)
    registry.forget("support", c.digest)
    assert [v.digest for v in registry.versions("support")] == [a.digest, b.digest]
    registry.keep("support", b.digest, None)
    assert registry.kept("support") == {}


def test_our_names_are_free_in_both_backends() -> None:
    """By the libraries' own rules: `latest` and `v3` are MLflow's, and W&B gives them itself."""
    for alias in ALIASES:
        validation._validate_model_alias_name(alias)
        validation._validate_model_alias_name_reserved(alias)
        assert not re.fullmatch(r"latest|v\d+", alias)
    for name in ("support", "v1", "latest", "0-9", "x" * 63):
        validation._validate_model_name(name)
        assert validate_artifact_name(name) == name
    for metric in [f"train/{name}" for name in CURVES]:
        validation._validate_metric_name(metric)
        assert not metric.startswith("_"), "W&B keeps these for itself"
    assert validate_artifact_type("model", "support") == "model"
