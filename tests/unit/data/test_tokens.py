import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from trainyard.data.template import Template
from trainyard.data.tokens import FastTokens

TALK = {
    "kind": "sft",
    "messages": [
        {"role": "user", "content": "the user's 12 answers,\n\n  你好 🙂 "},
        {"role": "assistant", "content": "\nthe assistant é is <b> this one  "},
    ],
}


def built(model_folder: Path) -> tuple[Template, FastTokens]:
    template = Template.load(model_folder)
    fast = FastTokens.of(template)
    assert fast is not None
    return template, fast


def test_ids_and_masks_are_those_of_the_tokenizer(model_folder: Path) -> None:
    template, fast = built(model_folder)
    assert fast.encode(*template.render_row(TALK)) == template.encode(TALK)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_the_same_ids(model_folder: Path, text: str) -> None:
    template, fast = built(model_folder)
    assert fast.agrees(template, [text])


def test_a_pattern_of_its_own_is_used(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    split = pre_tokenizers.Split(pre_tokenizers_regex(), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = Template.load(tmp_path)
    fast = FastTokens.of(template)
    assert fast is not None
    assert fast.agrees(template, ["the users 123 answers", "a  b\n\nc", "你好 the"])


def pre_tokenizers_regex() -> object:
    from tokenizers import Regex

    return Regex(r"\p{N}{1,2}| ?[^\s\p{N}]+|\s+")


def test_a_difference_on_the_sample_turns_it_off(model_folder: Path) -> None:
    template, _ = built(model_folder)
    found = json.loads(template.tokenizer.to_str())
    found["model"]["merges"] = found["model"]["merges"][::-1]
    wrong = FastTokens(found, r"\S+|\s+")
    assert not wrong.agrees(template, ["the answer of the assistant to the user"])


@pytest.mark.parametrize("change", [{"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": None}])
def test_other_tokenizers_take_their_own_way(
    model_folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    found = json.loads((model_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**found, **change}))
    assert FastTokens.of(Template.load(tmp_path)) is None
