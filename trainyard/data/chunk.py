"""One chunk of one table: every record read, checked by itself, and written as facts.

A pure function of files: `check_chunk(job, number)` writes a folder named by its inputs, the same
bytes wherever it runs, whole or not there. As a program: `python -m trainyard.data.chunk JOB N…`
"""

import base64
import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trainyard.data.batch import SYSTEM, Batch, BatchReader
from trainyard.data.characters import CONTROL, MOJIBAKE
from trainyard.data.job import BIT, FACTS, KIND, OVERLAPS, Job
from trainyard.data.lay import lay_bodies, lay_lines
from trainyard.data.leakage import COVERED
from trainyard.data.lines import Records, batches
from trainyard.data.messages import text_of
from trainyard.data.proof import Proof, prove, prove_rows, split
from trainyard.data.rows import RowReader, encode, in_file
from trainyard.data.scan import BANDS, SCANNED
from trainyard.data.structure import findings, open_ended
from trainyard.data.tools import not_collecting, tools_of
from trainyard.errors import InputError
from trainyard.files import why, write_json

REPEATED = 0.5
SHARED = sorted({*(SCANNED.names or ())} & {*(FACTS.names or ())})
WRITTEN = 1 << 14
"""Bytes of one write: more make Linux look for large pages, at up to ten times the CPU (6.18)."""
MAX_RAW = 1 << 26
"""Longest raw record kept in a quarantine file, in bytes; of a longer one, the beginning."""


