import pytest
from pydantic import ValidationError

from tests.unit.rollout.test_manifests import make
from trainyard.recipe.deploy import Ab, BlueGreen, Canary, DeploySpec, Evidence
from trainyard.recipe.strategy import JudgedSpec


def test_steps_grow() -> None:
    with pytest.raises(ValidationError, match=r"steps \(25.0, 5.0\) must grow"):
        Canary(steps=(25, 5))


def test_the_planned_sample_holds_the_least_evidence() -> None:
    with pytest.raises(ValidationError, match=r"requests \(5\) must be at least min_requests"):
        Canary(requests=5)


def test_the_lease_outlasts_two_looks() -> None:
    with pytest.raises(ValidationError, match=r"lease_s \(4\) must be at least twice look_s"):
        DeploySpec(lease_s=4)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"engine": "vllm"}, "runs as a container"),
        ({"target": {"kind": "docker"}}, "engine cpu has no published image"),
        ({"target": {"kind": "docker", "image": "me/it:latest"}, "engine": "tgi"}, "can change"),
        ({"target": {"kind": "docker", "image": "me/it"}, "engine": "tgi"}, "pattern"),
    ],
)
def test_engine_and_target_fit(spec: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DeploySpec.model_validate(spec)


def test_blue_green_has_something_to_see() -> None:
    with pytest.raises(ValidationError, match="there would be no evidence"):
        BlueGreen(replay=False)


@pytest.mark.parametrize("strategy", [Canary, Ab, BlueGreen])
def test_a_person_may_be_asked_before_all_traffic(strategy: type[Evidence]) -> None:
    assert strategy(approve_at=(100,)).approve_at == (100,)


def test_a_person_is_asked_before_steps_that_there_are() -> None:
    assert Canary(steps=(5, 25), approve_at=(25,)).approve_at == (25,)
    with pytest.raises(
        ValidationError, match=r"approve_at \(30\) is no step: there are 5, 25, 100"
    ):
        Canary(steps=(5, 25), approve_at=(30,))


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (Ab(), "each replica has its own: take canary"),
        (Canary(judged=JudgedSpec(suite="duel")), "each replica has its own: leave it out, and"),
    ],
)
def test_votes_and_judged_pairs_need_one_gateway(strategy: Evidence, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DeploySpec(engine="vllm", strategy=strategy, target=make()[1])
