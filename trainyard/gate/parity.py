"""The gate `parity`: not a statistic, but whether each step from trainer to server held."""

from trainyard.gate.records import GateResult, Verdict
from trainyard.parity.record import Parity
from trainyard.recipe.gates import GateSpec

_NEXT = {
    "template": "export the tokenizer and chat template of the training, and serve with them",
    "adapter": "export the adapter again: its rank, alpha or layers are not those of the recipe",
    "precision": "train with method: lora, or raise evaluate.parity.max_quantised_gap and prove by "
    "the other gates that the difference does no harm",
    "merge": "merge again from the unquantised base, with the adapter's own scale",
    "server": "look at which adapter the server loads under this name, and in which precision",
}


def decide_parity(gate: GateSpec, parity: Parity | None) -> GateResult:
    """PASS when every step held; FAIL by the name of the first that broke."""
    if parity is None:
        return _result(
            gate,
            Verdict.INVALID,
            "the parity of trainer, export and server was not measured",
            "run the evaluation again, or write parity: warn",
        )
    served = next((step for step in parity.steps if step.name == "server"), parity.steps[-1])
    numbers = {"estimate": served.gap, "threshold": served.limit, "n": parity.tokens, "op": "<=",
               "method": "mean gap of log-probabilities"}  # fmt: skip
    broken = parity.broken
    if broken is None:
        reason = "; ".join(f"{step.name}: {step.reason}" for step in parity.steps)
        return _result(gate, Verdict.PASS, reason, None).model_copy(update=numbers)
    verdict = Verdict.FAIL if broken.verdict == "broken" else Verdict.INVALID
    numbers |= {"estimate": broken.gap, "threshold": broken.limit}
    reason = f"step {broken.name} {broken.verdict}: {broken.reason}"
    return _result(gate, verdict, reason, _NEXT[broken.name]).model_copy(update=numbers)


def _result(gate: GateSpec, verdict: Verdict, reason: str, next_step: str | None) -> GateResult:
    return GateResult(
        id=gate.id,
        metric=gate.metric,
        severity=gate.severity,
        verdict=verdict,
        reason=reason,
        next=next_step,
    )
