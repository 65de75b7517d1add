"""The shipped quickstart data are what their generator says they are."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "recipes" / "quickstart"


@pytest.fixture(scope="module")
def make_data() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("make_data")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def made(make_data: ModuleType) -> dict[str, list[bytes]]:
    files: dict[str, list[bytes]] = make_data.files(make_data.SEED)
    return files


def good_rows(lines: list[bytes]) -> list[dict[str, Any]]:
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line.decode()))
        except ValueError:
            continue
    return rows


def answers(lines: list[bytes], task: str) -> list[dict[str, str]]:
    turns = [row["messages"] for row in good_rows(lines) if "messages" in row]
    return [
        json.loads(t[2]["content"]) for t in turns if t[0]["content"] == task and t[2]["content"]
    ]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Z]\w+", text))


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "corpus.jsonl"])
def test_the_committed_file_is_what_the_committed_seed_generates(
    made: dict[str, list[bytes]], name: str
) -> None:
    assert (FOLDER / name).read_bytes() == b"".join(line + b"\n" for line in made[name])


def test_another_seed_gives_other_rows(make_data: ModuleType, made: dict[str, list[bytes]]) -> None:
    assert not set(make_data.eval_lines(make_data.SEED + 1)) & set(made["eval.jsonl"])


def test_held_out_names_brands_nouns_and_orders_are_nowhere_in_training(
    make_data: ModuleType, made: dict[str, list[bytes]]
) -> None:
    leaked = made["eval.jsonl"][0]
    seen = b"\n".join(line for line in made["train.jsonl"] if line != leaked).decode(
        errors="replace"
    )
    seen_words = words_of(seen)
    for answer in answers(made["eval.jsonl"], make_data.world.TASK_SYSTEM):
        brand, noun = answer["product"].split()
        assert not {*answer["customer"].split(), brand} & seen_words
        assert noun in make_data.world.NOUNS["eval"]
    trained = task_answers(make_data, made, leaked)
    nouns = {answer["product"].split()[1] for answer in trained}
    assert nouns == set(make_data.world.NOUNS["train"])
    orders = {answer["order_id"] for answer in trained}
    held_out = answers(made["eval.jsonl"], make_data.world.TASK_SYSTEM)
    assert not orders & {answer["order_id"] for answer in held_out}


def task_answers(
    make_data: ModuleType, made: dict[str, list[bytes]], leaked: bytes
) -> list[dict[str, str]]:
    lines = [line for line in made["train.jsonl"] if line != leaked]
    found = answers(lines, make_data.world.TASK_SYSTEM)
    return [answer for answer in found if answer]


def test_held_out_names_and_brands_are_not_words_of_the_base_corpus(
    make_data: ModuleType, made: dict[str, list[bytes]]
) -> None:
    known = words_of(b"\n".join(made["corpus.jsonl"]).decode())
    for answer in answers(made["eval.jsonl"], make_data.world.TASK_SYSTEM):
        assert not {*answer["customer"].split(), answer["product"].split()[0]} & known


def test_every_planted_row_is_in_the_training_file(
    make_data: ModuleType, made: dict[str, list[bytes]]
) -> None:
    lines = made["train.jsonl"]
    bad = make_data.planted_rows(make_data.SEED)
    assert [one.fault for one in bad] == [
        "broken JSON",
        "not UTF-8",
        "empty answer",
        "exact duplicate",
        "wrong type",
        "leaked from eval",
        "too long",
    ]
    for one in bad:
        assert lines.count(one.line) == (2 if one.fault == "exact duplicate" else 1)
    assert len(lines) == make_data.TASK_ROWS + make_data.REPLAY_ROWS + len(bad)


def test_the_base_never_reads_the_task(make_data: ModuleType) -> None:
    rng = make_data.rng_for(1, "base")
    texts = [make_data.world.base_text(rng) for _ in range(500)]
    texts += [json.dumps(make_data.world.base_chat(rng)) for _ in range(500)]
    read = "\n".join(texts)
    assert make_data.world.TASK_SYSTEM not in read
    assert "order_id" not in read
