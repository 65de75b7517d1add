"""PASS / FAIL / INCONCLUSIVE / INVALID from scores, and what a gate could see before they exist."""

from trainyard.gate.decision import decide
from trainyard.gate.foresight import Foresight, Planned, foresee
from trainyard.gate.records import Decision, GateResult, Rules, Verdict

__all__ = [
    "Decision",
    "Foresight",
    "GateResult",
    "Planned",
    "Rules",
    "Verdict",
    "decide",
    "foresee",
]
