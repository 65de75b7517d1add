"""PASS / FAIL / INCONCLUSIVE / INVALID from scores, and what a gate could see before they exist."""

from trainyard.gate.decision import decide, decide_best_of
from trainyard.gate.foresight import Foresight, Planned, foresee
from trainyard.gate.records import Decision, GateResult, Look, Rules, Verdict

__all__ = [
    "Decision",
    "Foresight",
    "GateResult",
    "Look",
    "Planned",
    "Rules",
    "Verdict",
    "decide",
    "decide_best_of",
    "foresee",
]
