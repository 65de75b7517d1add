"""Key `deploy.approval` of a recipe: a version gets traffic only after a person said yes."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from trainyard.recipe.base import Frozen

Place = Literal["dev", "staging", "production"]
"""Where a version serves; also the registry's alias of what serves there."""


class ApprovalSpec(Frozen):
    by: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Who may approve or reject; one of them is enough. A name is what whoever answers gives: keep
    the server and the home folder to people you trust."""

    expires_h: PositiveFloat = 24
    """Hours after which an unanswered question counts as no, and an answer holds no longer."""

    before: tuple[Place, ...] = ("production",)
    """Environments that need it."""
