"""Whether a delivery comes from the git server it is said to come from. Pure.

GitHub: X-Hub-Signature-256, `sha256=` and the hex HMAC of the raw body. Gitea and Forgejo: the
bare hex HMAC. GitLab: webhook-signature of the Standard Webhooks specification, `v1,` and the
base64 HMAC of `id.timestamp.body`; or X-Gitlab-Token, the secret itself. No fall-back to a weaker
scheme.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainyard.errors import InputError, Refused
from trainyard.webhook.config import Hook

TOLERANCE_S = 300
"""Standard Webhooks: older and newer timestamps are a replay."""

ID_HEADERS = {
    "github": ("X-GitHub-Delivery",),
    "gitlab": ("webhook-id", "Idempotency-Key", "X-Gitlab-Event-UUID"),
    "gitea": ("X-Gitea-Delivery",),
    "forgejo": ("X-Forgejo-Delivery", "X-Gitea-Delivery"),
}
EVENT_HEADERS = {
    "github": ("X-GitHub-Event",),
    "gitlab": ("X-Gitlab-Event",),
    "gitea": ("X-Gitea-Event",),
    "forgejo": ("X-Forgejo-Event", "X-Gitea-Event"),
}


@dataclass(frozen=True)
class Delivery:
    id: str
    """As the server numbers it; the body's digest where it does not."""
    event: str
    digest: str
    """sha256 of the body: a replay under another id is the same delivery."""


def check(
    hook: Hook, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
) -> Delivery:
    """Raises Refused for a delivery that proves nothing. `headers` ignore case; `now` is Unix time.

    Every secret is compared, in constant time each.
    """
    match hook.proof:
        case "hmac":
            found = _hmac_header(hook, headers)
            expected = [_hex(secret, body) for secret in secrets]
        case "token":
            found = headers.get("X-Gitlab-Token", "")
            expected = list(secrets)
        case "signature":
            return _signed(hook, headers, body, secrets, now)
    if not _any_equal([found], expected):
        raise Refused("the signature is missing or does not fit the body")
    return _delivery(hook, headers, body)


def _hmac_header(hook: Hook, headers: Mapping[str, str]) -> str:
    if hook.provider == "github":
        found = headers.get("X-Hub-Signature-256", "")
        return found.removeprefix("sha256=") if found.startswith("sha256=") else ""
    return headers.get("X-Forgejo-Signature") or headers.get("X-Gitea-Signature", "")


def _signed(
    hook: Hook, headers: Mapping[str, str], body: bytes, secrets: Sequence[str], now: float
) -> Delivery:
    id_, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    content = f"{id_}.{sent}.".encode() + body
    given = headers.get("webhook-signature", "").split(" ")
    found = [part.removeprefix("v1,") for part in given if part.startswith("v1,")]
    expected = [_base64(_key(secret), content) for secret in secrets]
    if not id_ or not _any_equal(found, expected):
        raise Refused("the signature is missing or does not fit the body")
    if not sent.isdecimal() or abs(now - int(sent)) > TOLERANCE_S:
        raise Refused(f"the delivery's timestamp {sent} is more than {TOLERANCE_S} s away from now")
    return _delivery(hook, headers, body)


def _delivery(hook: Hook, headers: Mapping[str, str], body: bytes) -> Delivery:
    digest = hashlib.sha256(body).hexdigest()
    event = _first(headers, EVENT_HEADERS[hook.provider])
    if not event:
        raise InputError(f"the header {EVENT_HEADERS[hook.provider][0]} is missing")
    return Delivery(_first(headers, ID_HEADERS[hook.provider]) or digest, event, digest)


def _first(headers: Mapping[str, str], names: Sequence[str]) -> str:
    return next((headers[name] for name in names if headers.get(name)), "")


def _any_equal(found: Sequence[str], expected: Sequence[str]) -> bool:
    equal = [
        hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())
        for one in found
        for other in expected
    ]
    return any(equal)


def _hex(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _base64(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def _key(secret: str) -> bytes:
    """Return the key of a Standard Webhooks secret: `whsec_` and base64, or plain text."""
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise InputError("a signing secret that begins with whsec_ goes on in base64") from None
