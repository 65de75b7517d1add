"""A named person's yes or no to one version in one environment, kept in the home folder.

The question is about the version's digest, so its answer holds for a repeated or resumed release of
the same bytes, until the question expires. Nothing but a recorded `approve` opens.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from filelock import FileLock

from trainyard import files
from trainyard.errors import InputError, NotFound, Refused, Waiting
from trainyard.recipe.approval import Place
from trainyard.recipe.base import Frozen
from trainyard.release.job import Job

FILE = "approval.json"

Choice = Literal["approve", "reject"]


class Answer(Frozen):
    choice: Choice
    who: str
    why: str
    time: str


class Question(Frozen):
    name: str
    digest: str
    environment: Place
    run_id: str
    """Run that asked first."""
    flow_run_id: str | None
    by: tuple[str, ...]
    asked: str
    expires: str
    answer: Answer | None = None

    @property
    def served_name(self) -> str:
        return f"{self.name}@{self.digest[:12]}"

    @property
    def key(self) -> str:
        """Of this question and no later one about the same version."""
        asked = re.sub(r"\D", "", self.asked)[:17]
        return f"{self.environment}-{self.digest[:12]}-{asked}"

    @property
    def words(self) -> str:
        return (
            f"{self.served_name} waits for an approval for {self.environment} by "
            f"{' or '.join(self.by)}, until {self.expires}"
        )

    @property
    def command(self) -> str:
        return f"trainyard approve {self.run_id} --by NAME --why WORDS"

    def is_asked_at(self, now: datetime) -> bool:
        """Whether it is new, or somebody asked it before."""
        return self.asked == now.isoformat(timespec="milliseconds")

    def is_expired(self, now: datetime) -> bool:
        return now >= datetime.fromisoformat(self.expires)


def ask(
    job: Job, digest: str, environment: Place, flow_run_id: str | None, now: datetime
) -> Question | None:
    """Return the question about this version, asked now where there is none; None if none is due.

    One that expired is asked anew, but not by the flow run that asked it.
    """
    spec = job.recipe.deploy.approval
    if spec is None or environment not in spec.before:
        return None
    path = _path(job.home, job.recipe.name, digest, environment)
    with _held(path):
        if path.exists():
            known = Question.model_validate(files.read_json(path))
            same_run = flow_run_id is not None and known.flow_run_id == flow_run_id
            if known.by == spec.by and (same_run or not known.is_expired(now)):
                return known
        question = Question(
            name=job.recipe.name,
            digest=digest,
            environment=environment,
            run_id=job.run_id,
            flow_run_id=flow_run_id,
            by=spec.by,
            asked=now.isoformat(timespec="milliseconds"),
            expires=(now + timedelta(hours=spec.expires_h)).isoformat(timespec="seconds"),
        )
        files.write_json(path, question.model_dump(mode="json"))
    return question


def answer(home: Path, question: Question, given: Answer) -> Question:
    """Record a person's answer. Raises Refused for who is not named, too late, or after another."""
    path = _path(home, question.name, question.digest, question.environment)
    with _held(path):
        known = Question.model_validate(files.read_json(path))
        if given.who not in known.by:
            raise Refused(
                f"{given.who} may not answer for {known.served_name}: the recipe names "
                f"{', '.join(known.by)}"
            )
        if known.answer is not None:
            done = known.answer
            raise Refused(f"{done.who} answered {done.choice} at {done.time}: {done.why}")
        if known.is_expired(datetime.fromisoformat(given.time)):
            raise Refused(f"the question expired {known.expires}: release again to ask anew")
        if not given.why.strip():
            raise InputError("an answer needs a reason in words")
        answered = known.model_copy(update={"answer": given})
        files.write_json(path, answered.model_dump(mode="json"))
    return answered


def must_be_given(job: Job, question: Question, now: datetime) -> Answer:
    """Return the answer once it is `approve`, which is then on record with the run.

    Raises Refused after a `reject` or too late, Waiting with the next command until then.
    """
    given = question.answer
    if given is None and not question.is_expired(now):
        raise Waiting(f"{question.words}; answer with `{question.command}`, then repeat this")
    if given is None or question.is_expired(now):
        raise Refused(
            f"{question.served_name} may not go to {question.environment}: the question expired "
            f"{question.expires}"
        )
    if given.choice == "reject":
        raise Refused(
            f"{question.served_name} may not go to {question.environment}: {given.who} rejected it "
            f"at {given.time}: {given.why}"
        )
    record = {"who": given.who, "why": given.why, "time": given.time}
    files.write_json(job.folder / FILE, record)
    return given


def check(job: Job, digest: str, environment: Place) -> None:
    """What stands before every traffic: Refused or Waiting unless nobody has to approve."""
    now = datetime.now(UTC)
    question = ask(job, digest, environment, None, now)
    if question is not None:
        must_be_given(job, question, now)


def asked_by(home: Path, run_id: str) -> Question:
    """Raises NotFound naming the questions that are open."""
    found = questions(home)
    mine = [question for question in found if question.run_id == run_id]
    if mine:
        return next((q for q in mine if q.answer is None), mine[-1])
    now = datetime.now(UTC)
    still = [q.run_id for q in found if q.answer is None and not q.is_expired(now)]
    raise NotFound(f"{run_id} asks for no approval; these do: {', '.join(still) or 'none'}")


def questions(home: Path) -> list[Question]:
    """Every question, the oldest first."""
    paths = (home / "approvals").glob("*/*.json")
    found = [Question.model_validate(files.read_json(path)) for path in paths]
    return sorted(found, key=lambda question: question.asked)


def granted(home: Path, name: str, digest: str) -> Answer | None:
    """The latest approval of a version, wherever to."""
    mine = [q.answer for q in questions(home) if (q.name, q.digest) == (name, digest)]
    given = [a for a in mine if a is not None and a.choice == "approve"]
    return max(given, key=lambda a: a.time, default=None)


def now_s() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(home: Path, name: str, digest: str, environment: Place) -> Path:
    return home / "approvals" / name / f"{environment}-{digest[:16]}.json"


def _held(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))
