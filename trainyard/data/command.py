"""`trainyard check`: the data check from a terminal. Exit 0 pass or warn, 1 refuse."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainyard.base_model import resolve
from trainyard.data.verdict import DataVerdict
from trainyard.errors import InputError
from trainyard.recipe import read_recipe
from trainyard.recipe.data import DataSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="*", metavar="DATA", help="file, glob, folder, s3:// or hf://owner/name"
    )
    parser.add_argument("--recipe", type=Path, help="take checks, template and lengths from it")
    parser.add_argument(
        "--eval-set", action="append", default=[], metavar="F", help="rows must not repeat these"
    )
    parser.add_argument("--base-model", type=Path, help="folder: prove every row with its template")
    parser.add_argument("--max-seq-len", type=int, help="longest sequence, in tokens")
    parser.add_argument("--previous", type=Path, help="data version to measure drift against")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data version")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from trainyard.data.check import check  # noqa: PLC0415  (numba: not for --help)

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a retry is no news, its end is
    spec, settings = _settings(args)
    try:
        verdict = check(spec, args.out, previous=args.previous, progress=_progress(), **settings)
    finally:
        _clear_progress()
    if args.json:
        print(json.dumps(asdict(verdict), ensure_ascii=False))
    else:
        print(describe(verdict))
    return 1 if verdict.verdict == "refuse" else 0


def _settings(args: argparse.Namespace) -> tuple[DataSpec, dict[str, Any]]:
    eval_sets = list(args.eval_set)
    base_model, max_seq_len = args.base_model, args.max_seq_len
    if args.recipe is None:
        if not args.data:
            raise InputError("nothing to check: name DATA, or a --recipe that does")
        spec = DataSpec(train=tuple(args.data))
    else:
        recipe = read_recipe(args.recipe)
        spec = recipe.data
        if args.data:
            spec = spec.model_copy(update={"train": tuple(args.data)})
        eval_sets += [suite.data for suite in recipe.evaluate.suites if hasattr(suite, "data")]
        if base_model is None:
            cache = Path(".trainyard") / "cache"
            trusted = recipe.trust_remote_code
            base_model = resolve(recipe.base_model, cache, trust_remote_code=trusted).path
        max_seq_len = max_seq_len or recipe.train.max_seq_len
    if max_seq_len is not None and base_model is None:
        raise InputError("--max-seq-len counts tokens: name the --base-model whose tokens they are")
    return spec, {"eval_sets": eval_sets, "base_model": base_model, "max_seq_len": max_seq_len}


def describe(verdict: DataVerdict) -> str:
    """The verdict in a few lines for a person."""
    lines = [
        f"{verdict.verdict}: {verdict.lines:,} lines = {verdict.train:,} train + "
        f"{verdict.val:,} val + {verdict.quarantine:,} quarantine",
        *(f"  {problem}" for problem in verdict.problems),
    ]
    if verdict.tokens:
        lines.append(f"{verdict.tokens:,} tokens, {verdict.trained_tokens:,} of them trained")
    return "\n".join([*lines, f"{verdict.out}/report.html"])


def _progress() -> Callable[[str, int, int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(what: str, done: int, total: int) -> None:
        share = f"{done / total:4.0%}" if total else ""
        print(f"\r\033[K{what} {share}", end="", file=sys.stderr, flush=True)

    return show


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
