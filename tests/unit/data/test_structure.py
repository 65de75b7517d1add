from pathlib import Path
from typing import Any

import pytest

from trainyard.data.structure import findings

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def said(role: str, content: str = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(name: str = "f", id: str | None = "1") -> dict[str, Any]:
    made = {"type": "function", "function": {"name": name, "arguments": {}}}
    return said("assistant", "", tool_calls=[made if id is None else {"id": id, **made}])


def codes(messages: list[dict[str, Any]], folder: Path = Path(), **body: Any) -> list[str]:
    row = {"kind": "sft", "messages": messages, **body}
    return [code for code, _ in findings(row, folder, False, "x.")]


USER, ANSWER = said("user"), said("assistant")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, call(), said("tool", tool_call_id="1"), ANSWER], []),
        ([USER, call()], []),  # learning to call is the end of a row
        ([USER, call(id=None), said("tool"), ANSWER], []),
        ([USER, call("g"), said("tool", tool_call_id="1"), ANSWER], ["tool_calls"]),
        ([USER, call(), said("tool", tool_call_id="2"), ANSWER], ["tool_calls"]),
        ([USER, call(), USER, ANSWER], ["tool_calls"]),  # nothing came back
        ([USER, ANSWER, said("tool"), ANSWER], ["tool_calls"]),
    ],
)
def test_calls_and_results_belong_together(
    messages: list[dict[str, Any]], expected: list[str]
) -> None:
    assert codes(messages, tools=TOOLS) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [ANSWER, USER, ANSWER],
        [USER, USER, ANSWER],
        [USER, said("system"), ANSWER],
        [said("tool"), ANSWER],
    ],
)
def test_turns_out_of_order_are_found(messages: list[dict[str, Any]]) -> None:
    assert "role_order" in codes(messages)


def test_images_exist_and_have_their_placeholders(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    asked = [said("user", "<image> what?"), ANSWER]
    assert codes(asked, tmp_path, images=["a.png"]) == []
    assert codes(asked, tmp_path, images=["none.png"]) == ["images"]
    assert codes(asked, tmp_path, images=["a.png", "a.png"]) == ["images"]
