"""Section `budget` of a recipe: what its releases may cost, in the currency of the prices."""

from pydantic import PositiveFloat

from trainyard.recipe.base import Frozen


class BudgetSpec(Frozen):
    per_run: PositiveFloat | None = None
    """Most that one run may cost. A run that would cost more does not start; one that comes to cost
    more is ended with its checkpoints kept. The same release, repeated, is another run."""

    per_month: PositiveFloat | None = None
    """Most that all runs of this recipe may cost in a calendar month (UTC)."""
