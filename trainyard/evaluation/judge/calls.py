"""Calls to a judge: bounded, cached by content, within a budget; an answer or `invalid`."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.endpoint import Endpoint, NotAnswered
from trainyard.evaluation.judge.protocol import (
    Pair,
    Single,
    fingerprint,
    read_grade,
    read_verdict,
    request,
)
from trainyard.files import digest_json, read_json, write_json
from trainyard.recipe.evaluate import JudgeSpec
from trainyard.secrets import resolve

Shown = Pair | Single
TRIES = 3
CHARS_PER_TOKEN = 3.5


@dataclass
class Account:
    """What the calls of one run cost, and how they failed."""

    cap_usd: float
    spent_usd: float = 0.0
    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    """Some replies carried no usage; their tokens were estimated from characters."""
    failures: Counter[str] = field(default_factory=Counter)

    _in_flight_usd: float = 0.0

    @contextmanager
    def reserved(self, usd: float) -> Iterator[bool]:
        """Whether a call of at most `usd` fits beside what is spent and what is in flight."""
        fits = usd <= 0 or self.spent_usd + self._in_flight_usd + usd <= self.cap_usd
        held = usd if fits else 0.0
        self._in_flight_usd += held
        try:
            yield fits
        finally:
            self._in_flight_usd -= held

    def as_json(self) -> dict[str, Any]:
        return {
            "spent_usd": round(self.spent_usd, 6),
            "cap_usd": self.cap_usd,
            "calls": self.calls,
            "cached": self.cached,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "estimated": self.estimated,
            "failures": dict(self.failures),
        }


@dataclass(frozen=True, slots=True)
class Call:
    """One verdict on a pair as it was shown, or one grade; `served` is the model that gave it."""

    verdict: str
    served: str
    error: str | None = None
    grade: float | None = None


@dataclass(frozen=True, slots=True)
class Jury:
    """One juror with the questions it is asked and the place of its cache."""

    juror: JudgeSpec
    rubric: str
    criteria: tuple[str, ...]
    seed: int
    cache: Path
    concurrency: int = 8
    timeout_s: float = 120.0
    single: bool = False
    """Answers are graded alone instead of compared."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.juror, self.rubric, self.criteria, single=self.single)

    def place(self, pair: Shown) -> Path:
        answers = [pair.answer] if isinstance(pair, Single) else [pair.first, pair.second]
        key = digest_json([self.fingerprint, self.seed, pair.prompt, *answers, pair.reference])
        return self.cache / key[:2] / f"{key}.json"

    def price(self, input_tokens: float, output_tokens: float) -> float:
        prices = self.juror.usd_per_million_input, self.juror.usd_per_million_output
        return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6

    def estimate(self, pairs: Sequence[Shown]) -> float:
        """Upper estimate in USD of the calls that are not in the cache."""
        missing = [pair for pair in pairs if not self.place(pair).exists()]
        return sum(self.most(self.body(pair, 0)) for pair in missing)

    def body(self, pair: Shown, attempt: int) -> dict[str, Any]:
        return request(self.juror, self.rubric, self.criteria, pair, self.seed + attempt)

    def most(self, body: Mapping[str, Any]) -> float:
        """Upper estimate in USD of one call."""
        return self.price(len(str(body)) / CHARS_PER_TOKEN, self.juror.max_tokens)


def judge(jury: Jury, pairs: Sequence[Shown], account: Account) -> list[Call]:
    """One call per pair, in order. Raises Unavailable when the judge's server is not there."""
    return asyncio.run(_judge(jury, pairs, account))


async def _judge(jury: Jury, pairs: Sequence[Shown], account: Account) -> list[Call]:
    calls: list[Call] = [Call("invalid", "", "not asked")] * len(pairs)
    waiting = iter(list(enumerate(pairs)))
    key = resolve(jury.juror.api_key) if jury.juror.api_key else None

    async def work(server: Endpoint) -> None:
        for index, pair in waiting:
            calls[index] = await _one(jury, server, pair, account)
            if calls[index].error is not None:
                account.failures[str(calls[index].error).split(":")[0]] += 1

    connections = max(1, min(jury.concurrency, len(pairs)))
    async with Endpoint(
        jury.juror.base_url, api_key=key, timeout_s=jury.timeout_s, connections=connections
    ) as server:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(connections):
                    group.create_task(work(server))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return calls


async def _one(jury: Jury, server: Endpoint, pair: Shown, account: Account) -> Call:
    place = jury.place(pair)
    known = _cached(place)
    if known is not None:
        account.cached += 1
        return known
    error = "schema"
    for attempt in range(TRIES):
        body = jury.body(pair, attempt)
        with account.reserved(jury.most(body)) as fits:
            if not fits:
                return Call("invalid", "", "budget")
            account.calls += 1
            try:
                reply = (await server.post("/v1/chat/completions", body)).body
            except NotAnswered as failure:
                error = f"transport: {failure}"
                continue
            _charge(jury, account, body, reply)
        text, error = _text(reply)
        call = _read(jury, text, str(reply.get("model", ""))) if text is not None else None
        if call is not None:
            write_json(place, {"verdict": call.verdict, "served": call.served,
                               "grade": call.grade, "reply": reply})  # fmt: skip
            return call
    return Call("invalid", "", error)


def _cached(place: Path) -> Call | None:
    if not place.exists():
        return None
    try:
        found = read_json(place)
        return Call(found["verdict"], found["served"], grade=found.get("grade"))
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{place} is no cached judgement: {error}; remove the file") from error


def _text(reply: Mapping[str, Any]) -> tuple[str | None, str]:
    """The text of a reply, and what it is if it holds no verdict: refusal, truncated or schema."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None, "schema"
    if message.get("refusal") or not isinstance(text, str) or not text.strip():
        return None, "refusal"
    return text, "truncated" if choice.get("finish_reason") == "length" else "schema"


def _read(jury: Jury, text: str, served: str) -> Call | None:
    if jury.single:
        grade = read_grade(text, jury.criteria)
        return None if grade is None else Call("graded", served, grade=grade)
    verdict = read_verdict(text)
    return None if verdict is None else Call(verdict, served)


def _charge(
    jury: Jury, account: Account, body: Mapping[str, Any], reply: Mapping[str, Any]
) -> None:
    usage = reply.get("usage")
    given = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(
        usage, dict) else (None, None)  # fmt: skip
    if not all(isinstance(tokens, int) and tokens >= 0 for tokens in given):
        account.estimated = True
        given = (
            int(len(str(body["messages"])) / CHARS_PER_TOKEN),
            int(len(str(reply)) / CHARS_PER_TOKEN),
        )
    account.input_tokens += int(given[0] or 0)
    account.output_tokens += int(given[1] or 0)
    account.spent_usd += jury.price(int(given[0] or 0), int(given[1] or 0))
