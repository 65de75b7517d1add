"""The data check against planted defects: what it finds, what it costs, how it grows.

`python -m bench.data_check --rows 10000 100000` writes seeded Alpaca rows with a truth per line,
checks them in a process of its own, and compares. The goals are set on `prose`: 760 bytes a row,
words drawn from real English text with its punctuation. `letters` are 900 bytes of made-up words,
which a parser copies at once. CPU is compared with parsing the same lines with orjson, so that the
figure means the same on any machine: of the whole process, and (warm) of a second check in one
process, without its start and imports.

A machine's speed changes from second to second, so the lines are parsed `PARSES` times, half of
them right before the check and half right after: the ratio is to the median of all parses, and the
spread is the ratio to the slowest and to the fastest. `--repeat` checks so often, with parses
around each; what is said is then of the check with the median ratio (the higher one of two).
"""

import argparse
import contextlib
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import orjson
import psutil

TEXTS = ("prose", "letters")
PARSES = 6
RATES = {
    "exact_duplicate": 0.02,
    "near_duplicate": 0.026,
    "similar": 0.01,  # 4 to 6 words replaced: related, no duplicate
    "pii": 0.005,
    "secret": 0.001,
    "leak": 0.001,
    "empty_output": 0.003,
    "wrong_type": 0.0005,
    "missing_field": 0.0002,
    "bad_json": 0.0001,
    "bad_utf8": 0.0001,
    "duplicate_key": 0.0001,
    "special_tokens": 0.0005,
    "refusal": 0.001,
    "placeholder": 0.001,
    "truncated_output": 0.001,
    "conflicting_answers": 0.001,
    "repetition": 0.0005,
    "mojibake": 0.0005,
    "control_characters": 0.0005,
    "chinese": 0.03,  # nothing wrong with them
}
HAN = [chr(0x4E00 + 17 * n) for n in range(200)]


