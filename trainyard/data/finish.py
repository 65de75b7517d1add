"""The end of a check: verdict, facts and reports, moved into place with the manifest last."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trainyard
from trainyard.data.characters import SCRIPTS
from trainyard.data.drift import (
    Drift,
    judge_drift,
    named,
    rate_of,
    rows_changed,
    shift_of_shares,
    shift_of_values,
)
from trainyard.data.facts import Former, read_former, write_facts
from trainyard.data.job import METHOD, Job
from trainyard.data.merge import QUARANTINE, TRAIN, VAL, Merged, merge, reasons, write_rows
from trainyard.data.overlap import write_overlaps
from trainyard.data.page import Story, masked, page, summary
from trainyard.data.template import Template
from trainyard.data.verdict import Counts, DataVerdict, conserve, judge
from trainyard.files import digest_file, digest_json, write_json, write_text

CONTAMINATION = "contamination.jsonl"
MEASURED = ("prompt_chars", "answer_chars", "turns", "tokens")


def finish(job_file: Path, out: Path, previous: Path | None = None) -> DataVerdict:
    """Bring the facts of all chunks together and write the version `out`."""
    job = Job.load(job_file)
    merged = merge(job)
    made = job.folder / "version"
    made.mkdir(exist_ok=True)
    bad_lines, digests = write_rows(merged, made)
    counts = _counts(merged, bad_lines)
    conserve(counts)
    refuse, warn = judge(job.spec, counts)
    former = read_former(previous) if previous is not None else None
    drift = _drift(merged, counts, former) if former is not None else None
    moved: list[str] = []
    if drift is not None:
        limits = job.spec.limits
        harder, moved = judge_drift(
            drift,
            warn_at=limits.drift_warn,
            refuse_at=limits.drift_refuse,
            max_rate_change=limits.max_rate_change,
            max_removed=limits.max_removed,
        )
        refuse = [*refuse, *harder]
    verdict = _verdict(merged, counts, refuse, [*warn, *moved], out, drift)
    touched = write_overlaps(merged, made / CONTAMINATION)
    story = Story(verdict, merged, counts, drift, touched, refuse, moved)
    _write(merged, verdict, story, made, former, digests)
    _move(made, out)
    return verdict


def _counts(merged: Merged, bad_lines: int) -> Counts:
    away, kept = reasons(merged)
    facts = merged.facts[merged.side != QUARANTINE]
    scripts = named(SCRIPTS, facts["script"])
    names: Counter[str] = Counter()
    for info in merged.infos:
        names.update(info["names"]["label"])
    total = sum(names.values())
    return Counts(
        lines=merged.lines,
        train=int((merged.side == TRAIN).sum()),
        val=int((merged.side == VAL).sum()),
        quarantine=bad_lines,
        reasons=dict(away),
        warnings=dict(kept),
        scripts={k: v / max(len(facts), 1) for k, v in scripts.items()},
        labels={k: v / total for k, v in names.items()},
    )


def _verdict(
    merged: Merged,
    counts: Counts,
    refuse: list[str],
    warn: list[str],
    out: Path,
    drift: Drift | None,
) -> DataVerdict:
    facts = merged.facts[merged.side != QUARANTINE]
    return DataVerdict(
        verdict="refuse" if refuse else "warn" if warn else "pass",
        lines=counts.lines,
        train=counts.train,
        val=counts.val,
        quarantine=counts.quarantine,
        reasons=dict(sorted(counts.reasons.items())),
        warnings=dict(sorted(counts.warnings.items())),
        duplicates={"exact": merged.exact, "near": merged.near},
        leaks=counts.reasons.get("leak", 0) + counts.warnings.get("leak", 0),
        tokens=int(facts["tokens"].sum()) - int(facts["lost"].sum()),
        trained_tokens=int(facts["trained"].sum()),
        lost_tokens=int(facts["lost"].sum()),
        digest=_content(merged),
        problems=tuple(masked(problem) for problem in (*refuse, *warn)),  # a label may be a key
        out=str(out),
        drift=drift.words if drift is not None else None,
    )


def _content(merged: Merged) -> str:
    """Digest that does not depend on the order of rows."""
    ids = [merged.facts["id"][merged.side == side] for side in (TRAIN, VAL)]
    sides = [hashlib.sha256(in_order(some).tobytes()).hexdigest() for some in ids]
    cut = merged.job.spec.over_length in ("truncate", "split")
    return digest_json([*sides, merged.job.max_seq_len if cut else None])


def in_order(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[n, 2] ids in the order of their bytes; sorting them as bytes takes four times as long."""
    first, second = ids.view(">u8").astype(np.uint64).T
    order = np.argsort(first)
    ranked = first[order]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.lexsort((second, first))
    return ids[order]


