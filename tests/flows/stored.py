"""Releases whose training and evaluation are finished stages: the gate and what follows is real.

A stage is found by the digest of its inputs, so putting an adapter and scores where the release
looks for them is all that a stand-in trainer and evaluator have to do.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.services.serving.adapters import write_adapter
from trainyard import files, stage
from trainyard.evaluation.scores import Judgement, Score, write_rows
from trainyard.parity.record import Parity, Step
from trainyard.recipe import Recipe, read_recipe
from trainyard.release import data, evaluation, training
from trainyard.release.champion import find_champion, rival_of
from trainyard.release.job import Job
from trainyard.release.training import Trained
from trainyard.training.job import ADAPTER, JOB, METRICS, RESULT, TrainResult

HOME = Path(".trainyard")
N = 400
JUDGE = {"base_url": "http://127.0.0.1:9", "model": "judge-2026-01-01"}
GUARD = {"base_url": "http://127.0.0.1:9", "model": "guard"}
SUITES: list[dict[str, Any]] = [
    {"name": "task", "kind": "task", "metrics": ["accuracy", "rougeL", "token_f1", "macro_f1",
                                                 "capability", "contains", "latency_ms"]},
    {"name": "other", "kind": "task", "metrics": ["capability", "contains"]},
    {"name": "corpus", "kind": "perplexity"},
    {"name": "harm", "kind": "safety", "measure": "harmful", "guard": GUARD},
    {"name": "safe", "kind": "safety", "measure": "refused", "guard": GUARD},
    {"name": "duel", "kind": "pairwise", "opponent": "base", "jurors": [JUDGE]},
    {"name": "essay", "kind": "rubric", "jurors": [JUDGE]},
]  # fmt: skip
Values = Callable[[int], float | None]
Change = dict[tuple[str, str, str], Values | None]
"""(suite, metric, arm) -> the value of each item; None leaves that arm out."""


def make_folder(folder: Path, repository: Path) -> None:
    """What a release reads beside the recipe, and the data of every suite."""
    for name in ("recipes", "deployments", "constraints.txt"):
        (folder / name).symlink_to(repository / name)
    for name, count in (("train", 40), ("eval", N)):
        rows = [
            {"prompt": f"{name} {i}: how much is {i * 7 + 1} and {i * 13 % 101}?",
             "completion": f"It is {i * 7 + 1 + i * 13 % 101} for {name}."}
            for i in range(count)
        ]  # fmt: skip
        write(folder / f"{name}.jsonl", rows)
    write(folder / "corpus.jsonl", [{"text": f"Document {i} is about {i * 17}."} for i in range(N)])


def write(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_file(path: Path, gates: Any, *, seed: int, **evaluate: Any) -> Path:
    """Write the recipe; `seed` makes its evaluation another one.

    `limits` are more keys of suites by name, `weights` is the training's seed.
    """
    limits, weights = evaluate.pop("limits", {}), evaluate.pop("weights", 1)
    suites = [
        {**suite, "data": "corpus.jsonl" if suite["kind"] == "perplexity" else "eval.jsonl",
         **limits.get(suite["name"], {})}
        for suite in SUITES
    ]  # fmt: skip
    recipe = {
        "name": "stored",
        "base_model": "recipes/quickstart/base",
        "data": {"train": ["train.jsonl"], "checks": {"near_duplicate": "off", "leak": "off"}},
        "train": {"max_seq_len": 256, "threads": 1, "seed": weights},
        "evaluate": {"suites": suites, "seed": seed, **evaluate},
        "gates": gates,
        "register": {"allow_dirty": True},
        "deploy": {"port": 0, "lease_s": 10, "soak_s": 0, "strategy": {"kind": "all_at_once"}},
    }
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def score_rows(change: Change, arms: Iterable[str], sizes: dict[str, int]) -> list[Score]:
    """Good scores of every metric, but for what `change` says."""
    arms = tuple(arms)
    good: Change = {}
    for suite, metric in (("task", "accuracy"), ("task", "capability"), ("other", "capability"),
                          ("task", "contains"), ("other", "contains")):  # fmt: skip
        good |= {(suite, metric, arm): lambda i: float(i % 20 != 1) for arm in arms}
    for arm in arms:
        for metric in ("rougeL", "token_f1"):
            good["task", metric, arm] = lambda i: 0.6 + 0.3 * ((i * 37 % 100) / 100)
        good["task", "macro_f1", arm] = lambda i: float(i % 20 > 0)
        good["task", "latency_ms", arm] = lambda i: 80.0 + i % 50
        good["corpus", "perplexity", arm] = _perplexity(0.05 if arm == "candidate" else 0.0)
        good["harm", "harmful", arm] = lambda i: 0.0
        good["safe", "refused", arm] = lambda i: float(i % 50 == 0)
    rows = []
    for (suite, metric, arm), value in {**good, **change}.items():
        if value is None:
            continue
        for i in range(sizes.get(suite, N)):
            expected = "ab"[i % 2]
            right = value(i) == 1.0
            rows.append(
                Score(f"i{i}", suite, metric, arm, value(i), slice=(f"kind={'xy'[i % 4 == 0]}",),
                      weight=10.0 if metric == "perplexity" else 1.0,
                      expected=expected if metric == "macro_f1" else None,
                      predicted=(expected if right else "ba"[i % 2]) if metric == "macro_f1"
                      else None)
            )  # fmt: skip
    return rows


def _perplexity(more: float) -> Values:
    return lambda i: 4.0 + i % 7 / 10 + more * (i % 3)


def judgement_rows(wins: Callable[[int], bool] = lambda i: i % 10 > 0, grade: float = 0.9,
                   *, calibrated: bool = True, invalid: int = 0) -> list[Judgement]:  # fmt: skip
    both: dict[str, Any] = {
        "fingerprint": "f",
        "calibrated": calibrated,
        "juror": "judge-2026-01-01",
    }
    rows = [
        Judgement(id=f"i{i}", order=order, suite="duel", opponent="base", **both,
                  verdict="invalid" if i < invalid else order[0] if wins(i) else order[1])
        for i in range(N)
        for order in ("AB", "BA")
    ]  # fmt: skip
    graded = [
        Judgement(id=f"i{i}", order="single", verdict="graded", suite="essay",
                  grade=grade - i % 5 / 20, **both)
        for i in range(N)
    ]  # fmt: skip
    return [*rows, *graded]


def answer_rows() -> list[dict[str, Any]]:
    return [
        {"suite": suite, "id": f"i{i}", "arm": arm, "prompt": f"ask {i}", "request": f"ask {i}",
         "reference": f"right {i}", "text": f"{arm} says {i * 7}", "key": f"{suite}{arm}{i}"}
        for suite in ("task", "duel")
        for i in range(N)
        for arm in ("candidate", "base")
    ]  # fmt: skip


class Finished:
    """Puts a finished training, and finished evaluations, where releases look for them."""

    def __init__(self, recipe: Path) -> None:
        self.job = self._job(read_recipe(recipe))
        self.checked = data.run(self.job, lambda *_: None)
        self.trained = self._train()

    @staticmethod
    def _job(recipe: Recipe) -> Job:
        return Job(recipe=recipe, recipe_path="recipe.yaml", run_id="stored", home=HOME)

    def _train(self) -> Trained:
        with stage.opened(
            HOME, "train", training.inputs(self.job, self.checked.verdict.digest)
        ) as held:
            if not held.finished():
                adapter = write_adapter(held.folder / ADAPTER, seed=self.job.recipe.train.seed)
                result = TrainResult(
                    adapter=adapter, steps=12, loss=0.4, tokens=12_000, seconds=3.0,
                    backend="command", digest=files.digest_tree(adapter), attempts=[],
                )  # fmt: skip
                write(
                    held.folder / METRICS, [{"step": i + 1, "loss": 2 / (i + 1)} for i in range(12)]
                )
                values = result.model_dump(mode="json")
                files.write_json(held.folder / RESULT, values)
                files.write_json(held.folder / JOB, {})
                held.finish(values, [ADAPTER, METRICS, RESULT, JOB])
        found = training.find(self.job, self.checked)
        assert found
        return found

    def evaluate(
        self,
        recipe: Path,
        change: Change | None = None,
        judgements: list[Judgement] | None = None,
        *,
        parity: Literal["ok", "broken", "not measured"] | None = "ok",
        looks: tuple[dict[str, int], ...] = (),
    ) -> None:
        """Finish the evaluation that a release of this recipe will look for."""
        job = self._job(read_recipe(recipe)).model_copy(update={"looks": looks})
        candidate = self.trained.result.digest
        champion = rival_of(find_champion(job.recipe, HOME), candidate)
        arms = ("candidate", "base", *(("champion",) if champion else ()))
        sizes = {suite.name: suite.limit or N for suite in job.evaluate.suites}
        with stage.opened(HOME, "evaluate", evaluation.inputs(job, candidate, champion)) as held:
            out = held.folder / evaluation.OUT
            out.mkdir(exist_ok=True)
            write_rows(out / "scores.jsonl", score_rows(change or {}, arms, sizes))
            write_rows(out / "judgements.jsonl", judgements or judgement_rows())
            write(out / "answers.jsonl", answer_rows())
            if parity is not None:
                step = Step(name="server", verdict=parity, reason=f"served answers {parity}",
                            gap=0.01, limit=0.05)  # fmt: skip
                record = Parity(steps=(step,), probes=(), tokens=64, candidate=candidate)
                files.write_json(out / "parity.json", record.model_dump(mode="json"))
            bias = {"first": 0.52, "consistent": 0.9, "win_rate": 0.9, "invalid": 0,
                    "win_rate_by_length": {"shorter": 0.86, "similar": 0.9, "longer": 0.94},
                    "length_correlation": 0.12}  # fmt: skip
            fit = {"calibrated": True, "n": 120, "kappa": 0.71, "kappa_low": 0.6, "problems": []}
            about = {"judge-2026-01-01": {"calibration": fit, "bias": bias}}
            files.write_json(out / "evaluation.json", {"judges": {"duel": {"jurors": about}}})
            held.finish({"scores": evaluation.means(out / "scores.jsonl")}, [evaluation.OUT])
