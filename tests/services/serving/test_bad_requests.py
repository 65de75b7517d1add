"""What a client can do wrong gets a clear answer in OpenAI's shape, and harms nobody."""

import json
from typing import Any

import httpx
import pytest

HELLO = [{"role": "user", "content": "hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (CHAT, b'{"model": "base", "messages": [', "not JSON"),
        (CHAT, b"\xff\xfe", "not JSON"),
        (CHAT, b"[" * 100_000, "not JSON"),
        (CHAT, [1], "must be an object"),
        (CHAT, {"messages": HELLO}, "model"),
        (CHAT, {"model": "base"}, "messages"),
        (CHAT, {"model": "base", "messages": []}, "messages"),
        (CHAT, {"model": "base", "messages": ["hello"]}, "messages.0"),
        (CHAT, {"model": "base", "messages": HELLO, "temperature": -1}, "temperature"),
        (CHAT, b'{"model": "base", "messages": [], "temperature": NaN}', "temperature"),
        (CHAT, {"model": "base", "messages": HELLO, "max_tokens": "many"}, "max_tokens"),
        (CHAT, {"model": "base", "messages": HELLO, "max_tokens": 0}, "at least 1"),
        (CHAT, {"model": "base", "messages": HELLO, "max_tokens": 1000}, "512"),
        (CHAT, {"model": "base", "messages": HELLO, "stop": [""]}, "stop"),
        (CHAT, {"model": "base", "messages": HELLO, "top_logprobs": 2}, "logprobs"),
        (CHAT, {"model": "base", "messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"model": "base", "messages": HELLO, "frequency_penalty": 1}, "frequency_penalty"),
        (CHAT, {"model": "base", "messages": HELLO, "temprature": 1}, "temprature"),
        (
            CHAT,
            {"model": "base", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "image_url",
        ),
        (
            CHAT,
            b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "Unicode",
        ),
        (TEXT, {"model": "base", "prompt": ""}, "empty"),
        (TEXT, {"model": "base", "prompt": []}, "empty"),
        (TEXT, {"model": "base", "prompt": [5, 99999]}, "99999"),
        (TEXT, {"model": "base", "prompt": "a " * 5000}, "512"),
        (TEXT, {"model": "base", "prompt": "a", "max_tokens": 0}, "echo"),
        (TEXT, {"model": "base", "prompt": ["a"] * 2000}, "1024"),
    ],
)
def test_a_bad_request_is_answered_400_and_says_what_was_found(
    api: httpx.Client, path: str, body: Any, words: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = api.post(path, content=content)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_body_of_100_mb_is_refused_and_the_next_request_is_answered(api: httpx.Client) -> None:
    answer = api.post(CHAT, content=b" " * 100_000_000)
    assert answer.status_code == 413
    assert "bytes" in answer.json()["error"]["message"]
    assert api.get("/health").status_code == 200


def test_an_unknown_path_is_404_in_json(api: httpx.Client) -> None:
    answer = api.get("/v1/files")
    assert answer.status_code == 404
    assert "/v1/files" in answer.json()["error"]["message"]


def test_a_prompt_of_the_whole_context_can_be_scored_but_not_continued(api: httpx.Client) -> None:
    body = {"model": "base", "prompt": [5] * 512, "max_tokens": 0, "echo": True, "logprobs": 0}
    assert api.post(TEXT, json=body).status_code == 200
    assert api.post(TEXT, json={**body, "max_tokens": 1}).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"lora_name": "x", "lora_path": "/nowhere"}, 400, "adapter_config.json"),
        ({"lora_name": "v1.2", "lora_path": "/nowhere"}, 400, "never reused"),
        ({"lora_name": "", "lora_path": "/nowhere"}, 400, "lora_name"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_leaves_the_server_as_it_was(
    api: httpx.Client, body: dict[str, str], status: int, words: str
) -> None:
    before = api.get("/v1/models").json()
    answer = api.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert api.get("/v1/models").json() == before


def test_a_form_posted_by_a_web_page_does_not_load_an_adapter(api: httpx.Client) -> None:
    body = b'{"lora_name": "x", "lora_path": "/nowhere"}'
    answer = api.post("/v1/load_lora_adapter", content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


def test_the_base_cannot_be_unloaded(api: httpx.Client) -> None:
    assert api.post("/v1/unload_lora_adapter", json={"lora_name": "base"}).status_code == 404
