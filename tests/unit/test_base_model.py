import json

import pytest

from trainyard.base_model import resolve
from trainyard.errors import InputError


def shard(names=("a",), *, size=8):
    header = {n: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]} for n in names}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(shard())
    return base


def test_a_folder_is_pinned_by_the_digest_of_its_files(folder, tmp_path):
    found = resolve(str(folder), tmp_path)
    assert found.config == {"model_type": "llama"}
    assert found.revision == f"sha256:{found.digest[:12]}"
    assert resolve(str(folder), tmp_path).digest == found.digest
    (folder / "model.safetensors").write_bytes(shard(size=9))
    assert resolve(str(folder), tmp_path).digest != found.digest


def test_notes_beside_a_model_do_not_change_its_digest(folder, tmp_path):
    before = resolve(str(folder), tmp_path).digest
    (folder / "README.md").write_text("changed")
    assert resolve(str(folder), tmp_path).digest == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, tmp_path, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        resolve(str(folder), tmp_path)


def test_a_missing_shard_is_named(folder, tmp_path):
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / weights["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(InputError, match=r"lacks model-00002-of-00002\.safetensors"):
        resolve(str(folder), tmp_path)


def test_pickled_weights_are_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled weights \(pytorch_model.bin\)"):
        resolve(str(folder), tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (shard()[:-3], "is cut"),
        (b"", "not a whole safetensors"),
        (b"\xff" * 40, "not a whole safetensors"),
        ((20).to_bytes(8, "little") + b"x" * 40, "header is not readable"),
    ],
)
def test_weights_that_are_cut_or_no_safetensors_are_refused(folder, tmp_path, content, text):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=text):
        resolve(str(folder), tmp_path)


def test_code_of_the_model_needs_trust(folder, tmp_path):
    (folder / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "m.X"}}')
    with pytest.raises(InputError, match="trust_remote_code"):
        resolve(str(folder), tmp_path)
    assert resolve(str(folder), tmp_path, trust_remote_code=True).config["model_type"] == "x"


def test_an_adapter_is_not_a_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter, not a base model"):
        resolve(str(tmp_path), tmp_path)


def test_a_hub_cache_folder_is_read_at_the_commit_of_main(folder, tmp_path):
    hub = tmp_path / "models--owner--name"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "refs").mkdir()
    folder.rename(hub / "snapshots" / "c0ffee")
    (hub / "refs" / "main").write_text("c0ffee\n")
    assert resolve(str(hub), tmp_path).revision == "c0ffee"


@pytest.mark.parametrize("ref", ["./nothing/here", "/nothing", "a b c", "s3:/x"])
def test_what_is_neither_folder_nor_hub_name_is_refused(ref, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        resolve(ref, tmp_path)
