"""All chunks together: which rows are duplicates, their sides, and the files of a version."""

import hashlib
import itertools
import os
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trainyard.data.chunk import WRITTEN, quarantined, spill
from trainyard.data.divide import validation
from trainyard.data.duplicates import (
    Clusters,
    Rows,
    Texts,
    candidates,
    near_duplicates,
    occurring_again,
    repeats,
    similarity,
)
from trainyard.data.job import BIT, CODES, FACTS, KINDS, Job
from trainyard.data.lay import pick
from trainyard.data.lines import PIECE
from trainyard.files import read_json

TRAIN, VAL, QUARANTINE = 0, 1, 2
EXAMPLES = 5
LONG_ANSWER = 40
"""Characters from which on an answer is no label."""
SIDES = ("train", "val", "quarantine")


NAMES = FACTS.names or ()


@dataclass(frozen=True)
class Facts:
    """FACTS of rows: a column by its name, or some rows of all columns; copied only when read."""

    columns: dict[str, Any]
    rows: Any = None

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            picked = self.rows is not None
            return Facts({n: self[n] for n in NAMES} if picked else self.columns, key)
        return self.columns[key] if self.rows is None else self.columns[key][self.rows]

    def __len__(self) -> int:
        return len(self["kind"])


@dataclass
class Merged:
    """Facts of every usable row in input order, and what became of it."""

    job: Job
    places: list[Path]
    infos: list[dict[str, Any]]
    facts: Any
    firsts: list[int]
    """Number of the first row of each chunk."""
    side: NDArray[np.uint8]
    roots: Rows
    notes: dict[int, list[tuple[str, str]]]
    """Row -> code and detail of what only all rows together show."""
    exact: int
    near: int
    similar_pairs: int
    examples: dict[str, list[tuple[str, int, str]]] = field(default_factory=dict)
    """Code -> file, line and detail of the first quarantined rows that show it."""

    @property
    def lines(self) -> int:
        return sum(info["read"] for info in self.infos)

    def chunk_rows(self, number: int) -> slice:
        ends = [*self.firsts[1:], len(self.facts)]
        return slice(self.firsts[number], ends[number])


def merge(job: Job) -> Merged:
    places = [job.place(i) for i in range(len(job.chunks))]
    infos = [read_json(place / "info.json") for place in places]
    sizes = [info["usable"] for info in infos]
    firsts = [0, *itertools.accumulate(sizes)][:-1]
    total = sum(sizes)
    columns = {name: np.empty((total, *FACTS[name].shape), FACTS[name].base) for name in NAMES}
    for first, size, place in zip(firsts, sizes, places, strict=True):
        found = np.load(place / "facts.npy")
        for name, column in columns.items():
            column[first : first + size] = found[name]
    facts = Facts(columns)
    merged = Merged(
        job, places, infos, facts, firsts,
        side=np.zeros(len(facts), np.uint8),
        roots=np.arange(len(facts), dtype=np.int64),
        notes={}, exact=0, near=0, similar_pairs=0,
    )  # fmt: skip
    _relate(merged)
    return merged


def quarantining(job: Job) -> int:
    """Bits of the codes whose rows are set aside."""
    actions = job.spec.checks.model_dump()
    mask = sum(BIT[code] for code, action in actions.items() if action in ("quarantine", "refuse"))
    return mask | (BIT["over_length"] if job.spec.over_length != "truncate" else 0)


