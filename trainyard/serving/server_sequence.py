"""One sequence from prompt to last token: what was asked, what was said, when to stop."""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from trainyard.data.template import Template

_PRIMING_TOKENS = 5
"""Prompt tokens given to the decoder so that a first token keeps its leading space."""


class Reason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Served:
    """A model that requests can name."""

    name: str
    key: str
    """Which adapter, as `server_model.Model` knows it; empty for the base."""
    folder: Path
    template: Template
    eos_ids: frozenset[int]
    vocabulary: int
    """Embeddings of the model; token ids must be below."""


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer and are not part of its text."""
    logprobs: int | None = None
    """How many alternatives to report per token beside the chosen one; None reports nothing."""
    prompt_logprobs: int | None = None

    def nth(self, n: int) -> "Sampling":
        """For the n-th answer to one prompt: another seed, reproducibly."""
        return replace(self, seed=(self.seed + n) % 2**63)


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its natural-log probability under the model, before temperature and top_p."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something new about a sequence: text, and with the last event how it ended."""

    text: str = ""
    scored: tuple[Scored, ...] = ()
    reason: Reason | None = None
    error: str | None = None

    @property
    def last(self) -> bool:
        return self.reason is not None or self.error is not None


class Text:
    """Text of a growing answer. Holds back what may be the start of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=prompt_ids[-_PRIMING_TOKENS:], skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self._open: list[int] = []
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that is certain now; sets `stopped` when a stop string is complete."""
        piece = self._stream.step(self._tokenizer, token_id)
        if piece is None:
            self._open.append(token_id)
            return ""
        self._open.clear()
        return self._release(piece)

    def finish(self) -> str:
        """The rest, once no token follows: held text, and an unfinished character."""
        rest = ""
        if self._open and not self.stopped:
            rest = self._release(self._tokenizer.decode(self._open, skip_special_tokens=True))
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _release(self, piece: str) -> str:
        if not self._stop:
            return piece
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its answer so far. Only the engine's thread writes, but for `cancelled`."""

    model: str
    """Name for metrics."""
    key: str
    """Which adapter, as `Model` knows it."""
    prompt_ids: list[int]
    sampling: Sampling
    tokenizer: Tokenizer
    deliver: Callable[[Event], None]
    """Called in the event loop, in order."""
    streams: bool = False
    """Whether to deliver text as it comes, or once at the end."""
    output_ids: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    prompt_scored: list[Scored] = field(default_factory=list)
    """One per prompt token but the first."""
    cancelled: bool = False
    done: bool = False
    """Its last event has been said."""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    first_token: float | None = None
    _text: Text | None = None
    _unsent: str = ""
    _unsent_scored: int = 0

    def push(self, token_id: int, scored: Scored | None, now: float) -> Reason | None:
        """Take the next token and say whether it was the last, and why."""
        if self._text is None:
            self._text = Text(self.tokenizer, self.prompt_ids, self.sampling.stop)
            self.first_token = now
        self.output_ids.append(token_id)
        if scored is not None:
            self.scored.append(scored)
        if token_id in self.sampling.stop_ids:
            return Reason.STOP
        self._unsent += self._text.push(token_id)
        if self._text.stopped:
            return Reason.STOP
        return Reason.LENGTH if len(self.output_ids) >= self.sampling.max_tokens else None

    def event(self, reason: Reason | None) -> Event | None:
        """What to deliver after a token; None when there is nothing to say yet."""
        if reason is None and not (self.streams and self._unsent):
            return None
        text, self._unsent = self._unsent, ""
        if reason is not None and self._text is not None:
            text += self._text.finish()
        scored = tuple(self.scored[self._unsent_scored :])
        self._unsent_scored = len(self.scored)
        return Event(text, scored, reason)
