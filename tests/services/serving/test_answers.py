"""What the server says: alone or in a batch, whole or in chunks, with or without an adapter."""

import concurrent.futures
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.serving.adapters import BASE
from tests.services.serving.conftest import TEMPLATE
from trainyard.data.template import Template
from trainyard.serving.engines import Running

WORDS = ["order", "name", "bicycle", "please", "refund", "charged", "Monday", "the", "my"]


def chat(client: httpx.Client, model: str, text: str, **more: Any) -> dict[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "temperature": 0,
        **more,
    }
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def questions(count: int, seed: int) -> list[str]:
    """Very different lengths, so that rows of a batch are padded and leave at different times."""
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(WORDS, k=numbers.randint(1, 60))) for _ in range(count)]


def test_a_batch_of_different_lengths_answers_as_each_would_alone(
    server: Running, api: httpx.Client, adapters: dict[str, Path]
) -> None:
    models = ["base", *adapters]
    asked = [(models[i % len(models)], text) for i, text in enumerate(questions(40, 1))]
    alone = [said(chat(api, model, text)) for model, text in asked]
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        together = list(pool.map(lambda one: said(chat(api, *one)), asked))
    assert together == alone
    assert len(set(alone)) > 20  # random adapters that all said the same would prove nothing


def test_an_adapter_answers_what_peft_and_transformers_generate(
    api: httpx.Client, adapters: dict[str, Path]
) -> None:
    texts = questions(4, 2)
    template = Template.load(BASE)
    prompts = [template.render_prompt([{"role": "user", "content": text}]) for text in texts]
    program = Path(__file__).with_name("reference.py")
    name = "tickets@0123456789ab"
    found = subprocess.run(
        [sys.executable, str(program), str(BASE), str(adapters[name])],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(found.stdout.splitlines()[-1])
    assert [said(chat(api, name, text)) for text in texts] == expected


def test_an_adapter_with_its_own_chat_template_is_asked_with_it(api: httpx.Client) -> None:
    text = "my bicycle"
    prompt = TEMPLATE.replace("{% for m in messages %}{{ m['content'] }} {% endfor %}", f"{text} ")
    raw = api.post(
        "/v1/completions",
        json={"model": "own-template", "prompt": prompt, "max_tokens": 24, "temperature": 0},
    ).json()
    answer = chat(api, "own-template", text)
    assert said(answer) == raw["choices"][0]["text"]
    assert answer["usage"]["prompt_tokens"] < chat(api, "base", text)["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stop", [[], ["e"], [" the"]])
def test_chunks_add_up_to_the_whole_answer(api: httpx.Client, path: str, stop: list[str]) -> None:
    body: dict[str, Any] = {"model": "base", "max_tokens": 32, "temperature": 0, "stop": stop}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "my order"}]
    else:
        body["prompt"] = "Dear"
    whole = api.post(path, json=body).json()
    usage = {"include_usage": True}
    chunks = events(api, path, {**body, "stream": True, "stream_options": usage})
    assert len(chunks) >= 2
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    parts = [choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices]
    expected = whole["choices"][0]
    assert "".join(parts) == expected.get("text", expected.get("message", {}).get("content"))
    assert choices[-1]["finish_reason"] == expected["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert not any(end in "".join(parts) for end in stop)


def events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_log_probabilities_of_an_answer_are_those_of_the_same_text_as_a_prompt(
    api: httpx.Client,
) -> None:
    body = {"model": "tickets@0123456789ab", "prompt": "my order", "max_tokens": 20}
    body |= {"temperature": 0, "logprobs": 0, "ignore_eos": True, "echo": True}
    answer = api.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    text = "".join(answer["tokens"])
    again = {**body, "prompt": text, "max_tokens": 0}
    scored = api.post("/v1/completions", json=again).json()["choices"][0]["logprobs"]
    assert scored["tokens"] == answer["tokens"]
    assert scored["token_logprobs"][0] is None
    assert scored["token_logprobs"][1:] == pytest.approx(answer["token_logprobs"][1:], abs=1e-4)


def test_several_prompts_are_scored_as_each_alone(api: httpx.Client) -> None:
    prompts = questions(9, 3)
    body = {"model": "v1.2", "max_tokens": 0, "echo": True, "logprobs": 2}
    together = api.post("/v1/completions", json={**body, "prompt": prompts}).json()["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        alone = api.post("/v1/completions", json={**body, "prompt": prompt}).json()["choices"][0]
        assert choice["text"] == prompt
        found, expected = choice["logprobs"], alone["logprobs"]
        assert found["tokens"] == expected["tokens"]
        assert found["token_logprobs"][1:] == pytest.approx(
            expected["token_logprobs"][1:], abs=1e-4
        )
        starts = [
            prompt[at:].startswith(token)
            for at, token in zip(found["text_offset"], found["tokens"], strict=True)
        ]
        assert all(starts)


def test_a_seed_gives_the_same_sample_whatever_else_runs(api: httpx.Client) -> None:
    def sample(seed: int) -> str:
        return said(chat(api, "base", "my order", temperature=1.5, seed=seed, ignore_eos=True))

    alone = [sample(seed) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(sample, range(6))) == alone
    assert len(set(alone)) > 3


def test_top_p_near_zero_is_greedy(api: httpx.Client) -> None:
    greedy = said(chat(api, "base", "my order"))
    assert said(chat(api, "base", "my order", temperature=1.0, top_p=1e-6)) == greedy


def test_n_answers_are_different_samples_of_one_prompt(api: httpx.Client) -> None:
    answer = chat(api, "base", "my order", temperature=1.5, seed=1, n=4)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) > 1
    one = chat(api, "base", "my order", temperature=1.5, seed=1)
    assert answer["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert texts[0] == said(one)
