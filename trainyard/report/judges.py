"""What the judges are worth: agreement with people, and what their verdicts depend on."""

from collections.abc import Mapping
from typing import Any

CORRELATED = 0.3
"""Rank correlation with length from which a judge is said to like length."""
ONE_SIDED = 0.6
"""Share of decisive calls for the first answer from which a judge is said to like the first."""


def table(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row per suite and juror, with warnings in words."""
    rows = []
    for suite, facts in ((evaluation or {}).get("judges") or {}).items():
        for juror, about in facts["jurors"].items():
            bias, fit = about["bias"], about["calibration"]
            rows.append({
                "suite": suite,
                "juror": juror,
                "kappa": fit.get("kappa"),
                "calibrated": fit.get("calibrated", False),
                "problems": fit.get("problems", []),
                "first": bias.get("first"),
                "consistent": bias.get("consistent"),
                "length": bias.get("length_correlation"),
                "by_length": bias.get("win_rate_by_length") or bias.get("grade_by_length") or {},
                "warnings": warnings(bias),
                "spent_usd": (facts.get("account") or {}).get("spent_usd"),
            })  # fmt: skip
    return rows


def warnings(bias: Mapping[str, Any]) -> list[str]:
    """What a judge's verdicts depend on beside the answers, where it is too much."""
    found = []
    first, length = bias.get("first"), bias.get("length_correlation")
    if first is not None and abs(first - 0.5) > ONE_SIDED - 0.5:
        found.append(f"chooses the first answer in {first:.0%} of decisive calls")
    if length is not None and abs(length) > CORRELATED:
        longer = "longer" if length > 0 else "shorter"
        found.append(f"prefers {longer} answers (rank correlation {length:.2f})")
    return found
