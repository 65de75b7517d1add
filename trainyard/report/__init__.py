"""One self-contained HTML page that says what a release did and why it ended as it did.

No script, no font, no address: it opens from a mail attachment on a machine without a network.
"""

import base64
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from trainyard import files
from trainyard.report import judges, slices
from trainyard.report.plots import forest_plot, line_chart
from trainyard.report.rollouts import rollout_chart
from trainyard.run import Summary

TEMPLATE = Path(__file__).with_name("report.html.j2")
STANDALONE = "background:#fff;font:12px sans-serif"
STYLE = (
    "<style>.grid{stroke:#dfe3ea}.line{fill:none;stroke:#2b62c9;stroke-width:1.8}"
    "text{fill:#5d6778}</style>"
)
LABELS = {
    "PASS": "passed its gates",
    "FAIL": "was stopped by its gates",
    "INCONCLUSIVE": "could not prove enough",
    "INVALID": "could not be judged",
    "PENDING_HUMAN": "waits for people to look at its answers",
}


def write(folder: Path, summary: Summary) -> Path:
    """Write `report.html` from what the run's folder holds; what did not happen is left out."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, duration=duration, percent=percent)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = folder / "report.html"
    files.write_text(path, page.render(**_content(folder, summary)))
    return path


def _content(folder: Path, summary: Summary) -> dict[str, Any]:
    recipe, decision = _read(folder / "recipe.json"), _read(folder / "gate.json")
    curve = loss_points(folder / "train" / "metrics.jsonl")
    rolled = _read(folder / "rollout.json")
    looks = rolled.get("looks", []) if rolled else []
    return {
        "summary": summary,
        "label": LABELS.get(summary.verdict or "", "did not finish"),
        "total_s": sum(stage.seconds or 0 for stage in summary.stages),
        "recipe": recipe,
        "recipe_yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        if recipe
        else "",
        "data": _read(folder / "data" / "verdict.json"),
        "training": _read(folder / "train" / "result.json"),
        "loss": Markup(line_chart(curve, "optimiser step", "loss")) if len(curve) > 1 else "",
        "decision": decision,
        "forest": Markup(forest_plot(decision["gates"])) if decision else "",
        "slices": slices.table(folder / "evaluation" / "scores.jsonl"),
        "judges": judges.table(_read(folder / "evaluation" / "evaluation.json")),
        "answers": examples(folder / "evaluation" / "answers.jsonl"),
        "rollout": rolled,
        "rollout_chart": Markup(rollout_chart(looks, rolled["alpha"])) if len(looks) > 1 else "",
        "cost": _read(folder / "cost.json"),
        "lineage": _read(folder / "lineage.json"),
    }


def _read(path: Path) -> Any:
    return files.read_json(path) if path.exists() else None


def loss_points(metrics: Path) -> list[tuple[float, float]]:
    """Return (step, loss) of a `metrics.jsonl`; lines without both are left out."""
    if not metrics.exists():
        return []
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [(e["step"], e["loss"]) for e in entries if e.get("step") and e.get("loss") is not None]


def examples(answers: Path, count: int = 5) -> list[dict[str, Any]]:
    """Return the first answered samples with every arm's answer, those first where arms differ."""
    if not answers.exists():
        return []
    samples: dict[str, dict[str, Any]] = defaultdict(dict)
    for line in answers.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get("prompt") and entry.get("text") is not None:
            sample = samples[f"{entry['suite']}/{entry['id']}"]
            sample.setdefault("prompt", entry["prompt"])
            sample.setdefault("reference", entry.get("reference"))
            sample.setdefault("arms", {})[entry["arm"]] = entry["text"]
    shown = sorted(samples.values(), key=lambda s: len(set(s["arms"].values())), reverse=True)
    return shown[:count]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:z,.4g}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def loss_markdown(folder: Path) -> str:
    """Return the loss curve of a run as Markdown with the image inside."""
    curve = loss_points(folder / "train" / "metrics.jsonl")
    if len(curve) < 2:
        return "No loss was logged."
    image = line_chart(curve, "optimiser step", "loss").replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{STANDALONE}" ', 1
    )
    encoded = base64.b64encode(image.replace("<title>", f"{STYLE}<title>", 1).encode()).decode()
    return f"![loss by step](data:image/svg+xml;base64,{encoded})"


def as_markdown(summary: Summary) -> str:
    """Return what a run came to as Markdown, for the Prefect UI."""
    lines = [
        f"# {summary.recipe}: {summary.verdict or summary.status}",
        "",
        *([f"**{summary.failed_stage}**: {summary.error}", ""] if summary.error else []),
        *([f"Version `{summary.version}`"] if summary.version else []),
        *([f"Endpoint `{summary.endpoint}`"] if summary.endpoint else []),
        "",
        "| stage | status | seconds | |",
        "|---|---|---|---|",
    ]
    for stage in summary.stages:
        reason = (stage.reason or "").replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {stage.name} | {stage.status} | {stage.seconds or 0:.1f} | {reason} |")
    return "\n".join(lines)
