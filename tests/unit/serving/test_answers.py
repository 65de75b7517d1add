import json
from typing import Any

import pytest

from trainyard.serving.answers import Answer, Events, redact


def answer(text: str | None, finish: str = "stop", **message: Any) -> Answer:
    found = Answer()
    found.take({"choices": [{"message": {"content": text, **message}, "finish_reason": finish}]})
    return found


@pytest.mark.parametrize(
    ("text", "finish", "kind", "flags"),
    [
        ("fine", "stop", "text", ()),
        ("", "stop", "text", ("empty",)),
        (" \n", "stop", "json", ("empty",)),
        (None, "stop", "text", ("empty",)),
        ("cut", "length", "text", ("length",)),
        ('{"a": 1}', "stop", "json", ()),
        ("[1]", "stop", "json", ()),
        ("3", "stop", "json", ("format",)),  # JSON, but no object or array
        ("Sure: {}", "stop", "json", ("format",)),
        ("I'm sorry, but I cannot do that.", "stop", "text", ("refusal",)),
        ("I\u2019m sorry", "stop", "text", ("refusal",)),
        ("The word sorry, in the middle", "stop", "text", ()),
        ("again and " * 60, "stop", "text", ("repetition",)),
    ],
)
def test_an_answer_is_flagged_for_what_it_is(
    text: str | None, finish: str, kind: Any, flags: tuple[str, ...]
) -> None:
    assert answer(text, finish).flags(kind) == flags


def test_a_tool_call_without_words_is_not_empty() -> None:
    assert answer(None, "tool_calls", tool_calls=[{"id": "1"}]).flags("text") == ()


def test_a_stream_is_put_together_across_any_cut() -> None:
    chunks = [{"choices": [{"delta": {"content": c}}]} for c in "hello"]
    wire = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"
    for cut in (1, 7, 50, 1000):
        events, found = Events(), Answer()
        raw = wire.encode()
        for start in range(0, len(raw), cut):
            for body in events.feed(raw[start : start + cut]):
                found.take(body)
        assert "".join(found.text) == "hello"


def test_an_error_in_a_stream_is_a_failure() -> None:
    found = Answer()
    found.take({"error": {"message": "out of memory"}})
    assert found.failed


def test_the_log_keeps_no_addresses_keys_or_long_numbers() -> None:
    text = "Ann <ann.b@example.org>, +49 170 1234567, key sk-abcdefghijklmnop, order 4711"
    assert redact(text) == "Ann <<email>>, <number>, key <key>, order 4711"
