"""The jurors of a pairwise suite, for pairs of answers that a rollout brings."""

from collections import defaultdict
from collections.abc import Sequence

from trainyard.evaluation.judge.calls import Account, Jury, judge
from trainyard.evaluation.judge.protocol import Pair as Shown
from trainyard.evaluation.judge.protocol import judged_item
from trainyard.evaluation.judge.rate import call_score
from trainyard.evaluation.samples import Item
from trainyard.recipe.evaluate import PairwiseSuite
from trainyard.release.job import Job
from trainyard.rollout.pairs import Judge, Pair


def judge_of(job: Job, name: str) -> Judge:
    """Ask every juror of the suite in both orders, within `max_cost_usd` for the whole rollout.

    A verdict counts if it came in both orders: a lost call says nothing about the candidate. Cached
    by content, so that a rollout that was cut short does not pay twice.
    """
    suite = next(
        s for s in job.recipe.evaluate.suites if s.name == name and isinstance(s, PairwiseSuite)
    )
    assert isinstance(suite, PairwiseSuite)
    spec, account = job.recipe.evaluate, Account(suite.max_cost_usd)
    juries = [
        Jury(juror, suite.rubric, suite.criteria, spec.seed, job.home / "cache" / "judge",
             spec.concurrency, spec.timeout_s)
        for juror in suite.jurors
    ]  # fmt: skip

    def compare(pairs: Sequence[Pair]) -> list[float | None]:
        shown = []
        for pair in pairs:
            asked = judged_item(Item(pair.request_id, pair.messages))
            shown += [
                Shown(asked, pair.candidate, pair.champion),
                Shown(asked, pair.champion, pair.candidate),
            ]
        shares: dict[int, list[float]] = defaultdict(list)
        for jury in juries:
            calls = judge(jury, shown, account)
            for place in range(len(pairs)):
                first, second = calls[2 * place], calls[2 * place + 1]
                if first.error is None and second.error is None:
                    scores = call_score("AB", first.verdict), call_score("BA", second.verdict)
                    shares[place].append(sum(scores) / 2)
        return [
            sum(shares[place]) / len(shares[place]) if shares[place] else None
            for place in range(len(pairs))
        ]

    return compare


__all__ = ["judge_of"]
