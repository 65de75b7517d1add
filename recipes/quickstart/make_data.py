"""Write the quickstart's data: train.jsonl, eval.jsonl and corpus.jsonl, a pure function of --seed.

    python recipes/quickstart/make_data.py

train.jsonl teaches the task, repeats some of the base's own behaviour against forgetting, and holds
a few broken rows on purpose (`planted`); eval.jsonl has tickets whose names, brands, order
numbers and nouns are not in train.jsonl; corpus.jsonl is held-out text of the base's own kind.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import world

SEED = 20261121
TASK_ROWS = 2400
REPLAY_ROWS = 800
EVAL_ROWS = 400
CORPUS_ROWS = 200


@dataclass(frozen=True)
class Planted:
    fault: str
    line: bytes


def encode(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def messages(turns: Sequence[world.Turn]) -> dict[str, Any]:
    return {"messages": list(turns)}


def rng_for(seed: int, part: str) -> random.Random:
    return random.Random(f"{seed}/{part}")


def task_rows(rng: random.Random, side: world.Side, count: int) -> list[dict[str, Any]]:
    return [messages(world.task_chat(world.case(rng, side), rng)) for _ in range(count)]


def replay_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Half conversations, half plain text, as the base has read them."""
    talks = (world.reply_chat, world.question_chat)
    chats = [messages(rng.choice(talks)(world.case(rng, "base"), rng)) for _ in range(count // 2)]
    return [*chats, *corpus_rows(rng, count - count // 2)]


def corpus_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [{"text": world.base_text(rng)} for _ in range(count)]


def planted(rng: random.Random, good: Sequence[bytes], leak: bytes) -> list[Planted]:
    """Rows that a data check must not let through, each with the name of its fault."""
    about = world.case(rng, "train")
    turns = world.task_chat(about, rng)
    silent = [*turns[:-1], {"role": "assistant", "content": ""}]
    endless = " ".join(world.ticket(world.case(rng, "train"), rng) for _ in range(40))
    numeric = [turns[0], {"role": "user", "content": 4711}, turns[2]]
    return [
        Planted("broken JSON", encode(messages(turns))[:-9]),
        Planted("not UTF-8", encode(messages(turns)).replace(b" ", b"\xff\xfe", 1)),
        Planted("empty answer", encode(messages(silent))),
        Planted("exact duplicate", good[len(good) // 2]),
        Planted("wrong type", encode({"messages": numeric})),
        Planted("leaked from eval", leak),
        Planted("too long", encode(messages(world.chat(turns[0]["content"], endless, "{}")))),
    ]


def good_lines(seed: int) -> list[bytes]:
    task = task_rows(rng_for(seed, "task"), "train", TASK_ROWS)
    replay = replay_rows(rng_for(seed, "replay"), REPLAY_ROWS)
    return [encode(row) for row in [*task, *replay]]


def eval_lines(seed: int) -> list[bytes]:
    return [encode(row) for row in task_rows(rng_for(seed, "eval"), "eval", EVAL_ROWS)]


def planted_rows(seed: int) -> list[Planted]:
    return planted(rng_for(seed, "planted"), good_lines(seed), eval_lines(seed)[0])


def files(seed: int) -> dict[str, list[bytes]]:
    """File name -> lines without their newline."""
    train = [*good_lines(seed), *(bad.line for bad in planted_rows(seed))]
    rng_for(seed, "order").shuffle(train)
    corpus = [encode(row) for row in corpus_rows(rng_for(seed, "corpus"), CORPUS_ROWS)]
    return {"train.jsonl": train, "eval.jsonl": eval_lines(seed), "corpus.jsonl": corpus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, lines in files(arguments.seed).items():
        (arguments.out / name).write_bytes(b"".join(line + b"\n" for line in lines))
        print(f"{name}: {len(lines)} lines")


if __name__ == "__main__":
    main()
