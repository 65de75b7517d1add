"""What Prefect does not check in `prefect.yaml`: it ignores misspelt keys, for one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import DeploymentConfig
from prefect.flows import load_flow_from_entrypoint

from deployments import pools
from trainyard.environment import FOLDER, read_environment

FILE: dict[str, Any] = yaml.safe_load(Path("prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = FILE["deployments"]


@pytest.fixture(params=DEPLOYMENTS, ids=lambda d: f"{d['entrypoint']}/{d['name']}")
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


def test_the_file_declares_every_flow() -> None:
    flows = {path.stem for path in Path("flows").glob("*.py")} - {"__init__", "console"}
    declared = {d["entrypoint"].split(".")[1] for d in DEPLOYMENTS}
    assert declared == flows - {"local_server"}


def test_every_key_is_one_that_prefect_reads(deployment: dict[str, Any]) -> None:
    assert set(deployment) <= set(DeploymentConfig.model_fields)


def test_the_working_folder_is_written_down() -> None:
    assert "prefect.deployments.steps.set_working_directory" in FILE["pull"][0]


def test_the_entrypoint_is_dotted_and_loads(deployment: dict[str, Any]) -> None:
    assert ":" not in deployment["entrypoint"]
    load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


def test_the_parameters_are_those_of_the_flow(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)


def test_the_work_pool_exists(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"]["name"] in {pool.name for pool in pools.read_pools()}


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.yaml")])
def test_environments_name_deployments_that_are_declared(name: str) -> None:
    declared = {f"{d['entrypoint'].split('.')[1]}/{d['name']}" for d in DEPLOYMENTS}
    environment = read_environment(name)
    assert {environment.training, environment.evaluation} <= {"here", *declared}
