from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from trainyard import files, inputs, lineage, reproduction
from trainyard.errors import NotFound, Refused
from trainyard.storage.folder import FolderStore


@pytest.fixture
def facts() -> lineage.Lineage:
    return lineage.Lineage(
        name="support",
        digest="a" * 64,
        created="2026-11-20T10:00:00+00:00",
        run_id="support-1",
        git=None,
        recipe=lineage.recipe_facts("recipes/support.yaml", "name: support\n", {"name": "support"}),
        base_model=lineage.BaseModelFacts(ref="base", revision="r1", digest="b" * 64),
        data=lineage.DataFacts(digest="d" * 64),
        training={},
        environment=lineage.environment(),
        verdict="PASS",
    )


INTERVALS = {
    "tickets/exact_match": lineage.Interval(mean=0.93, low=0.9, high=0.96, n=400, method="wilson"),
    "tickets/latency_ms": lineage.Interval(mean=3, low=2, high=4, n=400, method="bootstrap"),
}


def test_a_score_outside_its_recorded_interval_is_named(facts: lineage.Lineage) -> None:
    recorded = facts.model_copy(update={"intervals": INTERVALS})
    same = {"tickets/exact_match": 0.95, "tickets/latency_ms": 900.0}  # another machine is slower
    assert list(reproduction.outside(recorded, same)) == []
    (said,) = reproduction.outside(recorded, {"tickets/exact_match": 0.85})
    assert said == "tickets/exact_match is 0.85, recorded [0.9, 0.96]"


def test_without_anything_to_compare_nothing_was_reproduced(facts: lineage.Lineage) -> None:
    (said,) = reproduction.outside(facts, {"tickets/exact_match": 0.85})
    assert "no score has a recorded interval" in said


def read(store: FolderStore, path: Path, **facts: object) -> lineage.InputFile:
    """Archive the file and return its record."""
    sha256 = files.digest_file(path)
    store.put(inputs.key(sha256), path, sha256, lambda _: None)
    size = path.stat().st_size
    given = {"sha256": sha256, "size": size, "archived": True, "role": "data"} | facts
    return lineage.InputFile.model_validate(given)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "archive")


RECIPE = {
    "base_model": "owner/base@main",
    "data": {"train": ["data/train.jsonl", {"path": "s3://bucket/rows", "format": "openai"}]},
    "evaluate": {"suites": [{"name": "tickets", "data": "/elsewhere/eval.jsonl"}]},
}


def of(facts: lineage.Lineage, *read: lineage.InputFile) -> lineage.Lineage:
    recipe = lineage.recipe_facts("r.yaml", "", RECIPE)
    base = lineage.BaseModelFacts(ref="owner/base@main", revision="c" * 40, digest="b" * 64)
    return facts.model_copy(update={"recipe": recipe, "inputs": read, "base_model": base})


def test_what_the_checkout_lacks_comes_back_by_digest_where_the_recipe_looks_for_it(
    facts: lineage.Lineage, store: FolderStore, tmp_path: Path
) -> None:
    code, rows = tmp_path / "code", tmp_path / "rows.jsonl"
    rows.write_text("as it was")
    file = read(store, rows, source="data/train.jsonl", name="data/train.jsonl")
    files.write_text(code / "data" / "train.jsonl", "edited since")
    done = reproduction.restore(
        of(facts, file), code, tmp_path / "inputs", root=tmp_path / "here", store=store
    )
    assert (code / "data" / "train.jsonl").read_text() == "as it was"
    assert done.recipe == RECIPE


def test_remote_and_absolute_places_are_read_from_the_archive_instead(
    facts: lineage.Lineage, store: FolderStore, tmp_path: Path
) -> None:
    made = []
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(name)
        facts_of = {"source": "s3://bucket/rows", "name": f"s3://bucket/rows/{name}"}
        made.append(read(store, tmp_path / name, **facts_of))
    place = "/elsewhere/eval.jsonl"
    made.append(read(store, tmp_path / "a.jsonl", source=place, name=place, role="eval set"))
    done = reproduction.restore(
        of(facts, *made), tmp_path / "code", tmp_path / "inputs", root=tmp_path, store=store
    )
    rows = done.recipe["data"]["train"][1]
    assert rows["format"] == "openai"
    assert sorted(p.name for p in Path(rows["path"]).iterdir()) == ["a.jsonl", "b.jsonl"]
    assert Path(done.recipe["evaluate"]["suites"][0]["data"]).read_text() == "a.jsonl"


def test_a_hub_base_that_was_archived_comes_back_as_the_hubs_client_finds_it(
    facts: lineage.Lineage, store: FolderStore, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    place = {"source": "owner/base@main", "name": "config.json", "role": "base model"}
    file = read(store, tmp_path / "config.json", **place)
    done = reproduction.restore(
        of(facts, file), tmp_path / "code", tmp_path / "inputs", root=tmp_path, store=store
    )
    found = snapshot_download(
        "owner/base", revision="main", cache_dir=done.env["HF_HUB_CACHE"], local_files_only=True
    )
    assert Path(found, "config.json").read_text() == '{"model_type": "llama"}'


def test_an_input_that_neither_has_is_named_and_a_changed_one_refused(
    facts: lineage.Lineage, store: FolderStore, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("as it was")
    file = read(store, rows, source="data/train.jsonl", name="data/train.jsonl")
    places = (of(facts, file), tmp_path / "code", tmp_path / "inputs")
    blob = store.root / inputs.key(file.sha256)
    blob.write_text("as it WAS")
    with pytest.raises(Refused, match="was changed"):
        reproduction.restore(*places, root=tmp_path / "here", store=store)
    blob.unlink()
    with pytest.raises(NotFound, match=r"data/train\.jsonl .* is not in file://"):
        reproduction.restore(*places, root=tmp_path / "here", store=store)


def test_what_differs_is_said_before_it_starts(facts: lineage.Lineage, tmp_path: Path) -> None:
    here = facts.environment
    then = here.model_copy(update={"packages": here.packages | {"torch": "1.0"}})
    git = lineage.Git(commit="c" * 40, branch="main", remote=None, dirty=False)
    old = facts.model_copy(update={"environment": then, "git": git})
    said = reproduction.foresee(old, tmp_path)
    assert any(line.startswith("torch: 1.0 then") for line in said)
    assert any("cccccccccccc is not in this repository" in line for line in said)


def test_the_same_adapter_is_a_reproduction_whatever_else(facts: lineage.Lineage) -> None:
    made = reproduction.Made(data_digest="d" * 64, digest=facts.digest, scores={})
    found = reproduction.Reproduction(
        name="support",
        digest=facts.digest,
        made=made,
        differences=("cpus: 8 then",),
        outside=(),
        seconds=7,
    )
    assert found.identical
    assert "was made again, byte by byte, in 7 s" in found.as_text()
    assert found.as_text().count("a" * 64) == 2
