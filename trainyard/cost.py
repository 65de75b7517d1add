"""What releases cost: estimated before, measured after, capped on the way, written in a book.

The book, `<home>/costs.jsonl`, has a line per run that ended, also of those that failed. A run that
was killed gets its line when the next one begins, or at the next sweep.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field, NonNegativeFloat

from trainyard import files, reservations
from trainyard.errors import Refused
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import PairwiseSuite, RubricSuite
from trainyard.recipe.load import load
from trainyard.recipe.resources import Card
from trainyard.release.job import Job
from trainyard.reservations import Reservation
from trainyard.run import WORKING, StageSummary, Summary

logger = logging.getLogger(__name__)

PRICES = Path("deployments/prices.yaml")
FILE = "cost.json"
BOOK = "costs.jsonl"
RECENT = 10
RUBRIC_TOKENS = 700
"""Of a judge's question beside the answers: instructions, rubric, prompt."""


class TokenPrice(Frozen):
    input: NonNegativeFloat
    """Of a million prompt tokens."""
    output: NonNegativeFloat
    """Of a million generated tokens."""


class Prices(Frozen):
    """`deployments/prices.yaml`."""

    currency: str = "USD"
    gpu_hour: dict[Card, NonNegativeFloat] = Field(default_factory=dict)
    judge: dict[str, TokenPrice] = Field(default_factory=dict)
    """By model."""
    per_month: NonNegativeFloat | None = None
    """Most that all recipes of a home folder may cost in a calendar month (UTC)."""


class Entry(Frozen):
    """One run in the book. Seconds are those of stages that ran, without waiting for a GPU."""

    time: str
    run_id: str
    recipe: str
    gpus: int
    """Those that train, of all nodes."""
    gpu: str | None
    price_per_gpu_hour: float | None
    currency: str
    train_s: float | None
    estimated_train_s: float | None
    evaluate_s: float | None
    queue_s: float
    """Waited for a worker or a GPU, over all stages."""
    gpu_hours: float
    judge_tokens: int
    judge: float
    estimated: float | None
    amount: float | None
    """None where a GPU was used whose price is not known."""

    @property
    def error(self) -> float | None:
        """Of the estimated training time: 0.1 is 10 % too long. None where one was not measured."""
        if not self.train_s or not self.estimated_train_s:
            return None
        return self.estimated_train_s / self.train_s - 1


def read_prices(path: Path | None = None) -> Prices:
    """Raises InputError for a table that cannot be read; without one nothing has a price."""
    path = path or PRICES
    return load(path, Prices) if path.exists() else Prices()


def gpu_price(recipe: Recipe, prices: Prices) -> float | None:
    own, card = recipe.resources.price_per_gpu_hour, recipe.resources.gpu
    return own if own is not None or card is None else prices.gpu_hour.get(card)


def gpu_price_per_s(recipe: Recipe) -> float:
    """Price of a second of all GPUs that train; 0 without GPU or price."""
    return (gpu_price(recipe, read_prices()) or 0.0) * recipe.resources.training_gpus / 3600


def judging(recipe: Recipe, sizes: Mapping[str, int], prices: Prices) -> float:
    """The most that judges of a release will cost, before anything is cached.

    `sizes` are the numbers of items of its suites.
    """
    most = 0.0
    for suite in recipe.evaluate.suites:
        if not isinstance(suite, PairwiseSuite | RubricSuite):
            continue
        pairwise = isinstance(suite, PairwiseSuite)
        calls = sizes[suite.name] * (2 if pairwise else 1)
        shown = RUBRIC_TOKENS + suite.max_tokens * (2 if pairwise else 1)
        dear = sum(
            calls * (shown * price.input + juror.max_tokens * price.output) / 1e6
            for juror in suite.jurors
            for price in [_judge_price(juror, prices)]
        )
        most += min(dear, suite.max_cost_usd)
    return most


def estimate(
    recipe: Recipe,
    home: Path,
    train_s: float | None,
    sizes: Mapping[str, int],
    prices: Prices,
) -> float | None:
    """What a release will cost: training as computed, evaluation as long as lately, judges at most.

    `sizes` are the numbers of items of its suites. None where a GPU will be used whose price is not
    known.
    """
    price = gpu_price(recipe, prices)
    if recipe.resources.gpus and (price is None or train_s is None):
        return None
    lately = [e.evaluate_s for e in entries(home, recipe.name) if e.evaluate_s][-RECENT:]
    hours = gpu_hours(recipe, train_s, sum(lately) / len(lately) if lately else 0)
    return hours * (price or 0) + judging(recipe, sizes, prices)


def gpu_hours(recipe: Recipe, train_s: float | None, evaluate_s: float | None) -> float:
    """All nodes train, and one evaluates."""
    need = recipe.resources
    return (need.training_gpus * (train_s or 0) + need.gpus * (evaluate_s or 0)) / 3600


