"""A parsed row of any known format to its canonical body.

Body: `kind` and, by kind, sft `messages`; pretrain `text`; preference `prompt chosen rejected`; kto
`prompt completion label`; prompt_only `prompt`; tokenized `input_ids` (`labels`); all may have
`tools` and `images`. Whatever no format uses is kept as metadata.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainyard.data.messages import (
    RowProblem,
    Tags,
    as_messages,
    assistant,
    message,
    parse_tools,
    user,
)

Row = dict[str, Any]
Body = dict[str, Any]
Convert = Callable[[Row, Tags], Body]

COMMON = frozenset(("system", "tools", "images", "image", "parallel_tool_calls"))


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if type(value) is str:
        return value
    if value is None:
        raise RowProblem("missing_field", f"{key} is {'null' if key in row else 'missing'}")
    raise RowProblem("wrong_type", f"{key} is {_kind(value)}, not text")


def _kind(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _optional(row: Row, key: str) -> str:
    return _text(row, key) if row.get(key) is not None else ""


def _opening(row: Row) -> list[Row]:
    system = _optional(row, "system")
    messages = [message("system", system)] if system else []
    for turn in row.get("history") or ():
        if not (isinstance(turn, list) and len(turn) == 2 and all(type(t) is str for t in turn)):
            raise RowProblem("wrong_type", "history is not a list of [question, answer] pairs")
        messages += [user(turn[0]), assistant(turn[1])]
    return messages


def _instruction(row: Row) -> str:
    given = row.get("input")
    text = _text(row, "instruction")
    if not given:
        return text
    extra = _text(row, "input")
    return f"{text}\n{extra}" if text else extra


def _alpaca(row: Row, _: Tags) -> Body:
    asked, answer = _instruction(row), _text(row, "output")
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if "system" in row or "history" in row:
        turns = [*_opening(row), *turns]
    return {"kind": "sft", "messages": turns}


def _alpaca_pair(row: Row, tags: Tags) -> Body:
    prompt = [*_opening(row), user(_instruction(row))]
    return _pair(prompt, row["chosen"], row["rejected"], tags)


def _alpaca_kto(row: Row, tags: Tags) -> Body:
    body = _alpaca(row, tags)["messages"]
    return _kto(body[:-1], body[-1:], row["kto_tag"])


def _openai(row: Row, tags: Tags) -> Body:
    return {"kind": "sft", "messages": _talk(row, row["messages"], tags, "messages")}


def _sharegpt(row: Row, tags: Tags) -> Body:
    return {"kind": "sft", "messages": _talk(row, row["conversations"], tags, "conversations")}


def _talk(row: Row, found: Any, tags: Tags, key: str) -> list[Row]:
    messages = as_messages(found, tags, key)
    system = _optional(row, "system")
    if not system:
        return messages
    if messages[0]["role"] == "system":
        messages = messages[1:]
    return [message("system", system), *messages]


def _talk_pair(key: str) -> Convert:
    def convert(row: Row, tags: Tags) -> Body:
        prompt = _talk(row, row[key], tags, key)
        return _pair(prompt, row["chosen"], row["rejected"], tags)

    return convert


def _talk_kto(key: str) -> Convert:
    def convert(row: Row, tags: Tags) -> Body:
        talk = _talk(row, row[key], tags, key)
        return _kto(talk[:-1], talk[-1:], row["kto_tag"])

    return convert


def _prompt_completion(row: Row, tags: Tags) -> Body:
    prompt = _side(row["prompt"], "user", tags, "prompt")
    completion = _side(row["completion"], "assistant", tags, "completion")
    return {"kind": "sft", "messages": [*_opening(row), *prompt, *completion]}


def _labelled(row: Row, tags: Tags) -> Body:
    prompt = _side(row["prompt"], "user", tags, "prompt")
    completion = _side(row["completion"], "assistant", tags, "completion")
    return _kto([*_opening(row), *prompt], completion, row["label"])


def _preference(row: Row, tags: Tags) -> Body:
    prompt = _side(row["prompt"], "user", tags, "prompt")
    return _pair([*_opening(row), *prompt], row["chosen"], row["rejected"], tags)


def _implicit_preference(row: Row, tags: Tags) -> Body:
    return _pair([], row["chosen"], row["rejected"], tags)


def _openai_preference(row: Row, tags: Tags) -> Body:
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise RowProblem("wrong_type", "input is not an object with messages")
    prompt = as_messages(given["messages"], tags, "input.messages")
    body = _pair(prompt, row["preferred_output"], row["non_preferred_output"], tags)
    if given.get("tools"):
        body["tools"] = parse_tools(given["tools"])
    return body


def _v1_preference(row: Row, tags: Tags) -> Body:
    return _pair([], row["chosen_messages"], row["rejected_messages"], tags)


def _prompt_only(row: Row, tags: Tags) -> Body:
    prompt = _side(row["prompt"], "user", tags, "prompt")
    return {"kind": "prompt_only", "prompt": [*_opening(row), *prompt]}


def _plain_text(row: Row, _: Tags) -> Body:
    text = _text(row, "text")
    if not text.strip():
        raise RowProblem("empty_output", "text is empty")
    return {"kind": "pretrain", "text": text}


def _tokenized(row: Row, _: Tags) -> Body:
    ids = row["input_ids"]
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise RowProblem("wrong_type", "input_ids is not a list of token ids")
    body: Body = {"kind": "tokenized", "input_ids": ids}
    for key in ("labels", "attention_mask"):
        if row.get(key) is None:
            continue
        if not isinstance(row[key], list) or len(row[key]) != len(ids):
            raise RowProblem("wrong_type", f"{key} does not have one value per token ({len(ids)})")
        if key == "labels":
            body["labels"] = row[key]
    return body


def _context_question(context: str) -> Convert:
    def convert(row: Row, _: Tags) -> Body:
        asked = f"{_text(row, context)}\n\n{_text(row, 'question')}"
        return {"kind": "sft", "messages": [user(asked), assistant(_text(row, "answer"))]}

    return convert


def _renamed(prompt: str, completion: str) -> Convert:
    def convert(row: Row, _: Tags) -> Body:
        system = _optional(row, "system_prompt") or _optional(row, "system")
        messages = [message("system", system)] if system else []
        asked = _text(row, prompt)
        if prompt == "instruction" and row.get("input"):
            asked = _instruction(row)
        messages += [user(asked), assistant(_text(row, completion))]
        return {"kind": "sft", "messages": messages}

    return convert


def _reflection(row: Row, _: Tags) -> Body:
    """Axolotl's `reflection`: a draft, what is wrong with it, and the answer."""
    told = (
        f"### Thought:\n{_text(row, 'output')}\n\n### Agent Reflection:\n"
        f"{_text(row, 'reflection')}\n\n### Final Response:\n{_text(row, 'corrected')}"
    )
    return {"kind": "sft", "messages": [user(_instruction(row)), assistant(told)]}


