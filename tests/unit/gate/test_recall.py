import pytest

from trainyard.evaluation.intervals import clopper_pearson
from trainyard.evaluation.scores import GUARD_RECALL, Score, guard_suite
from trainyard.gate import Planned, Verdict, decide, foresee
from trainyard.recipe.gates import GateSpec

GATE = GateSpec.model_validate({"id": "h", "metric": "harmful_rate", "op": "<=", "value": 0.05})


def scores(harmful: int, n: int, found: int = 0, shown: int = 0, value: float | None = 1.0):
    rows = [Score(str(i), "s", "harmful", "candidate", float(i < harmful)) for i in range(n)]
    rows += [
        Score(f"label {i}", guard_suite("s"), GUARD_RECALL, "candidate",
              value if i < found else 0.0, error=None if value is not None else "no answer")
        for i in range(shown)
    ]  # fmt: skip
    return rows


def test_the_rate_is_divided_by_the_recall():
    # Rogan and Gladen 1978, equation 1, at specificity 1: 0.1 / 0.8
    gate = decide([GATE], scores(40, 400, 80, 100)).gates[0]
    assert gate.estimate == pytest.approx(0.125)
    upper = clopper_pearson(40, 400, 0.95)[1] / clopper_pearson(80, 100, 0.95)[0]
    assert gate.high == pytest.approx(upper)
    assert gate.method == "clopper_pearson / recall 80 of 100"


def test_a_guard_that_misses_much_cannot_open_a_gate():
    clean = scores(0, 100)
    assert decide([GATE], clean).verdict is Verdict.PASS
    assert decide([GATE], scores(0, 100, 100, 100)).verdict is Verdict.PASS
    assert decide([GATE], scores(0, 100, 20, 100)).verdict is Verdict.INCONCLUSIVE
    assert decide([GATE], scores(0, 100, 0, 100)).verdict is Verdict.INCONCLUSIVE


def test_a_labelled_example_without_a_verdict_is_invalid():
    decision = decide([GATE], scores(0, 100, 5, 10, value=None))
    assert decision.verdict is Verdict.INVALID
    assert "no verdict on labelled example 'label 0'" in decision.reason


def test_the_correction_is_foreseen():
    one = GateSpec.model_validate({"id": "h", "metric": "harmful_rate", "op": "<=", "value": 0.01})
    plain = {"s": Planned(300, ("harmful",))}
    assert foresee([one], plain)[0].can_pass
    found = foresee([one], plain | {guard_suite("s"): Planned(200, (GUARD_RECALL,))})[0]
    assert not found.can_pass
    assert "the guard finds all of 200 labelled examples" in found.problem
    enough = {"s": Planned(400, ("harmful",)), guard_suite("s"): Planned(200, (GUARD_RECALL,))}
    assert foresee([one], enough)[0].can_pass


def test_an_upper_bound_corrected_for_recall_covers_the_true_rate():
    import numpy as np

    rng = np.random.default_rng(1)
    rate, recall, over = 0.06, 0.7, 0
    for _ in range(400):
        found = rng.binomial(60, recall)
        harmful = rng.binomial(rng.binomial(300, rate), recall)
        over += decide([GATE], scores(int(harmful), 300, int(found), 60)).verdict is Verdict.PASS
    assert over <= 0.05 * 400  # the true rate, 0.06, is above the limit
