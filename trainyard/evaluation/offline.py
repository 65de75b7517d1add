"""Answers without a server: a process of its own generates in batches, and every line is kept."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.asking import Answers, Arm, Question, ask
from trainyard.evaluation.endpoint import NotAnswered, Reply
from trainyard.process import die_with_parent

COMMAND = (sys.executable, "-m", "trainyard.evaluation.offline_model")


@dataclass(frozen=True, slots=True)
class OfflineArm:
    """A model in a folder of this machine, answering without a server."""

    base: Path
    digest: str
    """sha256 of the weights: what an answer belongs to."""
    adapter: Path | None = None
    threads: int = 1
    trust_remote_code: bool = False

    @property
    def model(self) -> str:
        return f"{self.adapter or self.base} (offline)"


def ask_offline(
    arm: OfflineArm,
    questions: Sequence[Question],
    answers: Answers,
    *,
    progress: Callable[[Question], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per question, in order: the stored answer, the new one, or one with `error`.

    An answer is stored as soon as its batch is done. Raises InputError when the model cannot be
    loaded.
    """
    rows: dict[int, dict[str, Any]] = {}
    for index, question in enumerate(questions):
        known = answers.get(question.key(arm.digest))
        if known is not None:
            rows[index] = known
            _step(progress, question)
    missing = [index for index in range(len(questions)) if index not in rows]
    if missing:
        wrong = None
        with _lines(arm, questions, missing) as lines:
            for line in lines:
                if "self_test" in line:
                    wrong = line["self_test"]
                    continue
                question = questions[line["index"]]
                rows[line["index"]] = row = _row(arm, question, line)
                if "error" not in row:
                    answers.append(row)
                _step(progress, question)
        for index in missing:
            why = wrong or "the process ended without an answer"
            rows.setdefault(index, _row(arm, questions[index], {"error": why}))
    return [
        {**rows[index], **question.row, "arm": question.arm}
        for index, question in enumerate(questions)
    ]


def ask_arm(
    arm: Arm | OfflineArm,
    questions: Sequence[Question],
    answers: Answers,
    *,
    concurrency: int,
    timeout_s: float,
    progress: Callable[[Question], None] | None = None,
) -> list[dict[str, Any]]:
    """Ask a server, or the model itself; see `ask` and `ask_offline`."""
    if isinstance(arm, OfflineArm):
        return ask_offline(arm, questions, answers, progress=progress)
    return ask(
        arm, questions, answers, concurrency=concurrency, timeout_s=timeout_s, progress=progress
    )


def _row(arm: OfflineArm, question: Question, line: dict[str, Any]) -> dict[str, Any]:
    head = {"key": question.key(arm.digest), "suite": question.suite, "id": question.id}
    if "error" in line:
        return {**head, "error": line["error"]}
    try:
        return {**head, "model": arm.model, **question.read(Reply(line["body"], line["seconds"]))}
    except NotAnswered as error:
        return {**head, "error": str(error)}


@contextmanager
def _lines(
    arm: OfflineArm, questions: Sequence[Question], wanted: Sequence[int]
) -> Iterator[Iterator[dict[str, Any]]]:
    model = {
        "base": str(arm.base),
        "adapter": None if arm.adapter is None else str(arm.adapter),
        "threads": arm.threads,
        "trust_remote_code": arm.trust_remote_code,
    }
    asked = [
        {"index": i, "path": questions[i].path, "body": dict(questions[i].body)} for i in wanted
    ]
    with tempfile.TemporaryFile("w+b") as given, tempfile.TemporaryFile("w+b") as log:
        given.write("".join(json.dumps(line) + "\n" for line in [model, *asked]).encode())
        given.seek(0)
        process = subprocess.Popen(
            list(COMMAND),
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": str(arm.threads)},
            preexec_fn=die_with_parent,
        )
        assert process.stdout is not None
        try:
            yield (json.loads(line) for line in process.stdout)
            if process.wait() != 0:
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines()
                last = said[-1] if said else f"exit {process.returncode}"
                raise InputError(f"{arm.model} could not answer offline: {last}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _step(progress: Callable[[Question], None] | None, question: Question) -> None:
    if progress is not None:
        progress(question)
