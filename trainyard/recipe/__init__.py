"""Everything that determines a release, in one file that a person writes and reviews."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from trainyard.errors import InputError
from trainyard.recipe.base import Frozen
from trainyard.recipe.budget import BudgetSpec
from trainyard.recipe.data import DataSpec
from trainyard.recipe.deploy import DeploySpec
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.recipe.gates import GateSpecs, with_parity
from trainyard.recipe.load import load
from trainyard.recipe.monitor import MonitorSpec
from trainyard.recipe.notify import NotifySpec
from trainyard.recipe.register import RegisterSpec
from trainyard.recipe.resources import ResourcesSpec
from trainyard.recipe.train import TrainSpec

# `register` is also a method of every abstract class; nobody calls that one on a recipe
warnings.filterwarnings("ignore", message='Field name "register"')

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Recipe(Frozen):
    """One model of a team, from its data to its traffic."""

    name: Name
    """Name of the model: in the registry, in the archive, and as users call it. Lower-case letters,
    digits and hyphens."""

    base_model: Annotated[str, Field(min_length=1)]
    """What is fine-tuned: a folder, `owner/name@revision` or `hf://owner/name@revision` on the
    Hugging Face hub, or `s3://bucket/prefix@sha256:digest` (endpoint and keys from the AWS_*
    variables, as for data). A revision, or the first 12 digits of the digest or more, pin it."""

    trust_remote_code: bool = False
    """Run the Python code that the base model's repository brings. Off unless written here."""

    data: DataSpec
    """What it learns from, and what rows must satisfy."""

    train: TrainSpec = TrainSpec()
    """How it learns."""

    evaluate: EvaluateSpec
    """What candidate, base and champion are asked."""

    gates: Annotated[GateSpecs, AfterValidator(with_parity)]
    """What the candidate must prove before it may ship."""

    register: RegisterSpec = RegisterSpec()
    """Where versions, their evidence and their aliases are kept."""

    deploy: DeploySpec = DeploySpec()
    """How a version gets traffic."""

    monitor: MonitorSpec = MonitorSpec()
    """What is watched while a version serves, and what follows when it is no longer good."""

    notify: NotifySpec = NotifySpec()
    """Who is told how a release ended."""

    resources: ResourcesSpec = ResourcesSpec()
    """What training and evaluation need, and what it costs."""

    budget: BudgetSpec = BudgetSpec()
    """What a run, and a month of runs, may cost at most."""

    @model_validator(mode="after")
    def _gates_read_suites(self) -> Self:
        suites = {suite.name for suite in self.evaluate.suites}
        for gate in self.gates:
            if gate.suite is not None and gate.suite not in suites:
                raise ValueError(
                    f"gate {gate.id} reads the suite {gate.suite}; evaluate.suites has "
                    f"{', '.join(sorted(suites))}"
                )
        return self

    @model_validator(mode="after")
    def _suites_are_of_their_kind(self) -> Self:
        kinds = {suite.name: suite.kind for suite in self.evaluate.suites}
        watched, judged = self.monitor, getattr(self.deploy.strategy, "judged", None)
        for key, spec, kind in (
            ("monitor.judge", watched.judge, "rubric"),
            ("monitor.labelled", watched.labelled, "task"),
            ("deploy.strategy.judged", judged, "pairwise"),
        ):
            if spec is not None and kinds.get(spec.suite) != kind:
                raise ValueError(
                    f"{key} reads the suite {spec.suite}; evaluate.suites has no {kind} suite of "
                    "that name"
                )
        return self

    @model_validator(mode="after")
    def _what_is_watched_is_logged(self) -> Self:
        for key in ("drift", "judge"):
            if getattr(self.monitor, key) is None:
                continue
            if self.deploy.target.kind == "kubernetes":
                raise ValueError(
                    f"monitor.{key} reads the gateway's log; in kubernetes each replica keeps its "
                    "own, in its pod: leave it out there"
                )
            if not self.deploy.log_fraction:
                raise ValueError(f"monitor.{key} reads the log: deploy.log_fraction must be > 0")
        return self


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; `overrides` maps dotted keys, as `train.rank`, to values that win over it.

    Raises InputError naming file, line and key.
    """
    return load(path, Recipe, overrides)


def parse_override(text: str) -> tuple[str, Any]:
    """Read `key=value` from a command line; the value is YAML, so `8` is a number."""
    found = re.fullmatch(r"([A-Za-z_][\w.]*)=(.*)", text, re.DOTALL)
    if not found:
        raise InputError(f"override {text!r} is not KEY=VALUE, as in train.rank=8")
    return found[1], yaml.safe_load(found[2])
