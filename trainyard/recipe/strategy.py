"""Keys `deploy.strategy` and `deploy.slo` of a recipe: on which evidence traffic moves."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from trainyard.recipe.base import Frozen, PositiveFraction


class JudgedSpec(Frozen):
    """Jurors compare the answers of candidate and champion to what was copied or replayed.

    The gateway then keeps those answers, redacted, in `pairs.jsonl`.
    """

    suite: str
    """A suite of kind pairwise in `evaluate`: its jurors, rubric, criteria and `max_cost_usd`,
    which is here the most that one rollout may cost."""

    min_pairs: PositiveInt = 30
    """Pairs with a verdict without which no step ends well. Held-out prompts are replayed for them,
    unless `replay` is off."""

    max_pairs: PositiveInt = 100
    """Most pairs that are judged in one rollout, each in both orders."""

    margin: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """How far the candidate's win rate may fall below one half."""

    alpha: PositiveFraction = 0.01
    """Chance to abort, on this account alone, a candidate whose win rate is within the margin."""

    @model_validator(mode="after")
    def _most_holds_the_least(self) -> Self:
        if self.max_pairs < self.min_pairs:
            raise ValueError(
                f"max_pairs ({self.max_pairs}) must be at least min_pairs ({self.min_pairs})"
            )
        return self


class Evidence(Frozen):
    """What a step must show. Champion and candidate are compared at the same time."""

    min_requests: PositiveInt = 30
    """Answers of the candidate without which no step ends well."""

    requests: PositiveInt = 300
    """Planned sample: a step that has seen so many of its answers without breach goes on."""

    margin: PositiveFraction = 0.02
    """Rise of the failure rate (errors and bad answers) that ends a rollout. A step also goes on
    early when a rise of this size is excluded."""

    alpha: PositiveFraction = 0.01
    """Chance, over the whole rollout, to abort a candidate that is as good as the champion."""

    latency_tolerance: Annotated[float, Field(ge=1)] = 1.15
    """A candidate is aborted for its latency only if slower than the champion by more than this
    factor."""

    look_s: PositiveFloat = 5
    """Seconds between two looks at the evidence. The test stays valid at any number of looks."""

    step_timeout_s: PositiveFloat = 3600
    """A step without enough evidence by then is aborted: no data is not a success."""

    replay: bool = True
    """Send held-out prompts through both variants when users send too few."""

    judged: JudgedSpec | None = None
    """Whose answers jurors like better. None: nobody is asked."""

    approve_at: tuple[Annotated[float, Field(gt=0, le=100)], ...] = ()
    """Percentages that a person has to agree to before their step begins. Until the answer comes
    the champion serves everybody, and the candidate stays up."""

    @model_validator(mode="after")
    def _sample_holds_the_least(self) -> Self:
        if self.requests < self.min_requests:
            raise ValueError(
                f"requests ({self.requests}) must be at least min_requests ({self.min_requests})"
            )
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """Percent of the live traffic at each step but the last, which is 100."""
        return ()

    @model_validator(mode="after")
    def _approvals_have_a_step(self) -> Self:
        known = (*self.weights, 100)
        lost = [weight for weight in self.approve_at if weight not in known]
        if lost:
            raise ValueError(
                f"approve_at ({', '.join(f'{weight:g}' for weight in lost)}) is no step: there are "
                f"{', '.join(f'{weight:g}' for weight in known)}"
            )
        return self


class Canary(Evidence):
    """More and more traffic, each step on evidence; the champion is one weight change away."""

    kind: Literal["canary"] = "canary"

    steps: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = (5, 25, 50)
    """Percent of the live traffic at each step, growing; 100 follows by itself."""

    shadow_pct: Annotated[float, Field(ge=0, le=100)] = 0
    """Percent of users' requests that are copied to the candidate in a step before the first,
    where nobody sees its answers. 0: no such step."""

    @property
    def weights(self) -> tuple[float, ...]:
        return self.steps

    @model_validator(mode="after")
    def _steps_grow(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError(f"steps ({', '.join(map(str, self.steps))}) must grow")
        return self


class BlueGreen(Evidence):
    """Evidence while users see nothing of the candidate, then all traffic in one change."""

    kind: Literal["blue_green"] = "blue_green"

    shadow_pct: Annotated[float, Field(ge=0, le=100)] = 0
    """Percent of users' requests that are copied to the candidate. 0: replayed prompts only."""

    @model_validator(mode="after")
    def _something_to_see(self) -> Self:
        if not self.shadow_pct and not self.replay:
            raise ValueError("without shadow_pct and without replay there would be no evidence")
        return self


class Ab(Evidence):
    """A fixed split until users' feedback decides: the candidate has to gain, not only to hold.

    Failures, latency and bad answers abort it as in a canary. A decision needs no fixed sample.
    """

    kind: Literal["ab"] = "ab"

    split_pct: Annotated[float, Field(gt=0, lt=100)] = 50
    """Percent of the live traffic for the candidate. Votes count in pairs, one of each variant, so
    an even split decides soonest."""

    min_votes: PositiveInt = 50
    """Votes on each variant without which nothing is decided."""

    gain: Annotated[float, Field(gt=-2, lt=2)] = 0
    """How much more than the champion the candidate must score in the mean, in units of `score` at
    /v1/feedback (-1 to 1). Negative: how much less it may."""

    step_timeout_s: PositiveFloat = 7 * 86400
    """Deadline: a candidate whose gain is not shown by then is aborted."""

    @property
    def weights(self) -> tuple[float, ...]:
        return (self.split_pct,)


class AllAtOnce(Frozen):
    """All traffic as soon as the version is ready. The first version always goes this way."""

    kind: Literal["all_at_once"] = "all_at_once"


Strategy = Annotated[Canary | BlueGreen | Ab | AllAtOnce, Field(discriminator="kind")]


class SloSpec(Frozen):
    """Absolute objectives, for whoever answers.

    A candidate that breaks one is aborted even if the champion does too; after 100 % one whose
    error budget burns too fast is sent back.
    """

    availability: Annotated[float, Field(ge=0.9, lt=1)] = 0.99
    """Share of requests that must be answered without a failure."""

    latency_s: PositiveFloat | None = None
    """Seconds within which an answer is in time. None: no objective for latency."""

    latency_share: Annotated[float, Field(ge=0.9, lt=1)] = 0.95
    """Share of answers that must be in time."""

    min_requests: PositiveInt = 100
    """Answers of a variant without which it neither keeps nor breaks an objective."""
