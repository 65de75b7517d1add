from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trainyard import approval
from trainyard.approval import Answer, Question
from trainyard.errors import InputError, NotFound, Refused, Waiting
from trainyard.recipe import read_recipe
from trainyard.recipe.deploy import DeploySpec
from trainyard.release.job import Job

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=25)
DIGEST = "ab" * 32


@pytest.fixture
def job(tmp_path: Path) -> Job:
    recipe = read_recipe(
        Path("recipes/quickstart.yaml"), {"deploy.approval": {"by": ["ada", "grace"]}}
    )
    return Job(recipe=recipe, recipe_path="r.yaml", run_id="quickstart-1", home=tmp_path)


def asked(job: Job, now: datetime = NOW, flow_run: str | None = None) -> Question:
    found = approval.ask(job, DIGEST, "production", flow_run, now)
    assert found is not None
    return found


def given(choice: approval.Choice = "approve", who: str = "ada", at: datetime = NOW) -> Answer:
    return Answer(choice=choice, who=who, why="read the report", time=at.isoformat())


def test_nobody_is_asked_where_the_recipe_does_not_say_so(job: Job) -> None:
    assert approval.ask(job, DIGEST, "staging", None, NOW) is None
    silent = job.recipe.model_copy(update={"deploy": DeploySpec()})
    assert (
        approval.ask(job.model_copy(update={"recipe": silent}), DIGEST, "production", None, NOW)
        is None
    )


def test_it_waits_with_the_next_command_and_goes_on_after_a_yes(job: Job) -> None:
    with pytest.raises(Waiting, match="trainyard approve quickstart-1 --by NAME --why WORDS"):
        approval.must_be_given(job, asked(job), NOW)
    approval.answer(job.home, asked(job), given())
    approval.must_be_given(job, asked(job), NOW)
    record = (job.folder / "approval.json").read_text()
    assert '"who": "ada"' in record
    assert '"why": "read the report"' in record


def test_a_repeated_release_of_the_same_bytes_asks_the_same_question(job: Job) -> None:
    again = job.model_copy(update={"run_id": "quickstart-2"})
    assert asked(again) == asked(job)
    other = approval.ask(job, "cd" * 32, "production", None, NOW)
    assert other is not None
    assert other.key != asked(job).key


def test_a_no_stands_and_nobody_turns_it_round(job: Job) -> None:
    approval.answer(job.home, asked(job), given("reject", "grace"))
    with pytest.raises(Refused, match=r"grace rejected it at .*: read the report"):
        approval.must_be_given(job, asked(job), NOW)
    with pytest.raises(Refused, match="grace answered reject"):
        approval.answer(job.home, asked(job), given())


def test_who_is_not_named_and_who_gives_no_reason_are_refused(job: Job) -> None:
    with pytest.raises(Refused, match=r"eve may not answer .*: the recipe names ada, grace"):
        approval.answer(job.home, asked(job), given(who="eve"))
    with pytest.raises(InputError, match="reason"):
        approval.answer(job.home, asked(job), given().model_copy(update={"why": " "}))
    assert asked(job).answer is None


def test_silence_is_no(job: Job) -> None:
    first = asked(job, flow_run="f")
    with pytest.raises(Refused, match="the question expired 2026-11-22T12:00:00"):
        approval.answer(job.home, first, given(at=LATER))
    with pytest.raises(Refused, match="expired"):  # the run that asked does not ask again
        approval.must_be_given(job, asked(job, LATER, "f"), LATER)
    assert asked(job, LATER, "another run").asked == LATER.isoformat(timespec="milliseconds")


def test_a_yes_holds_no_longer_than_its_question(job: Job) -> None:
    approval.answer(job.home, asked(job), given())
    with pytest.raises(Waiting):
        approval.must_be_given(job, asked(job, LATER), LATER)


def test_another_list_of_names_is_another_question(job: Job) -> None:
    approval.answer(job.home, asked(job), given())
    deploy = job.recipe.deploy
    spec = deploy.approval
    assert spec is not None
    changed = deploy.model_copy(update={"approval": spec.model_copy(update={"by": ("eve",)})})
    other = job.model_copy(update={"recipe": job.recipe.model_copy(update={"deploy": changed})})
    assert asked(other).answer is None


def test_a_run_that_asks_nothing_is_named_with_those_that_do(job: Job) -> None:
    with pytest.raises(NotFound, match="asks for no approval; these do: none"):
        approval.asked_by(job.home, "quickstart-9")
    approval.ask(job, DIGEST, "production", None, datetime.now(UTC))
    with pytest.raises(NotFound, match="these do: quickstart-1"):
        approval.asked_by(job.home, "quickstart-9")
