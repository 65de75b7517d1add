"""The same tokens five times faster: tiktoken built from a byte-level BPE `tokenizer.json`.

Used only where it was seen to give identical ids on a sample; otherwise, and for text that the
tokenizer would normalise, the tokenizer itself is used.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tiktoken

from trainyard.data.template import Encoded, Template

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel splits by when it has no pattern of its own (Radford et al. 2019)."""


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
        if self.normalised and not unicodedata.is_normalized("NFC", text):
            return None
        ranks = np.array(self.encoding.encode(text, allowed_special="all"), np.int64)
        ids = self.ids[ranks]
        if len(ids) and ids.min() < 0:
            return None
        ends = np.cumsum(self.sizes[ranks])
        starts = ends - self.sizes[ranks]
        trained = np.zeros(len(ids), bool)
        for first, last in spans:
            begin, end = _bytes_before(text, first), _bytes_before(text, last)
            low = np.searchsorted(ends, begin, "right")
            trained[low : np.searchsorted(starts, end, "left")] = True
        return Encoded(ids.tolist(), trained.tolist())

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
