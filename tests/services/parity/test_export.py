"""A version as one model: merged, reloaded in a fresh process, and held against its adapter."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.services.registry.test_registration import facts
from tests.services.serving.adapters import BASE, write_adapter
from trainyard import base_model
from trainyard.errors import InputError, Refused
from trainyard.export import Kind, export
from trainyard.lineage import BaseModelFacts
from trainyard.parity.record import Parity, Probe


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder, as far as an export reads it."""
    folder = tmp_path / "version"
    write_adapter(folder / "adapter", seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BASE / name, folder / "adapter")
    probes = tuple(
        Probe(messages=({"role": "user", "content": f"Order {i}?"},), max_tokens=8,
              prompt_tokens=9, answer=f"Order {i} is on its way.")
        for i in range(3)
    )  # fmt: skip
    record = Parity(steps=(), probes=probes, tokens=30, candidate="c" * 64)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "parity.json").write_text(record.model_dump_json())
    base = base_model.resolve(str(BASE), tmp_path)
    found = facts(folder, base_model=BaseModelFacts(
        ref=base.ref, revision=base.revision, digest=base.digest
    ))  # fmt: skip
    resolved = found.recipe.model_copy(update={"resolved": {"trust_remote_code": False}})
    text = found.model_copy(update={"recipe": resolved}).model_dump_json()
    (folder / "lineage.json").write_text(text)
    return folder


def test_merged_weights_answer_like_the_adapter(version: Path, tmp_path: Path) -> None:
    made = export(version, "merged", tmp_path / "out", tmp_path)
    assert made.gated
    assert made.steps[0].verdict == "ok"
    assert made.steps[0].gap is not None
    assert made.steps[0].gap < 0.05  # rounded to the base's bfloat16, once
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "export.json"} <= names
    assert json.loads((tmp_path / "out" / "export.json").read_text())["kind"] == "merged"
    base, merged = (
        load_file(BASE / "model.safetensors"),
        load_file(tmp_path / "out/model.safetensors"),
    )
    changed = [name for name in merged if not (merged[name] == base[name]).all()]
    assert changed
    assert all(merged[name].dtype == base[name].dtype for name in merged)
    with pytest.raises(InputError, match="is there already"):
        export(version, "merged", tmp_path / "out", tmp_path)


def test_a_merge_that_went_wrong_is_refused_and_leaves_nothing(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainyard import export as package

    run = package._program

    def spoil(module: str, asked: dict) -> object:
        done = run(module, asked)
        if module.endswith("merge"):  # unmerged weights, as a library that forgot the adapter
            weights = Path(asked["out"]) / "model.safetensors"
            save_file(load_file(BASE / "model.safetensors"), weights, {"format": "pt"})
        return done

    monkeypatch.setattr(package, "_program", spoil)
    with pytest.raises(Refused, match="the merged model is not what was gated"):
        export(version, "merged", tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("kind", ["nf4", "torchao-int8"])
def test_a_quantised_export_is_a_model_of_its_own(
    version: Path, tmp_path: Path, kind: Kind
) -> None:
    made = export(version, kind, tmp_path / "out", tmp_path)
    assert not made.gated
    assert made.steps[0].gap is not None
    assert made.steps[0].gap > 0.001
    assert "no gate speaks for it" in made.as_text()
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size < 0.8 * (BASE / "model.safetensors").stat().st_size


def test_another_base_and_a_missing_tool_are_named(version: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not on the PATH"):
        export(version, "gguf", tmp_path / "out", tmp_path)
    lineage = json.loads((version / "lineage.json").read_text())
    lineage["base_model"]["digest"] = "0" * 64
    (version / "lineage.json").write_text(json.dumps(lineage))
    with pytest.raises(Refused, match="restore those weights"):
        export(version, "merged", tmp_path / "out", tmp_path)
