from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.environment import Environment
from trainyard.errors import InputError
from trainyard.gpu_pools import GpuPool, suitable
from trainyard.recipe.resources import ResourcesSpec
from trainyard.turns import Queued, next_up

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def wait(name: str, priority: int = 0, at: int = 0) -> Queued:
    recipe, _, number = name.partition("-")
    return Queued(name, recipe, priority, T0 + timedelta(seconds=at or int(number or 0)))


def test_a_recipe_that_asks_for_many_waits_for_itself() -> None:
    flood = [wait(f"flood-{n}") for n in range(40)]
    order = next_up([*flood, wait("late-99")], Counter({"flood": 2}), {}, 3)
    assert order == ["late-99", "flood-0", "flood-1"]


def test_a_higher_priority_goes_first_and_the_longest_wait_within_a_recipe() -> None:
    waiting = [wait("a-5"), wait("a-2"), wait("b-1"), wait("b-9", priority=5)]
    assert next_up(waiting, Counter(), {}, 4) == ["b-9", "a-2", "b-1", "a-5"]


def test_who_started_longest_ago_is_next() -> None:
    last = {"a": T0 + timedelta(hours=2), "b": T0 + timedelta(hours=1)}
    assert next_up([wait("a-1"), wait("b-2")], Counter(), last, 1) == ["b-2"]


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(1, 4))
def test_recipes_that_always_wait_start_equally_often(many: list[int], places: int) -> None:
    """Jobs of one length: while two recipes both wait, their starts differ by one at most."""
    waiting = [wait(f"r{r}-{n}") for r, count in enumerate(many) for n in range(count)]
    started: Counter[str] = Counter()
    last: dict[str, datetime] = {}
    clock = T0
    while waiting:
        for chosen in next_up(waiting, Counter(), last, places):
            clock += timedelta(seconds=1)
            recipe = chosen.partition("-")[0]
            started[recipe] += 1
            last[recipe] = clock
            waiting = [one for one in waiting if one.id != chosen]
        still = {one.recipe for one in waiting}
        if len(still) > 1:
            counts = [started[recipe] for recipe in still]
            assert max(counts) - min(counts) <= 1


SMALL = GpuPool(deployment="training/small", memory_gib=22, labels=frozenset({"eu"}))
LARGE = GpuPool(deployment="training/large", gpus=8, memory_gib=79.2, labels=frozenset({"nvlink"}))


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ({"gpus": 1, "gpu": "L4"}, ["training/small", "training/large"]),
        ({"gpus": 1, "gpu_gib": 40}, ["training/large"]),
        ({"gpus": 4}, ["training/large"]),
        ({"gpus": 1, "labels": ["eu"]}, ["training/small"]),
        ({}, ["training/small", "training/large"]),
    ],
)
def test_a_pool_satisfies_count_memory_and_labels(need: dict, expected: list[str]) -> None:
    assert suitable([LARGE, SMALL], ResourcesSpec.model_validate(need)) == expected


def test_several_machines_are_asked_of_the_place_that_trains() -> None:
    need = ResourcesSpec.model_validate({"gpus": 1, "nodes": 2})
    cluster = GpuPool(deployment="training/cluster", nodes=4)
    assert suitable([LARGE, cluster], need) == ["training/cluster"]
    places = {"laptop": "here", "single": (LARGE,), "cluster": (LARGE, cluster)}
    said = {
        name: Environment(training=training).why_too_few_nodes(need)
        for name, training in places.items()
    }
    assert said["cluster"] is None
    assert "resources.nodes is 2 and training here (here) has one machine" in str(said["laptop"])
    assert str(said["single"]) == (
        "resources.nodes is 2: no GPU pool has 2 machines of 1 GPUs: training/large has 1 machines "
        "a training"
    )


def test_what_each_pool_lacks_is_said() -> None:
    need = ResourcesSpec.model_validate({"gpus": 2, "gpu": "H200", "labels": ["nvlink"]})
    with pytest.raises(InputError) as said:
        suitable([SMALL, LARGE], need)
    assert str(said.value) == (
        "no GPU pool has 2 GPUs of 139.7 GiB labelled nvlink: training/small is not labelled "
        "nvlink; training/large has 79.2 GiB a GPU"
    )
