from typing import Any

import pytest

from trainyard.data.formats import Shapes
from trainyard.data.messages import RowProblem

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SFT = {"kind": "sft", "messages": [Q, A]}
PAIR = {
    "kind": "preference",
    "prompt": [Q],
    "chosen": [A],
    "rejected": [{"role": "assistant", "content": "b"}],
}
KTO = {"kind": "kto", "prompt": [Q], "completion": [A], "label": True}


@pytest.mark.parametrize(
    ("row", "body"),
    [
        ({"instruction": "q", "output": "a"}, SFT),
        ({"instruction": "q", "input": "", "output": "a"}, SFT),
        ({"instruction": "q", "input": None, "output": "a"}, SFT),
        ({"instruction": "", "input": "q", "output": "a"}, SFT),
        ({"instruction": "q", "response": "a"}, SFT),
        ({"messages": [Q, A]}, SFT),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, SFT),
        ({"messages": [Q, {**A, "content": [{"type": "text", "text": "a"}]}]}, SFT),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, SFT),
        ({"prompt": "q", "completion": "a"}, SFT),
        ({"prompt": [Q], "completion": [A]}, SFT),
        ({"question": "q", "answer": "a"}, SFT),
        ({"message_1": "q", "message_2": "a"}, SFT),
        ({"question": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"instruction": "q", "chosen_response": "a", "rejected_response": "b"}, PAIR),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"chosen": [Q, A], "rejected": [Q, PAIR["rejected"][0]]}, PAIR),  # the prompt is implicit
        ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, PAIR["rejected"][0]]}, PAIR),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            PAIR,
        ),
        (
            {
                "input": {"messages": [Q]},
                "preferred_output": [A],
                "non_preferred_output": PAIR["rejected"],
            },
            PAIR,
        ),
        ({"prompt": "q", "completion": "a", "label": True}, KTO),
        ({"prompt": "q", "completion": "a", "label": "true"}, KTO),  # from a csv
        ({"messages": [Q, A], "kto_tag": True}, KTO),
        ({"prompt": "q"}, {"kind": "prompt_only", "prompt": [Q]}),
        ({"text": "t"}, {"kind": "pretrain", "text": "t"}),
        (
            {"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1]},
            {"kind": "tokenized", "input_ids": [1, 2], "labels": [-100, 2]},
        ),
    ],
)
def test_each_known_shape_becomes_its_canonical_body(
    row: dict[str, Any], body: dict[str, Any]
) -> None:
    assert Shapes().body(row)[0] == body


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ({"instruction": "q", "output": 1}, "wrong_type", "output is a number"),
        ({"instruction": "q", "output": ["a"]}, "wrong_type", "output is a list"),
        ({"instruction": "q", "output": None}, "missing_field", "output"),
        ({"instruction": "q"}, "missing_field", "output is missing"),
        ({"a": 1}, "unknown_format", "a"),
        ({}, "unknown_format", "none"),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, "unknown_format", "stepwise"),
        ({"segments": [{"label": True, "text": "a"}]}, "unknown_format", "template-free"),
        ({"messages": []}, "missing_field", "messages is empty"),
        ({"messages": [{"role": "boss", "content": ""}]}, "unknown_role", "boss"),
        ({"messages": [{"role": "user"}]}, "missing_field", r"messages\[0\] has no content"),
        ({"messages": "x"}, "wrong_type", "not JSON"),
        ({"instruction": "q", "output": "a", "text": "t"}, "ambiguous_format", "alpaca.*text"),
        ({"messages": [Q, A], "text": "t"}, "ambiguous_format", "openai.*text"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "same_answers", "equal"),
        ({"prompt": "q", "completion": "a", "label": "so"}, "wrong_type", "not true or false"),
        ({"input_ids": [1, 2], "labels": [1]}, "wrong_type", "one value per token"),
        ({"input_ids": [-1]}, "wrong_type", "token ids"),
    ],
)
def test_what_fits_no_shape_says_why(row: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(RowProblem, match=says) as caught:
        Shapes().body(row)
    assert caught.value.args[0] == code


def test_a_named_format_settles_what_fits_two() -> None:
    body, meta = Shapes("alpaca").body({"instruction": "q", "output": "a", "text": "t"})
    assert body == SFT
    assert meta == {"text": "t"}


def test_history_and_system_come_before_the_question() -> None:
    row = {"instruction": "q", "output": "a", "system": "s", "history": [["x", "y"]]}
    messages = Shapes().body(row)[0]["messages"]
    assert [m["content"] for m in messages] == ["s", "x", "y", "q", "a"]


def test_tool_calls_of_every_dialect_become_one() -> None:
    call = {"name": "f", "arguments": '{"x": 1}'}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        ]
    }
    openai = {"messages": [Q, {"role": "assistant", "content": None, "function_call": call}]}
    made = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    for row in (sharegpt, openai):
        assert Shapes().body(row)[0]["messages"][1]["tool_calls"] == [made]


def test_tags_name_the_words_of_a_source() -> None:
    tags = {"role": "who", "content": "said", "user": "me", "assistant": "it"}
    row = {"messages": [{"who": "me", "said": "q"}, {"who": "it", "said": "a"}]}
    assert Shapes("openai", tags).body(row)[0] == SFT


def test_choices_are_listed_below_their_question() -> None:
    row = {"question": "q", "choices": ["x", "y"], "explanation": "a"}
    assert Shapes().body(row)[0]["messages"] == [{**Q, "content": "q\n- x\n- y"}, A]


def test_a_draft_its_reflection_and_the_answer_are_learnt_together() -> None:
    row = {"instruction": "q", "output": "x", "reflection": "y", "corrected": "a"}
    told = Shapes().body(row)[0]["messages"][1]["content"]
    titles = ["### Thought:", "x", "### Agent Reflection:", "y", "### Final Response:", "a"]
    assert [line for line in told.split("\n") if line] == titles


def test_a_named_format_takes_the_prompts_of_steps() -> None:
    steps = {"prompt": "q", "completions": ["a"], "labels": [True]}
    body, meta = Shapes("prompt_only").body(steps)
    assert body == {"kind": "prompt_only", "prompt": [Q]}
    assert meta == {"completions": ["a"], "labels": [True]}


def test_columns_no_format_uses_are_metadata() -> None:
    assert Shapes().body({"messages": [Q, A], "customer": 7})[1] == {"customer": 7}
