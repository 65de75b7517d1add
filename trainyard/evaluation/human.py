"""People look at a blinded sample of answers: the form, its export, and what they said.

A form follows from the answers, the gate and the seed alone, so what comes back is checked against
a form drawn afresh, and no key has to be kept or trusted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.scores import Judgement, Score
from trainyard.files import digest_json, write_text
from trainyard.recipe.gates import GateSpec

CHOICES: dict[str, dict[str, Any]] = {
    "human_win_rate": {"one": "A", "two": "B", "tie": "tie"},
    "human_issue_rate": {"good": 0.0, "issue": 1.0},
}
WINS = {"A": 1.0, "B": 0.0, "tie": 0.5}
FORM, ITEMS, ANSWERS = "form.html", "items.jsonl", "answers.jsonl"


@dataclass(frozen=True, slots=True)
class Form:
    """What people see, in their order, and what only the gate knows: who stands where."""

    gate: GateSpec
    items: tuple[Mapping[str, Any], ...]
    orders: Mapping[str, str]
    """Item -> AB when the candidate's answer is shown first, else BA."""
    duels: Mapping[str, str]
    """Item -> digest of request and both answers, as a judge's `Duel` has it."""

    @property
    def digest(self) -> str:
        return digest_json([self.gate.metric, self.gate.id, list(self.items)])


def draw(gate: GateSpec, answers: Iterable[Mapping[str, Any]], seed: int) -> Form:
    """Draw `gate.sample` samples of its suite at random; equal arguments draw the equal form.

    `answers` are rows of `answers.jsonl`. Raises InputError when fewer were answered.
    """
    texts: dict[str, dict[str, str]] = {}
    asked: dict[str, Mapping[str, Any]] = {}
    for row in answers:
        if row.get("suite") == gate.suite and isinstance(row.get("text"), str):
            texts.setdefault(row["id"], {})[row["arm"]] = row["text"]
            asked[row["id"]] = row
            if row.get("reference") is not None:
                texts[row["id"]]["reference"] = row["reference"]
    sides = ["candidate"] + ([gate.opponent] if gate.opponent else [])
    whole = sorted(name for name, by in texts.items() if all(side in by for side in sides))
    if len(whole) < (gate.sample or 0):
        raise InputError(
            f"gate {gate.id} shows {gate.sample} samples, and suite {gate.suite} has {len(whole)} "
            f"with an answer of {' and '.join(sides)}"
        )
    rng = Random(digest_json([seed, gate.id, [[texts[name][side] for side in sides]
                                              for name in whole]]))  # fmt: skip
    items, orders, duels = [], {}, {}
    for name in rng.sample(whole, gate.sample or 0):
        by, request = texts[name], asked[name].get("request") or asked[name]["prompt"]
        shown = {"id": name, "request": request}
        if gate.opponent:
            orders[name] = rng.choice(("AB", "BA"))
            first, second = sides if orders[name] == "AB" else sides[::-1]
            shown |= {"one": by[first], "two": by[second]}
            duels[name] = digest_json([request, by["candidate"], by[gate.opponent]])
        else:
            shown |= {"answer": by["candidate"]}
        if gate.opponent != "reference" and "reference" in by:
            shown["reference"] = by["reference"]
        items.append({**shown, "shown": digest_json(shown)[:16]})
    return Form(gate, tuple(items), orders, duels)


def write(form: Form, folder: Path) -> None:
    """Write the form as a page, and its items as JSON lines for other tools."""
    write_text(
        folder / ITEMS,
        "".join(json.dumps({"form": form.digest, **item}) + "\n" for item in form.items),
    )
    page = files("trainyard.evaluation").joinpath("human.html").read_text(encoding="utf-8")
    content = {"form": form.digest, "pair": bool(form.gate.opponent), "items": form.items}
    # inside a script element only `<` can end the data
    write_text(folder / FORM, page.replace("__FORM__", json.dumps(content).replace("<", "\\u003c")))


def read_answers(text: str, form: Form, where: str) -> dict[str, str]:
    """Item -> choice of the whole form, from the JSON objects that the page saves.

    Newlines between them may be lost. Raises InputError, in one sentence, for answers to another
    form, to items that were not shown or were shown otherwise, twice, or not to all of them.
    """
    shown = {item["id"]: item["shown"] for item in form.items}
    allowed = CHOICES[form.gate.metric]
    found: dict[str, str] = {}
    for number, row in enumerate(_objects(text, where), start=1):
        place = f"{where}, answer {number}"
        if not isinstance(row, dict) or not {"form", "id", "shown", "choice"} <= set(row):
            raise InputError(f"{place} is no answer: save the file with the form's own button")
        if row["form"] != form.digest:
            raise InputError(
                f"{place} belongs to another form ({str(row['form'])[:12]}): this release asks "
                f"about other answers, in form {form.digest[:12]}"
            )
        if shown.get(str(row["id"])) != row["shown"]:
            raise InputError(f"{place} is about {row['id']!r} as this form does not show it")
        if row["choice"] not in allowed:
            raise InputError(
                f"{place} says {row['choice']!r}; it must be one of {', '.join(allowed)}"
            )
        if str(row["id"]) in found:
            raise InputError(f"{place} is a second one on {row['id']!r}")
        found[str(row["id"])] = row["choice"]
    if len(found) < len(shown):
        raise InputError(
            f"{where} answers {len(found)} of {len(shown)}: open the form again and answer the rest"
        )
    return found


def _objects(text: str, where: str) -> Iterable[Any]:
    decoder, place = json.JSONDecoder(), 0
    while (place := place + len(text[place:]) - len(text[place:].lstrip())) < len(text):
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not the file that the form saves: {error}") from error
        yield row


def scores(form: Form, choices: Mapping[str, str], clusters: Mapping[str, str]) -> list[Score]:
    """What the gate reads: 1 for an issue, or for a win over the opponent (a tie is 0.5)."""
    gate, found = form.gate, []
    for name, choice in choices.items():
        if gate.opponent:
            verdict = CHOICES[gate.metric][choice]
            value = WINS[str(verdict)] if form.orders[name] == "AB" else 1 - WINS[str(verdict)]
        else:
            value = float(CHOICES[gate.metric][choice])
        metric = "human_win" if gate.opponent else "human_issue"
        suite = gate.suite or ""
        found.append(Score(name, suite, metric, "candidate", value, clusters.get(name)))
    return found


def judgements(form: Form, choices: Mapping[str, str]) -> list[Judgement]:
    """The same as labels, by which a judge's win rate on this suite is corrected."""
    if not form.gate.opponent:
        return []
    return [
        Judgement(
            id=name,
            juror="people",
            order=form.orders[name],
            verdict=str(CHOICES[form.gate.metric][choice]),
            suite=form.gate.suite or "",
            opponent=form.gate.opponent,
            human=True,
            answers=form.duels[name],
        )
        for name, choice in choices.items()
    ]


def issues(form: Form, choices: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    """Items that people found an issue in, as they saw them."""
    return [item for item in form.items if choices.get(item["id"]) == "issue"]
