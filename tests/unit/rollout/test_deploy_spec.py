import pytest
from pydantic import ValidationError

from trainyard.recipe.deploy import BlueGreen, Canary, DeploySpec


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
