"""How the real engines are started in their own images."""

import json
from pathlib import Path

import pytest

from trainyard.errors import InputError
from trainyard.recipe.deploy import DeploySpec, DockerTarget
from trainyard.rollout.docker import Plan, engine_plan
from trainyard.rollout.target import ServedVersion


def plan(engine: str, folder: Path, *, image: str | None = None) -> Plan:
    spec = DeploySpec.model_validate(
        {"engine": engine, "target": DockerTarget(image=image).model_dump()}
    )
    served = ServedVersion(name="m", digest="ab" * 32, adapter=folder, base=folder)
    return engine_plan(spec)(served)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 24}))
    return tmp_path


def test_vllm_gets_the_adapter_under_its_immutable_name(adapter: Path) -> None:
    found = plan("vllm", adapter)
    assert found.entrypoint == ["vllm"]
    assert found.command[:2] == ["serve", "/models/base"]
    assert "m@abababababab=/models/adapter" in found.command
    assert found.command[found.command.index("--max-lora-rank") + 1] == "32", "24 rounded up"
    assert found.command[found.command.index("--host") + 1] == "0.0.0.0"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in found.env
    assert found.image.startswith("vllm/vllm-openai:")


def test_tgi_keeps_its_images_entrypoint_and_takes_the_adapter_from_its_environment(
    adapter: Path,
) -> None:
    found = plan("tgi", adapter)
    assert found.entrypoint is None
    assert found.command[:2] == ["--model-id", "/models/base"]
    assert found.env["LORA_ADAPTERS"] == "m@abababababab=/models/adapter"


def test_our_own_server_runs_on_the_images_python(adapter: Path) -> None:
    found = plan("cpu", adapter, image="me/it:1")
    assert found.entrypoint == ["python"]
    assert found.command[:2] == ["-m", "trainyard.serving.server"]


def test_an_adapter_without_a_rank_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not tell the rank of the adapter"):
        plan("vllm", tmp_path)
