from pathlib import Path

import pytest

from trainyard import files, version
from trainyard.errors import InputError, NotFound, Refused


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    return folder


@pytest.fixture
def made(tmp_path: Path, adapter: Path) -> version.Version:
    digest = version.digest_of(adapter)
    parts: dict[str, Path | str] = {"lineage.json": "{}", "README.md": "# support\n"}
    return version.assemble(tmp_path / "home", "support", digest, adapter, parts)


def test_a_version_lies_where_its_digest_says(made: version.Version, tmp_path: Path) -> None:
    assert made.folder == tmp_path / "home" / "models" / "support" / f"sha256-{made.digest}"
    assert made.served_name == f"support@{made.digest[:12]}"


def test_a_version_that_nobody_touched_verifies(made: version.Version) -> None:
    manifest = version.verify(made.folder)
    assert sorted(manifest.files) == [
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "lineage.json",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter/adapter_config.json", "adapter/adapter_config.json was changed"),
        ("lineage.json", "lineage.json was changed"),
    ],
)
def test_a_changed_byte_is_named(made: version.Version, name: str, said: str) -> None:
    path = made.folder / name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(Refused, match=said):
        version.verify(made.folder)


def test_missing_extra_and_resized_files_are_named_together(made: version.Version) -> None:
    (made.folder / "README.md").unlink()
    (made.folder / "adapter" / "extra.py").write_text("import os")
    (made.folder / "lineage.json").write_text("{ }")
    with pytest.raises(Refused) as caught:
        version.verify(made.folder)
    for said in ("README.md is missing", "adapter/extra.py was added", "3 bytes instead of 2"):
        assert said in str(caught.value)


def test_a_manifest_rewritten_to_fit_other_weights_is_refused(made: version.Version) -> None:
    (made.folder / "adapter" / "adapter_config.json").unlink()
    (made.folder / "adapter" / "adapter_config.json").write_text('{"r": 9}')
    version.seal(made.folder, made.name, made.digest)
    with pytest.raises(Refused, match="its digest is not that of its adapter/"):
        version.verify(made.folder)


def test_a_version_under_another_digest_is_refused(made: version.Version) -> None:
    elsewhere = made.folder.rename(made.folder.with_name("sha256-" + "0" * 64))
    with pytest.raises(Refused, match="found in sha256-000000000000"):
        version.verify(elsewhere)


def test_without_a_manifest_there_is_no_version(made: version.Version) -> None:
    (made.folder / "manifest.json").unlink()
    with pytest.raises(NotFound, match="no finished version"):
        version.verify(made.folder)


def test_a_manifest_of_a_newer_schema_asks_for_an_update(made: version.Version) -> None:
    path = made.folder / "manifest.json"
    files.write_json(path, files.read_json(path) | {"schema_version": 99})
    with pytest.raises(InputError, match="schema 99 and this trainyard reads up to 1"):
        version.verify(made.folder)


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_name_files_outside_its_folder(made: version.Version, place: str) -> None:
    path = made.folder / "manifest.json"
    manifest = files.read_json(path)
    manifest["files"][place] = {"sha256": "0" * 64, "size": 1}
    files.write_json(path, manifest)
    with pytest.raises(Refused, match="outside its own folder"):
        version.verify(made.folder)


def test_an_adapter_that_changed_after_its_evaluation_is_refused(
    tmp_path: Path, adapter: Path
) -> None:
    digest = version.digest_of(adapter)
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    with pytest.raises(Refused, match="it changed since"):
        version.assemble(tmp_path / "home", "support", digest, adapter, {})


def test_a_half_assembled_version_is_made_again(tmp_path: Path, adapter: Path) -> None:
    digest = version.digest_of(adapter)
    half = tmp_path / "home" / version.key("support", digest)
    (half / "adapter").mkdir(parents=True)
    (half / "adapter" / "left_over").write_text("from a killed run")
    made = version.assemble(tmp_path / "home", "support", digest, adapter, {})
    assert sorted(version.verify(made.folder).files) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ]


def test_a_finished_version_is_never_written_again(made: version.Version, adapter: Path) -> None:
    root = made.folder.parents[2]
    again = version.assemble(root, made.name, made.digest, adapter, {"README.md": "other"})
    assert (again.folder / "README.md").read_text() == "# support\n"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "x" * 101])
def test_a_name_that_no_archive_can_hold_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be stored"):
        version.key(name, "0" * 64)
