"""A tokenizer and its chat template, without transformers: what a row becomes before training.

The encoding here is the one the check proves and the trainer uses verbatim. Jinja runs in the same
sandbox and with the same functions as `transformers.apply_chat_template`, so that both give the
same text. Covers fast tokenizers (`tokenizer.json`) only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
from tokenizers import Tokenizer

from trainyard.errors import InputError
from trainyard.files import digest_file, digest_json

Message = Mapping[str, Any]
RENDERED_KEYS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class RowNotRendered(ValueError):
    """The template refused this row, or what it rendered cannot be trained on."""


@dataclass(frozen=True)
class Encoded:
    input_ids: list[int]
    trained: list[bool]
    """One per token: does the loss count it?"""


class GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}`: the text a template marks as the assistant's, between two sentinels."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)
    OPEN, CLOSE = "\ue0f0\ue0f1", "\ue0f1\ue0f0"

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark", [jinja2.nodes.Name("__mark__", "load")])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, mark: object, caller: jinja2.runtime.Macro) -> str:
        text = str(caller())
        return f"{self.OPEN}{text}{self.CLOSE}" if mark is True else text


def template_environment() -> jinja2.Environment:
    """The sandbox and the functions of `transformers.apply_chat_template`."""

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def compile_template(source: str) -> jinja2.Template:
    """Raises InputError, with jinja's line, when `source` does not parse."""
    try:
        return template_environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template, line {error.lineno}: {error.message}") from None


