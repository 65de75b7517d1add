"""A job that only holds a GPU, and a program on it that proves that it is alone."""

import subprocess
import sys
from pathlib import Path

from prefect import flow

from trainyard import slots
from trainyard.process import die_with_parent
from trainyard.recipe.resources import ResourcesSpec

PROGRAM = Path(__file__).with_name("alone.py")


@flow(name="stand-in", flow_run_name="{run}")
def stand_in(run: str, log: str, seconds: float) -> None:
    """Hold one GPU for so many seconds."""
    with slots.held(ResourcesSpec(gpus=1), run, poll_s=0.2):
        subprocess.run(
            [sys.executable, "-S", str(PROGRAM), log, run, str(seconds)],
            check=True,
            preexec_fn=die_with_parent,
            pass_fds=slots.locks(),
        )
