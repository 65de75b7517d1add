"""A version's lineage as a tree, in text and as one self-contained HTML page."""

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from trainyard.lineage import Lineage

_STYLE = """body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;color:#1d2530}
ul{list-style:none;border-left:2px solid #c9d2de;margin:0 0 0 .6rem;padding-left:1.1rem}
li{position:relative;margin:.35rem 0}li::before{content:"";position:absolute;left:-1.1rem;top:.7em;
width:.9rem;border-top:2px solid #c9d2de}b{display:inline-block;min-width:8.5rem}
code{background:#f2f4f8;padding:.1em .3em;border-radius:3px}
.PASS{color:#0a7a3d}.other{color:#b3261e}
@media(prefers-color-scheme:dark){body{background:#12161c;color:#e3e8ef}code{background:#232a34}}"""


class Node(NamedTuple):
    label: str
    text: str
    children: "tuple[Node, ...]" = ()


def tree(facts: Lineage) -> Node:
    """From what is served back to what it was made of."""
    served = f"{facts.name}@{facts.digest[:12]}"
    return Node(served, f"{facts.verdict}, {facts.created}", tuple(_origins(facts)))


def as_text(facts: Lineage) -> str:
    root = tree(facts)
    return "\n".join([f"{root.label}   {root.text}", *_lines(root.children, "")])


def as_html(facts: Lineage) -> str:
    """No script, no font, no address: it opens from a mail attachment without a network."""
    root = tree(facts)
    kind = "PASS" if facts.verdict == "PASS" else "other"
    title = escape(root.label)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f'<p class="{kind}">{escape(root.text)}</p>{_list(root.children)}</html>\n'
    )


def _origins(facts: Lineage) -> Iterator[Node]:
    yield Node("gates", facts.verdict, tuple(_gates(facts)))
    yield Node("scores", f"{len(facts.scores)} means", tuple(_scores(facts)))
    if facts.parity:
        steps = facts.parity.get("steps", [])
        shown = ", ".join(f"{step['name']} {step['verdict']}" for step in steps)
        yield Node("parity", shown or "recorded")
    started = f"{facts.run_id}, started by {facts.who or 'nobody named'}"
    yield Node("run", started, tuple(_run(facts)))
    if facts.approval:
        yield Node(
            "approved", f"by {facts.approval.who}, {facts.approval.time}: {facts.approval.why}"
        )
    yield Node("recipe", f"{facts.recipe.path}, sha256 {facts.recipe.digest[:12]}")
    yield Node("commit", _commit(facts))
    yield Node("data", _data(facts), tuple(_files(facts, "data")))
    asked = tuple(_files(facts, "eval set"))
    yield Node("eval sets", f"{len(facts.eval_sets)} files", asked)
    base = facts.base_model
    licence = f", licence {base.license}" if base.license else ""
    yield Node("base model", f"{base.ref}, {base.revision}, sha256 {base.digest[:12]}{licence}")
    yield Node("environment", _environment(facts))
    yield Node("parent", facts.parent[:12] if facts.parent else "none: the first version")


def _gates(facts: Lineage) -> Iterator[Node]:
    for gate in facts.gates:
        yield Node(str(gate.get("id")), f"{gate.get('verdict')}: {gate.get('reason') or ''}")


def _scores(facts: Lineage) -> Iterator[Node]:
    for name, mean in sorted(facts.scores.items()):
        found = facts.intervals.get(name)
        bounds = f" [{found.low:.4g}, {found.high:.4g}], n {found.n}" if found else ""
        yield Node(name, f"{mean:.4g}{bounds}")


def _run(facts: Lineage) -> Iterator[Node]:
    if facts.flow_run:
        yield Node("Prefect", facts.flow_run)
    for tracker, run in facts.tracker_runs.items():
        yield Node(tracker, run)
    for stage in facts.stages:
        took = "skipped" if stage.skipped else f"{stage.seconds or 0:.1f} s"
        yield Node(stage.name, took)
    if facts.cost:
        price = "" if facts.cost.amount is None else f", cost {facts.cost.amount:.2f}"
        yield Node(
            "spent", f"{facts.cost.train_s:.0f} s of training on {facts.cost.gpus} GPUs{price}"
        )


def _commit(facts: Lineage) -> str:
    git = facts.git
    if git is None:
        return "no git repository"
    edited = " with changes in no commit" if git.dirty else ""
    return f"{git.commit} on {git.branch or 'no branch'}{edited}, {git.remote or 'no remote'}"


def _data(facts: Lineage) -> str:
    data = facts.data
    counts = (
        f"{data.train} train, {data.val} val, {data.quarantine} set aside, of {data.lines} lines"
    )
    return f"sha256 {data.digest}: {counts}"


def _files(facts: Lineage, role: str) -> Iterator[Node]:
    for file in facts.inputs:
        if file.role == role:
            kept = ", in the archive" if file.archived else ""
            dvc = f", DVC md5 {file.dvc_md5}" if file.dvc_md5 else ""
            yield Node(file.name, f"sha256 {file.sha256[:12]}{dvc}{kept}")


def _environment(facts: Lineage) -> str:
    found = facts.environment
    gpus = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in found.gpus) or "no GPU"
    return (
        f"Python {found.python}, {len(found.packages)} packages, {found.cpus} CPUs, "
        f"{found.threads or 'unknown'} threads, {gpus}"
    )


def _lines(nodes: tuple[Node, ...], before: str) -> Iterator[str]:
    for node in nodes:
        last = node is nodes[-1]
        yield f"{before}{'└─' if last else '├─'} {node.label:<12} {node.text}".rstrip()
        yield from _lines(node.children, before + ("   " if last else "│  "))


def _list(nodes: tuple[Node, ...]) -> str:
    items = (
        f"<li><b>{escape(node.label)}</b> {escape(node.text)}{_list(node.children)}</li>"
        for node in nodes
    )
    return f"<ul>{''.join(items)}</ul>" if nodes else ""
