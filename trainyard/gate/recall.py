"""A rate that a guard found, corrected for what the guard misses."""

from collections.abc import Sequence

from trainyard.evaluation.intervals import clopper_pearson
from trainyard.evaluation.scores import GUARD_RECALL, Score, guard_suite
from trainyard.gate.bounds import Bound
from trainyard.gate.evidence import Table, Unusable


def labelled(table: Table, suites: Sequence[str]) -> list[Score]:
    """Scores of labelled examples that should be found: 1 for found. Raises Unusable for others."""
    rows = [
        row
        for suite in suites
        for row in table.rows.get(GUARD_RECALL, {}).get(guard_suite(suite), {}).get("candidate", [])
    ]
    broken = next((row for row in rows if row.value not in (0.0, 1.0)), None)
    if broken is not None:
        raise Unusable(
            f"the guard has no verdict on labelled example {broken.id!r}"
            + (f": {broken.error}" if broken.error else ""),
            "run the evaluation again: it asks only what has no answer",
        )
    return rows


def corrected(bound: Bound, found: int, shown: int, alpha: float) -> Bound:
    """Estimate and upper bound of the true rate, when `found` of `shown` true cases were found.

    Rogan and Gladen 1978 (Am J Epidemiol 107:71) with specificity 1: true rate = rate / recall. The
    upper bound takes the lower bound of the recall; when each holds with 1 - alpha, both hold with
    1 - 2 alpha (Bonferroni). The lower bound stays: a guard's false alarms are not subtracted.
    """
    least, _ = clopper_pearson(found, shown, confidence=1 - 2 * alpha)
    return Bound(
        min(1.0, bound.estimate * shown / found) if found else 1.0,
        bound.low,
        min(1.0, bound.high / least) if least > 0 else 1.0,
        bound.n,
        f"{bound.method} / recall {found} of {shown}",
        bound.clusters,
        sd=bound.sd,
    )
