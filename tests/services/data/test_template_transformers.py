"""Our rendering and masks against transformers itself, on the unit tests' tokenizer."""

from pathlib import Path

import pytest

from trainyard.data.template import Template

TALK = [
    {"role": "system", "content": "Be short. é"},
    {"role": "user", "content": "Hello,\n"},
    {"role": "assistant", "content": '\n{"yes": "<b>"}'},
    {"role": "user", "content": "and 你好?"},
    {"role": "assistant", "content": "No 🙂."},
]


@pytest.fixture
def theirs(model_folder: Path) -> object:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(model_folder)


def test_ids_and_masks_are_those_of_transformers(model_folder: Path, theirs: object) -> None:
    ours = Template.load(model_folder).encode({"kind": "sft", "messages": TALK})
    found = theirs.apply_chat_template(  # type: ignore[attr-defined]
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.input_ids == found["input_ids"]
    assert ours.trained == [bool(m) for m in found["assistant_masks"]]


def test_prompts_are_those_of_transformers(model_folder: Path, theirs: object) -> None:
    expected = theirs.apply_chat_template(  # type: ignore[attr-defined]
        TALK[:2], tokenize=False, add_generation_prompt=True
    )
    assert Template.load(model_folder).render_prompt(TALK[:2]) == expected
