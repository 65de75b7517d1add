import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.data.check import check
from trainyard.data.locate import locate
from trainyard.data.mapping import of_llama_factory
from trainyard.data.read import read_samples
from trainyard.errors import InputError
from trainyard.recipe.data import DataSpec, SourceSpec

Q, A, B = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)
TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PAIR = {"kind": "preference", "prompt": [Q], "chosen": [A], "rejected": [B]}
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def write(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def body(path: Path, **options: Any) -> dict[str, Any]:
    spec = SourceSpec.model_validate({"path": str(path), **options})
    (found,) = read_samples(spec.path, spec)
    return found


CALLING = {
    "formatting": "sharegpt",
    "columns": {"messages": "talk", "system": "sys"},
    "tags": {
        "role_tag": "who",
        "content_tag": "said",
        "user_tag": "me",
        "assistant_tag": "it",
        "function_tag": "does",
        "observation_tag": "sees",
        "system_tag": "top",
    },
}
CALLED = [
    {"who": "me", "said": "q"},
    {"who": "does", "said": '{"name": "f", "arguments": {}}'},
    {"who": "sees", "said": "r"},
    {"who": "it", "said": "a"},
]
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
LLAMA_FACTORY: list[Case] = [
    ({}, {"instruction": "q", "output": "a"}, {"messages": [Q, A]}),
    # columns that are not named are not used: LLaMA-Factory #5294
    (
        {"columns": {"prompt": "ask", "response": "say"}},
        {"ask": "q", "say": "a", "input": "not this", "system": "nor this"},
        {"messages": [Q, A], "meta": {"input": "not this", "system": "nor this"}},
    ),
    ({"columns": {"prompt": "body"}}, {"body": "t"}, {"text": "t"}),
    (
        {"ranking": True, "columns": {"prompt": "i", "chosen": "good", "rejected": "bad"}},
        {"i": "q", "good": "a", "bad": "b"},
        PAIR,
    ),
    (
        {"columns": {"prompt": "i", "response": "o", "kto_tag": "fine"}},
        {"i": "q", "o": "a", "fine": True},
        {"kind": "kto", "completion": [A], "label": True},
    ),
    ({"formatting": "sharegpt"}, {"conversations": TALK}, {"messages": [Q, A]}),
    (
        {"formatting": "sharegpt", "ranking": True},
        {"conversations": TALK[:1], "chosen": TALK[1], "rejected": {"from": "gpt", "value": "b"}},
        PAIR,
    ),
    (
        {"formatting": "openai", "columns": {"messages": "dialog"}},
        {"dialog": [Q, A]},
        {"messages": [Q, A]},
    ),
    (
        CALLING,
        {"sys": "s", "talk": CALLED},
        {
            "messages": [
                {"role": "system", "content": "s"},
                Q,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "r"},
                A,
            ]
        },
    ),
]


