"""Training rows as token ids and labels, exactly as the data check encoded them."""

import json
from pathlib import Path
from typing import Any

from trainyard.data.template import Encoded, RowNotRendered, Template
from trainyard.errors import InputError

IGNORED = -100
"""Label of a token that the loss does not count."""


KIND = {"dpo": "preference", "orpo": "preference", "kto": "kto", "grpo": "sft"}
"""Rows that an objective needs; SFT takes every row that has something to train."""


def read_rows(
    file: Path, template: Template, max_seq_len: int, objective: str = "sft"
) -> list[dict[str, Any]]:
    """Return `id`, `kind`, `input_ids` and `labels` of each canonical row.

    For preferences also `prompt_ids`, and `chosen_ids` with `rejected_ids` or `completion_ids` with
    `label`; `input_ids` are then those of the chosen or the only answer. For GRPO `prompt_ids`,
    `answer_ids` and `asked`, the messages before the answer. Raises InputError for a
    row of another kind, or longer than `max_seq_len` tokens.
    """
    with file.open(encoding="utf-8") as lines:
        rows = [_encode(json.loads(line), template, objective) for line in lines]
    if not rows:
        raise InputError(f"{file} has no rows to train on")
    too_long = [row for row in rows if _length(row) > max_seq_len]
    if too_long:
        worst = max(too_long, key=_length)
        raise InputError(
            f"{len(too_long)} rows of {file} are longer than max_seq_len ({max_seq_len} tokens), "
            f"row {worst['id']} has {_length(worst)}: raise max_seq_len or drop them"
        )
    return rows


def _length(row: dict[str, Any]) -> int:
    other = len(row["prompt_ids"]) + len(row["rejected_ids"]) if "rejected_ids" in row else 0
    return max(len(row["input_ids"]), other)


def _encode(row: dict[str, Any], template: Template, objective: str) -> dict[str, Any]:
    wanted = KIND.get(objective, row["kind"])
    if row["kind"] != wanted:
        raise InputError(
            f"row {row.get('id')} is of kind {row['kind']}, and objective {objective} trains on "
            f"rows of kind {wanted}"
        )
    try:
        found = template.encode(row)
        made = {"id": row.get("id"), "kind": row["kind"], "input_ids": found.input_ids}
        made["labels"] = [
            token if trained else IGNORED
            for token, trained in zip(found.input_ids, found.trained, strict=True)
        ]
        if objective == "sft":
            return made
        prompt, answer = _at_the_answer(found)
        size = len(prompt) + len(answer)  # a template may write a line end after the turn
        made |= {key: made[key][:size] for key in ("input_ids", "labels")}
        made["prompt_ids"] = prompt
        if objective == "grpo":
            if not all(found.trained[len(prompt) : size]):
                raise RowNotRendered("it has several answers, and objective grpo takes one")
            return made | {"answer_ids": answer, "asked": row["messages"][:-1]}
        if objective == "kto":
            return made | {"completion_ids": answer, "label": bool(row["label"])}
        same_prompt, rejected = _at_the_answer(template.encode(row | {"chosen": row["rejected"]}))
    except RowNotRendered as error:
        raise InputError(f"row {row.get('id')}: {error}") from None
    if prompt != same_prompt:
        raise InputError(
            f"row {row.get('id')}: its prompt is encoded in two ways before its two answers; the "
            "chat template must not look at what follows"
        )
    return made | {"chosen_ids": answer, "rejected_ids": rejected}


def _at_the_answer(encoded: Encoded) -> tuple[list[int], list[int]]:
    """What comes before the answer, and the answer with the token that ends its turn."""
    if True not in encoded.trained:
        raise RowNotRendered("nothing in the answer is trained")
    first = encoded.trained.index(True)
    last = len(encoded.trained) - encoded.trained[::-1].index(True)
    return encoded.input_ids[:first], encoded.input_ids[first:last]
