import pytest
from pydantic import ValidationError

from trainyard.recipe.deploy import Canary, DeploySpec


def test_steps_grow() -> None:
    with pytest.raises(ValidationError, match=r"steps \(25.0, 5.0\) must grow"):
        Canary(steps=(25, 5))


def test_the_planned_sample_holds_the_least_evidence() -> None:
    with pytest.raises(ValidationError, match=r"requests \(5\) must be at least min_requests"):
        Canary(requests=5)


def test_the_lease_outlasts_two_looks() -> None:
    with pytest.raises(ValidationError, match=r"lease_s \(4\) must be at least twice look_s"):
        DeploySpec(lease_s=4)
