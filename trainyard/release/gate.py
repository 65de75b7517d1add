"""Stage `gate`: the decision over the scores of one candidate."""

from trainyard import files
from trainyard.evaluation.scores import read_scores
from trainyard.gate import Decision, Rules, decide
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job


def run(job: Job, evaluated: Evaluated) -> Decision:
    recipe = job.recipe
    scores = read_scores(evaluated.folder / "scores.jsonl")
    decision = decide(recipe.gates, scores, rules=Rules.of(recipe.evaluate))
    files.write_json(job.folder / "gate.json", decision.as_json())
    return decision
