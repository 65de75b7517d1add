"""OpenAI-shaped answers, whole or in chunks. Log-probabilities follow vLLM's layout."""

import secrets
import time
from collections.abc import Sequence as Rows
from typing import Any

from tokenizers import Tokenizer

from trainyard.serving.server_request import Asked
from trainyard.serving.server_sequence import Event, Scored, Sequence

Json = dict[str, Any]


class Answer:
    """One request's answer: the same id and time in every chunk of it."""

    def __init__(self, asked: Asked) -> None:
        chat = asked.kind == "chat"
        self._asked = asked
        self._tokenizer = asked.served.template.tokenizer
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._whole = "chat.completion" if chat else "text_completion"
        self._chunk = "chat.completion.chunk" if chat else "text_completion"
        self._offsets: dict[int, int] = {}

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._asked.served.name,
            "choices": choices,
        }

    def whole(self, sequences: Rows[Sequence], texts: Rows[str], reasons: Rows[str]) -> Json:
        choices = []
        for i, (sequence, text, reason) in enumerate(zip(sequences, texts, reasons, strict=True)):
            choice: Json = {"index": i, "finish_reason": reason, "stop_reason": None}
            scored = tuple(sequence.scored)
            if self._asked.kind == "chat":
                choice["message"] = {"role": "assistant", "content": text}
                choice["logprobs"] = self._chat_logprobs(scored)
            else:
                choice["text"] = self._echoed(sequence) + text
                choice["logprobs"] = self._logprobs(i, sequence, scored, first=True)
            if self._asked.token_ids:
                choice["token_ids"] = sequence.output_ids
                choice["prompt_token_ids"] = sequence.prompt_ids
            choices.append(choice)
        body = {**self._envelope(self._whole, choices), "usage": usage(sequences, self._asked.n)}
        if self._asked.token_ids and self._asked.kind == "chat":
            body["prompt_token_ids"] = sequences[0].prompt_ids
        return body

    def opening(self, index: int, sequence: Sequence) -> Json | None:
        """Chunk before the first text: the role in a chat, the echoed prompt in a completion."""
        if self._asked.kind == "chat":
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        elif self._asked.echo:
            logprobs = self._logprobs(index, sequence, (), first=True)
            text = self._echoed(sequence)
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        else:
            return None
        return self._envelope(self._chunk, [choice])

    def chunk(self, index: int, sequence: Sequence, event: Event) -> Json:
        choice: Json = {"index": index, "finish_reason": event.reason}
        if self._asked.kind == "chat":
            choice["delta"] = {"content": event.text} if event.text else {}
            choice["logprobs"] = self._chat_logprobs(event.scored) if event.scored else None
        else:
            choice["text"] = event.text
            choice["logprobs"] = self._logprobs(index, sequence, event.scored, first=False)
        return self._envelope(self._chunk, [choice])

    def closing(self, sequences: Rows[Sequence]) -> Json | None:
        """The chunk with the usage, when it was asked for."""
        if not self._asked.include_usage:
            return None
        return {**self._envelope(self._chunk, []), "usage": usage(sequences, self._asked.n)}

    def _echoed(self, sequence: Sequence) -> str:
        if not self._asked.echo:
            return ""
        return str(self._tokenizer.decode(sequence.prompt_ids, skip_special_tokens=False))

    def _chat_logprobs(self, scored: tuple[Scored, ...]) -> Json | None:
        if self._asked.sampling.logprobs is None:
            return None
        return {"content": [self._chat_token(one) for one in scored]}

    def _chat_token(self, one: Scored) -> Json:
        top = [self._chat_entry(token, value) for token, value in one.top]
        return {**self._chat_entry(one.token_id, one.logprob), "top_logprobs": top}

    def _chat_entry(self, token: int, logprob: float) -> Json:
        text = _text(self._tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _logprobs(
        self, index: int, sequence: Sequence, scored: tuple[Scored, ...], *, first: bool
    ) -> Json | None:
        """`token_logprobs` and `top_logprobs` start with null: nothing predicts a first token."""
        if self._asked.sampling.logprobs is None:
            return None
        ids = [one.token_id for one in scored]
        values: list[float | None] = [one.logprob for one in scored]
        tops: list[Json | None] = [self._top(one) for one in scored]
        if first and self._asked.echo:
            known = sequence.prompt_scored
            ids = sequence.prompt_ids + ids
            values = [None, *(one.logprob for one in known), *values]
            tops = [None, *(self._top(one) for one in known), *tops]
        tokens = [_text(self._tokenizer, token) for token in ids]
        offsets = []
        at = self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(at)
            at += len(token)
        self._offsets[index] = at
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _top(self, one: Scored) -> Json:
        """The token itself first, then the alternatives."""
        pairs = ((one.token_id, one.logprob), *one.top)
        return {_text(self._tokenizer, token): value for token, value in reversed(pairs)}


def usage(sequences: Rows[Sequence], n: int) -> Json:
    """A prompt that is answered n times counts once."""
    prompt = sum(len(sequence.prompt_ids) for sequence in sequences[::n])
    completion = sum(len(sequence.output_ids) for sequence in sequences)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _text(tokenizer: Tokenizer, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False))
