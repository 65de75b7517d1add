from pathlib import Path

import pytest

from trainyard.data.template import RowNotRendered, Template
from trainyard.errors import InputError

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello,\n"},
    {"role": "assistant", "content": "\nyes <b>"},
    {"role": "user", "content": "and 你好?"},
    {"role": "assistant", "content": "No."},
]
UNMARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained_text(template: Template, messages: list[dict[str, object]]) -> str:
    encoded = template.encode({"kind": "sft", "messages": messages})
    assert len(encoded.input_ids) == len(encoded.trained)
    kept = [i for i, t in zip(encoded.input_ids, encoded.trained, strict=True) if t]
    return str(template.tokenizer.decode(kept, skip_special_tokens=False))


def test_exactly_the_answers_and_their_end_tokens_are_trained(model_folder: Path) -> None:
    template = Template.load(model_folder)
    assert trained_text(template, TALK) == "\nyes <b><|im_end|>No.<|im_end|>"


def test_a_template_without_generation_blocks_trains_the_same_tokens(model_folder: Path) -> None:
    row = {"kind": "sft", "messages": TALK}
    marked, plain = Template.load(model_folder), Template.load(model_folder, UNMARKED)
    assert plain.encode(row) == marked.encode(row)
    assert plain.digest != marked.digest


def test_an_end_token_outside_the_generation_block_is_trained_too(model_folder: Path) -> None:
    outside = UNMARKED.replace(
        "{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"
    )
    only_answers = [m for m in TALK if m["role"] == "assistant"]
    template = Template.load(model_folder, outside)
    assert trained_text(template, only_answers) == "\nyes <b><|im_end|>No.<|im_end|>"


def test_a_turn_with_train_false_or_weight_zero_is_not_trained(model_folder: Path) -> None:
    talk = [dict(m) for m in TALK]
    talk[2]["weight"] = 0
    assert trained_text(Template.load(model_folder), talk) == "No.<|im_end|>"
    talk[4]["train"] = False
    assert trained_text(Template.load(model_folder, UNMARKED), talk) == ""


def test_thinking_removed_from_earlier_turns_still_trains_what_the_model_sees(
    model_folder: Path,
) -> None:
    thinking = UNMARKED.replace(
        "{{ m['content'] }}", "{% if loop.last %}<think>{% endif %}{{ m['content'] }}"
    )
    only = "a b<|im_end|><think>c d<|im_end|>"
    talk = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "a b"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "c d"},
    ]
    prompt = thinking.replace("loop.last", "loop.last and m['role'] == 'assistant'")
    assert trained_text(Template.load(model_folder, prompt), talk) == only


def test_a_template_that_changes_earlier_text_is_refused(model_folder: Path) -> None:
    counting = "{{ messages | length }}" + UNMARKED
    template = Template.load(model_folder, counting)
    with pytest.raises(RowNotRendered, match="not prefix-preserving: turn 3"):
        template.encode({"kind": "sft", "messages": TALK})


def test_the_templates_own_refusal_is_reported(model_folder: Path) -> None:
    template = Template.load(model_folder, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RowNotRendered, match="roles must alternate"):
        template.encode({"kind": "sft", "messages": TALK})


def test_plain_text_trains_everything_and_ends_in_eos(model_folder: Path) -> None:
    encoded = Template.load(model_folder).encode({"kind": "pretrain", "text": "the answer"})
    assert all(encoded.trained)
    assert encoded.input_ids[-1] == Template.load(model_folder).eos_token_ids[0]


def test_tokenized_rows_train_where_the_label_is_not_masked(model_folder: Path) -> None:
    row = {"kind": "tokenized", "input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert Template.load(model_folder).encode(row).trained == [False, True, True]


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        Template.load(tmp_path)


def test_a_template_that_does_not_parse_names_its_line(model_folder: Path) -> None:
    with pytest.raises(InputError, match="line 2"):
        Template.load(model_folder, "a\n{% if %}")
