"""Recipe section `gates`: what a candidate must prove before it may ship.

Three notations mean the same gate: `accuracy: ">= 0.85"` in a mapping, `"accuracy >= 0.85"` in a
list, and the full record `{id: accuracy, metric: accuracy, op: ">=", value: 0.85}`. The gate
`parity` is there without being written; `parity: warn` keeps it from blocking.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    FiniteFloat,
    PositiveInt,
    model_validator,
)

from trainyard.recipe.base import Frozen, PositiveFraction

SAFETY = frozenset({"harmful_rate", "over_refusal", "bias_rate"})
JUDGED = frozenset({"win_rate", "rubric_score"})
HUMAN = frozenset({"human_issue_rate", "human_win_rate"})
COMPARING = frozenset({"win_rate", "human_win_rate"})
DROPS = frozenset({"capability_drop"})
PARITY = "parity"
"""Metric of the gate that compares trainer, export and server; it has no limit of its own."""

_THRESHOLD = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*")
_SENTENCE = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*((?:>=|<=|>|<).+)")


class GateSpec(Frozen):
    """One claim about the candidate. It passes only when a confidence bound is past the limit."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$")]
    """Name of the gate in the decision, the report and the lineage."""

    metric: str
    """What is read from the scores: a metric by its name, or harmful_rate, over_refusal, bias_rate,
    capability_drop, perplexity_ratio, win_rate, rubric_score, pNN_latency_ms; or what people say of
    a blinded sample of answers: human_issue_rate, human_win_rate."""

    op: Literal[">=", ">", "<=", "<"] | None = None
    """Direction of the claim."""

    value: FiniteFloat | None = None
    """Limit, in the metric's unit (rates and drops as fractions, latency in milliseconds)."""

    suite: Annotated[str | None, Field(validation_alias=AliasChoices("suite", "dataset"))] = None
    """Suite whose scores are read; absent means every suite that has the metric."""

    slice: str | None = None
    """Only samples of this slice, as `field=value`."""

    compare: Literal["base", "champion"] | None = None
    """Compare with this arm, sample by sample, instead of with a fixed limit."""

    max_drop: Annotated[float, Field(ge=0)] | None = None
    """With `compare`, for a metric where more is better: largest drop that is tolerated."""

    max_increase: Annotated[float, Field(ge=0)] | None = None
    """With `compare`, for a metric where less is better: largest increase that is tolerated."""

    scale: Literal["absolute", "relative"] = "absolute"
    """Unit of max_drop and max_increase: points of the metric, or a share of the other arm's
    value."""

    per_task_max_drop: PositiveFraction | None = None
    """Guard on each suite behind a drop over several: largest drop of one alone."""

    interval: Literal["auto", "wilson", "clopper_pearson", "t", "bootstrap"] = "auto"
    """Confidence bound. `auto`: Wilson for 0/1 scores, Clopper-Pearson where that is not exact
    enough or the event is rare, Tango for pairs of 0/1 scores, the studentised bootstrap for other
    means; over clusters where samples have them."""

    decision: Literal["bound", "point"] = "bound"
    """`point` compares the estimate alone and is printed as weak evidence; not for safety or
    judged gates."""

    severity: Literal["block", "warn"] = "block"
    """`warn` is decided and shown, and does not stop a release."""

    best_of: PositiveInt = 1
    """How many candidates were compared on this eval set to choose this one; alpha is divided by
    it (first step of Holm 1979)."""

    opponent: Literal["base", "champion", "reference"] | None = None
    """win_rate: only judgements against these answers; absent means all there are.
    human_win_rate: whose answer people see beside the candidate's."""

    require_calibration: bool | None = None
    """win_rate and rubric_score: whether the judge must have been measured against human labels.
    Absent means always when the judgements name the judge's fingerprint."""

    sample: PositiveInt | None = None
    """human_issue_rate and human_win_rate: how many samples people look at, drawn at random from
    the suite. 59 without an issue prove a rate of at most 0.05. Until they have answered, a release
    that passes everything else is PENDING_HUMAN."""

    @property
    def is_safety(self) -> bool:
        return self.metric in SAFETY

    @property
    def limit(self) -> tuple[str, float]:
        """The claim as (op, value); a comparison is an upper limit on the drop or increase."""
        if self.op is not None and self.value is not None:
            return self.op, self.value
        most = self.max_drop if self.max_drop is not None else self.max_increase
        return "<=", most or 0.0

    @property
    def is_judged(self) -> bool:
        return self.metric in JUDGED

    @property
    def is_parity(self) -> bool:
        return self.metric == PARITY

    @property
    def is_human(self) -> bool:
        return self.metric in HUMAN

    @model_validator(mode="after")
    def _states_one_claim(self) -> "GateSpec":
        limits = [self.max_drop, self.max_increase]
        if self.is_parity:
            fields = type(self).model_fields
            free = {"id", "metric", "severity"}
            given = [k for k in fields.keys() - free if getattr(self, k) != fields[k].default]
            if given:
                raise ValueError(
                    f"gate {self.id} takes `block` or `warn`, not {', '.join(sorted(given))}; "
                    "what it tolerates is written in evaluate.parity"
                )
        elif self.compare is None:
            if self.op is None or self.value is None:
                raise ValueError(
                    f'gate {self.id} has no limit; write op and value, as in ">= 0.85"'
                )
            if any(limit is not None for limit in limits):
                raise ValueError(
                    f"gate {self.id}: max_drop and max_increase need compare: base or champion"
                )
            if self.scale != "absolute" and self.metric not in DROPS:
                raise ValueError(f"gate {self.id}: scale is read by gates that compare arms only")
        elif self.op is not None or self.value is not None:
            raise ValueError(
                f"gate {self.id} compares with {self.compare}; write max_drop or max_increase "
                "instead of op and value"
            )
        elif sum(limit is not None for limit in limits) != 1:
            raise ValueError(f"gate {self.id} needs one of max_drop and max_increase")
        return self

    @model_validator(mode="after")
    def _direction_fits(self) -> "GateSpec":
        lower_is_better = (
            self.is_safety
            or self.metric in DROPS
            or self.metric in ("perplexity_ratio", "human_issue_rate")
        )
        if lower_is_better and self.op in (">=", ">"):
            raise ValueError(
                f"gate {self.id}: less {self.metric} is better, so its limit is an upper one: "
                f'"<= {self.value}"'
            )
        if self.metric in JUDGED | COMPARING and (self.compare or self.op in ("<=", "<")):
            raise ValueError(f'gate {self.id}: {self.metric} takes a lower limit, as in "> 0.5"')
        if self.decision == "point" and (self.is_safety or self.is_judged or self.is_human):
            raise ValueError(
                f"gate {self.id}: decision: point is weak evidence and not open to "
                f"{self.metric}; leave it out"
            )
        if self.per_task_max_drop is not None and not self._is_drop:
            raise ValueError(f"gate {self.id}: per_task_max_drop is read by drop gates only")
        readers = {"require_calibration": JUDGED, "opponent": COMPARING, "sample": HUMAN}
        for key, metrics in readers.items():
            if getattr(self, key) is not None and self.metric not in metrics:
                named = " and ".join(sorted(metrics, reverse=True))
                raise ValueError(f"gate {self.id}: {key} is read by {named} only")
        return self

    @model_validator(mode="after")
    def _people_know_what_to_do(self) -> "GateSpec":
        if not self.is_human:
            return self
        if self.suite is None or self.sample is None:
            raise ValueError(
                f"gate {self.id}: name the suite whose answers people see and how many of them, "
                "as in suite: task, sample: 59"
            )
        if self.metric == "human_win_rate" and self.opponent is None:
            raise ValueError(
                f"gate {self.id}: name the opponent whose answers people compare with: base, "
                "champion or reference"
            )
        if self.compare or self.slice or self.best_of != 1:
            raise ValueError(f"gate {self.id}: {self.metric} reads no compare, slice or best_of")
        return self

    @property
    def _is_drop(self) -> bool:
        return self.metric in DROPS or self.max_drop is not None


