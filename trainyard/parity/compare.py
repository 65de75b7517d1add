"""From tokens and log-probabilities of both sides to a verdict per step; pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from trainyard.parity.probes import Answered
from trainyard.parity.record import Step, StepName

SAME_ARITHMETIC = 0.01
"""Nats between two ways to load the same weights on the same base: rounding. Without a difference,
bfloat16 on a 4-bit base gave 0.0005 on the quickstart."""


class Limits(Protocol):
    @property
    def max_gap(self) -> float: ...
    @property
    def max_quantised_gap(self) -> float: ...
    @property
    def min_agreement(self) -> float: ...


Ids = Sequence[int]
Read = Mapping[str, Sequence[Sequence[float]]]


def template_step(
    trained: Sequence[Ids], folders: Mapping[str, Sequence[Ids]], answered: Sequence[Answered]
) -> Step:
    """Prompt token ids: of the trainer, of every exported folder's own tokenizer, of the server."""
    sides: list[tuple[str, Sequence[Ids | None]]] = [*folders.items()]
    sides.append(("the server", [one.prompt_ids for one in answered]))
    for name, side in sides:
        for number, (mine, theirs) in enumerate(zip(trained, side, strict=True)):
            if theirs is not None and list(mine) != list(theirs):
                return _broken_template(number, mine, theirs, name)
    for number, (ids, one) in enumerate(zip(trained, answered, strict=True)):
        if one.prompt_ids is None and one.prompt_tokens != len(ids):
            return Step(
                name="template",
                verdict="broken",
                reason=f"the server counts {one.prompt_tokens} tokens in probe {number + 1} and "
                f"the trainer {len(ids)}: tokenizer or chat template differ",
            )
    told = all(one.prompt_ids is not None for one in answered)
    what = "ids are equal" if told else "counts are equal (the engine does not tell its ids)"
    return Step(name="template", verdict="ok", reason=f"{len(trained)} prompts: token {what}")


def _broken_template(number: int, mine: Ids, theirs: Ids, name: str) -> Step:
    same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
    at = min(len(mine), len(theirs)) if same is None else same
    return Step(
        name="template",
        verdict="broken",
        reason=f"{name} makes {len(theirs)} tokens of probe {number + 1} and the trainer "
        f"{len(mine)}, different from token {at + 1} on: tokenizer or chat template differ",
    )


def model_steps(read: Mapping[str, Any], limits: Limits, *, quantised: bool) -> list[Step]:
    """The steps between models of the reference process, each against the one before it."""
    looser = limits.max_quantised_gap if quantised else limits.max_gap
    steps = [
        _adapter(read, limits),
        models_step("precision", read["adapter"], read["precision"], looser, 0.0,
                "the adapter on the base in the precision that is served against the trainer's"),
    ]  # fmt: skip
    if "merge" in read:
        steps.append(
            models_step("merge", read["precision"], read["merge"], limits.max_gap,
                    limits.min_agreement, "the merged model against base and adapter")
        )  # fmt: skip
    return steps


def _adapter(read: Mapping[str, Any], limits: Limits) -> Step:
    """The folder's weights at the folder's scale; the scale alone could hide in a small adapter."""
    what = "the adapter's folder against the trained weights at the recipe's scale"
    step = models_step("adapter", read["trainer"], read["adapter"], SAME_ARITHMETIC,
                   limits.min_agreement, what)  # fmt: skip
    if not read["scales"]:
        return step
    layer, trained, exported = read["scales"][0]
    has = "no adapter" if exported is None else f"the scale {exported:g}"
    reason = (
        f"the adapter's folder has {has} in {layer} and the recipe {trained:g}, and so in "
        f"{len(read['scales'])} layers"
    )
    return step.model_copy(update={"verdict": "broken", "reason": reason})


def server_step(read: Read, answered: Sequence[Answered], limits: Limits, *, merged: bool) -> Step:
    """The server's greedy answer against the model that it should be."""
    what = f"the server against {'the merged model' if merged else 'base and adapter'}"
    gaps: list[float] = []
    firsts: list[float] = []
    for number, one in enumerate(answered):
        expected, first = read["logprobs"][number], read["first"][number]
        firsts += first
        if one.logprobs is not None and len(one.logprobs) == len(expected):
            gaps += [abs(a - b) for a, b in zip(expected, one.logprobs, strict=True)]
    if not gaps:
        return Step(
            name="server",
            verdict="not measured",
            reason=f"{what}: the engine gave no log-probabilities that fit its answers",
        )
    return _judged("server", gaps, firsts, limits.max_gap, limits.min_agreement, what)


def models_step(
    name: StepName, one: Read, other: Read, limit: float, agreement: float, what: str
) -> Step:
    gaps = [
        abs(a - b)
        for mine, theirs in zip(one["logprobs"], other["logprobs"], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    same = [
        float(a == b)
        for mine, theirs in zip(one["first"], other["first"], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    return _judged(name, gaps, same, limit, agreement, what)


def _judged(
    name: StepName,
    gaps: Sequence[float],
    same: Sequence[float],
    limit: float,
    least: float,
    what: str,
) -> Step:
    gap, agreement = mean(gaps), mean(same)
    # written so that a gap that is no number is broken
    holds = gap <= limit and agreement >= least
    tokens = f"{len(gaps)} tokens"
    wanted = f" and at least {least:.1%} same first choices" if least else ""
    return Step(
        name=name,
        verdict="ok" if holds else "broken",
        reason=f"{what}: log-probabilities differ by {gap:.2g} nats on average over {tokens}, "
        f"{agreement:.1%} same first choices; allowed are {limit:g}{wanted}",
        gap=gap if math.isfinite(gap) else None,
        limit=limit,
        agreement=agreement if math.isfinite(agreement) else None,
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def margins(read: Read) -> list[float]:
    """Smallest lead of each answer."""
    return [min(lead, default=0.0) for lead in read["lead"]]


def as_probe(prompt: Ids, answer: Ids) -> dict[str, Any]:
    return {"prompt": list(prompt), "answer": list(answer)}
