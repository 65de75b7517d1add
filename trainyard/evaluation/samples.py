"""Evaluation samples: what is asked, what the answer is compared with, and what it counts for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from trainyard.data.read import read_samples
from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One sample. A chat sample has `messages` (the prompt); a document has `text`."""

    id: str
    messages: tuple[Message, ...] = ()
    reference: str | None = None
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    cluster: str | None = None
    slices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The last user message, for people."""
        asked = [m for m in self.messages if m.get("role") == "user"]
        return str(asked[-1].get("content") or "") if asked else self.text or ""


def read_items(
    path: str | Path | SourceSpec,
    *,
    limit: int | None = None,
    cluster: str | None = None,
    slices: Sequence[str] = (),
) -> list[Item]:
    """Samples of an eval set, in file order; a repeated sample is kept once.

    Raises InputError for an empty set, a bad row, or a missing cluster or slice field.
    """
    found: dict[str, Item] = {}
    for row in islice(_rows(path), limit):
        meta = row.get("meta") or {}
        missing = [key for key in (cluster, *slices) if key is not None and key not in meta]
        if missing:
            source = row["source"]
            raise InputError(
                f"{source['file']}, line {source['line']}: the sample has no field "
                f"{', '.join(missing)}; add it, or leave it out of cluster and slices"
            )
        found.setdefault(
            row["id"],
            _item(
                row,
                cluster=None if cluster is None else str(meta[cluster]),
                slices=tuple(f"{key}={meta[key]}" for key in slices),
            ),
        )
    if not found:
        raise InputError(f"{path} holds no samples: there is nothing to evaluate on")
    return list(found.values())


def _rows(source: str | Path | SourceSpec) -> Iterator[dict[str, Any]]:
    if isinstance(source, SourceSpec):
        return read_samples(source.path, source)
    return read_samples(source)


def require(items: Iterable[Item], path: str | Path, *, reference: bool) -> None:
    """Raises InputError unless all items are chat samples (with a reference, where asked)."""
    for item in items:
        if not item.messages:
            raise InputError(f"{path}: sample {item.id} is a document, and this suite asks by chat")
        if reference and item.reference is None:
            raise InputError(
                f"{path}: sample {item.id} does not end with an assistant message to compare with"
            )


def _item(row: Mapping[str, Any], *, cluster: str | None, slices: tuple[str, ...]) -> Item:
    meta = dict(row.get("meta") or {})
    common = {"id": row["id"], "meta": meta, "cluster": cluster, "slices": slices}
    if row["kind"] == "pretrain":
        return Item(text=row["text"], **common)
    if row["kind"] == "prompt_only":
        return Item(messages=tuple(row["prompt"]), **common)
    if row["kind"] == "preference":
        return Item(messages=tuple(row["prompt"]), reference=_content(row["chosen"][-1]), **common)
    if row["kind"] != "sft":
        raise InputError(
            f"{row['source']['file']}, line {row['source']['line']}: a row of kind {row['kind']} "
            "cannot be asked; use messages, prompt and completion, a prompt alone, or text"
        )
    messages = row["messages"]
    if messages[-1].get("role") != "assistant":
        return Item(messages=tuple(messages), **common)
    return Item(messages=tuple(messages[:-1]), reference=_content(messages[-1]), **common)


def _content(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""
