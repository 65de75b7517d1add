"""Training rows as token ids and labels, exactly as the data check encoded them."""

import json
from pathlib import Path
from typing import Any

from trainyard.data.template import RowNotRendered, Template
from trainyard.errors import InputError

IGNORED = -100
"""Label of a token that the loss does not count."""


def read_rows(file: Path, template: Template, max_seq_len: int) -> list[dict[str, Any]]:
    """Return `id`, `kind`, `input_ids` and `labels` of each canonical row.

    Raises InputError for a row that is longer than `max_seq_len` tokens.
    """
    with file.open(encoding="utf-8") as lines:
        rows = [_encode(json.loads(line), template) for line in lines]
    if not rows:
        raise InputError(f"{file} has no rows to train on")
    too_long = [row for row in rows if len(row["input_ids"]) > max_seq_len]
    if too_long:
        worst = max(too_long, key=lambda row: len(row["input_ids"]))
        raise InputError(
            f"{len(too_long)} rows of {file} are longer than max_seq_len ({max_seq_len} tokens), "
            f"row {worst['id']} has {len(worst['input_ids'])}: raise max_seq_len or drop them"
        )
    return rows


def _encode(row: dict[str, Any], template: Template) -> dict[str, Any]:
    try:
        found = template.encode(row)
    except RowNotRendered as error:
        raise InputError(f"row {row.get('id')}: {error}") from None
    labels = [
        token if trained else IGNORED
        for token, trained in zip(found.input_ids, found.trained, strict=True)
    ]
    return {
        "id": row.get("id"),
        "kind": row["kind"],
        "input_ids": found.input_ids,
        "labels": labels,
    }
