"""The same tokens five times faster: tiktoken built from a byte-level BPE `tokenizer.json`.

Used only where it was seen to give identical ids on a sample; otherwise, and for text that the
tokenizer would normalise, the tokenizer itself is used.
"""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from trainyard.data.template import Encoded, Template

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel splits by when it has no pattern of its own (Radford et al. 2019)."""

END_OF_ROW = "\x02<|end of row|>\x02"


@dataclass(frozen=True)
class Seen:
    """What a proof needs of an encoded row."""

    tokens: int
    trained: int
    """Within the longest sequence."""
    begin: tuple[int, ...]
    """The first two ids."""
    last_trained: int | None
    """Id of the last token that is trained, wherever it is."""


@dataclass(frozen=True)
class SeenRows:
    """`Seen` of rows with one span each, as arrays."""

    tokens: NDArray[np.int64]
    trained: NDArray[np.int64]
    begin: NDArray[np.int64]
    """[rows, 2]; -1 where there are fewer."""
    last_trained: NDArray[np.int64]
    """-1 where none is trained."""
    known: NDArray[np.bool_]
    """Of the others, the tokenizer itself must be asked."""


def look(encoded: Encoded, longest: int | None) -> Seen:
    ids, trained = encoded.input_ids, encoded.trained
    last = ids[len(ids) - 1 - trained[::-1].index(True)] if True in trained else None
    left = trained if longest is None else trained[:longest]
    return Seen(len(ids), sum(left), tuple(ids[:2]), last)


class FastTokens:
    """Encodes rendered text; `ids` are those of the tokenizer."""

    def __init__(self, tokenizer: dict[str, Any], pattern: str) -> None:
        vocab: dict[str, int] = tokenizer["model"]["vocab"]
        alphabet = _byte_of_character()
        ranks = {bytes([b]): i for i, b in enumerate(alphabet.values())}
        for merge in tokenizer["model"]["merges"]:
            left, right = merge if isinstance(merge, list) else merge.split(" ")
            ranks.setdefault(bytes(alphabet[c] for c in left + right), len(ranks))
        special = {t["content"]: len(ranks) + i for i, t in enumerate(tokenizer["added_tokens"])}
        self.end_of_row = special[END_OF_ROW] = len(ranks) + len(special)
        self.encoding = tiktoken.Encoding(
            "fast", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.ids = np.full(len(ranks) + len(special), -1, np.int64)
        self.sizes = np.zeros(len(self.ids), np.int64)
        characters = {b: c for c, b in alphabet.items()}
        for token, rank in ranks.items():
            self.ids[rank] = vocab.get("".join(characters[b] for b in token), -1)
            self.sizes[rank] = len(token)
        for added in tokenizer["added_tokens"]:
            self.ids[special[added["content"]]] = added["id"]
            self.sizes[special[added["content"]]] = len(added["content"].encode())
        self.sizes[self.end_of_row] = len(END_OF_ROW)
        self.unknown = self.ids < 0
        self.lacks = self.unknown.sum() > 1  # what ends a row is never known
        self.normalised = tokenizer["normalizer"] is not None

    @classmethod
    def of(cls, template: Template) -> "FastTokens | None":
        """None for a tokenizer of another kind."""
        found = json.loads(template.tokenizer.to_str())
        model, pattern = found["model"], _pattern(found["pre_tokenizer"])
        plain = all(
            model.get(key) in (None, False, "")
            for key in ("dropout", "unk_token", "continuing_subword_prefix", "byte_fallback")
        )
        normal = found["normalizer"]
        if model["type"] != "BPE" or pattern is None or not plain:
            return None
        if normal is not None and normal.get("type") != "NFC":
            return None
        if any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in found["added_tokens"]):
            return None
        if not set(_byte_of_character()) <= set(model["vocab"]):
            return None
        return cls(found, pattern)

    def encode(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoded | None:
        """Ids and what is trained of them; None when the tokenizer itself must be asked."""
        ranks = self._ranks(text)
        if ranks is None:
            return None
        trained = np.zeros(len(ranks), bool)
        for low, high in self._places(text, ranks, spans):
            trained[low:high] = True
        return Encoded(self.ids[ranks].tolist(), trained.tolist())

    def look(
        self, text: str, spans: Sequence[tuple[int, int]], longest: int | None
    ) -> "Seen | None":
        """What `look` sees in `encode`, without making lists of it."""
        ranks = self._ranks(text)
        if ranks is None:
            return None
        left = len(ranks) if longest is None else min(longest, len(ranks))
        trained, begun, last = 0, 0, None
        for low, high in self._places(text, ranks, spans):
            low = max(low, begun)  # one token may reach into two spans
            if high > low:
                trained += max(0, min(high, left) - low)
                begun, last = high, int(self.ids[ranks[high - 1]])
        return Seen(len(ranks), trained, tuple(self.ids[ranks[:2]].tolist()), last)

    def look_rows(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int]], longest: int | None
    ) -> SeenRows | None:
        """What `look` sees in each text, whose one span is given, encoded in one call.

        What ends a row is a special token, and text before and after one is encoded by itself.
        """
        joined = "".join([part for text in texts for part in (text, END_OF_ROW)])
        ranks = self.encoding.encode_to_numpy(joined, allowed_special="all")
        ends = np.flatnonzero(ranks == self.end_of_row)
        if len(ends) != len(texts):
            return None  # it is in a text, too
        begins = np.r_[0, ends[:-1] + 1]
        known = np.ones(len(texts), bool)
        if self.lacks:
            before = np.r_[0, self.unknown[ranks].cumsum()]
            known = before[ends] == before[begins]
        if self.normalised:
            known &= [unicodedata.is_normalized("NFC", text) for text in texts]
        place = self.sizes[ranks].cumsum()
        first = np.r_[0, place[ends[:-1]]]
        limits = np.array(
            [
                [_bytes_before(text, at) for at in span]
                for text, span in zip(texts, spans, strict=True)
            ]
        )
        low = place.searchsorted(first + limits[:, 0], "right")
        high = place.searchsorted(first + limits[:, 1], "left") + 1
        high = np.where(limits[:, 1] > 0, np.minimum(high, ends), begins)
        left = ends if longest is None else np.minimum(ends, begins + longest)
        begin = np.stack(
            [self.ids[ranks[np.minimum(begins + i, len(ranks) - 1)]] for i in (0, 1)], 1
        )
        begin[begins[:, None] + [0, 1] >= ends[:, None]] = -1
        return SeenRows(
            tokens=ends - begins,
            trained=np.where(high > low, np.maximum(np.minimum(high, left) - low, 0), 0),
            begin=begin,
            last_trained=np.where(high > low, self.ids[ranks[high - 1]], -1),
            known=known,
        )

    def _ranks(self, text: str) -> NDArray[np.uint32] | None:
        if self.normalised and not unicodedata.is_normalized("NFC", text):
            return None
        ranks: NDArray[np.uint32] = self.encoding.encode_to_numpy(text, allowed_special="all")
        return None if self.unknown[ranks].any() else ranks

    def _places(
        self, text: str, ranks: NDArray[np.uint32], spans: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """First token of each span and the one after its last."""
        ends = self.sizes[ranks].cumsum()
        for first, last in spans:
            begin, end = _bytes_before(text, first), _bytes_before(text, last)
            low = int(ends.searchsorted(begin, "right"))
            # the first token that starts at `end` or later follows the first that ends there
            high = int(ends.searchsorted(end, "left")) + 1 if end > 0 else 0
            yield low, min(high, len(ranks))

    def agrees(self, template: Template, texts: Iterable[str]) -> bool:
        """Whether ids are those of the tokenizer for every text."""
        for text in texts:
            mine = self.encode(text, [])
            theirs = template.tokenizer.encode(text, add_special_tokens=False).ids
            if mine is not None and mine.input_ids != theirs:
                return False
        return True


def _bytes_before(text: str, at: int) -> int:
    return at if text.isascii() else len(text[:at].encode())


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regular expression that divides text before BPE; None when there is more to it."""
    if pre_tokenizer is None:
        return None
    if pre_tokenizer["type"] == "ByteLevel":
        own = pre_tokenizer.get("use_regex", True)
        return GPT2 if own and not pre_tokenizer["add_prefix_space"] else None
    if pre_tokenizer["type"] != "Sequence" or len(pre_tokenizer["pretokenizers"]) != 2:
        return None
    split, level = pre_tokenizer["pretokenizers"]
    if split["type"] != "Split" or split["behavior"] != "Isolated" or split["invert"]:
        return None
    if level["type"] != "ByteLevel" or level["add_prefix_space"] or level["use_regex"]:
        return None
    pattern = split["pattern"].get("Regex")
    return pattern if isinstance(pattern, str) else None


def _byte_of_character() -> dict[str, int]:
    """The printable characters that byte-level BPE writes bytes as (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    named = {chr(b): b for b in plain}
    return {**named, **{chr(256 + i): b for i, b in enumerate(others)}}
