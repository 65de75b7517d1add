"""The official client of OpenAI, against the real server."""

from collections.abc import Iterator

import openai
import pytest

from trainyard.serving.engines import Running

MESSAGES = [{"role": "user", "content": "my order"}]


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_and_its_stream_agree(client: openai.OpenAI) -> None:
    more = {"model": "v1.2", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**more, logprobs=True, top_logprobs=3)
    stream = client.chat.completions.create(**more, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    assert content[0].top_logprobs[0].logprob == content[0].logprob
    assert len(content[0].top_logprobs) == 3


def test_completions_with_echo_and_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="base", prompt="Dear", max_tokens=3, echo=True, logprobs=1, temperature=0
    )
    choice = answer.choices[0]
    assert choice.text.startswith("Dear")
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == answer.usage.total_tokens


def test_models_are_the_base_and_its_adapters(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} >= {"base", "v1.2", "tickets@0123456789ab"}


def test_an_unknown_model_is_not_found_and_the_known_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"v1\.2"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)


def test_a_parameter_that_is_not_supported_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(
            model="base", messages=MESSAGES, response_format={"type": "json_object"}
        )