def _choice(answer: str) -> Convert:
    def convert(row: Row, _: Tags) -> Body:
        choices = row["choices"]
        if not isinstance(choices, list) or not all(type(c) is str for c in choices):
            raise RowProblem("wrong_type", "choices is not a list of texts")
        asked = "\n".join([_text(row, "question"), *(f"- {choice}" for choice in choices)])
        return {"kind": "sft", "messages": [user(asked), assistant(_text(row, answer))]}

    return convert


def _pair_of(prompt: str, chosen: str, rejected: str) -> Convert:
    def convert(row: Row, tags: Tags) -> Body:
        asked = _instruction(row) if prompt == "instruction" else _text(row, prompt)
        return _pair([*_opening(row), user(asked)], row[chosen], row[rejected], tags)

    return convert


def _side(value: Any, role: str, tags: Tags, key: str) -> list[Row]:
    """A prompt or completion: text, one message, or a list of messages."""
    if type(value) is str:
        return [message(role, value)]
    if isinstance(value, dict):
        return as_messages([value], tags, key)
    if value is None:
        raise RowProblem("missing_field", f"{key} is null")
    if not isinstance(value, list):
        raise RowProblem("wrong_type", f"{key} is {_kind(value)}, not text or messages")
    return as_messages(value, tags, key)