class ChunkCheck:
    def __init__(self, job: Job, number: int, folder: Path) -> None:
        self.job, self.chunk = job, job.chunk(number)
        self.table = self.chunk.table
        self.spec = job.spec
        source = job.sources[job.chunks[number][0]]
        self.reader = BatchReader(RowReader(self.table, source, job.spec.max_row_bytes))
        self.actions = job.spec.checks.model_dump()
        self.redacted = frozenset(c for c in ("secret", "pii") if self.actions[c] == "redact")
        tools = tools_of(job)
        self.patterns, self.needed = tools.patterns, tools.needed
        self.scanner, self.eval_sets = tools.scanner, tools.eval_sets
        self.template, self.fast, self.frame = tools.template, tools.fast, tools.frame
        self.off = sum(BIT[c] for c, action in self.actions.items() if action == "off")
        self.rows = _private(folder / "rows.jsonl")
        self.bad = _private(folder / "bad.jsonl")
        self.details = _private(folder / "details.jsonl")
        self.facts: list[Any] = []
        self.bands: list[Any] = []
        self.overlaps: list[tuple[int, int, float]] = []
        self.reasons: Counter[str] = Counter()
        self.names: dict[str, Counter[str]] = {"label": Counter(), "system": Counter()}
        self.found: Counter[str] = Counter()
        self.written = self.read = self.usable = 0

    def run(self) -> dict[str, Any]:
        for some in batches(self.chunk):
            batch = self.reader.read(some)
            self.read += len(some)
            for position, code, detail in batch.problems:
                self.reasons[code] += 1
                raw, offset = some.raw(position), int(some.offsets[position])
                why = [{"code": code, "detail": detail}]
                line = int(some.lines[position])
                self.bad.write(quarantined(self.table.name, line, offset, raw, why))
            if len(batch):
                self._check(batch, some)
        for file in (self.rows, self.bad, self.details):
            file.close()
        return {
            "read": self.read,
            "usable": self.usable,
            "reasons": dict(sorted(self.reasons.items())),
            "found": dict(sorted(self.found.items())),
            "names": {k: dict(sorted(v.items())) for k, v in self.names.items()},
        }

    def _check(self, batch: Batch, some: Records) -> None:
        facts = np.zeros(len(batch), FACTS)
        taken = batch.taken
        facts["line"], facts["offset"] = some.lines[taken], some.offsets[taken]
        facts["length"] = some.lengths[taken]
        facts["kind"], facts["turns"], facts["samples"] = KIND["sft"], 2, 1
        for i, body in batch.bodies.items():
            facts["kind"][i] = KIND[body["kind"]]
            turns: Any = body.get("messages", body.get("prompt", ()))
            facts["turns"][i] = min(len(turns), 65535)
        self._words(batch, facts)
        self._structure(batch, facts)
        self._names(batch, facts)
        text, bounds = batch.text, batch.bounds
        scanned, bands = self.scanner.scan(np.frombuffer(text, np.uint8), bounds)
        for name in SHARED:
            facts[name] = scanned[name]
        self._from_scan(facts, scanned, text, bounds)
        self._write(batch, facts, text, bounds)
        facts["flags"] &= np.uint32(~self.off & 0xFFFFFFFF)
        self.usable += len(batch)
        self.facts.append(facts)
        self.bands.append(bands)

    def _note(self, facts: Any, i: int, code: str, detail: str) -> None:
        """Flag row `i` of this batch with `code`, and write down what was found."""
        if self.actions.get(code) == "off":
            return
        self.details.write(orjson.dumps([self.usable + i, code, detail]) + b"\n")
        facts["flags"][i] |= np.uint32(BIT[code])

    def _words(self, batch: Batch, facts: Any) -> None:
        """Note patterns in all text of the rows, and redact where the recipe says so."""
        marked = self.needed.rows(np.frombuffer(batch.text, np.uint8), batch.bounds)
        suspects = {*batch.aside, *np.flatnonzero(marked).tolist()}
        redacted: dict[int, dict[str, Any]] = {}
        for i in sorted(suspects):
            begin, _, end = batch.bounds[i].tolist()
            whole = batch.aside.get(i, "") + batch.text[begin:end].decode()
            codes = set()
            for finding in self.patterns.find(whole):
                code, name = finding.pattern.code, finding.pattern.name
                self.found[name] += 1
                self._note(facts, i, code, f"{name} {finding.masked}")
                codes.add(code)
            if sensitive := self.redacted & codes:
                redacted[i] = batch.body(i)
                counts = self._redact(redacted[i], sensitive)
                batch.metas.setdefault(i, {})["redacted"] = dict(counts)
        if redacted:
            batch.replace(redacted)

    def _redact(self, body: dict[str, Any], codes: frozenset[str]) -> Counter[str]:
        counts: Counter[str] = Counter()

        def clean(text: str) -> str:
            made, found = self.patterns.redact(text, codes)
            counts.update(found)
            return made

        if type(body.get("text")) is str:
            body["text"] = clean(body["text"])
        for key in ("messages", "prompt", "chosen", "rejected", "completion"):
            for message in body.get(key, ()):
                content = message["content"]
                if type(content) is str:
                    message["content"] = clean(content)
                    continue
                for part in content:
                    part.update({k: clean(v) for k, v in part.items() if k in ("text", "value")})
        return counts

    def _structure(self, batch: Batch, facts: Any) -> None:
        """Note what is wrong with roles, tools, images and the end of the answer."""
        # nothing can be wrong with an answer that ends like a sentence, in a row that is no more
        for i in sorted({*open_ended(batch.text, batch.bounds), *batch.bodies}):
            told, plain = batch.told(i), i not in batch.bodies
            for code, detail in findings(batch.body(i), self.table.folder, plain, told):
                self._note(facts, i, code, detail)

    def _names(self, batch: Batch, facts: Any) -> None:
        """Hashes of group, label and system prompt, and how often each label and prompt occurs."""
        group_by, label = self.spec.group_by, self.spec.label
        if group_by is not None:
            for i, meta in batch.metas.items():
                if meta.get(group_by) is not None:
                    facts["group"][i] = _hash64(orjson.dumps(meta[group_by]))
        if label is not None:
            for i in range(len(batch)):
                value = batch.metas.get(i, {}).get(label, batch.bodies.get(i, {}).get("label"))
                name = value if isinstance(value, str) else orjson.dumps(value).decode()
                facts["label"][i] = _hash64(name.encode())
                self.names["label"][name] += 1
        for i, body in batch.bodies.items():
            messages = body.get("messages") or body.get("prompt")
            if messages and messages[0]["role"] in SYSTEM:
                prompt = _hash64(text_of(messages[0]["content"]).encode())
                facts["system"][i] = prompt
                self.names["system"][f"{prompt:016x}"] += 1

    def _from_scan(self, facts: Any, scanned: Any, text: bytes, bounds: NDArray[np.int64]) -> None:
        """Flags that the compiled pass decides, and samples that rows with hits repeat."""
        asked_in, told_in = scanned.prompt_script, scanned.script
        seen = {
            "control_characters": (scanned.odd & CONTROL) != 0,
            "mojibake": (scanned.odd & MOJIBAKE) != 0,
            "repetition": scanned.repeats > REPEATED,
            "prompt_echo": (scanned.prompt_hash == scanned.answer_hash) & (scanned.units >= 8),
            "language_mismatch": (asked_in != told_in) & (asked_in != 0) & (told_in != 0),
        }
        for code, rows in seen.items():
            for i in np.flatnonzero(rows).tolist():
                detail = f"{scanned.repeats[i]:.0%} of 4-grams" if code == "repetition" else ""
                self._note(facts, i, code, detail)
        if self.eval_sets is None:
            return
        asked = bounds[:, 1] > bounds[:, 0]
        whole = np.where(asked, scanned.prompt_hash, scanned.answer_hash)
        for i in np.flatnonzero(scanned.hit | np.isin(whole, self.eval_sets.prompts)).tolist():
            begin, middle, end = bounds[i].tolist()
            pair = text[begin:middle], text[middle + 1 : end]
            if found := self.eval_sets.overlaps(*pair, int(whole[i])):
                sample, share = found[0]
                code = "leak" if share >= COVERED else "eval_overlap"
                self._note(facts, i, code, f"repeats {share:.0%} of {self.eval_sets.names[sample]}")
                self.overlaps += [(self.usable + i, *overlap) for overlap in found]

    def _write(self, batch: Batch, facts: Any, text: bytes, bounds: NDArray[np.int64]) -> None:
        """Canonical bytes of each row (several lines when it is split), with its id and tokens."""
        made = {i: orjson.dumps(body) for i, body in batch.bodies.items()}
        body, ends = lay_bodies(np.frombuffer(text, np.uint8), bounds, made)
        view, sha256 = memoryview(body.data), hashlib.sha256
        places = pairwise([0, *ends.tolist()])
        ids = np.frombuffer(b"".join([sha256(view[a:b]).digest() for a, b in places]), np.uint8)
        ids = np.ascontiguousarray(ids.reshape(-1, 32)[:, :16])
        pieces = self._prove(batch, facts) if self.template is not None else {}
        metas = {i: orjson.dumps(meta) for i, meta in batch.metas.items()}
        rows, ends = lay_lines(body, ends, ids, facts["line"], self.table.name, metas, pieces)
        facts["id"] = ids.view(np.uint64)
        facts["start"][0] = self.written
        facts["start"][1:] = self.written + ends[:-1]
        facts["size"] = np.diff(ends, prepend=0)
        self.written += len(rows)
        spill(self.rows, rows)

    def _prove(self, batch: Batch, facts: Any) -> dict[int, bytes]:
        """Note tokens and what encoding shows; the rows that were split, as several lines each."""
        assert self.template is not None
        pieces: dict[int, bytes] = {}
        longest, locate_in = self.job.max_seq_len, in_file(self.table.name)
        for i in self._not_proven(batch, facts):
            body = batch.body(i)
            frame = self.frame if i not in batch.bodies else None
            proof = prove(self.template, body, longest, self.fast, frame)
            facts["tokens"][i], facts["trained"][i] = proof.tokens, proof.trained
            if parts := self._shorter(proof, body):
                line, meta = int(facts["line"][i]), batch.metas.get(i, {})
                pieces[i] = b"".join(locate_in(*encode(part), line, meta) for part in parts)
                facts["samples"][i] = len(parts)
                continue
            for code, detail in proof.findings:
                self._note(facts, i, code, detail)
                if code == "over_length" and self.spec.over_length == "truncate":
                    facts["lost"][i] = proof.tokens - (longest or 0)
        return pieces

    def _not_proven(self, batch: Batch, facts: Any) -> list[int]:
        """Rows to look at one by one, after those that can be encoded together."""
        plain = [i for i in range(len(batch)) if i not in batch.bodies]
        if self.template is None or self.fast is None or self.frame is None or not plain:
            return list(range(len(batch)))
        pairs = [(batch.asked(i), batch.told(i)) for i in plain]
        longest = self.job.max_seq_len
        tokens, trained, fine = prove_rows(self.template, pairs, longest, self.fast, self.frame)
        proven = np.array(plain)[fine]
        facts["tokens"][proven], facts["trained"][proven] = tokens[fine], trained[fine]
        return sorted({*range(len(batch))} - {*proven.tolist()})

    def _shorter(self, proof: Proof, body: dict[str, Any]) -> list[dict[str, Any]]:
        over = any(code == "over_length" for code, _ in proof.findings)
        if not over or self.spec.over_length != "split" or self.template is None:
            return []
        return split(self.template, body, self.job.max_seq_len or 0)


