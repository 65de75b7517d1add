"""What one check of the champion came to."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from trainyard.recipe.base import Frozen


class Health(StrEnum):
    HEALTHY = "HEALTHY"
    BREACH = "BREACH"
    INCONCLUSIVE = "INCONCLUSIVE"
    """Not measured, or not on enough or fresh enough data: never healthy."""


class Finding(Frozen):
    check: str
    health: Health
    reason: str
    """Carries the numbers."""

    then: Literal["alert", "rollback", "release"] | None = None
    """What it calls for, unless it is healthy. None: nothing but the record."""

    evidence: dict[str, Any] = Field(default_factory=dict)


def breach(check: str, reason: str, then: Any, **evidence: Any) -> Finding:
    return Finding(check=check, health=Health.BREACH, reason=reason, then=then, evidence=evidence)


def healthy(check: str, reason: str, **evidence: Any) -> Finding:
    return Finding(check=check, health=Health.HEALTHY, reason=reason, evidence=evidence)


def unknown(check: str, reason: str, then: Any = None, **evidence: Any) -> Finding:
    return Finding(
        check=check, health=Health.INCONCLUSIVE, reason=reason, then=then, evidence=evidence
    )


def worst(findings: list[Finding]) -> Health:
    """BREACH before INCONCLUSIVE before HEALTHY; of no findings INCONCLUSIVE."""
    seen = {finding.health for finding in findings}
    for health in (Health.BREACH, Health.INCONCLUSIVE):
        if health in seen:
            return health
    return Health.HEALTHY if seen else Health.INCONCLUSIVE