@dataclass(frozen=True)
class Template:
    tokenizer: Tokenizer
    source: str | None
    """The chat template's text; None when the folder has none."""
    special: Mapping[str, str]
    """`bos_token`, `eos_token`, … as a template sees them."""
    eos_token_ids: tuple[int, ...]
    """Every token that ends a turn or a text."""
    digest: str
    compiled: jinja2.Template | None = field(repr=False)
    marks_generation: bool

    @classmethod
    def load(cls, folder: Path, chat_template: str | None = None) -> "Template":
        """Read `tokenizer.json` and the chat template of a model folder.

        `chat_template` (the text itself) replaces the folder's own. Raises InputError by file name.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(f"{folder} has no tokenizer.json: only fast tokenizers can be used")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
            raise InputError(f"{file} cannot be read as a tokenizer: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_object(folder / "tokenizer_config.json")
        special = _special_tokens(config, _read_object(folder / "special_tokens_map.json"))
        source = chat_template if chat_template is not None else _find_source(folder, config)
        compiled = compile_template(source) if source is not None else None
        return cls(
            tokenizer=tokenizer,
            source=source,
            special=special,
            eos_token_ids=_eos_ids(folder, tokenizer, special),
            digest=digest_json([digest_file(file), source, sorted(special.items())]),
            compiled=compiled,
            marks_generation=source is not None and "endgeneration" in source,
        )

    @cached_property
    def bos_token_id(self) -> int | None:
        bos = self.special.get("bos_token")
        return self.tokenizer.token_to_id(bos) if bos is not None else None

    @cached_property
    def eos_texts(self) -> tuple[str, ...]:
        named = (self.tokenizer.id_to_token(i) for i in self.eos_token_ids)
        return tuple(text for text in named if text is not None)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        mark: bool = False,
    ) -> str:
        """The text the model sees. Raises RowNotRendered with the template's own words."""
        if self.compiled is None:
            raise InputError("the base model has no chat template: set one, or train on plain text")
        shown = [{k: v for k, v in m.items() if k in RENDERED_KEYS} for m in messages]
        try:
            return self.compiled.render(
                messages=shown,
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                __mark__=mark,
                **self.special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RowNotRendered(f"the chat template refused it: {error}") from None

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        return self.render(messages, tools=tools, add_generation_prompt=True)

    def render_row(self, row: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """Text of a canonical row and the [start, end) spans of it, in characters, to train on."""
        kind = row["kind"]
        tools = row.get("tools")
        if kind == "pretrain":
            text = str(row["text"])
            return text, [(0, len(text))]
        if kind == "prompt_only":
            return self.render_prompt(row["prompt"], tools), []
        if kind == "preference":
            messages, first = [*row["prompt"], *row["chosen"]], len(row["prompt"])
        elif kind == "kto":
            messages, first = [*row["prompt"], *row["completion"]], len(row["prompt"])
        else:
            messages, first = list(row["messages"]), 0
        if self.marks_generation:
            return self._marked(messages, first, tools)
        return self._by_prefix(messages, first, tools)

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """Token ids of a whole canonical row, never cut, and which of them are trained.

        Chat rows: the assistant's turns with the token that ends them. Text: everything, plus EOS.
        Raises RowNotRendered.
        """
        if row["kind"] == "tokenized":
            ids = [int(i) for i in row["input_ids"]]
            labels = row.get("labels", ids)
            return Encoded(ids, [label != -100 for label in labels])
        text, spans = self.render_row(row)
        if row["kind"] == "pretrain":
            ids = self.tokenizer.encode(text, add_special_tokens=True).ids
            eos = self.special.get("eos_token")
            eos_id = self.tokenizer.token_to_id(eos) if eos is not None else None
            if eos_id is not None and (not ids or ids[-1] != eos_id):
                ids.append(eos_id)
            return Encoded(ids, [True] * len(ids))
        return self.encode_text(text, spans)

    def encode_text(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoded:
        """Tokens of rendered text, trained where they touch one of `spans`, in characters."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return Encoded(found.ids, _trained(found.offsets, spans))

    def _marked(
        self, messages: Sequence[Message], first: int, tools: Sequence[Any] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        text = self.render(messages, tools=tools, mark=True)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        plain, spans = "", []
        for piece in text.split(GenerationBlocks.OPEN):
            body, close, rest = piece.partition(GenerationBlocks.CLOSE)
            if not close:
                plain += body
                continue
            start = len(plain)
            plain += body
            spans.append((start, len(plain)))
            plain += rest
        if len(spans) != len(turns):
            raise RowNotRendered(
                f"the chat template marks {len(spans)} generation blocks for {len(turns)} turns"
            )
        kept = zip(turns, spans, strict=True)
        return plain, [
            self.with_eos(plain, span)
            for turn, span in kept
            if turn >= first and _wanted(messages[turn])
        ]

    def with_eos(self, text: str, span: tuple[int, int]) -> tuple[int, int]:
        """`span` and the end-of-turn token that follows it directly, when the block left it out."""
        start, end = span
        if text[start:end].rstrip().endswith(self.eos_texts):
            return span
        following = (eos for eos in self.eos_texts if text.startswith(eos, end))
        return start, end + len(next(following, ""))

    def _by_prefix(
        self, messages: Sequence[Message], first: int, tools: Sequence[Any] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        text = self.render(messages, tools=tools)
        spans = []
        for turn, message in enumerate(messages):
            if turn < first or message["role"] != "assistant" or not _wanted(message):
                continue
            head = self.render(messages[:turn], tools=tools, add_generation_prompt=True)
            if not text.startswith(head):
                raise RowNotRendered(
                    f"the chat template is not prefix-preserving: turn {turn + 1} changes the text "
                    "before it"
                )
            whole = turn + 1 == len(messages)
            upto = text if whole else self.render(messages[: turn + 1], tools=tools)
            if text.startswith(upto):
                spans.append((len(head), self.turn_end(text, len(head), len(upto))))
            else:
                spans.append((len(head), self._end_after_content(text, len(head), message)))
        return text, spans

    def turn_end(self, text: str, start: int, end: int) -> int:
        """End of the last end-of-turn token in [start, end); without one, of the words."""
        found = ((text.rfind(eos, start, end), eos) for eos in self.eos_texts)
        ends = [at + len(eos) for at, eos in found if at >= 0]
        return max(ends) if ends else start + len(text[start:end].rstrip())

    def _end_after_content(self, text: str, start: int, message: Message) -> int:
        """For templates that render an earlier turn differently (thinking removed, for example)."""
        content = str(message.get("content") or "").strip()
        at = text.find(content, start)
        ends = [
            found + len(eos)
            for eos in self.eos_texts
            if at >= 0 and (found := text.find(eos, at + len(content))) >= 0
        ]
        if not ends:
            raise RowNotRendered("the chat template rewrites an assistant turn, or does not end it")
        return min(ends)


def _wanted(message: Message) -> bool:
    return message.get("train") is not False and message.get("weight") != 0


def _trained(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """A token is trained when any character of it lies in a span; spans are in order."""
    trained = [False] * len(offsets)
    remaining = iter(spans)
    span = next(remaining, None)
    for i, (start, end) in enumerate(offsets):
        while span is not None and start >= span[1]:
            span = next(remaining, None)
        if span is None:
            break
        trained[i] = end > span[0] and start < span[1]
    return trained


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}, not an object")
    return found


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    special: dict[str, str] = {}
    for source in reversed(sources):
        for name in SPECIAL_NAMES:
            value = source.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                special[name] = value
    return special


def _find_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = _read_object(folder / "chat_template.json").get("chat_template")
    source = source if source is not None else config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _eos_ids(folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> tuple[int, ...]:
    ids: list[int] = []
    if "eos_token" in special:
        found = tokenizer.token_to_id(special["eos_token"])
        if found is None:
            raise InputError(
                f"{folder}: eos_token {special['eos_token']!r} is not in tokenizer.json"
            )
        ids.append(found)
    for name in ("generation_config.json", "config.json"):
        listed = _read_object(folder / name).get("eos_token_id")
        ids += listed if isinstance(listed, list) else [] if listed is None else [listed]
    return tuple(dict.fromkeys(ids))
