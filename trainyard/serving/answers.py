"""What one answer tells about itself: tokens, first words, and flags of bad output. Pure."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from trainyard.serving import language

Flag = Literal["empty", "length", "format", "refusal", "repetition", "language"]

_REFUSAL = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry,|i can(?:'t|not)|i'?m (?:unable|not able)"
    r"|as an ai|unfortunately,? i can)",
    re.IGNORECASE,
)
# zlib shrinks ordinary prose about 2x and a loop of one sentence 10x and more
_REPETITION_RATIO = 8
_REPETITION_MIN_CHARS = 200


@dataclass(slots=True)
class Answer:
    """Collects what is known of an answer while it passes by."""

    text: list[str] = field(default_factory=list)
    tools: bool = False
    finish: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    failed: bool = False
    """The engine reported an error inside a stream that had begun well."""

    def take(self, body: dict[str, Any]) -> None:
        """Take one completion, or one chunk of a streamed one."""
        if body.get("error"):
            self.failed = True
        for choice in body.get("choices") or ():
            message = choice.get("message") or choice.get("delta") or {}
            piece = message.get("content") or choice.get("text")
            if piece:
                self.text.append(piece)
            if message.get("tool_calls"):
                self.tools = True
            self.finish = choice.get("finish_reason") or self.finish
        usage = body.get("usage") or {}
        self.tokens_in = usage.get("prompt_tokens") or self.tokens_in
        self.tokens_out = usage.get("completion_tokens") or self.tokens_out

    def flags(self, kind: Literal["text", "json"], question: str = "") -> tuple[Flag, ...]:
        """What is wrong with the answer; only free text is held to the question's language."""
        text = "".join(self.text)
        found = tuple(_flags(text, self.finish, self.tools, kind))
        if kind == "text" and question and language.differs(question, text):
            return (*found, "language")
        return found


def _flags(
    text: str, finish: str | None, tools: bool, kind: Literal["text", "json"]
) -> Iterator[Flag]:
    if not text.strip():
        if not tools:
            yield "empty"
        return
    if finish == "length":
        yield "length"
    if kind == "json" and not _is_json(text):
        yield "format"
    if _REFUSAL.match(text[:80].replace("\u2019", "'")):
        yield "refusal"
    if len(text) >= _REPETITION_MIN_CHARS:
        raw = text.encode()
        if len(raw) / len(zlib.compress(raw, 1)) >= _REPETITION_RATIO:
            yield "repetition"


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


class Events:
    """Cuts a stream of server-sent events into the JSON objects of its `data:` lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                try:
                    value = json.loads(line[5:])
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value


_REDACTIONS = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "<email>"),
    (re.compile(r"\b(?:sk|pk|ghp|xox[bp]|AKIA)[-_A-Za-z0-9]{12,}"), "<key>"),
    (re.compile(r"(?<!\w)\+?\d[\d ()./-]{6,}\d"), "<number>"),
)


def redact(text: str) -> str:
    """`text` without e-mail addresses, keys, and numbers of eight digits or more."""
    for pattern, instead in _REDACTIONS:
        text = pattern.sub(instead, text)
    return text


def question(body: dict[str, Any]) -> str:
    """Return the user's last words in a request, as far as they are text."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        prompt = body.get("prompt")
        return prompt if isinstance(prompt, str) else ""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            return content if isinstance(content, str) else ""
    return ""
