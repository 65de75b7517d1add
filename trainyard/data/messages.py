"""Messages of a conversation in one form: `role`, `content`, and tools as OpenAI writes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

Message = dict[str, Any]


class RowProblem(Exception):
    """A row that cannot be used: `args` are its code and what was found."""


ROLES = {
    **dict.fromkeys(("user", "human", "input", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "output"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
    "system": "system",
    "developer": "developer",
    "function_call": "function_call",
}
TAGGED = {r: r for r in ("user", "assistant", "system", "tool")} | {"function": "function_call"}
KEPT = ("name", "tool_call_id", "weight", "train", "reasoning_content", "thinking")


@dataclass(frozen=True)
class Tags:
    """The names one source uses inside a message."""

    role: tuple[str, ...]
    content: tuple[str, ...]
    roles: Mapping[str, str]
    train: str = "train"

    @classmethod
    def named(cls, tags: Mapping[str, str | tuple[str, ...]]) -> "Tags":
        given = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in tags.items()}
        roles = {
            name: canonical for tag, canonical in TAGGED.items() for name in given.get(tag, ())
        }
        return cls(
            role=given.get("role", ("role", "from")),
            content=given.get("content", ("content", "value")),
            roles={**ROLES, **roles},
            train=given.get("train", ("train",))[0],
        )


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def as_messages(found: Any, tags: Tags, key: str) -> list[Message]:
    """Raises RowProblem, with the position of the message, for whatever is not a conversation."""
    if isinstance(found, str):
        found = _loads(found, key)
    if not isinstance(found, list):
        raise RowProblem("wrong_type", f"{key} is not a list of messages")
    if not found:
        raise RowProblem("missing_field", f"{key} is empty")
    return [_as_message(m, tags, f"{key}[{i}]") for i, m in enumerate(found)]


def _as_message(found: Any, tags: Tags, at: str) -> Message:
    if not isinstance(found, dict):
        raise RowProblem("wrong_type", f"{at} is not an object")
    name = next((found[k] for k in tags.role if k in found), None)
    content = next((found[k] for k in tags.content if k in found), None)
    if not isinstance(name, str):
        raise RowProblem("missing_field", f"{at} has no {tags.role[0]}")
    role = tags.roles.get(name)
    if role is None:
        raise RowProblem("unknown_role", f"{at} has the role {name[:40]!r}")
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(content, at)]}
    calls = found.get("tool_calls")
    if legacy := found.get("function_call"):
        calls = [legacy]
    made: Message = {"role": role, "content": _content(content, at, optional=bool(calls))}
    if calls:
        if not isinstance(calls, list):
            raise RowProblem("wrong_type", f"{at}.tool_calls is not a list")
        made["tool_calls"] = [_call(call, at) for call in calls]
    for kept in KEPT:
        if found.get(kept) is not None:
            made[kept] = found[kept]
    if tags.train != "train" and type(found.get(tags.train)) is bool:
        made["train"] = found[tags.train]
    if "loss_weight" in found:
        made["weight"] = found["loss_weight"]
    return made


def _content(content: Any, at: str, *, optional: bool) -> Any:
    if type(content) is str:
        return content
    if content is None:
        if optional:
            return ""
        raise RowProblem("missing_field", f"{at} has no content")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RowProblem("wrong_type", f"{at}: content is neither text nor a list of parts")
    texts = [part.get("text", part.get("value")) for part in content]
    if all(part.get("type") == "text" for part in content):
        if not all(type(text) is str for text in texts):
            raise RowProblem("wrong_type", f"{at}: a text part holds no text")
        return "".join(texts)
    return content


def _call(found: Any, at: str) -> dict[str, Any]:
    """One tool call as {id?, type, function: {name, arguments: object}}."""
    if isinstance(found, str):
        found = _loads(found, f"{at}: the call")
    if not isinstance(found, dict):
        raise RowProblem("wrong_type", f"{at}: a call is not an object")
    function = found.get("function", found)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RowProblem("missing_field", f"{at}: a call has no function name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _loads(arguments or "{}", f"{at}: the arguments of {name}")
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": found["id"], **made} if isinstance(found.get("id"), str) else made


def parse_tools(found: Any) -> list[Any]:
    if isinstance(found, str):
        found = _loads(found, "tools")
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise RowProblem("wrong_type", "tools is not a list of objects")
    return found


def _loads(text: str, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise RowProblem("wrong_type", f"{what} is text that is not JSON") from None


def text_of(content: Any) -> str:
    """The readable text of a message's content, whatever its form."""
    if type(content) is str:
        return content
    parts = (part.get("text", part.get("value")) for part in content if isinstance(part, dict))
    return "\n".join(part for part in parts if isinstance(part, str))