@pytest.mark.parametrize(("entry", "row", "expected"), LLAMA_FACTORY)
def test_an_entry_of_llama_factory_says_how_rows_are_read(
    tmp_path: Path, entry: dict[str, Any], row: dict[str, Any], expected: dict[str, Any]
) -> None:
    write(tmp_path / "mine.jsonl", row)
    info = {"mine": {"file_name": "mine.jsonl", **entry}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    found = body(tmp_path / "dataset_info.json", dataset="mine")
    assert {key: found[key] for key in expected} == expected


def test_num_samples_split_and_subset_of_an_entry_are_followed(tmp_path: Path) -> None:
    for place in ("fr/train", "en/train", "en/test"):
        write(tmp_path / "hub" / f"{place}.jsonl", *[{"text": f"{place} {i}"} for i in range(9)])
    entry = {"file_name": "hub", "subset": "en", "split": "train", "num_samples": 4}
    info = {"mine": entry | {"columns": {"prompt": "text"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    spec = SourceSpec(path=str(tmp_path), dataset="mine")
    found = [row["text"] for row in read_samples(spec.path, spec)]
    assert found == [f"en/train {i}" for i in range(4)]


def test_an_entry_on_the_hub_names_its_revision_and_split(tmp_path: Path) -> None:
    entry = {"hf_hub_url": "owner/name", "revision": "abc", "folder": "en"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry, "none": {}}))
    made = of_llama_factory(tmp_path, SourceSpec(path=str(tmp_path), dataset="mine"))
    assert (made.path, made.split) == ("hf://owner/name@abc/en", "train")
    with pytest.raises(InputError, match="nothing to read"):
        locate(SourceSpec(path=str(tmp_path), dataset="none"), tmp_path)


AXOLOTL: list[Case] = [
    (
        {
            "type": "chat_template",
            "field_messages": "turns",
            "message_property_mappings": {"role": "speaker", "content": "text"},
            "roles": {"user": ["customer"], "assistant": ["agent", "boss"]},
            "roles_to_train": ["assistant"],
            "message_field_training": "learn",
        },
        {
            "turns": [
                {"speaker": "customer", "text": "q"},
                {"speaker": "agent", "text": "b", "learn": False},
                {"speaker": "customer", "text": "q"},
                {"speaker": "boss", "text": "a"},
            ]
        },
        {"messages": [Q, {**B, "train": False}, Q, A]},
    ),
    (
        {"type": {"field_instruction": "ask", "field_output": "say", "field_system": "sys"}},
        {"ask": "q", "say": "a", "sys": "s"},
        {"messages": [{"role": "system", "content": "s"}, Q, A]},
    ),
    (
        {"type": {"field_prompt": "p", "field_chosen": "c", "field_rejected": "r"}},
        {"p": "q", "c": "a", "r": "b"},
        PAIR,
    ),
    ({"type": "chatml.intel"}, {"question": "q", "chosen": "a", "rejected": "b"}, PAIR),
    ({"type": "completion", "field": "body"}, {"body": "t"}, {"text": "t"}),
    ({"type": "alpaca:chat"}, {"instruction": "q", "output": "a", "text": "t"}, {}),
    ({"type": "gpteacher"}, {"instruction": "q", "response": "a"}, {}),
    ({"type": "oasst"}, {"INSTRUCTION": "q", "RESPONSE": "a"}, {}),
    ({"type": "jeopardy"}, {"question": "q", "answer": "a", "category": "c"}, {}),
    ({"type": "alpaca_chat.load_qa"}, {"question": "q", "answer": "a"}, {}),
    ({"type": "alpaca_chat.load_camel_ai"}, {"message_1": "q", "message_2": "a"}, {}),
    ({"type": "summarizetldr"}, {"article": "q", "summary": "a"}, {}),
    ({"type": "metharme"}, {"prompt": "q", "generation": "a"}, {}),
    (
        {"type": "alpaca_w_system.load_open_orca"},
        {"system_prompt": "", "question": "q", "response": "a"},
        {},
    ),
    (
        {"type": "context_qa.load_v2"},
        {"context": "x", "question": "q", "answer": "a"},
        {"messages": [{**Q, "content": "x\n\nq"}, A]},
    ),
]


@pytest.mark.parametrize(("options", "row", "expected"), AXOLOTL)
def test_options_of_axolotl_say_how_rows_are_read(
    tmp_path: Path, options: dict[str, Any], row: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = body(write(tmp_path / "rows.jsonl", row), axolotl=options)
    expected = expected or {"messages": [Q, A]}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [({"type": "guanaco"}, "type guanaco is not known"), ({"roles_to_train": ["user"]}, "user")],
)
def test_what_axolotl_has_and_we_have_not_is_named(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        body(write(tmp_path / "rows.jsonl", {"text": "t"}), axolotl=options)


def test_a_folder_of_several_splits_is_an_error_until_one_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.jsonl", {"text": split})
    with pytest.raises(InputError, match=r"has the splits test, train: say which"):
        list(read_samples(tmp_path))
    assert body(tmp_path, split="test")["text"] == "test"
    with pytest.raises(InputError, match="has no split dev"):
        body(tmp_path, split="dev")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_only_the_first_rows_are_read_and_the_sums_still_hold(tmp_path: Path, name: str) -> None:
    content = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(30)]
    file = write(tmp_path / name, *content)
    if name.endswith("csv"):
        lines = [f"question {i},answer {i}" for i in range(30)]
        file.write_text("\n".join(["prompt,completion", *lines]))
    elif name.endswith("json"):
        file.write_text(json.dumps(content))
    verdict = check(DataSpec(train=(SourceSpec(path=str(file), rows=11),)), tmp_path / "out")
    assert verdict.lines == verdict.train + verdict.val == 11


def test_the_first_rows_are_those_of_a_source_not_of_each_file(tmp_path: Path) -> None:
    for file in "abc":
        write(tmp_path / "in" / f"{file}.jsonl", *[{"text": f"{file}{i}"} for i in range(4)])
    spec = SourceSpec(path=str(tmp_path / "in"), rows=6)
    assert len(list(read_samples(spec.path, spec))) == 6
    assert check(DataSpec(train=(spec,)), tmp_path / "out").lines == 6


def test_equal_files_of_a_folder_keep_their_own_names(tmp_path: Path) -> None:
    for file in "ab":
        write(tmp_path / "in" / f"{file}.jsonl", {"text": f"text {0}"}, {"text": 3})
    verdict = check(DataSpec(train=(str(tmp_path / "in"),)), tmp_path / "out")
    found = (verdict.folder / "quarantine.jsonl").read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in found] == [
        "a.jsonl",
        "b.jsonl",
        "b.jsonl",
    ]


@pytest.fixture
def dvc_folder(tmp_path: Path) -> Path:
    """A pointer to a folder of three files, which lie in a cache that `.dvc/config` names."""
    cache, entries = tmp_path / "elsewhere" / "files" / "md5", []

    def store(content: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(content).hexdigest() + suffix
        (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
        (cache / md5[:2] / md5[2:]).write_bytes(content)
        return md5

    for name in ("a.jsonl", "b.jsonl", "notes.md"):
        entries.append({"md5": store(json.dumps({"text": name}).encode()), "relpath": name})
    md5 = store(json.dumps(entries).encode(), ".dir")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[cache]\n    dir = ../elsewhere\n")
    (tmp_path / "rows.dvc").write_text(f"outs:\n- md5: {md5}\n  path: rows\n")
    return tmp_path / "rows"


def test_a_dvc_pointer_to_a_folder_is_followed_and_its_sums_are_recorded(
    dvc_folder: Path, tmp_path: Path
) -> None:
    assert [row["text"] for row in read_samples(dvc_folder)] == ["a.jsonl", "b.jsonl"]
    verdict = check(DataSpec(train=(str(dvc_folder),)), tmp_path / "out")
    manifest = json.loads((verdict.folder / "manifest.json").read_text())
    assert [len(entry["dvc_md5"]) for entry in manifest["inputs"]] == [32, 32]


def test_a_file_that_differs_from_its_dvc_pointer_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"text": "changed"})
    pointer = tmp_path / "rows.jsonl.dvc"
    pointer.write_text(f"outs:\n- md5: {'0' * 32}\n  path: rows.jsonl\n")
    with pytest.raises(InputError, match=r"its DVC pointer says 0+: run `dvc checkout`"):
        check(DataSpec(train=(str(pointer),)), tmp_path / "out")
