"""What users said becomes data: corrections, and answers that they liked, as a data-set version.

A version is a folder with `rows.jsonl` (OpenAI messages, ready for `data.train`) and a manifest,
written last, that says where each row comes from. The data check reads every row: what repeats an
evaluation sample, or another row, is refused.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field

from trainyard import files
from trainyard.data.check import check
from trainyard.data.read import read_samples
from trainyard.errors import NotFound, Refused
from trainyard.files import rows_of
from trainyard.monitor.questions import LOGS
from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen
from trainyard.recipe.data import DataSpec, Limits
from trainyard.rollout.gateway_target import serving_folder
from trainyard.serving.answers import redact

ROWS, MANIFEST = "rows.jsonl", "manifest.json"
LIKED = 0.5
"""Score from which on an answer is taken as it was given."""


class Harvest(Frozen):
    """The manifest of a version."""

    model: str
    """Whose users said it."""

    digest: str
    """sha256 of rows.jsonl, which names the version."""

    made_at: float
    """Unix time."""

    rows: int
    corrected: int
    """Rows whose answer a user wrote; the others were liked as they were given."""

    answered_by: dict[str, int]
    """Digest of the version that gave the answer -> rows."""

    refused: dict[str, int]
    """Why a piece of feedback is no row -> how many: codes of the data check, or ours."""

    eval_sets: dict[str, str]
    """Evaluation file that no row repeats -> sha256."""

    redacted: tuple[str, ...] = ("e-mail addresses", "keys", "numbers of eight digits or more")
    parent: str | None = None
    """Digest of the version before, whose rows are in this one too."""

    folder: Path = Field(default=Path(), exclude=True)

    def as_text(self) -> str:
        why = ", ".join(f"{code} {count}" for code, count in self.refused.items())
        return (
            f"{self.rows} rows ({self.corrected} corrected) of {len(self.answered_by)} versions; "
            f"not taken: {why or 'none'}\n{self.folder / ROWS}"
        )


def collect(recipe: Recipe, home: Path, place: Path | None = None) -> Harvest:
    """Make a version of all feedback at hand and of the version before; the same again is the same.

    `place` is where the traffic is on record, if not `home`. Raises NotFound without feedback on a
    logged answer, Refused when no row is left.
    """
    source = serving_folder(place or home, recipe.name)
    folder = home.absolute() / "feedback" / recipe.name
    parent = newest(folder)
    old = list(rows_of(parent.folder / ROWS)) if parent else []
    refused: Counter[str] = Counter()
    said = list(_said(source, refused))
    if not said and not old:
        raise NotFound(
            f"no feedback on a logged answer in {source}: deploy.log_fraction says how many are "
            "logged"
        )
    latest = {row["request_id"]: row for row in [*old, *said]}
    # who wrote the answer matters more than who came first
    ordered = sorted(latest.values(), key=lambda row: (not row["corrected"], row["at"]))
    eval_sets = _eval_sets(recipe)
    kept, more = _checked(ordered, recipe, list(eval_sets), folder)
    refused.update(more)
    if not kept:
        raise Refused(f"no row is left of {len(ordered)}: {dict(refused)}")
    return _write(recipe, folder, kept, refused, eval_sets, parent)


def newest(folder: Path) -> Harvest | None:
    """Return the version that was made last."""
    found = [
        Harvest.model_validate(files.read_json(path)).model_copy(update={"folder": path.parent})
        for path in folder.glob(f"sha256-*/{MANIFEST}")
    ]
    return max(found, key=lambda one: one.made_at, default=None)


def _said(source: Path, refused: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of what users corrected or liked; of several words on one answer the last."""
    logged = {str(row["request_id"]): row for name in LOGS for row in rows_of(source / name)}
    words = {str(row["request_id"]): row for row in rows_of(source / "feedback.jsonl")}
    for request_id, word in words.items():
        answered = logged.get(request_id)
        problem = _problem(word, answered)
        if problem is not None or answered is None:
            refused[problem or "not_logged"] += 1
            continue
        correction = word.get("correction")
        text = answered["answer"] if correction is None else redact(str(correction))
        yield {
            "messages": [*answered["messages"], {"role": "assistant", "content": text}],
            "request_id": request_id,
            "version": answered["version"],
            "corrected": correction is not None,
            "score": word["score"],
            "at": word["at"],
        }


