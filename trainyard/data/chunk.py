"""One chunk of one table: every record read, checked by itself, and written as facts.

A pure function of files: `check_chunk(job, number)` writes a folder named by its inputs, the same
bytes wherever it runs, whole or not there. As a program: `python -m trainyard.data.chunk JOB N…`
"""

import base64
import gc
import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from trainyard.data.job import BIT, FACTS, KIND, OVERLAPS, Job
from trainyard.data.leakage import COVERED, EvalSets, asked_and_told
from trainyard.data.lines import records
from trainyard.data.messages import RowProblem, text_of
from trainyard.data.patterns import SEPARATOR, Patterns
from trainyard.data.proof import Proof, prove, split
from trainyard.data.rows import RowReader, encode, in_file
from trainyard.data.shingles import BANDS, CONTROL, MOJIBAKE, Scanner
from trainyard.data.structure import findings, refuse_unusable
from trainyard.data.template import Template
from trainyard.data.tokens import FastTokens
from trainyard.errors import InputError
from trainyard.files import why, write_json

BATCH = 4096
REPEATED = 0.5
SYSTEM = ("system", "developer")
SCANNED_CODES = ("secret", "pii", "special_tokens", "refusal", "placeholder", "toxic")
MAX_RAW = 1 << 26
"""Longest raw record kept in a quarantine file, in bytes; of a longer one, the beginning."""