def _limit(gate: str, text: Any) -> dict[str, Any]:
    found = _THRESHOLD.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise ValueError(f'gate {gate} has the limit {text!r}; write it as ">= 0.85" or "<= 0.01"')
    return {"op": found[1], "value": float(found[2])}


def _record(name: str, claim: Any) -> dict[str, Any]:
    """`name: ">= 0.85"` or `name: {limit: ">= 0.85", severity: warn, ...}` as a full record."""
    if name == PARITY and claim in ("block", "warn"):
        return {"id": name, "metric": name, "severity": claim}
    if not isinstance(claim, Mapping):
        return {"id": name, "metric": name, **_limit(name, claim)}
    record: dict[str, Any] = {"id": name, "metric": name, **claim}
    if "limit" in record:
        record.update(_limit(name, record.pop("limit")))
    return record


def _entry(entry: Any) -> Any:
    if isinstance(entry, str):
        found = _SENTENCE.fullmatch(entry)
        if not found:
            raise ValueError(f'gate {entry!r} is not a claim; write it as "accuracy >= 0.85"')
        return _record(found[1], found[2])
    if not isinstance(entry, Mapping):
        return entry
    if "metric" in entry:
        return _record(str(entry.get("id", entry["metric"])), entry)
    claims = [key for key in entry if key not in GateSpec.model_fields]
    if len(claims) != 1:
        return entry
    rest = {key: value for key, value in entry.items() if key != claims[0]}
    claim = entry[claims[0]]
    given = claim if isinstance(claim, Mapping) else {"limit": claim}
    return _record(str(claims[0]), {**given, **rest})


def _entries(given: Any) -> Any:
    """Read the three notations into full records."""
    if isinstance(given, Mapping):
        return [_record(str(name), claim) for name, claim in given.items()]
    if isinstance(given, (list, tuple)):
        return [_entry(entry) for entry in given]
    return given


def with_parity(gates: tuple[GateSpec, ...]) -> tuple[GateSpec, ...]:
    """Add the parity gate where it is not written: it blocks unless a recipe says otherwise."""
    if any(gate.is_parity for gate in gates):
        return gates
    return (GateSpec(id=PARITY, metric=PARITY), *gates)


def _ids_differ(gates: tuple[GateSpec, ...]) -> tuple[GateSpec, ...]:
    if not gates:
        raise ValueError('there is no gate; write at least one gate, as accuracy: ">= 0.85"')
    ids = [gate.id for gate in gates]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"two gates have the id {', '.join(twice)}; give each its own id")
    forms = [(gate.metric, gate.suite) for gate in gates if gate.is_human]
    if len(set(forms)) < len(forms):
        raise ValueError("two gates show people the same suite for the same metric; leave one out")
    return gates


_Written = list[GateSpec | str | dict[str, Any]] | dict[str, str | dict[str, Any]]

GateSpecs = Annotated[
    tuple[GateSpec, ...],
    AfterValidator(_ids_differ),
    BeforeValidator(_entries, json_schema_input_type=_Written),
]