def _problem(word: Mapping[str, Any], answered: Mapping[str, Any] | None) -> str | None:
    if answered is None:
        return "not_logged"
    asked = answered["messages"]
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in asked):
        return "not_text"
    if word.get("correction") is not None:
        return None if str(word["correction"]).strip() else "empty_correction"
    if word["score"] < LIKED:
        return "not_liked"
    return "bad_answer" if answered.get("flags") else None


def _eval_sets(recipe: Recipe) -> dict[str, str]:
    """Everything that the model is or was measured on, fresh labelled rows included."""
    watched = recipe.monitor.labelled
    named = [*recipe.evaluate.eval_sets, *([watched.data] if watched else [])]
    found = {}
    for name in dict.fromkeys(str(name) for name in named):
        path = Path(name)
        if path.is_file():
            found[name] = files.digest_file(path)
        elif path.is_dir():
            found[name] = files.digest_tree(path)
        elif name.startswith(("s3://", "hf://")) or not (watched and name == watched.data):
            found[name] = ""  # the check says so when it cannot be read
    return found


def _checked(
    rows: Sequence[dict[str, Any]], recipe: Recipe, eval_sets: Sequence[str], folder: Path
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows that the data check keeps, in order, and why others are not."""
    folder.mkdir(parents=True, exist_ok=True)
    checks = recipe.data.checks.model_copy(
        update={"leak": "quarantine", "exact_duplicate": "quarantine"}
    )
    everything = {"exact_duplicate": 1.0, "near_duplicate": 1.0, "empty_output": 1.0}
    with tempfile.TemporaryDirectory(prefix=".collect-", dir=folder) as scratch:
        file = Path(scratch) / ROWS
        file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        spec = DataSpec(
            train=(str(file),),
            val_fraction=0,
            checks=checks,
            limits=Limits(min_rows=0, min_valid=0, max_share=everything),
        )
        hidden = _redacted(eval_sets, Path(scratch) / "redacted.jsonl")
        verdict = check(spec, Path(scratch) / "out", eval_sets=[*eval_sets, *hidden], processes=1)
        lines = {
            int(row["source"]["line"])
            for side in ("train", "val")
            for row in rows_of(Path(scratch) / "out" / f"{side}.jsonl")
        }
    kept = [row for number, row in enumerate(rows, start=1) if number in lines]
    return kept, Counter({code: count for code, count in verdict.reasons.items() if count})


def _redacted(eval_sets: Sequence[str], file: Path) -> list[str]:
    """Evaluation samples as the log would show them: without their numbers they still leak."""
    with file.open("wb") as out:
        for name in eval_sets:
            for row in read_samples(name):
                body = {key: row[key] for key in ("messages", "prompt", "text") if key in row}
                plain = orjson.dumps(body).decode()
                shown = redact(plain)
                if shown != plain:
                    out.write(shown.encode() + b"\n")
    return [str(file)] if file.stat().st_size else []


def _write(
    recipe: Recipe,
    folder: Path,
    kept: Sequence[dict[str, Any]],
    refused: Counter[str],
    eval_sets: dict[str, str],
    parent: Harvest | None,
) -> Harvest:
    content = b"".join(orjson.dumps(row) + b"\n" for row in kept)
    with tempfile.TemporaryDirectory(prefix=".made-", dir=folder) as scratch:
        file = Path(scratch) / ROWS
        file.write_bytes(content)
        digest = files.digest_file(file)
        if parent is not None and parent.digest == digest:
            return parent
        made = Harvest(
            model=recipe.name,
            digest=digest,
            made_at=time.time(),
            rows=len(kept),
            corrected=sum(row["corrected"] for row in kept),
            answered_by=dict(Counter(row["version"] for row in kept)),
            refused=dict(refused),
            eval_sets=eval_sets,
            parent=parent.digest if parent else None,
        )
        place = folder / f"sha256-{digest}"
        place.mkdir(exist_ok=True)
        shutil.move(file, place / ROWS)
        files.write_json(place / MANIFEST, made.model_dump(mode="json"))
    return made.model_copy(update={"folder": place})