class ChunkCheck:
    def __init__(self, job: Job, number: int, folder: Path) -> None:
        self.job, self.chunk = job, job.chunk(number)
        self.table = self.chunk.table
        self.spec = job.spec
        self.reader = RowReader(
            self.table, job.sources[job.chunks[number][0]], job.spec.max_row_bytes
        )
        self.actions = job.spec.checks.model_dump()
        self.template, self.fast = None, None
        if job.model is not None:
            self.template, self.fast = _encoders(job.model, job.fast_tokens, job.inputs)
        special = list(self.template.eos_texts) if self.template is not None else []
        if self.template is not None:
            special += [t for t in self.template.special.values() if "unk" not in t]
        looked_for = [c for c in SCANNED_CODES if self.actions[c] != "off"]
        self.patterns = Patterns(looked_for, special)
        self.match = self.patterns.set.Match
        self.locate_in = in_file(self.table.name)
        self.redacted = frozenset(c for c in ("secret", "pii") if self.actions[c] == "redact")
        self.eval_sets = EvalSets.load(job.eval_sets) if job.eval_sets is not None else None
        nothing = np.empty(0, np.uint64)
        long, short = nothing, nothing
        if self.eval_sets is not None:
            long = np.unique(self.eval_sets.long.hashes)
            short = np.unique(self.eval_sets.short.hashes)
        self.scanner = Scanner(np.load(job.common), long, short)
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
        batch: list[tuple[int, int, int, dict[str, Any], dict[str, Any]]] = []
        for line, offset, raw in records(self.chunk):
            self.read += 1
            try:
                body, meta = self.reader.read(raw)
                refuse_unusable(body)
            except RowProblem as problem:
                self._quarantine(line, offset, raw, *problem.args)
                continue
            batch.append((line, offset, len(raw), body, meta))
            if len(batch) == BATCH:
                self._flush(batch)
                batch = []
        if batch:
            self._flush(batch)
        for file in (self.rows, self.bad, self.details):
            file.close()
        return {
            "read": self.read,
            "usable": self.usable,
            "reasons": dict(sorted(self.reasons.items())),
            "found": dict(sorted(self.found.items())),
            "names": {k: dict(sorted(v.items())) for k, v in self.names.items()},
        }

    def _quarantine(self, line: int, offset: int, raw: bytes, code: str, detail: str) -> None:
        self.reasons[code] += 1
        self.bad.write(
            quarantined(self.table.name, line, offset, raw, [{"code": code, "detail": detail}])
        )

    def _flush(self, batch: list[tuple[int, int, int, dict[str, Any], dict[str, Any]]]) -> None:
        facts = np.zeros(len(batch), FACTS)
        texts: list[tuple[bytes, bytes]] = []
        flags: list[int] = []
        for i, (_, _, _, body, meta) in enumerate(batch):
            asked, told, aside, shaped = texts_of(body)
            found = 0
            text = f"{aside}{asked}{SEPARATOR}{told}"
            if hits := self.match(text):
                found, asked, told = self._words(i, body, meta, asked, told, text, hits)
            for code, detail in findings(body, self.table.folder, shaped, told):
                found |= self._note(i, code, detail)
            texts.append((asked.encode(), told.encode()))
            flags.append(found)
        lines, offsets, lengths, bodies, _ = zip(*batch, strict=True)
        facts["line"], facts["offset"], facts["length"] = lines, offsets, lengths
        facts["kind"] = [KIND[body["kind"]] for body in bodies]
        facts["turns"] = [min(len(b.get("messages", b.get("prompt", ()))), 65535) for b in bodies]
        facts["flags"] = flags
        self._names(facts, batch)
        scanned, bands = self.scanner.scan(texts)
        for name in scanned.dtype.names:
            if name in (FACTS.names or ()):
                facts[name] = scanned[name]
        self._from_scan(facts, scanned, texts)
        self._write(facts, batch)
        facts["flags"] &= np.uint32(~self.off & 0xFFFFFFFF)
        self.usable += len(batch)
        self.facts.append(facts)
        self.bands.append(bands)

    def _note(self, i: int, code: str, detail: str) -> int:
        """The bit of `code`, after writing down what was found in row `i` of this batch."""
        if self.actions.get(code) == "off":
            return 0
        entry = orjson.dumps([self.usable + i, code, detail])
        self.details.write(entry + b"\n")
        return BIT[code]

    def _words(
        self, i: int, body: dict[str, Any], meta: dict[str, Any], asked: str, told: str,
        text: str, hits: list[int],
    ) -> tuple[int, str, str]:  # fmt: skip
        """Flags of the patterns in all text of the row, and its texts after redaction."""
        flags = 0
        for finding in self.patterns.locate(text, hits):
            code, name = finding.pattern.code, finding.pattern.name
            self.found[name] += 1
            flags |= self._note(i, code, f"{name} {finding.masked}")
        sensitive = {c for c in self.redacted if flags & BIT[c]}
        if sensitive:
            counts = self._redact(body, frozenset(sensitive))
            meta["redacted"] = dict(counts)
            asked, told = asked_and_told(body)
        return flags, asked, told

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

    def _names(self, facts: Any, batch: list[tuple[int, int, int, dict[str, Any], Any]]) -> None:
        """Hashes of group, label and system prompt, and how often each label and prompt occurs."""
        group_by, label = self.spec.group_by, self.spec.label
        for i, (_, _, _, body, meta) in enumerate(batch):
            if group_by is not None and meta.get(group_by) is not None:
                facts["group"][i] = _hash64(orjson.dumps(meta[group_by]))
            if label is not None:
                value = meta.get(label, body.get("label"))
                name = value if isinstance(value, str) else orjson.dumps(value).decode()
                facts["label"][i] = _hash64(name.encode())
                self.names["label"][name] += 1
            messages = body.get("messages") or body.get("prompt")
            if messages and messages[0]["role"] in SYSTEM:
                prompt = _hash64(text_of(messages[0]["content"]).encode())
                facts["system"][i] = prompt
                self.names["system"][f"{prompt:016x}"] += 1

    def _from_scan(self, facts: Any, scanned: Any, texts: list[tuple[bytes, bytes]]) -> None:
        """Flags that the compiled pass decides, and samples that rows with hits repeat."""
        seen = {
            "control_characters": (scanned.odd & CONTROL) != 0,
            "mojibake": (scanned.odd & MOJIBAKE) != 0,
            "repetition": scanned.repeats > REPEATED,
            "prompt_echo": (scanned.prompt_hash == scanned.answer_hash) & (scanned.units >= 8),
        }
        if self.actions["language_mismatch"] != "off":
            asked_in = self.scanner.scan([(b"", asked) for asked, _ in texts])[0].script
            told_in = scanned.script
            seen["language_mismatch"] = (asked_in != told_in) & (asked_in != 0) & (told_in != 0)
        for code, rows in seen.items():
            for i in np.flatnonzero(rows).tolist():
                detail = f"{scanned.repeats[i]:.0%} of 4-grams" if code == "repetition" else ""
                facts["flags"][i] |= np.uint32(self._note(i, code, detail))
        if self.eval_sets is None:
            return
        asked = np.fromiter((len(t[0]) > 0 for t in texts), bool, len(texts))
        whole = np.where(asked, scanned.prompt_hash, scanned.answer_hash)
        suspects = (scanned.hits > 0) | np.isin(whole, self.eval_sets.prompts)
        for i in np.flatnonzero(suspects).tolist():
            found = self.eval_sets.overlaps(*texts[i], int(whole[i]))
            if found:
                sample, share = found[0]
                code = "leak" if share >= COVERED else "eval_overlap"
                detail = f"repeats {share:.0%} of {self.eval_sets.names[sample]}"
                facts["flags"][i] |= np.uint32(self._note(i, code, detail))
                self.overlaps += [(self.usable + i, *pair) for pair in found]

    def _write(self, facts: Any, batch: list[tuple[int, int, int, dict[str, Any], Any]]) -> None:
        """Canonical bytes of each row (several lines when it is split), with its id and tokens."""
        ids, starts, sizes, made = [], [], [], []
        facts["samples"] = 1
        for i, (line, _, _, body, meta) in enumerate(batch):
            row_id, content = encode(body)
            row = self.locate_in(row_id, content, line, meta)
            if self.template is not None:
                row = self._prove(facts[i], i, line, body, meta) or row
            ids.append(row_id)
            starts.append(self.written)
            sizes.append(len(row))
            made.append(row)
            self.written += len(row)
        facts["id"] = np.frombuffer(b"".join(ids), np.uint64).reshape(-1, 2)
        facts["start"], facts["size"] = starts, sizes
        self.rows.write(b"".join(made))

    def _prove(
        self, facts: Any, i: int, line: int, body: dict[str, Any], meta: dict[str, Any]
    ) -> bytes | None:
        """Note tokens and what encoding shows; the row as several lines when it was split."""
        assert self.template is not None
        proof = prove(self.template, body, self.job.max_seq_len, self.fast)
        pieces = self._shorter(proof, body)
        if pieces:
            proof = Proof(proof.tokens, proof.trained)
        facts["tokens"], facts["trained"] = proof.tokens, proof.trained
        for code, detail in proof.findings:
            facts["flags"] |= np.uint32(self._note(i, code, detail))
            if code == "over_length" and self.spec.over_length == "truncate":
                facts["lost"] = proof.tokens - (self.job.max_seq_len or 0)
        if not pieces:
            return None
        facts["samples"] = len(pieces)
        return b"".join(self.locate_in(*encode(piece), line, meta) for piece in pieces)

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


