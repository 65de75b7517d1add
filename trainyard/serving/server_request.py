"""OpenAI request bodies: what is understood, what is refused, and the prompts they mean.

A parameter that would change the answer and is not supported is refused, never ignored.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainyard.data.template import RowNotRendered, Template
from trainyard.errors import InputError
from trainyard.serving.server_sequence import Sampling, Served

_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Parameters without effect on the answer."""

_NEUTRAL: Mapping[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "min_p": 0,
    "min_tokens": 0,
    "best_of": 1,
    "use_beam_search": False,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "modalities": ["text"],
}
"""Parameters that are accepted at the value that changes nothing."""

_GREEDY_BELOW = 1e-5
_MAX_STOPS = 16
_MAX_SEQUENCES = 1024
_DEFAULT_TOKENS = 16
"""Answer of a completion that asks for no length, as OpenAI and vLLM have it."""

NonNegative = Annotated[int, Field(ge=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: NonNegative | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] = []
    stop_token_ids: list[NonNegative] = []
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: dict[str, bool] = {}
    return_token_ids: bool = False


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatBody(_Body):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: NonNegative | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None


class CompletionBody(_Body):
    prompt: str | list[str] | list[NonNegative] | list[list[NonNegative]]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request means: prompts, how to answer each, and how to show it."""

    kind: Literal["chat", "completion"]
    served: Served
    prompts: tuple[list[int], ...]
    sampling: Sampling
    n: int
    stream: bool
    include_usage: bool
    echo: bool = False
    token_ids: bool = False
    """Whether to answer with the ids of prompt and answer, where vLLM puts them."""


class TooLong(InputError):
    """The prompt, or the prompt and its answer, exceed the model's context."""


def read_body(kind: type[ChatBody] | type[CompletionBody], raw: Any) -> ChatBody | CompletionBody:
    """Raises InputError that names the parameter."""
    if not isinstance(raw, dict):
        raise InputError(f"the body is a JSON {type(raw).__name__}; it must be an object")
    given = {
        name: value
        for name, value in raw.items()
        if value is not None
        and name not in _IGNORED
        and not (name in _NEUTRAL and value == _NEUTRAL[name])
    }
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where} is not supported by the CPU server") from None
        raise InputError(f"{where}: {first['msg']}") from None
    if body.return_token_ids and body.stream:
        raise InputError("return_token_ids is not supported with stream: true")
    return body


def read_chat(body: ChatBody, served: Served, max_len: int) -> Asked:
    if body.tools and body.tool_choice != "none":
        raise InputError(
            "tools: the CPU server does not parse tool calls; with tool_choice none the tools are "
            "rendered into the prompt and the answer is text"
        )
    if body.top_logprobs and not body.logprobs:
        raise InputError("top_logprobs needs logprobs: true")
    messages = [_message(message) for message in body.messages]
    try:
        text = served.template.render_prompt(messages, body.tools or None)
    except RowNotRendered as error:
        raise InputError(f"messages: {error}") from error
    ids = _encode(served.template, text, special=False)
    asked = body.max_completion_tokens
    limit = body.max_tokens if asked is None else asked
    if limit == 0:
        raise InputError("max_tokens (0) must be at least 1")
    limit = _fit(len(ids), limit, max_len)
    logprobs = body.top_logprobs if body.logprobs else None
    return Asked(
        kind="chat",
        served=served,
        prompts=(ids,),
        sampling=_sampling(body, served, limit, logprobs),
        n=body.n,
        stream=body.stream,
        include_usage=body.stream_options.get("include_usage", False),
        token_ids=body.return_token_ids,
    )


def read_completion(body: CompletionBody, served: Served, max_len: int) -> Asked:
    prompts = _prompts(body, served)
    if len(prompts) * body.n > _MAX_SEQUENCES:
        raise InputError(
            f"{len(prompts)} prompts with n {body.n}: at most {_MAX_SEQUENCES} answers at once"
        )
    limit = body.max_tokens
    if limit is None:
        longest = max(len(ids) for ids in prompts)
        limit = max(1, min(_DEFAULT_TOKENS, max_len - longest))
    if limit == 0 and not body.echo:
        raise InputError("max_tokens (0) needs echo: true; else there is nothing to return")
    for ids in prompts:
        if not ids:
            raise InputError("a prompt is empty; it must have at least one token")
        _fit(len(ids), limit, max_len)
    sampling = _sampling(body, served, limit, body.logprobs, echo=body.echo)
    return Asked(
        kind="completion",
        served=served,
        prompts=prompts,
        sampling=sampling,
        n=body.n,
        stream=body.stream,
        include_usage=body.stream_options.get("include_usage", False),
        echo=body.echo,
        token_ids=body.return_token_ids,
    )


def _prompts(body: CompletionBody, served: Served) -> tuple[list[int], ...]:
    given = body.prompt
    if isinstance(given, str):
        return (_encode(served.template, given, special=body.add_special_tokens),)
    if not given:
        raise InputError("prompt is an empty list")
    several: list[Any] = [given] if isinstance(given[0], int) else list(given)
    vocabulary = served.vocabulary
    prompts = []
    for one in several:
        if isinstance(one, str):
            prompts.append(_encode(served.template, one, special=body.add_special_tokens))
            continue
        beyond = next((token for token in one if token >= vocabulary), None)
        if beyond is not None:
            raise InputError(f"token id {beyond} is not below the vocabulary's {vocabulary}")
        prompts.append(list(one))
    return tuple(prompts)


def _message(message: _Message) -> dict[str, Any]:
    shown = message.model_dump()
    if isinstance(message.content, list):
        other = {str(part.get("type")) for part in message.content} - {"text"}
        if other:
            raise InputError(f"content of type {', '.join(sorted(other))}: only text is understood")
        shown["content"] = "".join(str(part.get("text", "")) for part in message.content)
    return shown


def _encode(template: Template, text: str, *, special: bool) -> list[int]:
    try:
        return list(template.tokenizer.encode(text, add_special_tokens=special).ids)
    except (UnicodeEncodeError, TypeError) as error:  # a lone surrogate, from "\\ud800" in JSON
        raise InputError("the text is no valid Unicode: it has half of a surrogate pair") from error


def _fit(prompt: int, limit: int | None, max_len: int) -> int:
    """How many tokens may follow. Raises TooLong with the numbers."""
    if (prompt >= max_len and limit != 0) or prompt > max_len:
        raise TooLong(
            f"the prompt has {prompt} tokens; this model's context is {max_len} tokens, prompt and "
            "answer together"
        )
    if limit is None:
        return max_len - prompt
    if prompt + limit > max_len:
        raise TooLong(
            f"{prompt} prompt tokens and max_tokens {limit} make {prompt + limit}; this model's "
            f"context is {max_len} tokens: ask for at most {max_len - prompt}"
        )
    return limit


def _sampling(
    body: _Body, served: Served, max_tokens: int, logprobs: int | None, *, echo: bool = False
) -> Sampling:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if len(stops) > _MAX_STOPS or "" in stops:
        raise InputError(f"stop must be at most {_MAX_STOPS} strings, none of them empty")
    eos = frozenset() if body.ignore_eos else served.eos_ids
    return Sampling(
        max_tokens=max_tokens,
        temperature=0.0 if body.temperature < _GREEDY_BELOW else body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        stop=stops,
        stop_ids=eos | frozenset(body.stop_token_ids),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo else None,
    )
