"""What differs between two recipes, in words: key, before, after. Pure."""

from collections.abc import Iterable
from typing import Any

from trainyard.recipe import Recipe
from trainyard.recipe.base import Frozen


class Change(Frozen):
    key: str
    before: Any
    """None for a key that is new."""
    after: Any
    """None for a key that is gone."""

    @property
    def words(self) -> str:
        if self.before is None:
            return f"{self.key}: {_shown(self.after)} is new"
        if self.after is None:
            return f"{self.key}: {_shown(self.before)} is gone"
        return f"{self.key}: {_shown(self.before)} → {_shown(self.after)}{self._factor()}"

    def _factor(self) -> str:
        numbers = isinstance(self.before, int | float) and isinstance(self.after, int | float)
        if not numbers or isinstance(self.after, bool) or self.before in (0, self.after):
            return ""
        factor = self.after / self.before
        return f" ({factor:.3g} times)" if factor > 0 else ""


def between(before: Recipe, after: Recipe) -> list[Change]:
    """Every key whose value differs, defaults included, in the recipe's order."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    keys = [*new, *(key for key in old if key not in new)]
    return [
        Change(key=key, before=old.get(key), after=new.get(key))
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf. Entries of a list that have an id or a name are keyed by it."""
    pairs: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        pairs = ((str(v.get("id") or v.get("name") or i), v) for i, v in enumerate(value))
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in pairs:
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if len(str(value)) <= 120 else f"{str(value)[:117]}..."