class Rows:
    """Seeded rows, and what was planted in each line."""

    def __init__(self, seed: int, text: str) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        if text == "prose":
            self.words, self.longest = np.array(prose()), 121
            weights = np.ones(len(self.words))
        else:
            self.words, self.longest = np.array(self.made_up()), 125
            weights = 1 / (np.arange(len(self.words)) + 20.0)
        self.cumulative = np.cumsum(weights / weights.sum())
        self.pool: list[str] = []
        self.recent: list[dict[str, str]] = []
        self.eval_rows = [self.row() for _ in range(1000)]

    def made_up(self) -> list[str]:
        letters = "abcdefghijklmnopqrstuvwxyz"
        sizes = (self.rng.randint(2, 10) for _ in range(24000))
        return sorted({"".join(self.rng.choices(letters, k=size)) for size in sizes})

    def text(self, n: int) -> str:
        if len(self.pool) < n:
            at = np.searchsorted(self.cumulative, self.numbers.random(1_000_000))
            self.pool = self.words[np.minimum(at, len(self.words) - 1)].tolist()
        taken = self.pool[-n:]
        del self.pool[-n:]
        return " ".join(taken)

    def row(self) -> dict[str, str]:
        extra = self.text(12) if self.rng.random() < 0.4 else ""
        output = self.text(self.rng.randint(75, self.longest)).capitalize() + "."
        return {"instruction": self.text(14).capitalize() + "?", "input": extra, "output": output}

    def replaced(self, row: dict[str, str], count: int) -> dict[str, str]:
        words = row["output"].split(" ")
        for at in self.rng.sample(range(3, len(words) - 3), count):
            words[at] = f"zq{self.rng.randrange(10**6)}"
        return {**row, "output": " ".join(words)}

    def line(self, kind: str) -> tuple[bytes, set[str]]:
        """One line, and the codes it must be found with."""
        rng, row = self.rng, self.row()
        expected = {kind}
        words = row["output"]
        middle = words.find(" ", len(words) // 2)
        if kind == "clean" or kind == "chinese":
            expected = set()
        if kind == "chinese":
            row["instruction"] = "".join(rng.choices(HAN, k=20))
            row["output"] = "".join(rng.choices(HAN, k=120)) + "。"
        inserted = {
            "pii": f" ann.{rng.randrange(9999)}@example{rng.randrange(99)}.org",
            "secret": " AKIA" + "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=16)),
            "special_tokens": " <|im_end|>",
            "placeholder": " [insert name here]",
            "mojibake": " cafÃ©",
            "control_characters": " a\u202eb",
        }
        if kind in inserted:
            row["output"] = words[:middle] + inserted[kind] + words[middle:]
        if kind == "empty_output":
            row["output"] = rng.choice(["", "  ", "\n"])
        if kind == "refusal":
            row["output"] = "I'm sorry, but I can't help with that. " + words
        if kind == "truncated_output":
            row["output"] = words[:middle] + ",\n```python\nprint(1)"
        if kind == "repetition":
            row["output"] = " ".join([self.text(6)] * 15) + "."
        if kind == "leak":
            sample = rng.choice(self.eval_rows)
            row["instruction"], row["input"] = sample["instruction"], sample["input"]
            expected = {"leak"}
        if kind in ("exact_duplicate", "near_duplicate", "similar", "conflicting_answers"):
            source = self.recent.pop(rng.randrange(len(self.recent)))
            row = dict(source)
            if kind == "near_duplicate":
                row = self.replaced(row, 1)
                assert jaccard(source, row) >= 0.9
            elif kind == "similar":
                row = self.replaced(row, rng.randint(4, 6))
                assert 0.5 < jaccard(source, row) < 0.9
                expected = {"conflicting_answers"}
            elif kind == "conflicting_answers":
                row["output"] = self.row()["output"]
        return self.encoded(kind, row), expected

    def encoded(self, kind: str, row: dict[str, str]) -> bytes:
        made: dict[str, object] = dict(row)
        if kind == "wrong_type":
            made["output"] = self.rng.choice([123, ["a"], {"x": 1}, True])
        if kind == "missing_field":
            del made["output"]
        content = orjson.dumps(made)
        if kind == "bad_json":
            return content[: self.rng.randrange(20, len(content) - 3)]
        if kind == "bad_utf8":
            return content.replace(b" ", b"\xff\xfe", 1)
        if kind == "duplicate_key":
            return content[:-1] + b',"input":"again"}'
        if kind == "clean":
            self.recent.append(row)
            if len(self.recent) > 2000:
                del self.recent[:1000]
        return content


def prose() -> list[str]:
    """Words of Python's own manual, as often as they occur, with what punctuation they have."""
    plain = re.compile(r"""["'(]?[A-Za-z]+(['-][A-Za-z]+)*[,.;:?!)"']*""")
    words = " ".join(topics.topics.values()).split()
    return sorted(word for word in words if plain.fullmatch(word))


def jaccard(one: dict[str, str], other: dict[str, str]) -> float:
    """Of word 3-grams, in plain Python: independent of the code that is measured."""
    sets = []
    for row in (one, other):
        joined = " ".join(v for k, v in row.items()).lower()
        words = "".join(c if c.isalnum() else " " for c in joined).split()
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def generate(folder: Path, rows: int, seed: int, text: str) -> None:
    if (folder / "truth.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = Rows(seed, text)
    kinds, rates = list(RATES), list(RATES.values())
    plan = made.rng.choices(["clean", *kinds], weights=[1 - sum(rates), *rates], k=rows)
    plan[:200] = ["clean"] * 200
    truth: dict[str, list[str]] = {}
    with (folder / "rows.jsonl").open("wb") as out:
        for number, kind in enumerate(plan, 1):
            line, expected = made.line(kind)
            out.write(line + b"\n")
            if expected:
                truth[str(number)] = sorted(expected)
    with (folder / "eval.jsonl").open("wb") as out:
        out.writelines(orjson.dumps(row) + b"\n" for row in made.eval_rows)
    (folder / "truth.json").write_text(json.dumps(truth))


def make_base(work: Path, rows: Path) -> Path:
    """A byte-level BPE of 16,000 entries and a ChatML template, trained on some of the rows."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = work / "base"
    if (folder / "tokenizer.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with rows.open("rb") as opened:
        sample = [next(opened).decode(errors="replace") for _ in range(8000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")],
    )
    tokenizer.train_from_iterator(sample, trainer)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>{{ '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def parse_cpu(file: Path) -> float:
    """CPU seconds to parse every line once with orjson; what does not parse is skipped."""
    before = time.process_time()
    with file.open("rb") as opened:
        for line in opened:
            try:
                orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
    return time.process_time() - before


PROGRAM = """
import json, sys
from pathlib import Path
from trainyard.data.check import check
from trainyard.recipe.data import Checks, DataSpec
import os, resource, time
folder, base, warm = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "warm"
spec = DataSpec(train=(str(folder / "rows.jsonl"),), over_length="truncate",
                checks=Checks(leak="quarantine"))
def once():
    before = time.process_time()
    found = check(spec, folder / "out", eval_sets=[str(folder / "eval.jsonl")],
                  base_model=Path(base) if base else None, max_seq_len=1024 if base else None,
                  processes=1 if warm else 0)
    return found, time.process_time() - before
found, seconds = once()
if warm:
    found, seconds = once()
print(json.dumps({"lines": found.lines, "tokens": found.tokens, "check_s": seconds}))
"""


def measure(folder: Path, base: str, way: str = "") -> dict[str, float]:
    """A check in a process of its own; `way` "warm": twice in one process, the second is meant."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), base, way], stdout=subprocess.PIPE, text=True
    )
    tree, peak, largest = psutil.Process(child.pid), 0, 0
    while child.poll() is None:
        sizes = resident(tree)
        peak, largest = max(peak, sum(sizes)), max(largest, *sizes, 0)
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = child.stdout.read() if child.stdout is not None else ""
    if child.returncode:
        raise SystemExit(f"the check exited with {child.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = {"rss_gib": peak / 2**30, "largest_gib": largest / 2**30}
    return {"cpu_s": cpu, "wall_s": seconds, **memory, **json.loads(output)}


def between_parses(folder: Path, base: str, way: str = "") -> tuple[dict[str, float], list[float]]:
    """What `measure` measures, and the CPU seconds of each parse around it."""
    file = folder / "rows.jsonl"
    before = [parse_cpu(file) for _ in range(PARSES // 2)]
    found = measure(folder, base, way)
    return found, [*before, *(parse_cpu(file) for _ in range(PARSES - len(before)))]


def resident(tree: psutil.Process) -> list[int]:
    """Resident bytes of each process; pages that two share count twice."""
    sizes = []
    with contextlib.suppress(psutil.Error):
        for process in [tree, *tree.children(recursive=True)]:
            sizes.append(process.memory_info().rss)
    return sizes


def compare(folder: Path) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Planted, missed and wrongly found per code."""
    import polars as pl

    truth = {int(k): set(v) for k, v in json.loads((folder / "truth.json").read_text()).items()}
    found: dict[int, set[str]] = {}
    with (folder / "out/quarantine.jsonl").open("rb") as opened:
        for raw in opened:
            entry = orjson.loads(raw)
            found.setdefault(entry["line"], set()).update(r["code"] for r in entry["reasons"])
    facts = pl.read_parquet(folder / "out/facts.parquet")
    for code in [c for c in facts.columns if facts[c].dtype == pl.Boolean]:
        for line in facts.filter(pl.col(code))["line"]:
            found.setdefault(line, set()).add(code)
    planted: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    answered = answers_of(folder, truth)
    for line, codes in truth.items():
        planted.update(codes)
        missed.update(codes - found.get(line, set()))
    for line, codes in found.items():
        extra = codes - truth.get(line, set()) - answered.get(line, set())
        extra -= {"repetition"} if "empty_output" in codes else set()
        wrong.update(extra)
    return planted, missed, wrong


def answers_of(folder: Path, truth: dict[int, set[str]]) -> dict[int, set[str]]:
    """A conflict has two sides: the row that was there before is rightly named, too."""
    first: dict[str, int] = {}
    both: dict[int, set[str]] = {}
    with (folder / "rows.jsonl").open("rb") as opened:
        for number, raw in enumerate(opened, 1):
            try:
                row = orjson.loads(raw)
                prompt = f"{row['instruction']}\n{row['input']}"
            except (orjson.JSONDecodeError, KeyError):
                continue
            if prompt in first and truth.get(number, set()) & {"conflicting_answers"}:
                both.setdefault(first[prompt], set()).add("conflicting_answers")
            first.setdefault(prompt, number)
    return both


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--text", nargs="+", choices=TEXTS, default=list(TEXTS), help="the first is the goal's"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "trainyard-bench"
    )
    parser.add_argument("--base", default="", help="model folder: count tokens exactly, too")
    parser.add_argument("--tokens", action="store_true", help="the same, with a BPE made here")
    parser.add_argument("--repeat", type=int, default=1, help="checks of each size")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, commit {commit()}, seed {options.seed}"
    )
    print(
        f"{'rows':>9} {'text':>7} {'MB':>6} {'CPU s':>7} {'wall s':>7} {'parse s':>8} {'ratio':>6} "
        f"{'spread':>11} {'warm':>6} {'rows/CPU-s':>11} {'RSS GiB':>8} {'largest':>8} "
        f"{'planted':>8} {'missed':>7} {'wrong':>6}"
    )
    results = [one(options, text, rows) for text in options.text for rows in options.rows]
    of_goal = [result for result in results if result["text"] == options.text[0]]
    last = of_goal[-1]
    growth = None
    if len(of_goal) > 1:
        steps = last["rows"] / of_goal[-2]["rows"]
        growth = round(last["cpu_s"] / of_goal[-2]["cpu_s"] * 10 / steps, 2)
    print(json.dumps({
        "ratio_to_parse": last["ratio"], "ratio_spread": last["ratio_spread"],
        "rows_per_cpu_s": last["rows_per_cpu_s"],
        "growth": growth, "rss_gib": last["rss_gib"],
        "missed": sum(r["missed"] for r in results),
        "false_positives": sum(r["wrong"] for r in results),
        "commit": commit(), "sizes": results,
    }))  # fmt: skip


def one(options: argparse.Namespace, text: str, rows: int) -> dict[str, Any]:
    """Check rows of one text and number, print what it cost and found, and return it."""
    folder = options.work / f"{text}-{rows}-{options.seed}"
    generate(folder, rows, options.seed, text)
    file = folder / "rows.jsonl"
    base = options.base
    if options.tokens and not base:
        base = str(make_base(options.work / text, file))
    measured = [between_parses(folder, base) for _ in range(options.repeat)]
    measured.sort(key=lambda pair: pair[0]["cpu_s"] / statistics.median(pair[1]))
    found, parses = measured[len(measured) // 2]
    parse = statistics.median(parses)
    lowest, highest = (round(found["cpu_s"] / end, 1) for end in (max(parses), min(parses)))
    planted, missed, wrong = compare(folder)
    warm = None
    if rows <= 100_000:
        again, around = between_parses(folder, base, "warm")
        warm = round(again["check_s"] / statistics.median(around), 1)
    result = {
        "rows": rows,
        "text": text,
        "cpu_s": round(found["cpu_s"], 2),
        "parse_s": round(parse, 3),
        "wall_s": round(found["wall_s"], 2),
        "parses_s": [round(seconds, 3) for seconds in parses],
        "ratio": round(found["cpu_s"] / parse, 1),
        "ratio_spread": [lowest, highest],
        "ratios": [round(f["cpu_s"] / statistics.median(p), 1) for f, p in measured],
        "rows_per_cpu_s": round(rows / found["cpu_s"]),
        "ratio_warm": warm,
        "rss_gib": round(found["rss_gib"], 2),
        "largest_gib": round(found["largest_gib"], 2),
        "tokens": found["tokens"],
        "missed": missed.total(),
        "wrong": wrong.total(),
    }
    spread = f"{lowest}-{highest}"
    print(
        f"{rows:>9,} {text:>7} {file.stat().st_size / 1e6:>6.0f} {result['cpu_s']:>7} "
        f"{result['wall_s']:>7} {parse:>8.2f} {result['ratio']:>6} {spread:>11} "
        f"{warm or '':>6} {result['rows_per_cpu_s']:>11,} "
        f"{result['rss_gib']:>8} {result['largest_gib']:>8} "
        f"{planted.total():>8,} {missed.total():>7,} {wrong.total():>6,}"
    )
    for code in sorted({*planted, *wrong}):
        recall = 1 - missed[code] / planted[code] if planted[code] else 1.0
        print(
            f"          {code:<22} planted {planted[code]:>6,}  recall {recall:.4f}  "
            f"wrong {wrong[code]:,}"
        )
    return result


if __name__ == "__main__":
    main()
