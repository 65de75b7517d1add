"""What users ask, and what the champion was trained to be asked: two windows of texts."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainyard.data.messages import text_of
from trainyard.files import rows_of
from trainyard.monitor import drift
from trainyard.monitor.finding import Finding, breach, healthy, unknown
from trainyard.recipe.base import Frozen
from trainyard.recipe.monitor import DriftSpec
from trainyard.serving.answers import redact

LOGS = ("requests.old.jsonl", "requests.jsonl")


class DriftMemory(Frozen):
    """The last test, which stands until enough new questions are there."""

    tested: int = 0
    """Questions that were logged when it was made."""

    finding: Finding | None = None


def logged(folder: Path, version: str) -> list[dict[str, Any]]:
    """Rows of the gateway's log that this version answered, oldest first."""
    every = (row for name in LOGS for row in rows_of(folder / name))
    return [row for row in every if row.get("version") == version]


def asked(messages: Any) -> str:
    """What was asked, redacted as the log is, without system text."""
    found = []
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, str):
            found.append(message)
        elif isinstance(message, Mapping) and message.get("role") not in ("system", "developer"):
            found.append(text_of(message.get("content") or ""))
    return redact("\n".join(found))


def trained_on(folder: Path, most: int, seed: int = 0) -> list[str]:
    """Prompts of at most `most` training rows of a data version, drawn at random."""
    rng, kept, seen = random.Random(seed), list[str](), 0
    for row in rows_of(folder / "train.jsonl"):
        text = asked(_prompt(row))
        if not text:
            continue
        seen += 1
        if len(kept) < most:
            kept.append(text)
        elif (place := rng.randrange(seen)) < most:
            kept[place] = text
    return kept


def _prompt(row: Mapping[str, Any]) -> Any:
    messages = row.get("messages") or row.get("prompt") or []
    if isinstance(messages, list) and messages and messages[-1].get("role") == "assistant":
        return messages[:-1]
    return messages


def check_drift(
    spec: DriftSpec, rows: list[dict[str, Any]], trained: list[str] | None, old: DriftMemory
) -> DriftMemory:
    """Test both windows when `spec.short` new questions are there; else the last test stands."""
    texts = [asked(row.get("messages")) for row in rows]
    reference = trained
    if spec.against == "traffic":
        reference, texts = texts[: spec.reference], texts[spec.reference :]
    if not reference or len(reference) < drift.LEAST:
        reason = f"{len(reference or [])} questions to compare with, {drift.LEAST} needed"
        return old.model_copy(update={"finding": unknown("drift", reason)})
    if len(texts) < spec.short:
        reason = f"{len(texts)} questions are logged, {spec.short} make a window"
        return old.model_copy(update={"finding": unknown("drift", reason)})
    if old.finding is not None and old.tested and len(texts) - old.tested < spec.short:
        return old
    return DriftMemory(tested=len(texts), finding=_tested(spec, reference[: spec.reference], texts))


def _tested(spec: DriftSpec, reference: list[str], texts: list[str]) -> Finding:
    sizes = dict.fromkeys((spec.short, min(spec.long, len(texts))))
    found = {
        n: drift.mmd_test(reference, texts[-n:], permutations=spec.permutations) for n in sizes
    }
    limit = spec.alpha / 2
    told = "; ".join(
        f"newest {n} against {test.n}: MMD2 {test.mmd2:.4f}, p {test.p:.4f}"
        for n, test in found.items()
    )
    ringing = [n for n, test in found.items() if test.p <= limit]
    evidence: dict[str, Any] = {
        "windows": {str(n): {"mmd2": t.mmd2, "p": t.p, "n": t.n} for n, t in found.items()},
        "limit": limit,
    }
    if not ringing:
        return healthy("drift", f"{told}; limit {limit:g}", **evidence)
    window = texts[-max(ringing) :]
    why = drift.explain(reference, window)
    evidence |= {
        "auc": why.auc,
        "more": why.more,
        "fewer": why.fewer,
        "samples": [window[place][:500] for place in why.samples],
    }
    reason = (
        f"users ask something else: {told}; limit {limit:g}; a classifier tells them apart with "
        f"an AUC of {why.auc:.2f}, by {', '.join(why.more) or 'no word in particular'}"
    )
    return breach("drift", reason, spec.then, **evidence)
