"""A pairwise suite from answers to judgements, with the facts about its judges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.judge import calibration
from trainyard.evaluation.judge.calls import Account, Call, Jury, Shown, judge
from trainyard.evaluation.judge.checks import flags
from trainyard.evaluation.judge.protocol import Pair, judged_item
from trainyard.evaluation.judge.rate import call_score, win_rate
from trainyard.evaluation.ranks import average_ranks
from trainyard.evaluation.samples import Item
from trainyard.evaluation.scores import Judgement, read_judgements
from trainyard.files import digest_json
from trainyard.recipe.evaluate import EvaluateSpec, PairwiseSuite


@dataclass(frozen=True, slots=True)
class Duel:
    """One sample with the answers of both sides."""

    item: Item
    candidate: str
    other: str

    @property
    def digest(self) -> str:
        """What a human label of this duel belongs to."""
        return digest_json([judged_item(self.item), self.candidate, self.other])


def judge_suite(
    suite: PairwiseSuite, duels: Sequence[Duel], spec: EvaluateSpec, cache: Path, today: date
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judgements of every juror in both orders, human labels of these answers, and the facts."""
    account = Account(suite.max_cost_usd)
    flagged = flags(
        {duel.item.id: duel.candidate for duel in duels},
        {duel.item.id: duel.other for duel in duels},
        {duel.item.id: judged_item(duel.item) for duel in duels},
    )
    labels = calibration.read_labels(Path(suite.calibration)) if suite.calibration else []
    rows: list[Judgement] = []
    facts: dict[str, Any] = {"flagged": flagged, "jurors": {}}
    for juror in suite.jurors:
        jury = Jury(juror, suite.rubric, suite.criteria, spec.seed, cache,
                    spec.concurrency, spec.timeout_s)  # fmt: skip
        fit = _calibrate(suite, jury, labels, today, account, duels)
        given = _judgements(suite, jury, duels, flagged, account, fit["calibrated"])
        rows += given
        facts["jurors"][juror.model] = {"calibration": fit, "bias": bias(given, duels)}
    rows += human_labels(suite, duels)
    facts["account"] = account.as_json()
    return rows, facts


def _calibrate(
    suite: PairwiseSuite,
    jury: Jury,
    labels: Sequence[calibration.Label],
    today: date,
    account: Account,
    duels: Sequence[Duel],
) -> dict[str, Any]:
    """Calibrate, unless the whole run would cost more than its cap: then nothing is asked."""
    planned = [pair for duel in duels for pair in _shown(suite, duel)]
    planned += [label.pair for label in labels for _ in range(2)]
    problem = too_dear(jury, planned, account)
    if problem:
        return {"calibrated": False, "problems": [problem], "n": len(labels)}
    return calibration.calibrate(jury, labels, today, account)


def too_dear(jury: Jury, planned: Sequence[Shown], account: Account) -> str | None:
    """Why these calls may cost more than the cap; then the account is closed and none is made."""
    estimate = jury.estimate(planned)
    if account.spent_usd + estimate <= account.cap_usd:
        return None
    account.spent_usd = account.cap_usd
    return f"budget: judging would cost up to {estimate:.2f} USD, the cap is {account.cap_usd:.2f}"


def _judgements(
    suite: PairwiseSuite,
    jury: Jury,
    duels: Sequence[Duel],
    flagged: Mapping[str, str],
    account: Account,
    calibrated: bool,
) -> list[Judgement]:
    asked = [duel for duel in duels if duel.item.id not in flagged]
    calls = iter(
        judge(jury, [pair for duel in asked for pair in _shown(suite, duel)], account)
        if asked
        else []
    )
    rows = []
    for duel in duels:
        for order, lost in (("AB", "B"), ("BA", "A")):
            call = Call(lost, "") if duel.item.id in flagged else next(calls)
            rows.append(
                Judgement(
                    id=duel.item.id,
                    juror=jury.juror.model,
                    order=order,
                    verdict=call.verdict,
                    suite=suite.name,
                    opponent=suite.opponent,
                    cluster=duel.item.cluster,
                    fingerprint=served_fingerprint(jury, call),
                    calibrated=calibrated,
                    note=flagged.get(duel.item.id, call.error),
                )
            )
    return rows


def served_fingerprint(jury: Jury, call: Call) -> str:
    """The juror's fingerprint, which changes with the model that the server says answered."""
    if call.served in ("", jury.juror.model):
        return jury.fingerprint
    return digest_json([jury.fingerprint, call.served])


def _shown(suite: PairwiseSuite, duel: Duel) -> tuple[Pair, Pair]:
    shown = suite.show_reference and suite.opponent != "reference"
    reference = duel.item.reference if shown else None
    prompt = judged_item(duel.item)
    return (
        Pair(prompt, duel.candidate, duel.other, reference),
        Pair(prompt, duel.other, duel.candidate, reference),
    )


def human_labels(suite: PairwiseSuite, duels: Sequence[Duel]) -> list[Judgement]:
    """Labels of exactly these answers; a label of other answers is left out by its digest."""
    if suite.labels is None:
        return []
    path = Path(suite.labels)
    current = {duel.item.id: duel.digest for duel in duels}
    rows = read_judgements(path)
    stray = [row.id for row in rows if not row.human]
    if stray:
        raise InputError(f"{path} holds judgements that are not of people, first {stray[0]!r}")
    return [row for row in rows if current.get(row.id) == row.answers]


def bias(rows: Sequence[Judgement], duels: Sequence[Duel]) -> dict[str, Any]:
    """Position and length: what a verdict depends on beside the answers."""
    rate = win_rate(rows)
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.id, []).append(call_score(row.order, row.verdict))
    pairs = [
        (
            math.log((len(duel.candidate) + 1) / (len(duel.other) + 1)),
            sum(scores[duel.item.id]) / len(scores[duel.item.id]),
        )
        for duel in duels
    ]
    pairs.sort()
    third = max(1, len(pairs) // 3)
    strata = {
        "shorter": pairs[:third],
        "similar": pairs[third : len(pairs) - third],
        "longer": pairs[len(pairs) - third :],
    }
    return {
        "first": rate.first,
        "consistent": None if math.isnan(rate.consistent) else rate.consistent,
        "win_rate": rate.mean,
        "invalid": rate.invalid,
        "win_rate_by_length": {
            name: sum(score for _, score in part) / len(part)
            for name, part in strata.items()
            if part
        },
        "length_correlation": rank_correlation(pairs),
    }


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rho of relative length and score; None when either does not vary."""
    if len(pairs) < 3:
        return None
    x, y = (average_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    x, y = x - x.mean(), y - y.mean()
    below = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / below if below > 0 else None
