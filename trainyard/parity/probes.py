"""What the server that will be deployed makes of a few questions: tokens and log-probabilities."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.endpoint import Endpoint, NotAnswered, Reply

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One greedy answer. What an engine does not tell is None."""

    messages: Messages
    max_tokens: int
    text: str
    prompt_tokens: int | None
    prompt_ids: list[int] | None
    """Token ids of the prompt as the server made them."""
    token_ids: list[int] | None
    """Token ids of the answer, with the one that ended it."""
    logprobs: list[float] | None


def ask_server(
    base_url: str,
    model: str,
    questions: Sequence[Messages],
    *,
    max_tokens: int,
    timeout_s: float,
    api_key: str | None = None,
) -> list[Answered]:
    """Ask each question once. Raises Unavailable, or InputError for a server that refuses one."""
    return asyncio.run(_ask(base_url, model, questions, max_tokens, timeout_s, api_key))


async def _ask(
    base_url: str,
    model: str,
    questions: Sequence[Messages],
    max_tokens: int,
    timeout_s: float,
    api_key: str | None,
) -> list[Answered]:
    async def one(server: Endpoint, messages: Messages) -> Answered:
        # as the probe of a rollout asks, and with what engines tell beside the text
        body = {
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "seed": 0,
            "logprobs": True,
            "return_token_ids": True,
        }
        try:
            return _read(await server.post("/v1/chat/completions", body), messages, max_tokens)
        except NotAnswered as error:
            raise InputError(f"{base_url} cannot answer a parity probe: {error}") from error

    connections = max(1, min(len(questions), 8))
    async with Endpoint(
        base_url, api_key=api_key, timeout_s=timeout_s, connections=connections
    ) as server:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(server, messages)) for messages in questions]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


def _read(reply: Reply, messages: Messages, max_tokens: int) -> Answered:
    try:
        choice = reply.body["choices"][0]
        text = choice["message"]["content"] or ""
        usage = reply.body.get("usage") or {}
        content = (choice.get("logprobs") or {}).get("content")
        prompt_ids = reply.body.get("prompt_token_ids") or choice.get("prompt_token_ids")
        token_ids = choice.get("token_ids")
        return Answered(
            messages=messages,
            max_tokens=max_tokens,
            text=str(text),
            prompt_tokens=usage.get("prompt_tokens"),
            prompt_ids=None if prompt_ids is None else [int(i) for i in prompt_ids],
            token_ids=None if token_ids is None else [int(i) for i in token_ids],
            logprobs=None if content is None else [float(entry["logprob"]) for entry in content],
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NotAnswered(f"a reply that is no chat completion: {error!r}") from error
