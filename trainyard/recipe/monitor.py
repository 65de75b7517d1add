"""Section `monitor` of a recipe: when the champion is no longer what was released, and what then.

What is not written here is not looked at, but for two things that need no more than a gateway: that
the champion is what is served, and that it keeps `deploy.slo`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from trainyard.recipe.base import Frozen, PositiveFraction

Then = Literal["alert", "release"]


class DriftSpec(Frozen):
    """Do users ask something else? Needs `deploy.log_fraction`."""

    against: Literal["data", "traffic"] = "data"
    """What the logged questions are compared with: the rows that the champion was trained on, or
    the first questions that were logged after its promotion."""

    reference: Annotated[int, Field(ge=30)] = 1000
    """Questions of the reference, at most."""

    short: Annotated[int, Field(ge=30)] = 100
    """Newest questions, for a sudden change. A test is made each time that as many new ones are
    logged: no question is in two short windows."""

    long: Annotated[int, Field(ge=30)] = 500
    """Newest questions, for a slow change."""

    permutations: Annotated[int, Field(ge=99)] = 999
    """Of each test; the smallest p-value is 1 / (permutations + 1)."""

    alpha: PositiveFraction = 0.01
    """Chance that a test rings without drift. Each window has half of it."""

    then: Then = "alert"
    """release: also ask for a release."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.long < self.short:
            raise ValueError(f"long ({self.long}) must be at least short ({self.short})")
        if 2 / self.alpha > self.permutations + 1:
            raise ValueError(
                f"permutations ({self.permutations}) give no p-value below alpha / 2 "
                f"({self.alpha / 2:g}): take {round(2 / self.alpha)} or more"
            )
        return self


class _Watched(Frozen):
    """A stream of good and bad answers, compared with its own beginning."""

    baseline: Annotated[int, Field(ge=10)] = 50
    """First answers of a champion, whose share of bad ones is what later ones are held to."""

    margin: PositiveFraction = 0.05
    """Rise of that share that is tolerated, beyond the upper bound of the beginning's."""

    alpha: PositiveFraction = 0.01
    """Chance that a champion which stays within the margin ever rings."""

    then: Then = "release"
    """release: also ask for a release."""


class FeedbackSpec(_Watched):
    """Scores of POST /v1/feedback; one below 0 is bad."""


class JudgeSampleSpec(_Watched):
    """Logged answers that the jurors of a rubric suite grade alone. Needs `deploy.log_fraction`."""

    suite: str
    """A suite of kind rubric in `evaluate`: its jurors, rubric, criteria and `max_cost_usd`, which
    is here the most that one look may cost."""

    answers: PositiveInt = 10
    """Newest answers that one look has graded, at most."""

    bad_below: PositiveFraction = 0.5
    """Grade in [0, 1] below which an answer is bad."""


class LabelledSpec(Frozen):
    """Fresh labelled rows that the champion is asked when they change."""

    suite: str
    """A suite of kind task in `evaluate`: its first metric, which must lie in [0, 1]."""

    data: str
    """Rows that the champion was neither trained nor evaluated on, as an eval set."""

    margin: PositiveFraction = 0.05
    """Fall of the mean score since the release that is tolerated."""

    alpha: PositiveFraction = 0.01
    """Chance to ring when the fall is within the margin."""

    then: Then = "release"
    """release: also ask for a release."""


class RequestSpec(Frozen):
    """How often the monitor may ask for a release."""

    deployment: str | None = None
    """Prefect deployment that is run, as `release/quickstart`. None: `release/` and the name."""

    cooldown_s: NonNegativeFloat = 86_400
    """Seconds after a request in which there is no other."""

    budget: PositiveInt = 4
    """Most requests within `budget_s`."""

    budget_s: PositiveFloat = 30 * 86_400.0
    """Seconds over which the budget counts."""


class MonitorSpec(Frozen):
    stale_s: PositiveFloat = 3600
    """A champion whose last answer is older is INCONCLUSIVE, never healthy."""

    burns: Literal["alert", "rollback"] = "rollback"
    """What a burning error budget of `deploy.slo` leads to. An alert alone without a former
    champion, and outside production: there a version is tried, and a person decides what its
    failure means."""

    drift: DriftSpec | None = None
    """Whether users ask something else. None: not looked at."""

    feedback: FeedbackSpec | None = None
    """Whether users like the answers less. None: not looked at."""

    judge: JudgeSampleSpec | None = None
    """Whether judges like the answers less. None: not looked at."""

    labelled: LabelledSpec | None = None
    """Whether fresh rows score worse. None: not looked at."""

    release: RequestSpec = RequestSpec()
    """How often a release may be asked for."""

    alert_again_s: PositiveFloat = 14_400
    """Seconds in which the same check does not ring twice."""