def _pair(prompt: list[Row], chosen: Any, rejected: Any, tags: Tags) -> Body:
    good = _side(chosen, "assistant", tags, "chosen")
    bad = _side(rejected, "assistant", tags, "rejected")
    if not prompt or good[: len(prompt)] == prompt == bad[: len(prompt)]:
        shared = 0
        while shared < min(len(good), len(bad)) - 1 and good[shared] == bad[shared]:
            shared += 1
        prompt, good, bad = good[:shared], good[shared:], bad[shared:]
        if not prompt:
            raise RowProblem("missing_field", "chosen and rejected share no prompt")
    if good == bad:
        raise RowProblem("same_answers", "chosen and rejected are equal")
    return {"kind": "preference", "prompt": prompt, "chosen": good, "rejected": bad}


def _kto(prompt: list[Row], completion: list[Row], label: Any) -> Body:
    words = {"true": True, "false": False, "1": True, "0": False}
    known = words.get(label.lower()) if isinstance(label, str) else label
    if not isinstance(known, bool):
        raise RowProblem("wrong_type", f"the label is {_kind(label)}, not true or false")
    if not prompt:
        raise RowProblem("missing_field", "no prompt before the completion")
    return {"kind": "kto", "prompt": prompt, "completion": completion, "label": known}


@dataclass(frozen=True)
class Shape:
    """One way a row may look: the columns it needs, those it may have, and how it converts."""

    name: str
    needs: frozenset[str]
    may: frozenset[str]
    convert: Convert


def _shape(name: str, needs: str, convert: Convert, may: str = "") -> Shape:
    return Shape(name, frozenset(needs.split()), frozenset(may.split()) | COMMON, convert)


SHAPES = (
    _shape("alpaca", "instruction output", _alpaca, "input history"),
    _shape("alpaca", "instruction output reflection corrected", _reflection, "input"),
    _shape("alpaca", "instruction response", _renamed("instruction", "response"), "input"),
    _shape("alpaca", "INSTRUCTION RESPONSE", _renamed("INSTRUCTION", "RESPONSE")),
    _shape("preference", "instruction chosen rejected", _alpaca_pair, "input history"),
    _shape("kto", "instruction output kto_tag", _alpaca_kto, "input history"),
    _shape("openai", "messages", _openai),
    _shape("preference", "messages chosen rejected", _talk_pair("messages")),
    _shape("kto", "messages kto_tag", _talk_kto("messages")),
    _shape("sharegpt", "conversations", _sharegpt),
    _shape("preference", "conversations chosen rejected", _talk_pair("conversations")),
    _shape("kto", "conversations kto_tag", _talk_kto("conversations")),
    _shape("prompt_completion", "prompt completion", _prompt_completion, "history"),
    _shape("prompt_completion", "prompt response", _renamed("prompt", "response")),
    _shape("prompt_completion", "prompt generation", _renamed("prompt", "generation")),
    _shape("prompt_completion", "question answer", _renamed("question", "answer")),
    _shape(
        "prompt_completion", "question response", _renamed("question", "response"), "system_prompt"
    ),
    _shape("prompt_completion", "context question answer", _context_question("context")),
    _shape("prompt_completion", "article question answer", _context_question("article")),
    _shape("prompt_completion", "article summary", _renamed("article", "summary")),
    _shape("prompt_completion", "message_1 message_2", _renamed("message_1", "message_2")),
    _shape("prompt_completion", "question choices answer", _choice("answer")),
    _shape("prompt_completion", "question choices solution", _choice("solution")),
    _shape("prompt_completion", "question choices explanation", _choice("explanation")),
    _shape("preference", "prompt chosen rejected", _preference),
    _shape(
        "preference",
        "instruction chosen_response rejected_response",
        _pair_of("instruction", "chosen_response", "rejected_response"),
        "input",
    ),
    _shape("preference", "question chosen rejected", _pair_of("question", "chosen", "rejected")),
    _shape("preference", "chosen rejected", _implicit_preference),
    _shape("preference", "input preferred_output non_preferred_output", _openai_preference),
    _shape("preference", "chosen_messages rejected_messages", _v1_preference),
    _shape("kto", "prompt completion label", _labelled),
    _shape("prompt_only", "prompt", _prompt_only),
    _shape("text", "text", _plain_text),
    _shape("tokenized", "input_ids", _tokenized, "labels attention_mask"),
)


