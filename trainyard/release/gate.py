"""Stage `gate`: the decision over the scores of one candidate, and the ledger of attempts."""

from dataclasses import replace

from trainyard import files
from trainyard.evaluation.scores import read_judgements, read_scores
from trainyard.gate import Decision, Rules, decide, ledger
from trainyard.gate.ledger import Attempt
from trainyard.parity import record as parity_record
from trainyard.release.champion import Champion
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job


def run(job: Job, evaluated: Evaluated, candidate: str, champion: Champion | None) -> Decision:
    """Decide, and record the attempt: trying again and again on the same items buys no pass."""
    recipe, book = job.recipe, job.home / "attempts.jsonl"
    scores = list(read_scores(evaluated.folder / "scores.jsonl"))
    judged = evaluated.folder / "judgements.jsonl"
    items = ledger.items_digest(scores)
    this = Attempt(model=recipe.name, candidate=candidate, items=items, verdict="")
    rules = Rules.of(
        recipe.evaluate, attempts=ledger.others(book, this), has_champion=champion is not None
    )
    judgements = read_judgements(judged) if judged.exists() else []
    decision = decide(recipe.gates, scores, judgements, rules, parity_record.read(evaluated.folder))
    ledger.record(book, replace(this, verdict=decision.verdict))
    files.write_json(job.folder / "gate.json", decision.as_json())
    return decision
