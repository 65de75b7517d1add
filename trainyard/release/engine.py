"""The engine of a recipe for a while: what is judged is what will serve."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

from trainyard.errors import InputError
from trainyard.evaluation import harness
from trainyard.recipe import Recipe
from trainyard.recipe.deploy import DockerTarget, KubernetesTarget, LocalTarget
from trainyard.recipe.evaluate import HarnessSuite, PerplexitySuite
from trainyard.serving.engines import ENGINES, start_local


@contextmanager
def serving(
    recipe: Recipe, *, base: Path, base_name: str, adapters: Mapping[str, Path], log: Path
) -> Iterator[str]:
    """Yield the URL of an engine with the base and the adapters; it ends with the `with`."""
    match recipe.deploy.target:
        case LocalTarget():
            with start_local(
                recipe.deploy.engine,
                base=base,
                base_name=base_name,
                adapters=adapters,
                log=log,
                threads=recipe.deploy.threads,
            ) as running:
                yield running.url
        case DockerTarget():
            from trainyard.rollout import docker  # noqa: PLC0415  (only this target needs it)

            with docker.serving(
                recipe.deploy, base=base, base_name=base_name, adapters=adapters, log=log
            ) as url:
                yield url
        case KubernetesTarget():
            # the kubernetes library is only for who deploys to a cluster
            from trainyard.rollout import kubernetes_evaluation  # noqa: PLC0415

            with kubernetes_evaluation.serving(
                recipe.deploy, base=base, base_name=base_name, adapters=adapters, log=log
            ) as url:
                yield url
        case _:
            assert_never(recipe.deploy.target)


def base_name(recipe: Recipe) -> str:
    """Return the served name of the base. TGI knows its base by its own name only."""
    return "tgi" if recipe.deploy.engine == "tgi" else f"{recipe.name}-base"


def request_model(recipe: Recipe, adapter: str) -> str:
    """Return what `model` of a request must be for an adapter, in this engine's way."""
    return ENGINES[recipe.deploy.engine].request_model(base_name(recipe), adapter)


def check(recipe: Recipe) -> None:
    """Raises InputError when the engine cannot give what the evaluation asks for."""
    for suite in recipe.evaluate.suites:
        if isinstance(suite, HarnessSuite):
            harness.check(suite)
    local = isinstance(recipe.deploy.target, LocalTarget) and recipe.deploy.engine == "cpu"
    if recipe.train.method == "full" and not local:
        raise InputError(
            f"train.method: full makes a whole model, and engine {recipe.deploy.engine} on target "
            f"{recipe.deploy.target.kind} serves adapters of one base: set method: lora or qlora, "
            "or deploy.engine: cpu with the local target"
        )
    merged = recipe.evaluate.parity.merged
    if merged is not None and not (Path(merged) / "config.json").is_file():
        raise InputError(f"evaluate.parity.merged: {merged} has no config.json; name a whole model")
    perplexity = [s.name for s in recipe.evaluate.suites if isinstance(s, PerplexitySuite)]
    served = recipe.evaluate.generation == "endpoint"
    if recipe.deploy.engine == "tgi" and perplexity and served:
        raise InputError(
            f"suite {perplexity[0]} needs the log-probabilities of a prompt, which engine tgi does "
            "not give over the OpenAI API: use vllm, or evaluate.generation: offline, or leave the "
            "suite out"
        )
