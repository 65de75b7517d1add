"""The forms of a release: drawn from its answers, filled in by people, read back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard import files
from trainyard.evaluation import human
from trainyard.evaluation.human import Form
from trainyard.evaluation.scores import Judgement, Score, write_rows
from trainyard.release.champion import Champion
from trainyard.release.evaluation import Evaluated
from trainyard.release.job import Job

LABELS = "human/labels.jsonl"


@dataclass(frozen=True, slots=True)
class Sheet:
    """One form and the folder in which its answers are looked for."""

    form: Form
    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / human.FORM

    @property
    def answers(self) -> Path:
        return self.folder / human.ANSWERS

    @property
    def is_filled(self) -> bool:
        return self.answers.exists()

    def read(self) -> dict[str, str]:
        """Raises InputError, in one sentence, for answers that do not fit the form."""
        text = self.answers.read_text(encoding="utf-8", errors="replace")
        return human.read_answers(text, self.form, str(self.answers))

    def fill(self, text: str) -> None:
        """Keep answers that came another way. Raises InputError for those that do not fit."""
        human.read_answers(text, self.form, "what was entered")
        files.write_text(self.answers, text)


def sheets(job: Job, evaluated: Evaluated, champion: Champion | None) -> list[Sheet]:
    """Write the form of every gate on people, where it is not yet there.

    The same answers make the same form, so a filled one holds for a repeated release.
    """
    gates = [
        gate
        for gate in job.recipe.gates
        if gate.is_human and (gate.opponent != "champion" or champion)
    ]
    if not gates:
        return []
    text = (evaluated.folder / "answers.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    found = []
    for gate in gates:
        form = human.draw(gate, rows, job.recipe.evaluate.seed)
        place = f"{gate.id}-{form.digest[:12]}"
        sheet = Sheet(form, job.home / "human" / job.recipe.name / place)
        if not sheet.page.exists():
            human.write(form, sheet.folder)
        found.append(sheet)
    return found


def evidence(
    job: Job, filled: Sequence[Sheet], scores: Sequence[Score]
) -> tuple[list[Score], list[Judgement]]:
    """What people said, as scores for their gates and as labels that correct a judge."""
    clusters = {(s.suite, s.id): s.cluster for s in scores if s.cluster is not None}
    said: list[Score] = []
    labels: list[Judgement] = []
    for sheet in filled:
        choices, suite = sheet.read(), sheet.form.gate.suite or ""
        known = {name: clusters[suite, name] for name in choices if (suite, name) in clusters}
        said += human.scores(sheet.form, choices, known)
        labels += human.judgements(sheet.form, choices)
    if labels:
        write_rows(job.folder / LABELS, labels)
    return said, labels
