"""The report of a check: one page with its plots inside, and a short text."""

from dataclasses import dataclass

from trainyard.data.drift import Drift
from trainyard.data.merge import Merged
from trainyard.data.verdict import Counts, DataVerdict


@dataclass(frozen=True)
class Story:
    verdict: DataVerdict
    merged: Merged
    counts: Counts
    drift: Drift | None


def page(story: Story) -> str:
    return ""


def summary(story: Story) -> str:
    return ""
