"""Proof, by encoding it, that a row teaches what it says; and how to make it shorter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.frame import Frame
from trainyard.data.messages import text_of
from trainyard.data.rows import prompt_and_answer
from trainyard.data.template import RowNotRendered, Template
from trainyard.data.tokens import FastTokens, Seen, look

Body = dict[str, Any]


@dataclass(frozen=True)
class Proof:
    tokens: int
    trained: int
    """Of the tokens that are left within the longest sequence."""
    findings: list[tuple[str, str]] = field(default_factory=list)


def prove(
    template: Template,
    body: Body,
    max_seq_len: int | None,
    fast: FastTokens | None = None,
    frame: Frame | None = None,
) -> Proof:
    """Encode the row as training will and look at the result.

    `fast` is taken where it gives the tokenizer's ids; `frame`, for a row that is one question and
    one answer in text, gives the template's text.
    """
    text = ""
    try:
        if body["kind"] in ("pretrain", "tokenized"):
            seen = look(template.encode(body), max_seq_len)
        else:
            text, spans = _rendered(template, body, frame)
            quick = fast.look(text, spans, max_seq_len) if fast is not None else None
            seen = quick or look(template.encode_text(text, spans), max_seq_len)
    except RowNotRendered as problem:
        return Proof(0, 0, [("template", str(problem))])
    found = []
    if problem_seen := _lost_or_doubled(template, body, seen, text, frame):
        found.append(("template", problem_seen))
    over = max_seq_len is not None and seen.tokens > max_seq_len
    if not seen.trained and body["kind"] != "prompt_only":
        shown = f" within {max_seq_len} tokens" if over else ""
        found.append(("no_trained_tokens", f"nothing is left to learn{shown}"))
    if over:
        longest = f"the longest sequence is {max_seq_len:,}"
        found.append(("over_length", f"{seen.tokens:,} tokens, {longest}"))
    return Proof(seen.tokens, seen.trained, found)


def prove_rows(
    template: Template,
    pairs: Sequence[tuple[str, str]],
    max_seq_len: int | None,
    fast: FastTokens,
    frame: Frame,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens and trained tokens of each question and answer, and whether `prove` finds nothing.

    Of rows where it may find something, or that `fast` does not know, the numbers mean nothing.
    """
    rendered = [frame.render(asked, told) for asked, told in pairs]
    spans = [span for _, (span,) in rendered]
    seen = fast.look_rows([text for text, _ in rendered], spans, max_seq_len)
    if seen is None:
        nothing = np.zeros(len(pairs), np.int64)
        return nothing, nothing, np.zeros(len(pairs), bool)
    fine = seen.known & (seen.trained > 0)
    if template.eos_token_ids:
        fine &= np.isin(seen.last_trained, template.eos_token_ids)
    if template.bos_token_id is not None:
        fine &= (seen.begin != template.bos_token_id).any(axis=1)
    if max_seq_len is not None:
        fine &= seen.tokens <= max_seq_len
    return seen.tokens, seen.trained, fine


def _rendered(
    template: Template, body: Body, frame: Frame | None
) -> tuple[str, list[tuple[int, int]]]:
    if frame is None:
        return template.render_row(body)
    asked, told = body["messages"]
    return frame.render(asked["content"], told["content"])


def _lost_or_doubled(
    template: Template, body: Body, seen: Seen, text: str, frame: Frame | None
) -> str | None:
    if template.bos_token_id is not None and seen.begin == (template.bos_token_id,) * 2:
        return "the text begins with two BOS tokens"
    kind = body["kind"]
    if kind in ("pretrain", "tokenized"):
        return None
    prompt, answer = prompt_and_answer(body)
    for i, message in enumerate([*prompt, *answer] if frame is None else ()):
        content = text_of(message["content"]).strip()
        if content and content not in text:
            return f"the chat template loses the content of message {i + 1} ({message['role']})"
    if kind == "sft" and template.marks_generation and frame is None:
        head = template.render_prompt(prompt, body.get("tools"))
        if not text.startswith(head):
            return "the chat template is not prefix-preserving: the prompt alone renders otherwise"
    last = seen.last_trained
    if template.eos_token_ids and last is not None and last not in template.eos_token_ids:
        return "the token that ends the answer is not trained"
    return None


def split(template: Template, body: Body, max_seq_len: int) -> list[Body]:
    """Shorter rows that hold everything; empty when a single exchange is already too long.

    Conversations divide after an answer, each part with the system text; text divides at tokens.
    """
    if body["kind"] == "pretrain":
        return list(_windows(template, body, max_seq_len))
    if body["kind"] != "sft":
        return []
    messages = body["messages"]
    system = [m for m in messages[:1] if m["role"] in ("system", "developer")]
    made: list[Body] = []
    current: list[Mapping[str, Any]] = []
    for exchange in _exchanges(messages[len(system) :]):
        grown = {**body, "messages": [*system, *current, *exchange]}
        if current and _length(template, grown) > max_seq_len:
            made.append({**body, "messages": [*system, *current]})
            current = []
        current += exchange
        if _length(template, {**body, "messages": [*system, *current]}) > max_seq_len:
            return []
    return [*made, {**body, "messages": [*system, *current]}]


def _exchanges(messages: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    part: list[Mapping[str, Any]] = []
    for message, after in zip(messages, [*messages[1:], None], strict=True):
        part.append(message)
        if after is None or (message["role"] == "assistant" and after["role"] == "user"):
            yield part
            part = []


def _windows(template: Template, body: Body, max_seq_len: int) -> Iterator[Body]:
    """Text cut at token borders, one token short for the EOS that each part gets."""
    text = body["text"]
    offsets = template.tokenizer.encode(text, add_special_tokens=False).offsets
    size = max(1, max_seq_len - 2)
    starts = [offsets[i][0] for i in range(0, len(offsets), size)]
    starts[:1] = [0]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if text[start:end].strip():
            yield {**body, "text": text[start:end]}


def _length(template: Template, body: Body) -> int:
    return len(template.encode(body).input_ids)
