"""What a look knows beside its findings."""

from pathlib import Path

import pytest

from trainyard.environment import Environment
from trainyard.monitor import watch
from trainyard.recipe import read_recipe
from trainyard.recipe.approval import Place
from trainyard.rollout.state import Deployment, Placed
from trainyard.rollout.target import ServedVersion


@pytest.mark.parametrize(
    ("serves", "held"),
    [
        ("production", ""),
        ("staging", "`trainyard promote quickstart@DIGEST --to staging` gives another version"),
    ],
)
def test_only_production_is_rolled_back_by_the_monitor(
    tmp_path: Path, serves: Place, held: str
) -> None:
    old, new = (
        Placed(version=ServedVersion(name="m", digest=digit * 64, adapter=tmp_path, base=tmp_path),
               slot=slot)
        for digit, slot in (("a", "blue"), ("b", "green"))
    )  # fmt: skip
    found = watch._situation(
        read_recipe(Path("recipes/quickstart.yaml")),
        tmp_path,
        Environment(serves=serves),
        Deployment(champion=new, previous=old, since=0),
        rolling=False,
    )
    assert held in found.no_way_back
    assert bool(found.no_way_back) is (serves != "production")
