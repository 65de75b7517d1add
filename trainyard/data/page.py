"""The report of a check: one page with its plots inside, and a short text. Secrets stay masked."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from trainyard.data.drift import Drift
from trainyard.data.merge import QUARANTINE, Merged
from trainyard.data.overlap import Touched
from trainyard.data.patterns import Patterns
from trainyard.data.plots import HALF, bars, histogram
from trainyard.data.verdict import Counts, DataVerdict

STYLE = """
:root{--ink:#1c2430;--soft:#5d6778;--line:#dfe3ea;--fill:#2b62c9;--bad:#c0392b;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#98a2b3;--line:#333b48;
--fill:#6ea0ff;--bad:#ff7b6b;--page:#12161c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1080px;
margin:2rem auto;padding:0 1rem;display:grid;grid-template-columns:1fr 1fr;gap:0 2.5rem}
section{grid-column:1/-1;min-width:0}@media(min-width:900px){section.half{grid-column:auto}}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}p{margin:.4rem 0}
table{border-collapse:collapse;width:100%;font-size:14px}td,th{padding:.25rem .5rem;text-align:left;
border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}code{font-size:13px;overflow-wrap:anywhere}
svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
svg rect{fill:var(--fill)}svg .name{text-anchor:end}svg .mark{text-anchor:middle}
svg .grid{stroke:var(--line)}svg line.limit{stroke:var(--bad);stroke-dasharray:4 3}
svg text.limit{fill:var(--bad)}.refuse{color:var(--bad)}.soft{color:var(--soft)}
"""
SAID = {
    "pass": "may be trained on",
    "warn": "may be trained on; look at what is below",
    "refuse": "is refused",
}


SHOWN = 10
SECRETS = Patterns({"secret"})
NUMBER = re.compile(r"[\d,.e+-]+ ?%?")


@dataclass(frozen=True)
class Story:
    verdict: DataVerdict
    merged: Merged
    counts: Counts
    drift: Drift | None
    touched: Sequence[Touched] = ()
    refuse: Sequence[str] = ()
    """Why it is refused."""
    moved: Sequence[str] = ()
    """What changed against the previous version, and does not refuse it."""


def summary(story: Story) -> str:
    """Markdown of a few lines: verdict, where the lines went, why."""
    v = story.verdict
    rows = [
        f"**{v.verdict}**: the data {SAID[v.verdict]}.",
        "",
        "| lines | train | val | quarantine | tokens | digest |",
        "|---:|---:|---:|---:|---:|---|",
        f"| {v.lines:,} | {v.train:,} | {v.val:,} | {v.quarantine:,} | {v.tokens:,} "
        f"| `{v.digest[:12]}` |",
        "",
    ]
    if (drift := story.drift) is not None:
        most = max(drift.shifts, key=lambda shift: shift.psi, default=None)
        moved = f"; {most.name} moved most, PSI {most.psi:.3f}" if most is not None else ""
        rows += [f"{_rows_changed(drift)}{moved}.", ""]
    return "\n".join([*rows, *(f"- {_markdown(p)}" for p in v.problems), ""])


def _rows_changed(drift: Drift) -> str:
    return f"{drift.added:,} rows added, {drift.removed:,} removed since {drift.digest[:12]}"


def _markdown(text: str) -> str:
    return shown(text).replace("|", "\\|")


def shown(text: str) -> str:
    """Text that came out of rows, as a label or a role may have: no markup, no secret."""
    return escape(masked(text), quote=False)


def masked(text: str) -> str:
    return SECRETS.redact(text, frozenset(("secret",)))[0]


def page(story: Story) -> str:
    v = story.verdict
    names = ", ".join(table.name for table in story.merged.job.tables)
    top = [
        f'<h1 class="{v.verdict}">{v.verdict.upper()}: the data {SAID[v.verdict]}</h1>',
        f'<p class="soft">{shown(names)}<br>digest <code>{v.digest}</code></p>',
        _table(
            ("lines read", "train", "val", "quarantine", "tokens", "of them trained"),
            [
                [
                    f"{n:,}"
                    for n in (v.lines, v.train, v.val, v.quarantine, v.tokens, v.trained_tokens)
                ]
            ],
        ),
    ]
    if story.refuse:
        top.append(f"<h2>Why</h2>{_list(story.refuse)}")
    wide = [_lengths(story)]
    half = [*_reasons(story), _duplicates(story), *_languages(story)]
    rest = [_drift(story), _touched(story), _found(story), _examples(story)]
    sections = [
        *(f"<section>{part}</section>" for part in ["".join(top), *wide] if part),
        *(f'<section class="half">{part}</section>' for part in half if part),
        *(f"<section>{part}</section>" for part in rest if part),
    ]
    title = f"Data check: {v.verdict}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )


def _lengths(story: Story) -> str:
    facts = story.merged.facts[story.merged.facts["units"] > 0]
    if not len(facts):
        return ""
    if facts["tokens"].any():
        values, what = facts["tokens"][facts["tokens"] > 0], "tokens"
        limit = story.merged.job.max_seq_len
    else:
        values, what, limit = facts["prompt_chars"] + facts["answer_chars"], "characters", None
    quantiles = np.quantile(values, [0.5, 0.95, 0.99, 1]).astype(int).tolist()
    said = "median {:,}, 95 % ≤ {:,}, 99 % ≤ {:,}, longest {:,}".format(*quantiles)
    lost = story.verdict.lost_tokens
    cut = f" Truncation cuts {lost:,} tokens." if lost else ""
    return f"<h2>Lengths</h2>{histogram(values, what, limit)}<p>{said} {what}.{cut}</p>"


def _reasons(story: Story) -> list[str]:
    parts = []
    for title, counts in (
        ("Quarantined, by reason", story.verdict.reasons),
        ("Kept, with a warning", story.verdict.warnings),
    ):
        ranked = sorted(counts.items(), key=lambda pair: -pair[1])
        items = [(code, float(n), f"{n:,}") for code, n in ranked]
        if items:
            parts.append(f"<h2>{title}</h2>{bars(items, title, width=HALF)}")
    return parts


def _duplicates(story: Story) -> str:
    exact, near = (story.verdict.duplicates[k] for k in ("exact", "near"))
    kept = story.merged.side != QUARANTINE
    _, sizes = np.unique(story.merged.roots[kept], return_counts=True)
    clusters = np.bincount(np.minimum(sizes, 6), minlength=7)[2:] if len(sizes) else np.zeros(5)
    items = [("exact duplicates", float(exact), f"{exact:,}")]
    items.append(("near-duplicates", float(near), f"{near:,}"))
    items += [
        (f"clusters of {size}{'' if size < 6 else ' or more'} kept", float(n), f"{int(n):,}")
        for size, n in enumerate(clusters.tolist(), 2)
        if n
    ]
    note = "<p class=soft>A cluster (similar rows, one prompt, one group) is on one side only.</p>"
    return f"<h2>Duplicates</h2>{bars(items, 'duplicates', width=HALF)}{note}"


def _languages(story: Story) -> list[str]:
    parts = []
    for title, shares in (
        ("Script of the answers", story.counts.scripts),
        ("Labels", story.counts.labels),
    ):
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])[:20]
        items = [(masked(name), share, f"{share:.1%}") for name, share in ranked]
        if items:
            parts.append(f"<h2>{title}</h2>{bars(items, title, width=HALF)}")
    return parts


def _drift(story: Story) -> str:
    drift = story.drift
    if drift is None:
        return ""
    limits = story.merged.job.spec.limits
    widest = 2 * limits.drift_refuse
    items = [
        (s.name, min(s.psi, widest), f"{s.psi:.3f}{' →' if s.psi > widest else ''}")
        for s in drift.shifts
    ]
    marks = [(limits.drift_warn, "warn"), (limits.drift_refuse, "refuse")]
    rows = [
        [s.name, s.what, f"{s.before:.4g}", f"{s.after:.4g}", f"{s.js:.3f}", f"{s.moved:.3f}"]
        for s in drift.shifts
    ]
    table = _table(("what", "", "before", "after", "JS distance", "Wasserstein / sd"), rows)
    drawn = f"<p class=soft>population stability index</p>{bars(items, 'drift', marks)}"
    moved = _list(story.moved) if story.moved else ""
    return f"<h2>Drift</h2><p>{_rows_changed(drift)}.</p>{moved}{drawn}{table}"


def _touched(story: Story) -> str:
    if not story.touched:
        return ""
    rows = [
        [t.sample, f"{t.rows:,}", f"{t.leaks:,}", f"{t.share:.0%}"] for t in story.touched[:SHOWN]
    ]
    table = _table(("sample", "rows", "of them leaks", "largest share of its 13-grams"), rows)
    note = (
        f"{len(story.touched):,} samples share text with rows; contamination.jsonl has each pair."
    )
    return f"<h2>Evaluation samples that rows touch</h2>{table}<p class=soft>{note}</p>"


def _found(story: Story) -> str:
    counts: dict[str, int] = {}
    for info in story.merged.infos:
        for name, n in info["found"].items():
            counts[name] = counts.get(name, 0) + n
    if not counts:
        return ""
    rows = [[name, f"{n:,}"] for name, n in sorted(counts.items(), key=lambda pair: -pair[1])]
    return "<h2>Patterns found in text</h2>" + _table(("pattern", "times"), rows)


def _examples(story: Story) -> str:
    rows = [
        [code, f"{file}:{line}", detail]
        for code, found in sorted(story.merged.examples.items())
        for file, line, detail in found
    ]
    if not rows:
        return ""
    note = "<p class=soft>Every row is in quarantine.jsonl with its raw bytes.</p>"
    return (
        "<h2>Quarantined rows, some of each reason</h2>"
        + _table(("reason", "where", "what"), rows)
        + note
    )


def _table(head: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    columns = list(zip(*rows, strict=True))
    sides = [" class=n" if all(map(NUMBER.fullmatch, column)) else "" for column in columns]
    named = zip(head, sides, strict=True)
    cells = "".join(f"<th{side}>{name}</th>" for name, side in named)
    body = "".join(
        "<tr>"
        + "".join(f"<td{s}>{shown(cell)}</td>" for cell, s in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{shown(line)}</li>" for line in lines) + "</ul>"
