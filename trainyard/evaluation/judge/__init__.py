"""Pairwise judgements: from calls in both orders to one win rate per item."""

from trainyard.evaluation.judge.rate import WinRate, win_rate

__all__ = ["WinRate", "win_rate"]
