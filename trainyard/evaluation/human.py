"""People compare answers without knowing whose they are: export, a form, and import."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from random import Random

from trainyard.errors import InputError
from trainyard.evaluation.judge.protocol import judged_item
from trainyard.evaluation.judge.suite import Duel
from trainyard.evaluation.scores import Judgement
from trainyard.files import read_json, write_json, write_text

CHOICES = {"one": "A", "two": "B", "tie": "tie"}


def export_pairs(
    duels: Sequence[Duel], folder: Path, *, count: int, seed: int, suite: str, opponent: str
) -> None:
    """Write `pairs.jsonl` and `form.html` for people, and `key.json` to keep.

    `count` duels are drawn at random, so that their labels stand for all; each is shown in a
    random order. Raises InputError when there are fewer.
    """
    if count > len(duels):
        raise InputError(f"{count} pairs asked for, and the suite has {len(duels)}")
    rng = Random(seed)
    drawn = rng.sample(list(duels), count)
    shown, key = [], {}
    for duel in drawn:
        order = rng.choice(("AB", "BA"))
        one, two = duel.candidate, duel.other
        if order == "BA":
            one, two = two, one
        shown.append({"id": duel.item.id, "prompt": judged_item(duel.item), "one": one, "two": two})
        key[duel.item.id] = {"order": order, "answers": duel.digest}
    write_text(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in shown))
    write_text(folder / "form.html", _form(shown))
    write_json(folder / "key.json", {"suite": suite, "opponent": opponent, "pairs": key})


def import_answers(choices: Path, key: Path, person: str) -> list[Judgement]:
    """Judgements from the saved form, rows of `{"id": ..., "choice": "one" | "two" | "tie"}`.

    Write them with `scores.write_rows` and name the file as the suite's `labels`. Raises
    InputError for a row that does not belong to the export, or an id that is there twice.
    """
    known = read_json(key)
    found: dict[str, Judgement] = {}
    for number, line in enumerate(choices.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name, verdict = row["id"], CHOICES[row["choice"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{choices}:{number} is no choice: {error!r}; a row has id and choice, which is "
                "one, two or tie"
            ) from error
        if name not in known["pairs"]:
            raise InputError(f"{choices}:{number} chooses on {name!r}, which was not exported")
        if name in found:
            raise InputError(f"{choices}:{number} chooses on {name!r} a second time")
        pair = known["pairs"][name]
        found[name] = Judgement(
            id=name,
            juror=person,
            order=pair["order"],
            verdict=verdict,
            suite=known["suite"],
            opponent=known["opponent"],
            human=True,
            answers=pair["answers"],
        )
    return list(found.values())


def _form(shown: Sequence[dict[str, str]]) -> str:
    page = files("trainyard.evaluation").joinpath("human.html").read_text(encoding="utf-8")
    # inside a script element only `<` can end the data
    return page.replace("__PAIRS__", json.dumps(shown).replace("<", "\\u003c"))
