"""Deliveries as the providers document them, cut to what is documented as always there."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from typing import Any

ZERO = "0" * 40
PERSON = {"name": "Ada", "email": "ada@example.com", "username": "ada", "login": "ada"}


def push(provider: str, repository: str, branch: str, before: str, after: str) -> dict[str, Any]:
    """https://docs.github.com/webhooks/webhook-events-and-payloads#push and its like."""
    commits = [{"id": after, "message": "change", "added": [], "modified": ["lies"], "removed": []}]
    common = {"ref": f"refs/heads/{branch}", "before": before, "after": after, "commits": commits}
    if provider == "gitlab":
        project = {"id": 15, "path_with_namespace": repository, "default_branch": "main"}
        return common | {
            "object_kind": "push",
            "event_name": "push",
            "checkout_sha": after,
            "project_id": 15,
            "project": project,
            "user_username": "ada",
            "total_commits_count": 1,
        }
    return common | {
        "created": before == ZERO,
        "deleted": after == ZERO,
        "forced": False,
        "repository": _repository(repository),
        "pusher": PERSON,
        "sender": PERSON,
        "head_commit": commits[0],
    }


def proposal(
    provider: str, repository: str, number: int, head: str, *, fork: bool, action: str
) -> dict[str, Any]:
    """https://docs.github.com/webhooks/webhook-events-and-payloads#pull_request and its like."""
    source = "mallory/models" if fork else repository
    if provider == "gitlab":
        return {
            "object_kind": "merge_request",
            "event_type": "merge_request",
            "user": PERSON,
            "project": {"id": 15, "path_with_namespace": repository},
            "object_attributes": {
                "iid": number,
                "action": {"opened": "open", "synchronize": "update"}[action],
                **({"oldrev": ZERO} if action == "synchronize" else {}),
                "source_branch": "topic",
                "target_branch": "main",
                "source_project_id": 16 if fork else 15,
                "target_project_id": 15,
                "last_commit": {"id": head},
                "state": "opened",
            },
        }
    return {
        "action": "synchronized" if provider == "gitea" and action == "synchronize" else action,
        "number": number,
        "pull_request": pull(repository, number, head, source),
        "repository": _repository(repository),
        "sender": PERSON,
    }


def pull(repository: str, number: int, head: str, source: str) -> dict[str, Any]:
    return {
        "number": number,
        "state": "open",
        "draft": False,
        "head": {"ref": "topic", "sha": head, "repo": _repository(source)},
        "base": {"ref": "main", "sha": ZERO, "repo": _repository(repository)},
    }


def _repository(name: str) -> dict[str, Any]:
    owner, short = name.split("/")
    return {"id": 1, "name": short, "full_name": name, "owner": {"login": owner}, "fork": False}


EVENTS = {
    "github": ("push", "pull_request"),
    "gitea": ("push", "pull_request"),
    "gitlab": ("Push Hook", "Merge Request Hook"),
}


def signed(
    provider: str, event: str, body: bytes, secret: str, id_: str | None = None
) -> dict[str, str]:
    """Headers of a delivery."""
    id_ = id_ or str(uuid.uuid4())
    digest = hmac.new(secret.encode(), body, hashlib.sha256)
    common = {"Content-Type": "application/json", "User-Agent": f"{provider}-hook"}
    match provider:
        case "github":
            return common | {
                "X-GitHub-Event": event,
                "X-GitHub-Delivery": id_,
                "X-Hub-Signature-256": f"sha256={digest.hexdigest()}",
            }
        case "gitea":
            return common | {
                "X-Gitea-Event": event,
                "X-Gitea-Delivery": id_,
                "X-Gitea-Signature": digest.hexdigest(),
            }
        case _:
            now = str(int(time.time()))
            signed_ = hmac.new(secret.encode(), f"{id_}.{now}.".encode() + body, hashlib.sha256)
            return common | {
                "X-Gitlab-Event": event,
                "Idempotency-Key": id_,
                "webhook-id": id_,
                "webhook-timestamp": now,
                "webhook-signature": f"v1,{base64.b64encode(signed_.digest()).decode()}",
            }


def encode(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload | {"nonce": str(uuid.uuid4())}).encode()
