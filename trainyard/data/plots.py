"""Plots of the data report as inline SVG, drawn with the page's own colours."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HALF, LABEL, ROW = 1040, 500, 160, 24
"""In CSS pixels: a plot across the page, one of two side by side, names of bars, a bar."""


def bars(
    items: Sequence[tuple[str, float, str]],
    title: str,
    marks: Sequence[tuple[float, str]] = (),
    width: int = WIDTH,
) -> str:
    """One horizontal bar per (name, value, text beside it); `marks` are vertical limits."""
    top = max([value for _, value, _ in items] + [at for at, _ in marks] + [1e-12])
    right = width - 70
    height = ROW * len(items) + (26 if marks else 6)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>']
    for i, (name, value, beside) in enumerate(items):
        y = i * ROW + 4
        wide = max(1.5, value / top * (right - LABEL)) if value else 0
        parts.append(f'<text class="name" x="{LABEL - 8}" y="{y + 13}">{escape(name)}</text>')
        parts.append(f'<rect x="{LABEL}" y="{y}" width="{wide:.1f}" height="16" rx="2"/>')
        parts.append(f'<text x="{LABEL + wide + 6:.1f}" y="{y + 13}">{escape(beside)}</text>')
    for i, (at, label) in enumerate(marks):
        x = LABEL + at / top * (right - LABEL)
        end = ROW * len(items) + 2
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{end}"/>')
        side = "mark" if len(marks) == 1 else "" if i else "name"
        parts.append(f'<text class="{side}" x="{x:.1f}" y="{end + 14}">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def histogram(values: NDArray[np.int32], what: str, limit: int | None = None) -> str:
    """Counts of `values` in 40 bins up to their 99.5 % quantile; the last bin has the rest."""
    height, left, base = 250, 52, 208
    top_value = max(float(np.quantile(values, 0.995)), limit * 1.02 if limit else 1.0, 1.0)
    counts, edges = np.histogram(np.minimum(values, top_value), bins=40, range=(0, top_value))
    most, right = max(int(counts.max()), 1), WIDTH - 14
    step = (right - left) / len(counts)
    title = f"how many rows have how many {what}"
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>']
    for quarter in (0, 0.5, 1):
        y = base - quarter * (base - 14)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}"/>')
        shown = f"{most * quarter:,.0f}"
        parts.append(f'<text class="name" x="{left - 6}" y="{y + 4:.0f}">{shown}</text>')
    for i, count in enumerate(counts.tolist()):
        tall = count / most * (base - 14)
        parts.append(
            f'<rect x="{left + i * step:.1f}" y="{base - tall:.1f}" width="{step - 1:.1f}" '
            f'height="{tall:.1f}"/>'
        )
    for share in (0, 0.5, 1):
        x = left + share * (right - left)
        anchor = "mark" if share < 1 else "name"
        text = f"{edges[-1] * share:,.0f}"
        parts.append(f'<text class="{anchor}" x="{x:.0f}" y="{base + 16}">{text}</text>')
    parts.append(
        f'<text class="mark" x="{(left + right) / 2}" y="{base + 34}">{what} per row</text>'
    )
    if limit is not None:
        x = left + limit / top_value * (right - left)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{base}"/>')
        parts.append(
            f'<text class="name limit" x="{x - 5:.1f}" y="16">longest sequence {limit:,}</text>'
        )
    return "".join([*parts, "</svg>"])