def texts_of(body: dict[str, Any]) -> tuple[str, str, str, bool]:
    """What is asked, what is told, other text of the row, and: is it one question, one answer?

    The other text (system, rejected, tool calls) is left out of comparisons; patterns must see it.
    """
    messages = body.get("messages")
    if messages is not None and len(messages) == 2 and len(body) == 2:
        first, last = messages
        if first["role"] == "user" and len(first) == 2 and len(last) == 2:
            asked, told = first["content"], last["content"]
            if type(asked) is str and type(told) is str:
                return asked, told, "", True
    asked, told = asked_and_told(body)
    prompt = messages or body.get("prompt") or ()
    aside = [text_of(m["content"]) for m in prompt if m["role"] in SYSTEM]
    aside += [text_of(m["content"]) for m in body.get("rejected", ())]
    aside += [orjson.dumps(m["tool_calls"]).decode() for m in prompt if "tool_calls" in m]
    return asked, told, "\n".join([*aside, ""]) if aside else "", False


@lru_cache(maxsize=2)
def _encoders(model: Path, fast: bool, _inputs: str) -> tuple[Template, FastTokens | None]:
    """Read once per process and job: building them takes as long as a thousand rows."""
    template = Template.load(model)
    return template, FastTokens.of(template) if fast else None


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


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
    collecting = gc.isenabled()
    gc.disable()  # rows are trees: collecting cycles among them costs a tenth and finds none
    try:
        info = check.run()
    finally:
        if collecting:
            gc.enable()
    if info["read"] != check.chunk.lines:
        raise InputError(f"{check.table.name} changed while it was read: start again")
    empty = np.zeros(0, FACTS), np.zeros((BANDS, 0), np.uint64)
    np.save(partial / "facts.npy", np.concatenate(check.facts) if check.facts else empty[0])
    np.save(partial / "bands.npy", np.concatenate(check.bands, axis=1) if check.bands else empty[1])
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