def quarantined(
    file: str, line: int, offset: int, raw: bytes, reasons: list[dict[str, str]]
) -> bytes:
    """One line of a quarantine file: where the record is, why it is here, and its raw bytes."""
    entry: dict[str, Any] = {"file": file, "line": line, "offset": offset, "reasons": reasons}
    if len(raw) > MAX_RAW:
        entry["raw_bytes"] = len(raw)
        raw = raw[:MAX_RAW]
    try:
        entry["raw"] = raw.decode()
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(raw).decode()
    return orjson.dumps(entry) + b"\n"


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def spill(file: Any, array: Any) -> None:
    content = array.reshape(-1).view(np.uint8)
    for at in range(0, len(content), WRITTEN):
        file.write(content[at : at + WRITTEN])


def _save(file: Path, array: Any) -> None:
    """What `np.save` writes."""
    with file.open("wb") as opened:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(opened, header)
        spill(opened, array)


def check_chunk(job_file: Path, number: int) -> Path:
    """Facts of one chunk, unless they are there already; returns their folder."""
    job = Job.load(job_file)
    target = job.place(number)
    if (target / "info.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # a folder of its own: a task runner may start a chunk again while its first worker still lives
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    check = ChunkCheck(job, number, partial)
    with not_collecting():
        info = check.run()
    if info["read"] != check.chunk.lines:
        raise InputError(f"{check.table.name} changed while it was read: start again")
    empty = np.zeros(0, FACTS), np.zeros((BANDS, 0), np.uint64)
    _save(partial / "facts.npy", np.concatenate([empty[0], *check.facts]))
    _save(partial / "bands.npy", np.concatenate([empty[1], *check.bands], axis=1))
    np.save(partial / "overlaps.npy", np.array(check.overlaps, OVERLAPS))
    write_json(partial / "info.json", info)
    try:
        partial.rename(target)
    except OSError:
        if not (target / "info.json").is_file():
            raise
        shutil.rmtree(partial)  # somebody else was first, with the same bytes
    return target


def main(arguments: list[str]) -> int:
    job, *numbers = arguments
    try:
        for number in numbers:
            check_chunk(Path(job), int(number))
            print(number, flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(why(error, Path(job)), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