TEXTS = frozenset(
    [
        "instruction",
        "output",
        "response",
        "INSTRUCTION",
        "RESPONSE",
        "generation",
        "question",
        "answer",
        "context",
        "article",
        "summary",
        "message_1",
        "message_2",
        "text",
    ]
)
"""Columns that can only be text, in whatever format."""


REFUSED = {
    frozenset(["completions", "labels"]): "steps with a label each (stepwise) train a reward model,"
    " which is not done here: name `format: prompt_only` to take the prompts alone",
    frozenset(
        ["segments"]
    ): "segments with a label each (template-free) are not read: write them as messages",
}
"""Columns of formats that are known and not read, and what is said of them."""


class Shapes:
    """Recognises rows of one source; remembers what it decided per set of columns."""

    def __init__(
        self, format: str = "auto", tags: Mapping[str, str | tuple[str, ...]] | None = None
    ) -> None:
        self.shapes = [s for s in SHAPES if format in ("auto", s.name)]
        self.tags, self.guess = Tags.named(tags or {}), format == "auto"
        self.known: dict[tuple[str, ...], tuple[Convert, tuple[str, ...], bool]] = {}

    def body(self, row: Row) -> tuple[Body, Row]:
        """Canonical body and metadata of `row`. Raises RowProblem."""
        if None in row.values():  # else a row could mean another thing after other rows
            row = {k: v for k, v in row.items() if v is not None}
        columns = tuple(row)
        found = self.known.get(columns)
        if found is None:
            shape = self.recognise(frozenset(columns))
            spare = tuple(c for c in columns if c not in shape.needs | shape.may)
            more = not {"tools", "images", "image"}.isdisjoint(columns)
            found = self.known[columns] = shape.convert, spare, more
        convert, spare, more = found
        body = convert(row, self.tags)
        if more and row.get("tools"):
            body["tools"] = parse_tools(row["tools"])
        if more and (images := row.get("images") or row.get("image")):
            body["images"] = images if isinstance(images, list) else [images]
        return body, {name: row[name] for name in spare} if spare else {}

    def recognise(self, columns: frozenset[str]) -> Shape:
        """The one shape that fits these columns. Raises RowProblem naming two, or what lacks."""
        fitting = [s for s in self.shapes if s.needs <= columns]
        best = [s for s in fitting if not any(s.needs < other.needs for other in fitting)]
        if self.guess and all(s.name == "prompt_only" for s in best):
            for refused, why in REFUSED.items():
                if refused <= columns:
                    raise RowProblem("unknown_format", why)
        if len(best) > 1:
            best = [s for s in best if s.name != "prompt_only"]
        if len(best) == 1:
            return best[0]
        if best:
            one, two = best[0], best[1]
            raise RowProblem(
                "ambiguous_format",
                f"fits {one.name} ({', '.join(sorted(one.needs))}) and {two.name} "
                f"({', '.join(sorted(two.needs))}): say which with `format`",
            )
        near = [s for s in self.shapes if s.needs & columns]
        if near:
            closest = min(near, key=lambda s: len(s.needs - columns) / len(s.needs))
            missing = ", ".join(sorted(closest.needs - columns))
            raise RowProblem("missing_field", f"{missing} is missing ({closest.name})")
        shown = ", ".join(sorted(columns)[:8]) or "none"
        raise RowProblem("unknown_format", f"no known format has only these columns: {shown}")
