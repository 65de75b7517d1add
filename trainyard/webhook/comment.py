"""A plan as a comment on a merge request. Pure; whatever a recipe says is shown, never obeyed."""

from collections.abc import Mapping
from typing import Any

from trainyard.webhook.confined import Answer, Planned
from trainyard.webhook.touched import THE_RECIPE


def render(
    answer: Answer, head: str, *, fork: bool, data: Mapping[str, tuple[int, int]]
) -> tuple[str, bool]:
    """Return the comment in Markdown, and whether something would block the release.

    `data` is path -> lines added and removed, of changed files that are no recipe.
    """
    blocks = [_recipe(one) for one in answer.planned]
    lines = [f"### Plan for {head[:12]}"]
    if not answer.planned:
        lines.append("No recipe is touched: a merge starts no release.")
    for block, _ in blocks:
        lines += ["", *block]
    if data:
        lines += ["", "**Data**", ""]
        lines += [
            f"- {code(p)}: {a} lines added, {r} removed" for p, (a, r) in sorted(data.items())
        ]
    if answer.left_out:
        lines += ["", f"{answer.left_out} more recipes are touched and not shown."]
    if fork:
        lines += ["", "From a fork: planned only. Nothing of it runs, and no secret is near it."]
    return "\n".join(lines) + "\n", any(blocked for _, blocked in blocks)


def _recipe(one: Planned) -> tuple[list[str], bool]:
    title = f"#### {code(one.recipe)}"
    if one.why == "deleted":
        return [title, "Deleted: a merge releases nothing; its version goes on serving."], False
    lines = [title, "" if one.why == THE_RECIPE else f"Touched by {code(one.why)}.", ""]
    if one.error is not None or one.plan is None:
        said = [f"- {plain(line)}" for line in (one.error or "no plan").splitlines()[:20]]
        return [*lines, "**This cannot be released:**", "", *said], True
    plan = one.plan
    problems = plan["problems"]
    if problems:
        lines += ["**This would block:**", "", *(f"- {plain(p)}" for p in problems), ""]
    if one.changes:
        lines += ["**Changes**", "", *(f"- {plain(c)}" for c in one.changes[:40]), ""]
        more = len(one.changes) - 40
        lines += [f"- and {more} more", ""] if more > 0 else []
    lines += _table(
        ["stage", "", "why"], [(s["name"], s["action"], s["reason"]) for s in plan["stages"]]
    )
    lines += ["", *_needs(plan), ""]
    gates = [
        (g["id"], "can pass" if g["can_pass"] else "**can never pass**", g["n"], _least(g))
        for g in plan["gates"]
    ]
    lines += _table(["gate", "", "items", "passes 8 times of 10 at"], gates)
    lines += ["", *(f"- {plain(note)}" for note in plan["notes"])]
    return lines, bool(problems)


def _needs(plan: Mapping[str, Any]) -> list[str]:
    found = []
    if vram := plan["vram"]:
        of = f" of {vram['available_gib']:.1f}" if vram["available_gib"] else ""
        fits = {True: ", fits", False: ", **does not fit**", None: ""}[vram["fits"]]
        found.append(f"- memory {vram['needed_gib']:.1f}{of} GiB{fits}")
    if plan["time_s"] is not None:
        hours = plan["gpu_hours"] or 0
        found.append(f"- about {plan['time_s'] / 60:.0f} min of training, {hours:.2f} GPU-hours")
    if plan["cost"] is not None:
        found.append(f"- cost about {plan['cost']:.2f}")
    return found


def _least(gate: Mapping[str, Any]) -> str:
    return "" if gate["min_detectable"] is None else f"{gate['min_detectable']:.4g}"


def _table(head: list[str], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([plain(str(cell)) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def code(text: str) -> str:
    return f"`{_one_line(text).replace('`', chr(39))}`"


def plain(text: str) -> str:
    """No mention, link, image, HTML, table or heading can come out of it."""
    kept = _one_line(text).replace("@", "@\u200b").replace("<", "&lt;").replace("|", "\\|")
    return (
        kept.replace("[", "\\[").replace("](", "]\\(").replace("`", "'").replace("://", ":\u200b//")
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]
