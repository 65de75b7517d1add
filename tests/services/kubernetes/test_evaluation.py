"""An engine for the time of an evaluation, in a pod of its own."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.services.kubernetes.conftest import NAMESPACE, FakeCluster
from tests.services.kubernetes.test_rollout import make_spec
from tests.services.rollout.stubs import until
from trainyard.errors import InputError, Unavailable
from trainyard.rollout import kubernetes_evaluation


def adapter(folder: Path) -> Path:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 8}))
    return folder / "adapter"


def test_a_pod_that_ends_is_reported_with_its_last_words_and_removed(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    spec = make_spec(str(tmp_path), cluster.url)

    async def fail() -> None:
        while not (found := cluster.api.list("pods", NAMESPACE)):
            await asyncio.sleep(0.05)
        name = found[0]["metadata"]["name"]
        cluster.api.logs[name] = "CUDA out of memory"
        cluster.api.set_status("pods", NAMESPACE, name, {"phase": "Failed"})

    failing = asyncio.run_coroutine_threadsafe(fail(), cluster.loop)
    with (
        pytest.raises(InputError, match=r"the engine vllm ended in pod .*: CUDA out of memory"),
        kubernetes_evaluation.serving(
            spec,
            base=tmp_path,
            base_name="m-base",
            adapters={"m@1": adapter(tmp_path)},
            log=tmp_path / "engine.log",
        ),
    ):
        pass
    failing.result(5)
    until(lambda: cluster.api.list("pods", NAMESPACE) == [])
    assert (tmp_path / "engine.log").read_text() == "CUDA out of memory"


def test_a_pod_that_never_answers_is_given_up_and_removed(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    spec = make_spec(str(tmp_path), cluster.url).model_copy(update={"ready_timeout_s": 1.5})
    with (
        pytest.raises(Unavailable, match=r"vllm was not ready within 1\.5 s: no address yet"),
        kubernetes_evaluation.serving(
            spec, base=tmp_path, base_name="m-base", adapters={}, log=tmp_path / "engine.log"
        ),
    ):
        pass
    assert cluster.api.list("pods", NAMESPACE) == []