def _relate(merged: Merged) -> None:
    """Duplicates, conflicts and sides."""
    job, facts = merged.job, merged.facts
    checks, mask = job.spec.checks, np.uint32(quarantining(job))
    if checks.exact_duplicate != "off":
        firsts = repeats(facts["id"])
        again = np.flatnonzero(firsts >= 0)
        facts["flags"][again] |= np.uint32(BIT["exact_duplicate"])
        merged.exact = len(again)
        for row in again.tolist():
            where = _where(merged, int(firsts[row]))
            merged.notes.setdefault(row, []).append(("exact_duplicate", f"same as {where}"))
    clusters = Clusters(len(facts))
    alive = np.flatnonzero((facts["flags"] & mask) == 0)
    if checks.near_duplicate != "off":
        _near(merged, clusters, alive)
        alive = np.flatnonzero((facts["flags"] & mask) == 0)
    asked = facts["prompt_hash"][alive] ^ facts["system"][alive]
    asked[facts["kind"][alive] == KINDS.index("pretrain")] = 0
    if checks.conflicting_answers != "off":
        chat = (facts["kind"][alive] == KINDS.index("sft")) & (asked != 0)
        rows = _differing(alive[chat], asked[chat], facts["answer_hash"])
        facts["flags"][rows] |= np.uint32(BIT["conflicting_answers"])
        alive = np.flatnonzero((facts["flags"] & mask) == 0)
        asked = facts["prompt_hash"][alive] ^ facts["system"][alive]
    asked[facts["kind"][alive] == KINDS.index("pretrain")] = 0
    if checks.repeated_answer != "off":
        long = alive[(facts["answer_chars"][alive] >= LONG_ANSWER) & (asked != 0)]
        rows = _differing(long, facts["answer_hash"][long], facts["prompt_hash"])
        facts["flags"][rows] |= np.uint32(BIT["repeated_answer"])
        stay = (facts["flags"][alive] & mask) == 0
        alive, asked = alive[stay], asked[stay]
    clusters.join_equal(asked, alive)
    clusters.join_equal(facts["id"][alive, 1], alive)
    clusters.join_equal(facts["group"][alive], alive)
    merged.side[:] = QUARANTINE
    merged.side[alive] = TRAIN
    held_out = validation(facts["id"], alive, clusters, job.spec.val_fraction)
    merged.side[held_out] = VAL
    merged.roots = clusters.roots()


def _near(merged: Merged, clusters: Clusters, alive: Rows) -> None:
    job, facts = merged.job, merged.facts
    bands = [np.load(place / "bands.npy", mmap_mode="r") for place in merged.places]
    compared = np.zeros(len(facts), bool)
    compared[alive] = True
    pairs = candidates(bands, compared)
    files = [place / "rows.jsonl" for place in merged.places]
    texts = Texts(files, merged.firsts, facts["start"], facts["size"])
    shares = similarity(pairs, texts, np.load(job.common))
    found = near_duplicates(pairs, shares, job.spec.near_duplicate_at)
    texts.close()
    facts["flags"][found.near] |= np.uint32(BIT["near_duplicate"])
    merged.near, merged.similar_pairs = len(found.near), len(found.alike)
    for row, (partner, share) in found.partners.items():
        detail = f"{share:.0%} like {_where(merged, partner)}"
        merged.notes.setdefault(row, []).append(("near_duplicate", detail))
    for one, other in found.alike:
        clusters.join(one, other)


def _where(merged: Merged, row: int) -> str:
    chunk = bisect_right(merged.firsts, row) - 1
    table = merged.job.tables[merged.job.chunks[chunk][0]]
    return f"{table.name}:{merged.facts['line'][row]}"