def over(
    recipe: Recipe, home: Path, amount: float | None, now: datetime, run_id: str = ""
) -> str | None:
    """Say which budget `amount` more of the run would break; None where it breaks none."""
    prices = read_prices()
    caps = _caps(recipe, home, prices, now, run_id)
    if not caps:
        return None
    if amount is None:
        return (
            f"{caps[0][0]} is a limit and the GPU has no price: set resources.price_per_gpu_hour, "
            f"or the card's in {PRICES}"
        )
    for name, cap, spent in caps:
        if spent + amount > cap:
            already = f", {spent:.2f} of it spent or reserved by runs that go on" if spent else ""
            return (
                f"this run would cost about {amount:.2f} {prices.currency} and {name} is "
                f"{cap:g}{already}: raise it, or make the run smaller"
            )
    return None


def affordable_s(job: Job, now: datetime) -> float | None:
    """Seconds of training that the budgets pay for; None without budget, GPU or price."""
    prices = read_prices()
    price, gpus = gpu_price(job.recipe, prices), job.recipe.resources.training_gpus
    caps = _caps(job.recipe, job.home, prices, now, job.run_id)
    left = [max(cap - spent, 0.0) for _, cap, spent in caps]
    if not left or not price or not gpus:
        return None
    return min(left) / (price * gpus) * 3600


def check(job: Job, summary: Summary, now: datetime) -> None:
    """Raises Refused when a run has come to cost more than a budget has left."""
    spent = measured(job, summary, now).amount
    if spent and (why := over(job.recipe, job.home, spent, now, job.run_id)):
        raise Refused(f"budget: {why}; what is finished is kept")


def reserve(job: Job, amount: float | None, now: datetime) -> None:
    """Set aside what the run is going to cost: what `over` allows two runs, it allows one of them.

    Raises Refused when there is not so much left.
    """
    settle(job.home)
    with _book_lock(job.home):
        if amount and (why := over(job.recipe, job.home, amount, now, job.run_id)):
            raise Refused(f"budget: {why}")
        mine = Reservation(run_id=job.run_id, recipe=job.recipe.name, amount=amount or 0.0)
        reservations.make(job.folder, mine)


def settle(home: Path) -> list[Entry]:
    """Write the runs that were killed into the book, each once, and return their lines."""
    found = []
    with _book_lock(home):
        for folder, alive in reservations.of_the_killed(home):
            try:
                found += _write(home, _of_killed(home, folder, alive))
            except (OSError, ValueError, KeyError) as error:
                logger.warning("%s was killed, and what it cost is not known: %s", folder, error)
            reservations.drop(folder)
    return found


def measured(job: Job, summary: Summary, now: datetime) -> Entry:
    """What a run cost so far."""
    recipe, prices = job.recipe, read_prices()
    price = gpu_price(recipe, prices)
    train_s, evaluate_s = _worked(summary, "train"), _worked(summary, "evaluate")
    hours = gpu_hours(recipe, train_s, evaluate_s)
    tokens, judge = _judged(job, prices) if evaluate_s is not None else (0, 0.0)
    plan = job.folder / "plan.json"
    expected = files.read_json(plan) if plan.exists() else {}
    return Entry(
        time=now.isoformat(timespec="seconds"),
        run_id=job.run_id,
        recipe=recipe.name,
        gpus=recipe.resources.training_gpus,
        gpu=recipe.resources.gpu,
        price_per_gpu_hour=price,
        currency=prices.currency,
        train_s=train_s,
        estimated_train_s=expected.get("time_s"),
        evaluate_s=evaluate_s,
        queue_s=round(sum(stage.queue_s or 0 for stage in summary.stages), 2),
        gpu_hours=round(hours, 6),
        judge_tokens=tokens,
        judge=round(judge, 6),
        estimated=expected.get("cost"),
        amount=None if hours and price is None else round(hours * (price or 0) + judge, 6),
    )


def book(job: Job, summary: Summary) -> Entry:
    """Write what an ended run cost, in its folder and at the end of the book."""
    entry = measured(job, summary, datetime.now(UTC))
    with _book_lock(job.home):
        _write(job.home, entry)
        reservations.drop(job.folder)
    return entry


def _book_lock(home: Path) -> FileLock:
    return FileLock((home / BOOK).with_suffix(".lock"))


def _write(home: Path, entry: Entry) -> list[Entry]:
    """Write it, unless the run is in the book already."""
    if any(known.run_id == entry.run_id for known in entries(home, entry.recipe)):
        return []
    files.write_json(home / "runs" / entry.run_id / FILE, entry.model_dump(mode="json"))
    with (home / BOOK).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry.model_dump(mode="json")) + "\n")
    return [entry]


