"""What the monitor has seen and done, on disk: its looks, and each action before it is done."""

from collections import deque
from pathlib import Path

from pydantic import ValidationError

from trainyard import files
from trainyard.monitor.decision import Action
from trainyard.monitor.finding import Finding, Health
from trainyard.recipe.base import Frozen

LOOKS, ACTIONS = "looks.jsonl", "actions.jsonl"


class Look(Frozen):
    """One look, as it is kept on record."""

    at: float
    """Unix time."""

    model: str
    version: str
    """Digest of the champion; empty when there is none."""

    health: Health
    findings: tuple[Finding, ...]
    actions: tuple[Action, ...] = ()

    def as_text(self) -> str:
        lines = [f"{self.health}  {self.model}@{self.version[:12] or 'nothing'}"]
        lines += [f"  {f.check:<14}{f.health:<13}{f.reason}" for f in self.findings]
        for action in self.actions:
            said = f": {action.outcome}" if action.outcome else ""
            lines.append(f"  → {action.kind} {action.status}{said}")
        return "\n".join(lines)


def folder_of(home: Path, name: str) -> Path:
    return home / "monitor" / name


def keep(folder: Path, made: Look) -> None:
    """Put a look and its intentions on record."""
    files.append_row(folder / LOOKS, made.model_dump(mode="json"))
    for action in made.actions:
        if action.status == "intended":
            _append(folder, action)


def _append(folder: Path, action: Action) -> None:
    # never thinned: cool-down and budget count on every one
    with (folder / ACTIONS).open("a", encoding="utf-8") as file:
        file.write(action.model_dump_json() + "\n")


def last(folder: Path) -> Look | None:
    """Return the newest look that is whole; None before the first."""
    path = folder / LOOKS
    if path.exists():
        with path.open("rb") as file:
            for line in reversed(deque(file, maxlen=2)):
                try:
                    return Look.model_validate_json(line)
                except ValidationError:
                    continue
    return None


def actions_of(folder: Path) -> list[Action]:
    """Every action as it was last put on record, oldest first."""
    found: dict[str, Action] = {}
    for row in files.rows_of(folder / ACTIONS):
        try:
            action = Action.model_validate(row)
        except ValidationError:
            continue
        found[action.id] = action
    return list(found.values())


def note(folder: Path, action: Action, *, done: bool, outcome: str) -> Action:
    """Put on record what came of an action."""
    status = "done" if done else "failed"
    ended = action.model_copy(update={"status": status, "outcome": outcome})
    _append(folder, ended)
    return ended
