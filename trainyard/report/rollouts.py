"""A rollout over time as inline SVG: weight, evidence against the candidate, bad answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainyard.report.plots import LEFT, WIDTH, opened, text

_PANEL, _GAP, _TOP = 104, 30, 22
_RIGHT = WIDTH - 12
_LOWEST_E = 1e-3

Point = tuple[float, float]
Scale = Callable[[float], float]


def rollout_chart(looks: Sequence[Mapping[str, Any]], alpha: float | None) -> str:
    """Draw the looks of one rollout, oldest first, in three panels over the same time axis.

    The e-value's panel is logarithmic, with the limit 1 / `alpha` dashed.
    """
    began = looks[0]["at"]
    times = [look["at"] - began for look in looks]
    across = (_RIGHT - LEFT) / (times[-1] or 1)
    xs = [LEFT + t * across for t in times]
    parts = [opened(_TOP + 3 * (_PANEL + _GAP) + 12, "weight, e-value and bad answers over time")]
    parts += _weights(looks, xs)
    parts += _evidence(looks, xs, alpha)
    parts += _bad_answers(looks, xs)
    base = _base(2)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        x = LEFT + share * (_RIGHT - LEFT)
        parts.append(text(x, base + 16, _duration(share * times[-1]), anchor))
    return "".join([*parts, "</svg>"])


def _base(panel: int) -> float:
    return _TOP + panel * (_PANEL + _GAP) + _PANEL


def _weights(looks: Sequence[Mapping[str, Any]], xs: Sequence[float]) -> list[str]:
    base = _base(0)
    scale: Scale = lambda value: base - value / 100 * _PANEL  # noqa: E731
    steps: list[Point] = []
    for x, look in zip(xs, looks, strict=True):
        if steps:
            steps.append((x, steps[-1][1]))
        steps.append((x, scale(look["weight"])))
    if looks[-1].get("decision") == "abort":
        steps.append((xs[-1], base))
    marks = [(scale(value), f"{value} %") for value in (0, 50, 100)]
    return [*_frame(0, "weight of the candidate", marks), _line(steps, "line")]


def _evidence(
    looks: Sequence[Mapping[str, Any]], xs: Sequence[float], alpha: float | None
) -> list[str]:
    values = [max(_LOWEST_E, look["e_value"]) for look in looks]
    limit = 1 / alpha if alpha else 100.0
    low, high = math.log10(_LOWEST_E), math.log10(max(10 * limit, min(max(values), 1e9)))
    base = _base(1)

    def scale(value: float) -> float:
        share = (math.log10(min(value, 10**high)) - low) / (high - low)
        return base - share * _PANEL

    marks = [(scale(value), f"{value:g}") for value in (_LOWEST_E, 1.0)]
    y = scale(limit)
    return [
        *_frame(1, "e-value: evidence that the candidate is worse", marks),
        f'<line class="limit" x1="{LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
        text(LEFT - 6, y + 4, f"{limit:g}", "end"),
        _line([(x, scale(value)) for x, value in zip(xs, values, strict=True)], "line"),
    ]


def _bad_answers(looks: Sequence[Mapping[str, Any]], xs: Sequence[float]) -> list[str]:
    shares = {
        arm: [(x, _share(look[arm])) for x, look in zip(xs, looks, strict=True) if look.get(arm)]
        for arm in ("champion", "canary")
    }
    known = [share for points in shares.values() for _, share in points]
    top = max(0.02, *known) if known else 0.02
    base = _base(2)
    scale: Scale = lambda share: base - share / top * _PANEL  # noqa: E731
    marks = [(scale(share), f"{share:.2g}") for share in (0.0, top / 2, top)]
    parts = _frame(2, "failed or bad answers of a step, as a share", marks)
    for arm, style in (("champion", "line other"), ("canary", "line")):
        parts.append(_line([(x, scale(share)) for x, share in shares[arm]], style))
    y = base - _PANEL - 8
    for x, words, style in (
        (_RIGHT - 190, "candidate", "line"),
        (_RIGHT - 90, "champion", "other"),
    ):
        parts.append(_line([(x, y - 4), (x + 18, y - 4)], f"line {style}"))
        parts.append(text(x + 24, y, words, "start"))
    return parts


def _share(arm: Mapping[str, Any]) -> float:
    bad = max(arm["errors"], arm["flagged"])
    return float(bad / arm["requests"]) if arm["requests"] else 0.0


def _frame(panel: int, title: str, marks: Sequence[tuple[float, str]]) -> list[str]:
    parts = [text(LEFT, _base(panel) - _PANEL - 8, title, "start", "label")]
    for y, words in marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, words, "end"))
    return parts


def _line(points: Sequence[Point], style: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{style}" points="{path}"/>'


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
