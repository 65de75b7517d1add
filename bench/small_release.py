"""The part of a release that Prefect carries: a run, its data, two jobs that are sent away.

The training is the project's own flow, launcher and contract around `bench/trainer.py`; in the
place of the evaluation is a job that only holds a GPU.
"""

import json
import time
from pathlib import Path

from prefect import flow

from flows.release import train
from tasks import dispatch, turn
from trainyard.environment import Environment
from trainyard.recipe import read_recipe
from trainyard.release import data
from trainyard.release.job import Job
from trainyard.run import Run

POOL = "bench"


@flow(
    name="small-release",
    flow_run_name="{name} {number}",
    on_cancellation=[dispatch.cancel_children],
    on_crashed=[dispatch.cancel_children],
)
def small_release(root: str, name: str, number: int, seconds: float) -> None:
    """Write how long it took, and how much of that it waited for its turn, to `root`/times."""
    begin, waited = time.monotonic(), _timed_turns()
    home, where = Path(root) / "home", Environment(training="training/bench")
    recipe = read_recipe(Path(root) / "recipe.yaml", {"name": name, "train.seed": number})
    with Run.opened(home, name, "recipe.yaml", dispatch.flow_run_id()) as run:
        job = Job(recipe=recipe, recipe_path="", run_id=run.summary.run_id, home=home)
        checked = data.find(job, None)
        assert checked is not None
        with run.stage("train") as stage:
            stage.came_to(train(job, checked, where))
        with run.stage("evaluate"):
            given = {"run": f"{name}-{number}-evaluate", "log": f"{root}/gpus.log"}
            dispatch.run("stand-in/bench", given | {"seconds": seconds}, "evaluate", recipe=name)
    times = {"seconds": time.monotonic() - begin, "waited": sum(waited)}
    with (Path(root) / "times" / f"{name}-{number}-{run.summary.run_id}").open("x") as file:
        json.dump(times, file)


def _timed_turns() -> list[float]:
    """Make waiting for a turn leave its seconds in the list."""
    wait, seconds = turn.wait, list[float]()

    def timed(*arguments: object) -> None:
        begin = time.monotonic()
        wait(*arguments)  # type: ignore[arg-type]
        seconds.append(time.monotonic() - begin)

    turn.wait = timed  # type: ignore[assignment]
    return seconds
