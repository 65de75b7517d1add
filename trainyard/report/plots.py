"""Plots as inline SVG: text scales, colours follow the page, nothing is fetched."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 220, 56, 36, 10


def line_chart(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """Draw `points` (x rising) as one line from zero up, with four grid lines."""
    right, base = WIDTH - 12, HEIGHT - BOTTOM
    low_x, high_x = points[0][0], points[-1][0]
    top = max(y for _, y in points) * 1.05 or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1)
        return LEFT + across * (right - LEFT), base - y / top * (base - TOP)

    parts = [opened(HEIGHT, f"{y_label} by {x_label}")]
    for quarter in range(5):
        value = top * quarter / 4
        y = place(low_x, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, f"{value:.3g}", "end"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline class="line" points="{path}"/>')
    parts.append(text(LEFT, HEIGHT - 16, f"{low_x:g}", "middle"))
    parts.append(text(right, HEIGHT - 16, f"{high_x:g}", "end"))
    parts.append(text((LEFT + right) / 2, HEIGHT - 4, x_label, "middle"))
    parts.append(text(LEFT + 6, TOP + 10, y_label, "start"))
    return "".join([*parts, "</svg>"])


def forest_plot(gates: Sequence[Mapping[str, Any]]) -> str:
    """Draw each gate's estimate and interval beside its threshold, each on a scale of its own."""
    row, label_width = 46, 210
    parts = [opened(row * len(gates) + 8, "interval of each gate beside its threshold")]
    for index, gate in enumerate(gates):
        y = index * row + 26
        parts.append(text(0, y + 4, str(gate["id"]), "start", "label"))
        numbers = [gate[key] for key in ("low", "high", "estimate", "threshold")]
        known = [value for value in numbers if value is not None]
        open_ended = gate["low"] is None and gate["high"] is None
        if open_ended or gate["estimate"] is None or gate["threshold"] is None:
            parts.append(text(label_width, y + 4, _without_interval(gate), "start"))
            continue
        parts += _forest_row(gate, min(known), max(known), y, label_width)
    return "".join([*parts, "</svg>"])


def _without_interval(gate: Mapping[str, Any]) -> str:
    if gate["verdict"] == "PENDING_HUMAN":
        return "waits for people"
    if gate["estimate"] is None or gate["threshold"] is None:
        return "not measured"
    return f"{gate['estimate']:z.2g}, limit {gate['threshold']:.4g}"


def _forest_row(
    gate: Mapping[str, Any], low: float, high: float, y: float, left: float
) -> list[str]:
    margin = (high - low) * 0.15 or 0.01
    low, high = low - margin, high + margin
    right = WIDTH - 20

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    style = str(gate["verdict"]).lower()
    bar_low = left if gate["low"] is None else x(gate["low"])  # unbounded: to the edge
    bar_high = right if gate["high"] is None else x(gate["high"])
    limit = x(gate["threshold"])
    near = abs(limit - x(gate["estimate"])) < 60
    return [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>',
        f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{y - 14}" y2="{y + 14}"/>',
        text(limit, y + 19 if near else y - 16, f"limit {gate['threshold']:.4g}", "middle"),
        f'<line class="bar {style}" x1="{bar_low:.1f}" x2="{bar_high:.1f}" y1="{y}" y2="{y}"/>',
        f'<circle class="{style}" cx="{x(gate["estimate"]):.1f}" cy="{y}" r="4.5"/>',
        text(x(gate["estimate"]), y - 9, f"{gate['estimate']:z.4g}", "middle"),
    ]


def opened(height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>'


def text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    place = f'class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(words)}</text>"
