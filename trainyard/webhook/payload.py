"""What a delivery says happened: a push, a merge request, or nothing for us. Pure."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trainyard.errors import InputError
from trainyard.webhook.config import Provider

SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
BRANCH = re.compile(r"(?!-)(?!.*(\.\.|@\{|//))[^\s~^:?*\[\\\x00-\x1f]+")
PUSHES = ("push", "Push Hook")
PROPOSALS = ("pull_request", "Merge Request Hook")
NEWS = ("opened", "reopened", "synchronize", "synchronized", "ready_for_review", "open", "reopen")


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    repository: str


class Push(_Event):
    kind: Literal["push"] = "push"
    branch: str
    before: str | None
    """None for a new branch."""
    after: str | None
    """None for a deleted branch."""


class Proposal(_Event):
    """A pull or merge request whose content is new."""

    kind: Literal["proposal"] = "proposal"
    number: int
    base: str
    """Branch that it would be merged into."""
    head: str
    fork: bool


class Nothing(_Event):
    kind: Literal["nothing"] = "nothing"
    why: str


Event = Push | Proposal | Nothing


def read(provider: Provider, event: str, payload: Mapping[str, Any]) -> Event:
    """Raises InputError for a body that lacks what the provider documents."""
    try:
        name = _repository(provider, payload)
        if event in PUSHES:
            return _push(name, payload)
        if event in PROPOSALS:
            return _gitlab(name, payload) if provider == "gitlab" else _pull(name, payload)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the {event} event has no {error}") from None
    return Nothing(repository=name, why=f"{event} events start nothing")


def _repository(provider: Provider, payload: Mapping[str, Any]) -> str:
    if provider == "gitlab":
        return str(payload["project"]["path_with_namespace"])
    if "repository" not in payload and "zen" in payload:
        return ""  # the ping of a hook of a whole organisation
    return str(payload["repository"]["full_name"])


def _push(name: str, payload: Mapping[str, Any]) -> Event:
    ref = str(payload["ref"])
    if not ref.startswith("refs/heads/"):
        return Nothing(repository=name, why=f"{ref} is no branch")
    branch = _branch(ref.removeprefix("refs/heads/"))
    before, after = _sha(payload["before"]), _sha(payload["after"])
    return Push(repository=name, branch=branch, before=before, after=after)


def _pull(name: str, payload: Mapping[str, Any]) -> Event:
    action, pull = payload["action"], payload["pull_request"]
    if action not in NEWS:
        return Nothing(repository=name, why=f"{action} changes no content")
    source = (pull["head"].get("repo") or {}).get("full_name")  # null when the fork is gone
    return Proposal(
        repository=name,
        number=_number(payload["number"]),
        base=_branch(pull["base"]["ref"]),
        head=_sha(pull["head"]["sha"]) or "",
        fork=source != name,
    )


def _gitlab(name: str, payload: Mapping[str, Any]) -> Event:
    found = payload["object_attributes"]
    action = found.get("action")
    if action not in NEWS and not (action == "update" and found.get("oldrev")):
        return Nothing(repository=name, why=f"{action} changes no content")
    return Proposal(
        repository=name,
        number=_number(found["iid"]),
        base=_branch(found["target_branch"]),
        head=_sha(found["last_commit"]["id"]) or "",
        fork=found["source_project_id"] != found["target_project_id"],
    )


def _sha(text: object) -> str | None:
    if not isinstance(text, str) or not SHA.fullmatch(text):
        raise InputError(f"{str(text)[:80]!r} is no commit")
    return None if set(text) == {"0"} else text


def _branch(text: object) -> str:
    if not isinstance(text, str) or len(text) > 255 or not BRANCH.fullmatch(text):
        raise InputError(f"{str(text)[:80]!r} is no branch")
    return text


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{str(value)[:80]!r} is no number of a merge request")
    return value
