"""The verb `gate`: decide on saved scores, offline and repeatably."""

import argparse
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from trainyard.errors import InputError
from trainyard.evaluation.scores import read_judgements, read_scores
from trainyard.gate import Decision, GateResult, Rules, Verdict, decide_best_of
from trainyard.gate.records import worst
from trainyard.parity import record as parity_record
from trainyard.recipe.base import Fraction, Frozen
from trainyard.recipe.evaluate import Alpha
from trainyard.recipe.gates import GateSpecs, with_parity
from trainyard.recipe.load import load


class _Looks(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = ""
    more: tuple[int, ...] = ()


class _Rules(BaseModel):
    """The keys of a recipe's `evaluate` that a decision reads; the others are for the run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    alpha: Alpha = Rules().alpha
    seed: int = Rules().seed
    max_invalid: Fraction = Rules().max_invalid
    max_truncated: Fraction = Rules().max_truncated
    suites: tuple[_Looks, ...] = ()

    def rules(self) -> Rules:
        looks = {suite.name: 1 + len(suite.more) for suite in self.suites}
        limits = (self.alpha, self.seed, self.max_invalid, self.max_truncated)
        return Rules(*limits, looks=looks)


class GateFile(Frozen):
    """A file with `gates`, written for this verb or a whole recipe."""

    gates: GateSpecs
    evaluate: _Rules = _Rules()
    name: Any = None
    base_model: Any = None
    trust_remote_code: Any = None
    data: Any = None
    train: Any = None
    register_: Annotated[Any, Field(alias="register")] = None
    deploy: Any = None
    monitor: Any = None
    notify: Any = None
    resources: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spec", type=Path, required=True, help="YAML with the key `gates`: a recipe will do"
    )
    parser.add_argument(
        "--scores", type=Path, required=True, nargs="+",
        help="scores.jsonl of an evaluation; several are candidates that compete (Holm 1979)",
    )  # fmt: skip
    parser.add_argument(
        "--judgements", type=Path, nargs="+", default=[],
        help="judgements.jsonl, for win_rate and rubric_score: as many as scores",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 for PASS, 1 for the other verdicts; InputError for input that cannot be read.

    A `parity.json` beside the scores is decided on too, where the spec is a whole recipe or has the
    gate `parity`. Of candidates that compete one must pass.
    """
    spec = load(args.spec, GateFile)
    if args.judgements and len(args.judgements) != len(args.scores):
        raise InputError(
            f"{len(args.judgements)} files of judgements for {len(args.scores)} of scores: name "
            "one for each, in the same order"
        )
    judged = [read_judgements(path) for path in args.judgements] or [[] for _ in args.scores]
    evidence = {
        str(path): (read_scores(path), rows, parity_record.read(path.parent))
        for path, rows in zip(args.scores, judged, strict=True)
    }
    proven = any(parity for _, _, parity in evidence.values())
    gates = with_parity(spec.gates) if spec.base_model and proven else spec.gates
    found = decide_best_of(gates, evidence, spec.evaluate.rules())
    verdict = Verdict.PASS if any(d.verdict is Verdict.PASS for d in found.values()) else None
    if len(found) == 1:
        (decision,) = found.values()
        print(json.dumps(decision.as_json(), indent=2) if args.json else as_text(decision))
    elif args.json:
        each = {name: decision.as_json() for name, decision in found.items()}
        worst_of = worst([decision.verdict for decision in found.values()])
        print(json.dumps({"verdict": verdict or worst_of, "candidates": each}, indent=2))
    else:
        print("\n\n".join(f"{name}\n{as_text(decision)}" for name, decision in found.items()))
    return 0 if verdict is Verdict.PASS else 1


def as_text(decision: Decision) -> str:
    """A line per gate with its numbers, the next steps, and the verdict last."""
    lines = []
    for gate in decision.gates:
        lines += _lines(gate)
    lines += [f"warning: {warning}" for warning in decision.warnings]
    return "\n".join([*lines, f"verdict: {decision.verdict}"])


def _lines(gate: GateResult) -> list[str]:
    severity = "" if gate.severity == "block" else f" ({gate.severity})"
    lines = [f"{gate.verdict:12} {gate.id}{severity}: {gate.reason}"]
    if gate.next is not None:
        lines.append(f"{'':12} next: {gate.next}")
    return lines
