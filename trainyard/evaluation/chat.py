"""Chat questions: explicit sampling, and what is kept of a reply."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.evaluation.asking import Question
from trainyard.evaluation.endpoint import NotAnswered, Reply
from trainyard.evaluation.judge.protocol import judged_item
from trainyard.evaluation.samples import Item


def chat_question(
    suite: str,
    item: Item,
    arm: str,
    *,
    max_tokens: int,
    seed: int,
    stop: Sequence[str] = (),
) -> Question:
    """Greedy, with every sampling parameter stated: servers fill gaps from the model's own file."""
    body: dict[str, Any] = {
        "messages": list(item.messages),
        "temperature": 0,
        "top_p": 1,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    if stop:
        body["stop"] = list(stop)
    row = {"suite": suite, "id": item.id, "prompt": item.prompt, "reference": item.reference,
           "request": judged_item(item)}  # fmt: skip
    return Question(suite, item.id, arm, "/v1/chat/completions", body, row, read_chat)


def read_chat(reply: Reply) -> dict[str, Any]:
    """Text, reason of the end, tokens and latency. Raises NotAnswered for a reply without text."""
    try:
        choice: Mapping[str, Any] = reply.body["choices"][0]
        text = choice["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise NotAnswered("the reply has no choices[0].message") from error
    if not isinstance(text, str):
        raise NotAnswered("the reply has no text")
    usage = reply.body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return {
        "text": text,
        "finish_reason": choice.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "latency_ms": round(reply.seconds * 1000, 3),
    }
