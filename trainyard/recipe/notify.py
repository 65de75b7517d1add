"""Section `notify` of a recipe: who is told what."""

from typing import Literal

from trainyard.recipe.base import Frozen
from trainyard.recipe.register import SecretRef

Event = Literal["success", "failure", "blocked", "rolled_back", "waiting", "alarm"]


class NotifySpec(Frozen):
    to: tuple[SecretRef, ...] = ()
    """Where Apprise addresses are found: `mailtos://`, `slack://`, `workflows://` (Teams),
    `jsons://` (any webhook). An address holds a password, so a recipe only names its place."""

    on: tuple[Event, ...] = ("success", "failure", "blocked", "rolled_back", "waiting", "alarm")
    """Which events. blocked: a gate did not pass. rolled_back: traffic went back to the former
    champion. waiting: for an approval. alarm: the monitor of a served version."""