def _differing(rows: Rows, keys: NDArray[np.uint64], values: NDArray[np.uint64]) -> Rows:
    """Rows whose key has several values; `values` are those of all rows."""
    again = occurring_again(keys)
    rows, keys = rows[again], keys[again]
    if not len(rows):
        return rows
    _, member = np.unique(keys, return_inverse=True)
    own = values[rows]
    low = np.full(member.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    high = np.zeros(member.max() + 1, np.uint64)
    np.minimum.at(low, member, own)
    np.maximum.at(high, member, own)
    differing: Rows = rows[(low != high)[member]]
    return differing


def reasons(merged: Merged) -> tuple[Counter[str], Counter[str]]:
    """Lines per code: set aside for it, and kept with it."""
    away: Counter[str] = Counter()
    for info in merged.infos:
        away.update(info["reasons"])
    kept: Counter[str] = Counter()
    aside = merged.side == QUARANTINE
    mask = quarantining(merged.job)
    for code in CODES:
        flagged = (merged.facts["flags"] & np.uint32(BIT[code])) != 0
        if mask & BIT[code]:
            away[code] += int((flagged & aside).sum())
        kept[code] += int((flagged & ~aside).sum())
    return +away, +kept


def write_rows(merged: Merged, folder: Path) -> tuple[int, dict[str, str]]:
    """Write train.jsonl, val.jsonl and quarantine.jsonl.

    Returns the lines of the quarantine, and the sha256 of each file.
    """
    written, digests = 0, {name: hashlib.sha256() for name in (*SIDES[:2], "quarantine")}
    fd = os.open(folder / "quarantine.jsonl", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    opened = [(folder / f"{name}.jsonl").open("wb", buffering=WRITTEN) for name in SIDES[:2]]
    files = [place / "rows.jsonl" for place in merged.places]
    with opened[TRAIN], opened[VAL], os.fdopen(fd, "wb") as bad:
        for number, file in enumerate(files):
            rows = merged.chunk_rows(number)
            with file.open("rb") as found:
                starts, sides = merged.facts["start"][rows], merged.side[rows]
                for first, last, size in _pieces(starts, file.stat().st_size):
                    content = np.frombuffer(found.read(size), np.uint8)
                    at = starts[first:last] - starts[first]
                    for side in (TRAIN, VAL):
                        kept = pick(content, at, sides[first:last] == side)
                        spill(opened[side], kept)
                        digests[SIDES[side]].update(kept.data)
            if merged.places.count(place := merged.places[number]) == 1:  # else read again
                merged.places[number] = _spent(place)
            lines = _quarantine_lines(merged, number)
            written += len(lines)
            bad.write(b"".join(lines))
            digests["quarantine"].update(b"".join(lines))
    return written, {f"{name}.jsonl": made.hexdigest() for name, made in digests.items()}


def _spent(place: Path) -> Path:
    """A finished chunk without its rows: their memory is free for those that are written next.

    Under another name, so that after a crash the chunk is checked again.
    """
    spent = place.with_name(f"{place.name}.spent")
    shutil.rmtree(spent, ignore_errors=True)
    place.rename(spent)
    (spent / "rows.jsonl").unlink()
    return spent


def _pieces(starts: Rows, end: int) -> Iterator[tuple[int, int, int]]:
    """First row, row after the last and bytes of pieces that stay in the cache."""
    first = 0
    while first < len(starts):
        begin = int(starts[first])
        last = int(np.searchsorted(starts, begin + PIECE))
        yield first, last, (int(starts[last]) if last < len(starts) else end) - begin
        first = last


def _quarantine_lines(merged: Merged, number: int) -> list[bytes]:
    """Entries of one chunk in the order of their lines."""
    place, rows = merged.places[number], merged.chunk_rows(number)
    entries: list[tuple[int, bytes]] = []
    with (place / "bad.jsonl").open("rb") as opened:
        for written in opened:
            entry = orjson.loads(written)
            entries.append((entry["line"], written))
            _remember(merged, entry["file"], entry["line"], entry["reasons"])
    aside = np.flatnonzero(merged.side[rows] == QUARANTINE)
    if not len(aside):
        return [line for _, line in entries]
    table = merged.job.chunk(number).table
    details = _details(place, set(aside.tolist()))
    places = [merged.facts[n][rows][aside].tolist() for n in ("line", "offset", "length", "flags")]
    with table.path.open("rb") as opened:
        for i, line, offset, length, flags in zip(aside.tolist(), *places, strict=True):
            raw = os.pread(opened.fileno(), length, offset)
            why = _why(flags, details.get(i, []), merged.notes.get(rows.start + i, []))
            _remember(merged, table.name, line, why)
            entries.append((line, quarantined(table.name, line, offset, raw, why)))
    return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


def _remember(merged: Merged, file: str, line: int, why: list[dict[str, str]]) -> None:
    for reason in why:
        known = merged.examples.setdefault(reason["code"], [])
        if len(known) < EXAMPLES:
            known.append((file, line, reason["detail"]))


def _details(place: Path, rows: set[int]) -> dict[int, list[tuple[str, str]]]:
    found: dict[int, list[tuple[str, str]]] = {}
    with (place / "details.jsonl").open("rb") as opened:
        for line in opened:
            row, code, detail = orjson.loads(line)
            if row in rows:
                found.setdefault(row, []).append((code, detail))
    return found


def _why(
    flags: int, own: list[tuple[str, str]], shared: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """Reasons of a row; a code without a detail of its own is named all the same."""
    noted = [(c, d) for c, d in [*own, *shared] if flags & BIT[c]]
    named = {c for c, _ in noted}
    plain = [(c, "") for c in _codes(flags) if c not in named]
    return [{"code": c, "detail": d} for c, d in [*noted, *plain]]


@cache
def _codes(flags: int) -> tuple[str, ...]:
    return tuple(code for code in CODES if flags & BIT[code])
