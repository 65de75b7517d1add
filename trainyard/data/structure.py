"""What a conversation must look like before its words are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.messages import Message, RowProblem, text_of
from trainyard.data.rows import prompt_and_answer

Finding = tuple[str, str]
"""A code of Checks, and what was found."""

EMPTY = ("empty_output", "an assistant message is empty")
ENDS = frozenset(".!?`}]")
ENDING = np.isin(np.arange(256), [ord(c) for c in ENDS])
FENCE = re.compile(rb"```")


def refuse_unusable(body: Mapping[str, Any]) -> None:
    """Raises RowProblem for a row without anything an assistant says, or that ends otherwise."""
    if body["kind"] != "sft":
        return
    messages = body["messages"]
    if messages[-1]["role"] == "assistant":
        return
    if any(m["role"] == "assistant" for m in messages):
        raise RowProblem("last_not_assistant", f"the last message is from {messages[-1]['role']}")
    raise RowProblem("no_assistant", "no message is from the assistant")


def findings(body: Mapping[str, Any], folder: Path, plain: bool, told: str) -> list[Finding]:
    """Findings about roles, emptiness, tools, images and the end of the answer `told`.

    `plain` says that the row is one question of the user and one answer in text.
    """
    if plain:
        if problem := _cut_off(told):
            return [problem]
        return []
    kind = body["kind"]
    if kind in ("pretrain", "tokenized"):
        return []
    found: list[Finding] = []
    prompt, answer = prompt_and_answer(dict(body))
    whole = body["messages"] if kind == "sft" else [*prompt, *answer]
    if order := _order(whole):
        found.append(("role_order", order))
    for message in [*whole, *body.get("rejected", ())]:
        if message["role"] == "assistant" and not message.get("tool_calls"):
            text = text_of(message["content"])
            if not text or text.isspace():
                found.append(EMPTY)
                break
    if answer and (problem := _cut_off(told)) and problem != EMPTY:
        found.append(problem)
    if ("tools" in body or len(whole) > 2) and (calls := _calls(whole, body.get("tools"))):
        found.append(("tool_calls", calls))
    if images := _images(body, whole, folder):
        found.append(("images", images))
    return found


def open_ended(text: bytes, bounds: NDArray[np.int64]) -> list[int]:
    """Rows, as `join` puts them, whose answer does not end like a sentence or holds code."""
    content = np.frombuffer(text, np.uint8)
    last = content[bounds[:, 2] - 1]  # of no answer, what stands before it
    fences = np.array([found.start() for found in FENCE.finditer(text)], np.int64)
    coded = np.searchsorted(bounds[:, 2], fences, "right").tolist()
    return sorted({*np.flatnonzero(~ENDING[last]).tolist(), *coded})


def _order(messages: list[Message]) -> str | None:
    before = ""
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "system" or role == "developer":
            if before not in ("", "system", "developer"):
                return f"message {i + 1} is from {role}, after {before}"
        elif role == "user":
            if before == "user":
                return f"messages {i} and {i + 1} are both from user"
        elif before in ("", "system", "developer"):
            return f"message {i + 1} is from {role} before any question"
        elif role == "tool" and before not in ("tool", "assistant"):
            return f"message {i + 1} is a tool's result after {before}"
        before = role
    return None


def _cut_off(answer: str) -> Finding | None:
    """Signs that generation did not begin, or stopped early: the answer is open at its end."""
    if "```" in answer and answer.count("```") % 2:
        return "truncated_output", "a code block is not closed"
    text = answer.strip()
    if not text:
        return EMPTY
    first, last = text[0], text[-1]
    if last == ",":
        return ("truncated_output", "it ends in a comma") if len(text) > 40 else None
    if last in ENDS:
        return None
    if (first == "{" and '":' in text) or (first == "[" and last != ")"):
        return "truncated_output", "a JSON value is not closed"
    return None


def _calls(messages: list[Message], tools: Any) -> str | None:
    names = {tool.get("function", tool).get("name") for tool in tools or ()}
    waiting: set[str] = set()
    made: set[str] = set()
    called = False
    for message in messages:
        if waiting and message["role"] != "tool":
            return f"the call {min(waiting)!r} has no result before the next turn"
        for call in message.get("tool_calls", ()):
            name = call["function"]["name"]
            if tools is not None and name not in names:
                return f"calls {name}, which is not among its tools"
            called = True
            if "id" in call:
                waiting.add(call["id"])
                made.add(call["id"])
        if message["role"] != "tool":
            continue
        given = message.get("tool_call_id")
        if not called:
            return "a tool's result without a call"
        if given is not None and made and given not in made:
            return f"a result for the call {given!r}, which nobody made"
        waiting.discard(given) if given is not None else waiting.clear()
    return None


def _images(body: Mapping[str, Any], messages: list[Message], folder: Path) -> str | None:
    given = body.get("images")
    places = 0
    for message in messages:
        content = message["content"]
        if type(content) is str:
            places += content.count("<image>") if given is not None else 0
        else:
            places += sum(part.get("type") in ("image", "image_url") for part in content)
    if given is None and not places:
        return None
    if given is not None and len(given) != places:
        return f"{len(given)} images for {places} placeholders"
    for image in given or ():
        path = image.get("path") if isinstance(image, dict) else image
        if isinstance(path, str) and "://" not in path and not (folder / path).is_file():
            return f"the image {path} does not exist"
    return None
