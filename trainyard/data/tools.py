"""What every chunk of a job is checked with; made once per process, for it takes milliseconds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from trainyard.data.frame import Frame
from trainyard.data.job import Job
from trainyard.data.leakage import EvalSets
from trainyard.data.needed import Needed
from trainyard.data.patterns import Patterns
from trainyard.data.scan import Scanner
from trainyard.data.shingles import distinct
from trainyard.data.template import Template
from trainyard.data.tokens import FastTokens

SCANNED_CODES = ("secret", "pii", "special_tokens", "refusal", "placeholder", "toxic")


@dataclass(frozen=True)
class Tools:
    patterns: Patterns
    needed: Needed
    scanner: Scanner
    eval_sets: EvalSets | None
    template: Template | None
    fast: FastTokens | None
    frame: Frame | None


def tools_of(job: Job) -> Tools:
    checks = job.spec.checks.model_dump()
    codes = tuple(code for code in SCANNED_CODES if checks[code] != "off")
    return _made(codes, job.common, job.eval_sets, job.model, job.fast_tokens, job.inputs)


@lru_cache(maxsize=2)
def _made(
    codes: tuple[str, ...],
    common: Path,
    eval_sets: Path | None,
    model: Path | None,
    fast: bool,
    _inputs: str,
) -> Tools:
    template = Template.load(model) if model is not None else None
    special = list(template.eos_texts) if template is not None else []
    if template is not None:
        special += [t for t in template.special.values() if "unk" not in t]
    found = EvalSets.load(eval_sets) if eval_sets is not None else None
    nothing = np.empty(0, np.uint64)
    long = distinct(found.long.hashes) if found is not None else nothing
    short = distinct(found.short.hashes) if found is not None else nothing
    patterns = Patterns(codes, special)
    return Tools(
        patterns=patterns,
        needed=Needed(pattern.regex for pattern in patterns.patterns),
        scanner=Scanner(np.load(common), long, short),
        eval_sets=found,
        template=template,
        fast=FastTokens.of(template) if fast and template is not None else None,
        frame=Frame.of(template) if template is not None else None,
    )


@contextmanager
def not_collecting() -> Iterator[None]:
    """Rows are trees: looking for cycles among them costs a tenth of a check and finds none."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
