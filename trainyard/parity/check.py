"""The whole check: the reference process starts early, is asked last, and never stops a release.

What it could not measure is a step that is `not measured`; the gate blocks on it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainyard.data.template import RowNotRendered, Template
from trainyard.files import read_json
from trainyard.parity import compare
from trainyard.parity.probes import Answered, Messages
from trainyard.parity.record import Parity, Probe, Step
from trainyard.process import die_with_parent
from trainyard.recipe.evaluate import ParitySpec
from trainyard.training.job import ADAPTER, JOB, JobFile

TIMEOUT_S = 3600.0


class Reference:
    """The process that loads a training's adapter as the trainer does. Use with `with`.

    It imports its libraries at once and loads a model only when it is asked: until then an engine
    may have the memory.
    """

    def __init__(self, trained: Path, spec: ParitySpec, log: Path, *, threads: int = 1) -> None:
        """`trained` is the training's folder, with job.json and adapter/."""
        self._trained = trained
        self._spec = spec
        self._log = log
        self._threads = threads
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainyard.parity.reference"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                preexec_fn=die_with_parent,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def check(self, answered: Sequence[Answered], candidate: str) -> Parity:
        """Compare step by step. Raises InputError when the trainer's own template is not there."""
        file = JobFile.model_validate(read_json(self._trained / JOB))
        template = Template.load(file.job.base_model, file.job.chat_template)
        trained = _ids(template, answered)
        steps = [compare.template_step(trained, self._folder_ids(template, answered), answered)]
        # later steps start from what the server was asked, so that each breaks for its own reason
        pairs = [
            compare.as_probe(one.prompt_ids or ids, _answer_ids(one, template))
            for ids, one in zip(trained, answered, strict=True)
        ]
        read = self._read(pairs)
        leads: list[float | None] = [None] * len(pairs)
        if isinstance(read, str):
            steps.append(Step(name="adapter", verdict="not measured", reason=read))
        else:
            merged = "merge" in read
            steps += compare.model_steps(
                read, self._spec, quantised=file.job.spec.method == "qlora"
            )
            deployed = read["merge" if merged else "precision"]
            steps.append(compare.server_step(deployed, answered, self._spec, merged=merged))
            leads = list(compare.margins(deployed))
        probes = [
            Probe(
                messages=tuple(dict(message) for message in one.messages),
                max_tokens=one.max_tokens,
                prompt_tokens=len(pair["prompt"]),
                answer=one.text,
                margin=lead,
            )
            for one, pair, lead in zip(answered, pairs, leads, strict=True)
        ]
        return Parity(
            steps=tuple(steps),
            probes=tuple(probes),
            tokens=sum(len(pair["answer"]) for pair in pairs),
            candidate=candidate,
        )

    def _folder_ids(
        self, template: Template, answered: Sequence[Answered]
    ) -> dict[str, list[list[int]]]:
        """Ids by every exported folder that carries a tokenizer or template of its own."""
        found = {}
        merged = self._spec.merged
        named = {"the adapter's folder": self._trained / ADAPTER}
        if merged is not None:
            named["the merged model"] = Path(merged)
        for name, folder in named.items():
            if (folder / "tokenizer.json").is_file():
                own = Template.load(folder)
                own = own if own.source is not None else Template.load(folder, template.source)
                found[name] = _ids(own, answered)
        return found

    def _read(self, pairs: list[dict[str, Any]]) -> dict[str, Any] | str:
        """What the process measured, or why it could not."""
        asked = {
            "job": str(self._trained / JOB),
            "adapter": str(self._trained / ADAPTER),
            "merged": self._spec.merged,
            "threads": self._threads,
            "probes": pairs,
        }
        return self._talk(asked)

    def _talk(self, asked: dict[str, Any]) -> dict[str, Any] | str:
        try:
            out, _ = self._process.communicate(json.dumps(asked).encode(), timeout=TIMEOUT_S)
            read: dict[str, Any] = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else f"exit {self._process.poll()}"
            return f"the adapter could not be loaded as the trainer does ({last}); see {self._log}"
        return read


def _ids(template: Template, answered: Sequence[Answered]) -> list[list[int]]:
    return [_prompt_ids(template, one.messages) for one in answered]


def _prompt_ids(template: Template, messages: Messages) -> list[int]:
    try:
        text = template.render_prompt(messages)
    except RowNotRendered:
        return []  # a template that refuses the question differs from one that does not
    return list(template.tokenizer.encode(text, add_special_tokens=False).ids)


def _answer_ids(one: Answered, template: Template) -> list[int]:
    """Ids of the answer; encoded from its text where the engine does not tell them."""
    if one.token_ids is not None:
        return one.token_ids
    return list(template.tokenizer.encode(one.text, add_special_tokens=False).ids)
