"""Stage `gate`: the decision over the scores of one candidate, and the ledger of attempts."""

from trainyard import files
from trainyard.evaluation.scores import read_judgements, read_scores
from trainyard.gate import Decision, GateResult, Look, Rules, Verdict, decide, ledger
from trainyard.gate.ledger import Attempt
from trainyard.parity import record as parity_record
from trainyard.recipe.data import SourceSpec
from trainyard.release import people
from trainyard.release.champion import Champion
from trainyard.release.data import digest_sources
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job
from trainyard.release.people import Sheet

OPEN = (Verdict.PASS, Verdict.PENDING_HUMAN)


def run(job: Job, evaluated: Evaluated, candidate: str, champion: Champion | None) -> Decision:
    """Decide, and record the attempt: trying again and again on the same sets buys no pass."""
    recipe, book = job.recipe, job.home / "attempts.jsonl"
    scores = list(read_scores(evaluated.folder / "scores.jsonl"))
    judged = evaluated.folder / "judgements.jsonl"
    judgements = read_judgements(judged) if judged.exists() else []
    sets = digest_sources(SourceSpec(path=path) for path in recipe.evaluate.eval_sets)
    this = Attempt(recipe.name, candidate, ledger.sets_digest(sets), verdict="")
    attempts = ledger.others(book, this)
    rules = Rules.of(recipe.evaluate, attempts=attempts, has_champion=champion is not None)
    parity = parity_record.read(evaluated.folder)
    decision = decide(recipe.gates, scores, judgements, rules, parity)
    # people are asked, and read, only when nothing else stands in the way
    open_sheets = people.sheets(job, evaluated, champion) if decision.verdict in OPEN else []
    filled = [sheet for sheet in open_sheets if sheet.is_filled]
    if filled:
        said, labels = people.evidence(job, filled, scores)
        known = {(row.id, row.suite, row.opponent) for row in labels}
        judgements = [
            row
            for row in judgements
            if not (row.human and (row.id, row.suite, row.opponent) in known)
        ]
        decision = decide(recipe.gates, [*scores, *said], [*judgements, *labels], rules, parity)
    decision = _with_forms(decision, [sheet for sheet in open_sheets if not sheet.is_filled])
    earlier = _earlier_looks(job)
    decision = decision.model_copy(update={"looks": (*earlier, *decision.looks)})
    ledger.record(book, Attempt(this.model, candidate, this.items, decision.verdict))
    files.write_json(job.folder / "gate.json", decision.as_json())
    return decision


def next_look(job: Job, decision: Decision) -> Job | None:
    """The job that asks more items, where only these can decide; None where the decision stands."""
    if decision.verdict is not Verdict.INCONCLUSIVE:
        return None
    sizes = dict(job.looks[-1]) if job.looks else {}
    larger: dict[str, int] = {}
    for gate in decision.gates:
        if gate.severity != "block" or gate.verdict is not Verdict.INCONCLUSIVE:
            continue
        for part in _undecided(gate):
            grown = _grown(job, part.suite or "", sizes)
            if not part.more_helps or not grown:
                return None
            larger |= grown
    return job.model_copy(update={"looks": (*job.looks, sizes | larger)})


def _undecided(gate: GateResult) -> list[GateResult]:
    parts = [part for part in gate.parts if part.verdict is Verdict.INCONCLUSIVE]
    return parts or [gate]


def _grown(job: Job, suites: str, sizes: dict[str, int]) -> dict[str, int]:
    """The next size of each of these suites ("a+b") that has one."""
    found = {}
    for suite in job.recipe.evaluate.suites:
        larger = [size for size in suite.more if size > sizes.get(suite.name, suite.limit or 0)]
        if suite.name in suites.split("+") and larger:
            found[suite.name] = larger[0]
    return found


def _with_forms(decision: Decision, waiting: list[Sheet]) -> Decision:
    pages = {sheet.form.gate.id: sheet for sheet in waiting}
    gates = []
    for gate in decision.gates:
        sheet = pages.get(gate.id)
        if sheet is not None:
            steps = (
                f"open {sheet.page} in a browser, put what it saves at {sheet.answers}, and run "
                "the same command again"
            )
            gate = gate.model_copy(update={"next": steps})
        gates.append(gate)
    return decision.model_copy(update={"gates": tuple(gates)})


def _earlier_looks(job: Job) -> list[Look]:
    """Looks of this run before this one, from the decision that they left."""
    path = job.folder / "gate.json"
    if not job.looks or not path.exists():
        return []
    return list(Decision.model_validate(files.read_json(path)).looks[: len(job.looks)])