def _of_killed(home: Path, folder: Path, alive: float) -> Entry:
    """What it had cost when it was last `alive` (Unix time): its last stage ended then."""
    summary = Summary.model_validate(files.read_json(folder / "summary.json"))
    recipe = Recipe.model_validate(files.read_json(folder / "recipe.json"))
    if summary.stages and (last := summary.stages[-1]).seconds is None:
        events = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
        begin = [e["time"] for e in events if (e["stage"], e["event"]) == (last.name, "started")]
        last.seconds = max(alive - datetime.fromisoformat(begin[-1]).timestamp(), 0.0)
        mark = folder / WORKING / last.name
        worked = alive - mark.stat().st_mtime if mark.exists() else 0.0
        last.queue_s = min(max(last.seconds - worked, 0.0), last.seconds)
    job = Job(recipe=recipe, recipe_path=summary.recipe_path, run_id=folder.name, home=home)
    return measured(job, summary, datetime.fromtimestamp(alive, UTC))


def entries(home: Path, recipe: str | None = None) -> list[Entry]:
    """The book, the oldest first; of one recipe or of all. A line that was cut is left out."""
    path = home / BOOK
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = Entry.model_validate_json(line)
        except ValueError:
            continue
        if recipe in (None, entry.recipe):
            found.append(entry)
    return found


def error_words(found: Sequence[Entry]) -> str | None:
    """How far the last estimates of training time were off; None before there is one."""
    errors = [entry.error for entry in found if entry.error is not None][-RECENT:]
    if not errors:
        return None
    mean = sum(map(abs, errors)) / len(errors)
    last = f"{abs(errors[-1]):.0%} too {'long' if errors[-1] > 0 else 'short'}"
    if len(errors) == 1:
        return f"the last estimate of training time was {last}"
    return f"the last {len(errors)} estimates of training time were {mean:.0%} off; the last {last}"


def month_words(home: Path, now: datetime) -> str | None:
    """What was spent this month; None before anything was."""
    this = _of_month(entries(home), now)
    spent = sum(entry.amount or 0 for entry in this)
    if not spent:
        return None
    prices = read_prices()
    of = f" of {prices.per_month:g}" if prices.per_month is not None else ""
    hours = sum(entry.gpu_hours for entry in this)
    return (
        f"{spent:.2f}{of} {prices.currency} and {hours:.2f} GPU-hours this month, {len(this)} runs"
    )


def _caps(
    recipe: Recipe, home: Path, prices: Prices, now: datetime, run_id: str
) -> list[tuple[str, float, float]]:
    """Each limit by name, with what is spent of it, or set aside by other runs."""
    found: list[tuple[str, float, float]] = []
    if recipe.budget.per_run is not None:
        found.append(("budget.per_run", recipe.budget.per_run, 0.0))
    monthly = [
        ("budget.per_month", recipe.budget.per_month, recipe.name),
        (f"per_month of {PRICES}", prices.per_month, None),
    ]
    if all(cap is None for _, cap, _ in monthly):
        return found
    month, aside = _of_month(entries(home), now), reservations.others(home, run_id)
    for name, cap, of in monthly:
        if cap is not None:
            spent = sum(e.amount or 0 for e in month if of in (None, e.recipe))
            spent += sum(other.amount for other in aside if of in (None, other.recipe))
            found.append((name, cap, spent))
    return found


def _of_month(found: Iterable[Entry], now: datetime) -> list[Entry]:
    return [entry for entry in found if entry.time[:7] == f"{now:%Y-%m}"]


def _worked(summary: Summary, name: str) -> float | None:
    """Seconds in which a stage worked; None where it did not."""
    ran = [s for s in summary.stages if s.name == name and not s.skipped and s.seconds is not None]
    return round(sum(map(_seconds, ran)), 2) if ran else None


def _seconds(stage: StageSummary) -> float:
    return max(0.0, (stage.seconds or 0) - (stage.queue_s or 0))


def _judged(job: Job, prices: Prices) -> tuple[int, float]:
    """Tokens and cost of the judges, as their replies said."""
    path = job.folder / "evaluation" / "evaluation.json"
    if not path.exists():
        return 0, 0.0
    tokens, cost = 0, 0.0
    judges = files.read_json(path).get("judges", {})
    for suite in job.recipe.evaluate.suites:
        account = (judges.get(suite.name) or {}).get("account")
        if not account or not isinstance(suite, PairwiseSuite | RubricSuite):
            continue
        given, made = account["input_tokens"], account["output_tokens"]
        tokens += given + made
        jurors = [_judge_price(juror, prices) for juror in suite.jurors]
        mean_in = sum(price.input for price in jurors) / len(jurors)
        mean_out = sum(price.output for price in jurors) / len(jurors)
        by_table = (given * mean_in + made * mean_out) / 1e6
        own = any(j.usd_per_million_input or j.usd_per_million_output for j in suite.jurors)
        # an account that was closed for its cap says that all of it is spent
        cost += (
            account["spent_usd"] if own and account["spent_usd"] < account["cap_usd"] else by_table
        )
    return tokens, cost


def _judge_price(juror: Any, prices: Prices) -> TokenPrice:
    own = TokenPrice(input=juror.usd_per_million_input, output=juror.usd_per_million_output)
    if own.input or own.output:
        return own
    return prices.judge.get(juror.model, own)
