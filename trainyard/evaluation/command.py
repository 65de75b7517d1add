"""The verb `gate`: decide on saved scores, offline and repeatably."""

import argparse
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from trainyard.evaluation.scores import read_judgements, read_scores
from trainyard.gate import Decision, GateResult, Rules, Verdict, decide
from trainyard.parity import record as parity_record
from trainyard.recipe.base import Fraction, Frozen
from trainyard.recipe.evaluate import Alpha
from trainyard.recipe.gates import GateSpecs, with_parity
from trainyard.recipe.load import load


class _Rules(BaseModel):
    """The keys of a recipe's `evaluate` that a decision reads; the others are for the run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    alpha: Alpha = Rules().alpha
    seed: int = Rules().seed
    max_invalid: Fraction = Rules().max_invalid
    max_truncated: Fraction = Rules().max_truncated


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
    parser.add_argument("--scores", type=Path, required=True, help="scores.jsonl of an evaluation")
    parser.add_argument("--judgements", type=Path, help="judgements.jsonl, for win_rate")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 for PASS, 1 for the other verdicts; InputError for input that cannot be read.

    A `parity.json` beside the scores is decided on too, where the spec is a whole recipe or has the
    gate `parity`.
    """
    spec = load(args.spec, GateFile)
    scores = read_scores(args.scores)
    judgements = read_judgements(args.judgements) if args.judgements else []
    given = spec.evaluate
    rules = Rules(given.alpha, given.seed, given.max_invalid, given.max_truncated)
    parity = parity_record.read(args.scores.parent)
    gates = with_parity(spec.gates) if spec.base_model and parity else spec.gates
    decision = decide(gates, scores, judgements, rules, parity)
    print(json.dumps(decision.as_json(), indent=2) if args.json else as_text(decision))
    return 0 if decision.verdict is Verdict.PASS else 1


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