def _ordered(merged: Merged) -> str:
    kept = merged.side != QUARANTINE
    content = merged.facts["id"][kept].tobytes() + merged.side[kept].tobytes()
    return hashlib.sha256(content).hexdigest()


def _drift(merged: Merged, counts: Counts, former: Former) -> Drift:
    kept = merged.facts[merged.side != QUARANTINE]
    shifts = [
        shift_of_values(name, former.values[name], kept[name].astype(np.float64))
        for name in MEASURED
        if len(former.values[name]) and len(kept) and former.values[name].any() and kept[name].any()
    ]
    if former.scripts and len(kept):
        shifts.append(shift_of_shares("script", former.scripts, named(SCRIPTS, kept["script"])))
    for name in ("label", "system"):
        now: Counter[str] = Counter()
        for info in merged.infos:
            now.update(info["names"][name])
        if former.names[name] or now:
            shifts.append(shift_of_shares(name, former.names[name], now))
    added, removed = rows_changed(former.ids, kept["id"][:, 1])
    found = Counter(counts.reasons) + Counter(counts.warnings)
    rates = {
        code: (rate_of(former.found, code, former.lines), rate_of(found, code, counts.lines))
        for code in {*former.found, *found}
    }
    share = removed / max(len(former.ids), 1)
    return Drift(tuple(shifts), rates, added, removed, share, former.digest)


def _write(
    merged: Merged,
    verdict: DataVerdict,
    story: Story,
    made: Path,
    former: Former | None,
    digests: dict[str, str],
) -> None:
    job = merged.job
    write_facts(merged, made / "facts.parquet")
    write_json(made / "verdict.json", asdict(verdict))
    write_text(made / "report.html", page(story))
    write_text(made / "report.md", summary(story))
    files = ["train.jsonl", "val.jsonl", "quarantine.jsonl", "facts.parquet", "verdict.json"]
    files += [CONTAMINATION] if (made / CONTAMINATION).exists() else []
    names: dict[str, Counter[str]] = {"label": Counter(), "system": Counter()}
    for info in merged.infos:
        for key, counter in names.items():
            counter.update(info["names"][key])
    manifest: dict[str, Any] = {
        "digest": verdict.digest,
        "ordered_digest": _ordered(merged),
        "verdict": verdict.verdict,
        "lines": verdict.lines,
        "parent": former.digest if former is not None else None,
        "inputs": [
            {"file": t.name, "sha256": t.digest, **({"dvc_md5": t.dvc_md5} if t.dvc_md5 else {})}
            for t in job.tables
        ],
        "spec": job.spec.model_dump(mode="json"),
        "max_seq_len": job.max_seq_len,
        "template": Template.load(job.model).digest if job.model is not None else None,
        "eval_sets": digest_file(job.eval_sets) if job.eval_sets is not None else None,
        "code": {"trainyard": trainyard.__version__, "method": METHOD},
        "names": {key: dict(counter.most_common(1000)) for key, counter in names.items()},
        "files": {name: digests.get(name) or digest_file(made / name) for name in files},
    }
    write_text(made / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _move(made: Path, out: Path) -> None:
    """Each file is whole when it arrives, and none counts before the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    for file in sorted(made.iterdir(), key=lambda f: (f.name == "manifest.json", f.name)):
        file.replace(out / file.name)
