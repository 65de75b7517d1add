"""A version as one model without an adapter, proved against the adapter before it counts.

`merge.py` writes it in a process of its own; `parity/replay.py` loads what is on disk in another
one and scores the version's parity probes with both.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from trainyard import base_model, files, lineage
from trainyard.data.template import Template
from trainyard.errors import InputError, Refused, TrainyardError
from trainyard.parity import compare
from trainyard.parity import record as parity
from trainyard.parity.record import Step
from trainyard.process import die_with_parent
from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import ParitySpec
from trainyard.version import ADAPTER

Kind = Literal["merged", "int8", "nf4", "torchao-int8", "gguf"]
KINDS: tuple[Kind, ...] = ("merged", "int8", "nf4", "torchao-int8", "gguf")
FILE = "export.json"
GGUF = "convert_hf_to_gguf.py"
"""llama.cpp's converter, where it is on the PATH."""


class Exported(Frozen):
    """`export.json`, written last: an export without it was not finished."""

    version: str
    """sha256 of the adapter that it was made from."""
    kind: Kind
    digest: str
    """sha256 over the export's own files."""
    steps: tuple[Step, ...]
    """How far its log-probabilities are from those of base and adapter."""
    gated: bool
    """Whether the version's gates speak for it too: of merged weights that are proved equal. A
    quantised model is another model, whose own scores must be measured."""

    def as_text(self) -> str:
        words = [f"{step.name}: {step.reason}" for step in self.steps]
        gates = "the version's gates speak for it" if self.gated else (
            "no gate speaks for it: evaluate it before it serves anybody"
        )  # fmt: skip
        return "\n".join([f"{self.kind} export {self.digest[:12]} of {self.version[:12]}", *words,
                          gates])  # fmt: skip


def export(version: Path, kind: Kind, out: Path, home: Path) -> Exported:
    """Write `version`, a checked folder, as a whole model in `out`; the 16-bit base is merged.

    Raises Refused for merged weights that do not answer like the adapter, and then `out` is not
    there; InputError for a folder that exists, or a tool that is not installed.
    """
    if out.exists():
        raise InputError(f"{out} is there already: name a folder that does not exist")
    converter = shutil.which(GGUF)
    if kind == "gguf" and converter is None:
        raise InputError(f"{GGUF} is not on the PATH: install llama.cpp, or export merged weights")
    facts = lineage.read(version / lineage.FILE)
    base = base_model.resolve(
        facts.base_model.ref, home, trust_remote_code=facts.recipe.resolved["trust_remote_code"]
    )
    if base.digest != facts.base_model.digest:
        raise Refused(
            f"{facts.base_model.ref} is {base.digest[:12]} by now, and the version was trained on "
            f"{facts.base_model.digest[:12]}: restore those weights"
        )
    if kind == "torchao-int8" and not _is_installed("torchao"):
        raise InputError("torchao is not installed: pip install torchao, or export as int8")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        asked = {"base": str(base.path), "adapter": str(version / ADAPTER), "out": str(part)}
        asked["kind"] = "merged" if kind == "gguf" else kind
        _program("trainyard.export.merge", asked)
        steps = [] if kind == "gguf" else [_replay(version, asked)]
        if converter is not None and kind == "gguf":
            _convert(converter, part)
        exported = Exported(
            version=facts.digest,
            kind=kind,
            digest=files.digest_tree(part),
            steps=tuple(steps),
            gated=kind == "merged",
        )
        if exported.gated and steps[0].verdict != "ok":
            raise Refused(f"the merged model is not what was gated: {steps[0].reason}")
        files.write_json(part / FILE, exported.model_dump(mode="json"))
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return exported


def _replay(version: Path, asked: dict[str, Any]) -> Step:
    """Score the probes of the version's parity record with the export as it lies on disk."""
    known = parity.read(version / "evaluation")
    if known is None:
        raise InputError(f"{version} has no parity record to replay: release it again")
    template = Template.load(version / ADAPTER)
    probes = [
        compare.as_probe(
            template.tokenizer.encode(
                template.render_prompt(probe.messages), add_special_tokens=False
            ).ids,
            template.tokenizer.encode(probe.answer, add_special_tokens=False).ids,
        )
        for probe in known.probes
    ]
    read = _program("trainyard.export.replay", asked | {"probes": probes})
    limits = ParitySpec()
    quantised = asked["kind"] != "merged"
    gap = limits.max_quantised_gap if quantised else limits.max_gap
    return compare.models_step("merge", read["adapter"], read["export"], gap,
                               0.0 if quantised else limits.min_agreement,
                               "the export against base and adapter")  # fmt: skip


def _program(module: str, asked: dict[str, Any]) -> Any:
    """Run a program of ours in a fresh process: JSON in, JSON out."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(asked).encode(),
        capture_output=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise TrainyardError(f"{module} ended with {done.returncode}: {last[0]}")
    return json.loads(done.stdout)


def _convert(converter: str, folder: Path) -> None:
    """Replace the merged folder's weights by llama.cpp's file."""
    done = subprocess.run(
        [converter, str(folder), "--outfile", str(folder / "model.gguf")],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise TrainyardError(f"{converter} ended with {done.returncode}: {last[0]}")
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()


def _is_installed(package: str) -> bool:
    """Whether it is there, also where this process has left it out of what it imports."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
