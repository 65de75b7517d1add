"""The Job of a recipe with several nodes, as a person prints it: valid, offline."""

from pathlib import Path

import pytest
import yaml

from deployments import training_job
from tests.services.kubernetes.schemas import problems

RECIPE = Path("recipes/quickstart.yaml").read_text()


@pytest.fixture
def printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(resources: str) -> tuple[int, str, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{RECIPE}\nresources: {resources}\n")
        code = training_job.main([str(path)])
        return (code, *capsys.readouterr())

    return run


def test_a_recipe_with_nodes_prints_an_indexed_job(printed, monkeypatch) -> None:
    monkeypatch.setenv("TRAINYARD_GPU_IMAGE", f"registry.example/gpu@sha256:{'a' * 64}")
    code, out, _ = printed("{gpus: 8, gpu: H100, nodes: 4}")
    assert code == 0
    job, service, policy = yaml.safe_load_all(out)
    assert [problems(found) for found in (job, service, policy)] == ["", "", ""]
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 4)
    assert (service["kind"], policy["kind"]) == ("Service", "NetworkPolicy")
    assert "{{" not in out


def test_what_cannot_be_printed_is_one_sentence(printed, monkeypatch) -> None:
    monkeypatch.delenv("TRAINYARD_GPU_IMAGE", raising=False)
    code, out, said = printed("{gpus: 8, nodes: 2}")
    assert (code, out) == (2, "")
    assert "set TRAINYARD_GPU_IMAGE to an image by digest" in said
    assert "resources.gpus 0" in printed("{gpus: 0}")[2]
    assert "nodes (2) needs gpus, those of one node" in printed("{nodes: 2}")[2]
