"""Questions to an endpoint and their answers on disk: bounded, resumable after any kill."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.errors import InputError, Unavailable
from trainyard.evaluation.endpoint import Endpoint, NotAnswered, Reply
from trainyard.files import digest_json, write_text

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
GIVE_UP_AFTER = 20
"""Failures in a row, without one answer, after which the server counts as down."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One model behind an OpenAI-compatible server."""

    base_url: str
    model: str
    digest: str
    """sha256 of the weights: what an answer belongs to, whatever name serves them."""
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """One request to one arm; `row` is what its answer's line starts with."""

    suite: str
    id: str
    arm: str
    path: str
    body: Mapping[str, Any]
    row: Mapping[str, Any]
    read: Callable[[Reply], dict[str, Any]]
    """Fields of the answer's line; raises NotAnswered when the reply has none."""

    def key(self, digest: str) -> str:
        """What identifies the answer: the weights and the request, never the served name."""
        return digest_json([digest, self.path, dict(self.body)])


class Answers:
    """`answers.jsonl`: a line is appended per answer; only whole lines count after a kill."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row
                except (ValueError, KeyError, TypeError):
                    continue
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def append(self, row: dict[str, Any]) -> None:
        self._known[row["key"]] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def keep(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file by these rows in this order, atomically."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(self._path, "".join(lines))


def ask(
    arm: Arm,
    questions: Sequence[Question],
    answers: Answers,
    *,
    concurrency: int,
    timeout_s: float,
    progress: Callable[[Question], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per question, in order: the stored answer, the new one, or one with `error`.

    Raises Unavailable when the server is not there, InputError when it does not serve the model.
    """
    return asyncio.run(_ask(arm, questions, answers, concurrency, timeout_s, progress))


async def _ask(
    arm: Arm,
    questions: Sequence[Question],
    answers: Answers,
    concurrency: int,
    timeout_s: float,
    progress: Callable[[Question], None] | None,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in questions]
    waiting = iter(list(enumerate(questions)))
    failures = 0
    answered = False

    async def work(server: Endpoint) -> None:
        nonlocal failures, answered
        for index, question in waiting:
            key = question.key(arm.digest)
            known = answers.get(key)
            if known is None:
                known = await _one(server, arm, question, key)
                failed = "error" in known
                failures = failures + 1 if failed else 0
                answered = answered or not failed
                if failures >= GIVE_UP_AFTER and not answered:
                    raise Unavailable(
                        f"{arm.base_url} failed {failures} requests in a row, last: "
                        f"{known['error']}"
                    )
                if not failed:
                    answers.append(known)
            rows[index] = {**known, **question.row, "arm": question.arm}
            if progress is not None:
                progress(question)

    connections = max(1, min(concurrency, len(questions)))
    async with Endpoint(
        arm.base_url, api_key=arm.api_key, timeout_s=timeout_s, connections=connections
    ) as server:
        if any(answers.get(question.key(arm.digest)) is None for question in questions):
            await _check_served(server, arm)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(connections):
                    group.create_task(work(server))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return rows


async def _one(server: Endpoint, arm: Arm, question: Question, key: str) -> dict[str, Any]:
    head = {"key": key, "suite": question.suite, "id": question.id}
    try:
        reply = await server.post(question.path, {"model": arm.model, **question.body})
        served = reply.body.get("model")
        if served not in (None, arm.model):
            raise NotAnswered(f"asked {arm.model}, and {served} answered")
        return {**head, "model": arm.model, **question.read(reply)}
    except NotAnswered as error:
        log.warning("%s %s of %s: %s", question.suite, question.id, question.arm, error)
        return {**head, "error": str(error)}


async def _check_served(server: Endpoint, arm: Arm) -> None:
    names = await server.models()
    if arm.model not in names:
        served = ", ".join(names) or "nothing"
        raise InputError(f"{arm.base_url} does not serve {arm.model!r}; it serves {served}")
