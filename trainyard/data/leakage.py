"""Evaluation samples that training rows repeat.

A row repeats a sample when their prompts are equal as word sequences, or when it holds at least
half of the sample's distinctive 13-grams (8-grams of its prompt). Grams in more than ten samples,
or common in the training data, are boilerplate and count for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard.data.grams import LONG_GRAM, PROMPT_GRAM
from trainyard.data.messages import text_of
from trainyard.data.read import read_samples
from trainyard.data.rows import prompt_and_answer
from trainyard.data.scan import Scanner, join
from trainyard.data.shingles import distinct, gram_hashes, unit_hashes
from trainyard.data.units import U64

COVERED = 0.5
"""Share of a sample's grams from which on a row leaks it."""
BOILERPLATE_SAMPLES = 10


def asked_and_told(body: Mapping[str, Any]) -> tuple[str, str]:
    """Texts of a row by which it is compared: asked, without system text, and told."""
    if body["kind"] == "sft" and len(body["messages"]) == 2:  # most rows
        first, last = body["messages"]
        if first["role"] == "user" and type(first["content"]) is type(last["content"]) is str:
            return first["content"], last["content"]
    if body["kind"] == "pretrain":
        return "", str(body["text"])
    if body["kind"] == "tokenized":
        return "", " ".join(map(str, body["input_ids"]))
    prompt, answer = prompt_and_answer(dict(body))
    asked = [text_of(m["content"]) for m in prompt if m["role"] not in ("system", "developer")]
    return "\n".join(asked), "\n".join(text_of(m["content"]) for m in answer)


@dataclass(frozen=True)
class Grams:
    """Distinctive grams of all samples: sorted hashes, their samples, totals per sample."""

    hashes: U64
    samples: NDArray[np.int32]
    totals: NDArray[np.int32]

    @classmethod
    def of(cls, per_sample: Sequence[U64], common: U64) -> "Grams":
        sizes = [len(g) for g in per_sample]
        hashes = np.concatenate([np.empty(0, np.uint64), *per_sample])
        samples = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        distinct, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        plain = (counts > BOILERPLATE_SAMPLES) | np.isin(distinct, common)
        kept = ~plain[inverse]
        hashes, samples = hashes[kept], samples[kept]
        order = np.argsort(hashes, kind="stable")
        totals = np.bincount(samples, minlength=len(sizes)).astype(np.int32)
        return cls(hashes[order], samples[order], totals)

    def shares(self, grams: U64) -> dict[int, float]:
        """Sample -> share of its grams that are among `grams` (distinct)."""
        low = np.searchsorted(self.hashes, grams, "left")
        high = np.searchsorted(self.hashes, grams, "right")
        hits = np.flatnonzero(high > low)
        places = zip(low[hits].tolist(), high[hits].tolist(), strict=True)
        found = [self.samples[a:b] for a, b in places]
        if not found:
            return {}
        samples, counts = np.unique(np.concatenate(found), return_counts=True)
        return dict(zip(samples.tolist(), (counts / self.totals[samples]).tolist(), strict=True))


@dataclass(frozen=True)
class EvalSets:
    names: tuple[str, ...]
    """`file:line` of each sample."""
    prompts: U64
    """Sorted hash of each sample's whole prompt (or text), and in the same order"""
    prompt_samples: NDArray[np.int32]
    long: Grams
    short: Grams

    def overlaps(self, asked: bytes, told: bytes, whole: int) -> list[tuple[int, float]]:
        """Samples that a row repeats or shares a 13-gram with, and how much of each, most first.

        `whole` is the hash of the whole prompt. 8-grams of the prompt count from `COVERED` on.
        """
        first, spaceless = unit_hashes(asked)
        second, _ = unit_hashes(told)
        both = np.concatenate([first, second])
        found = self.long.shares(distinct(gram_hashes(both, LONG_GRAM)))
        if not spaceless:
            for sample, share in self.short.shares(
                distinct(gram_hashes(first, PROMPT_GRAM))
            ).items():
                if share >= COVERED:
                    found[sample] = max(share, found.get(sample, 0.0))
        at = int(np.searchsorted(self.prompts, np.uint64(whole)))
        if at < len(self.prompts) and self.prompts[at] == whole:
            found[int(self.prompt_samples[at])] = 1.0
        return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))

    def save(self, file: Path) -> None:
        with file.open("wb") as out:
            np.savez(
                out,
                names=np.array("\n".join(self.names)),
                prompts=self.prompts,
                prompt_samples=self.prompt_samples,
                **{f"{k}_{f}": getattr(getattr(self, k), f) for k in KINDS for f in FIELDS},
            )

    @classmethod
    def load(cls, file: Path) -> "EvalSets":
        with np.load(file) as found:
            long, short = (Grams(*(found[f"{k}_{f}"] for f in FIELDS)) for k in KINDS)
            names = tuple(str(found["names"]).split("\n"))
            return cls(names, found["prompts"], found["prompt_samples"], long, short)


KINDS, FIELDS = ("long", "short"), ("hashes", "samples", "totals")


def read_eval_sets(paths: Sequence[str], common: U64, common_prompt: U64) -> EvalSets:
    """Raises InputError for a set that cannot be read."""
    names, texts = [], []
    for path in paths:
        for row in read_samples(path):
            asked, told = asked_and_told(row)
            names.append(f"{row['source']['file']}:{row['source']['line']}")
            texts.append((asked.encode(), told.encode()))
    nothing = np.empty(0, np.uint64)
    joined, bounds = join([text for pair in texts for text in pair])
    scanned, _ = Scanner(nothing, nothing, nothing).scan(np.frombuffer(joined, np.uint8), bounds)
    whole = np.array(
        [s.prompt_hash if t[0] else s.answer_hash for s, t in zip(scanned, texts, strict=True)],
        np.uint64,
    )
    order = np.argsort(whole, kind="stable").astype(np.int32)
    long, short = [], []
    for prompt, answer in texts:
        first, spaceless = unit_hashes(prompt)
        second, _ = unit_hashes(answer)
        both = np.concatenate([first, second])
        long.append(_grams(both, LONG_GRAM))
        short.append(np.empty(0, np.uint64) if spaceless else _grams(first, PROMPT_GRAM))
    return EvalSets(
        tuple(names), whole[order], order, Grams.of(long, common), Grams.of(short, common_prompt)
    )


def _grams(unit: U64, k: int) -> U64:
    if len(unit) < k:
        return np.empty(0, np.uint64)
    return distinct(gram_hashes(unit, k))
