"""A rubric suite from answers to grades: every answer of the candidate is shown alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from trainyard.evaluation.judge import calibration
from trainyard.evaluation.judge.calls import Account, Call, Jury, judge
from trainyard.evaluation.judge.checks import flags
from trainyard.evaluation.judge.protocol import Single, judged_item
from trainyard.evaluation.judge.suite import rank_correlation, served_fingerprint, too_dear
from trainyard.evaluation.samples import Item
from trainyard.evaluation.scores import Judgement
from trainyard.recipe.evaluate import EvaluateSpec, RubricSuite


@dataclass(frozen=True, slots=True)
class Answered:
    """One sample with the candidate's answer, or why it has none."""

    item: Item
    text: str
    error: str | None = None


def grade_suite(
    suite: RubricSuite, answers: Sequence[Answered], spec: EvaluateSpec, cache: Path, today: date
) -> tuple[list[Judgement], dict[str, Any]]:
    """Grades of every juror, and the facts about the jurors.

    An answer that speaks to the judge, or is one constant text, gets the worst grade unasked.
    """
    account = Account(suite.max_cost_usd)
    given = [one for one in answers if one.error is None]
    flagged = flags(
        {one.item.id: one.text for one in given},
        {one.item.id: "" for one in given},
        {one.item.id: judged_item(one.item) for one in given},
    )
    labels = calibration.read_grades(Path(suite.calibration)) if suite.calibration else []
    rows: list[Judgement] = []
    facts: dict[str, Any] = {"flagged": flagged, "jurors": {}}
    for juror in suite.jurors:
        jury = Jury(juror, suite.rubric, suite.criteria, spec.seed, cache,
                    spec.concurrency, spec.timeout_s, single=True)  # fmt: skip
        shown = [_shown(suite, one) for one in given]
        problem = too_dear(jury, [*shown, *(label.shown for label in labels)], account)
        fit: dict[str, Any] = (
            {"calibrated": False, "problems": [problem], "n": len(labels)}
            if problem
            else calibration.calibrate_grades(jury, labels, today, account)
        )
        asked = [one for one in given if one.item.id not in flagged]
        calls = judge(jury, [_shown(suite, one) for one in asked], account) if asked else []
        answered = {one.item.id: call for one, call in zip(asked, calls, strict=True)}
        mine = [
            _row(suite, jury, one, answered.get(one.item.id), flagged, fit["calibrated"])
            for one in answers
        ]
        facts["jurors"][juror.model] = {"calibration": fit, "bias": bias(mine, given)}
        rows += mine
    facts["account"] = account.as_json()
    return rows, facts


def _row(
    suite: RubricSuite,
    jury: Jury,
    one: Answered,
    call: Call | None,
    flagged: dict[str, str],
    calibrated: bool,
) -> Judgement:
    note = f"no answer: {one.error}" if one.error else flagged.get(one.item.id)
    if call is None:
        call = Call("invalid", "") if one.error else Call("graded", "", grade=0.0)
    return Judgement(
        id=one.item.id,
        juror=jury.juror.model,
        order="single",
        verdict=call.verdict,
        suite=suite.name,
        cluster=one.item.cluster,
        fingerprint=served_fingerprint(jury, call),
        calibrated=calibrated,
        note=note or call.error,
        grade=call.grade,
    )


def _shown(suite: RubricSuite, one: Answered) -> Single:
    reference = one.item.reference if suite.show_reference else None
    return Single(judged_item(one.item), one.text, reference)


def bias(rows: Sequence[Judgement], answers: Sequence[Answered]) -> dict[str, Any]:
    """Whether long answers get better grades."""
    length = {one.item.id: float(len(one.text)) for one in answers}
    pairs = sorted((length[r.id], r.grade) for r in rows if r.grade is not None and r.id in length)
    third = max(1, len(pairs) // 3)
    parts = {"shorter": pairs[:third], "similar": pairs[third:-third], "longer": pairs[-third:]}
    return {
        "mean_grade": sum(g for _, g in pairs) / len(pairs) if pairs else None,
        "invalid": sum(row.verdict == "invalid" for row in rows),
        "grade_by_length": {
            name: sum(g for _, g in part) / len(part) for name, part in parts.items() if part
        },
        "length_correlation": rank_correlation(pairs),
    }
