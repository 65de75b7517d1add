import base64
import hashlib
import hmac

import pytest
from multidict import CIMultiDict

from trainyard.errors import InputError, Refused
from trainyard.webhook import proof
from trainyard.webhook.config import Hook

REPOSITORIES = ({"name": "acme/models", "url": "/git"},)
NOW = 1_800_000_000.0


def hook(provider: str, proof_: str = "hmac") -> Hook:
    return Hook.model_validate(
        {
            "provider": provider,
            "proof": proof_,
            "secrets": ["env:X"],
            "api": "https://git.example",
            "api_token": "env:Y",
            "repositories": REPOSITORIES,
        }
    )


def hex_hmac(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def test_githubs_own_example_is_accepted() -> None:
    # GitHub docs, "Validating webhook deliveries", testing the webhook payload validation
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    headers = CIMultiDict({"X-Hub-Signature-256": signature, "X-GitHub-Event": "ping"})
    found = proof.check(
        hook("github"), headers, b"Hello, World!", ["It's a Secret to Everybody"], NOW
    )
    assert found.event == "ping"


def standard(secret: str, body: bytes, id_: str, sent: int) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{id_}.{sent}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def test_the_standard_webhooks_example_is_accepted() -> None:
    # standardwebhooks specification, symmetric signature example
    secret, id_, sent = (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
    )
    headers = CIMultiDict(
        {
            "webhook-id": id_,
            "webhook-timestamp": str(sent),
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            "X-Gitlab-Event": "Push Hook",
        }
    )
    body = b'{"test": 2432232314}'
    assert proof.check(hook("gitlab", "signature"), headers, body, [secret], sent + 10.0).id == id_


@pytest.mark.parametrize("age_s", [-301, 301, 86400])
def test_a_signed_delivery_of_another_time_is_a_replay(age_s: int) -> None:
    sent = int(NOW) - age_s
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = CIMultiDict(
        {
            "webhook-id": "1",
            "webhook-timestamp": str(sent),
            "webhook-signature": standard(secret, b"{}", "1", sent),
            "X-Gitlab-Event": "Push Hook",
        }
    )
    with pytest.raises(Refused, match="timestamp"):
        proof.check(hook("gitlab", "signature"), headers, b"{}", [secret], NOW)


@pytest.mark.parametrize("provider", ["gitea", "forgejo"])
def test_gitea_and_forgejo_sign_with_bare_hex(provider: str) -> None:
    name = provider.capitalize()
    headers = CIMultiDict(
        {
            f"X-{name}-Signature": hex_hmac("word", b"{}"),
            f"X-{name}-Event": "push",
            f"X-{name}-Delivery": "7",
        }
    )
    assert proof.check(hook(provider), headers, b"{}", ["new", "word"], NOW).id == "7"  # rotation


GOOD = hex_hmac("word", b"{}")


@pytest.mark.parametrize(
    ("provider", "proof_", "headers"),
    [
        ("github", "hmac", {}),
        ("github", "hmac", {"X-Hub-Signature-256": GOOD}),  # without sha256=
        ("github", "hmac", {"X-Hub-Signature-256": f"sha256={GOOD[:-1]}0"}),
        ("github", "hmac", {"X-Hub-Signature": "sha1=" + "0" * 40}),  # sha1 is refused
        ("github", "hmac", {"X-Gitlab-Token": "word"}),  # another provider's scheme
        ("gitea", "hmac", {"X-Gitea-Signature": "é" * 64}),
        ("gitlab", "token", {"X-Gitlab-Token": "wor"}),
        ("gitlab", "token", {"X-Gitlab-Token": ""}),
        ("gitlab", "signature", {"X-Gitlab-Token": "word"}),  # the weaker scheme of the same one
        ("gitlab", "signature", {"webhook-signature": "v1,", "webhook-id": "1"}),
    ],
)
def test_what_proves_nothing_is_refused(
    provider: str, proof_: str, headers: dict[str, str]
) -> None:
    with pytest.raises(Refused, match="missing or does not fit"):
        proof.check(hook(provider, proof_), CIMultiDict(headers), b"{}", ["word"], NOW)


def test_a_delivery_without_a_number_is_known_by_its_body() -> None:
    headers = CIMultiDict({"X-Gitlab-Token": "word", "X-Gitlab-Event": "Push Hook"})
    found = proof.check(hook("gitlab", "token"), headers, b"{}", ["word"], NOW)
    assert found.id == found.digest == hashlib.sha256(b"{}").hexdigest()


def test_a_provider_has_only_its_own_proof() -> None:
    with pytest.raises(ValueError, match="github proves a delivery by hmac, not token"):
        hook("github", "token")


def test_an_event_without_a_name_is_malformed() -> None:
    headers = CIMultiDict({"X-Hub-Signature-256": f"sha256={GOOD}"})
    with pytest.raises(InputError, match="X-GitHub-Event"):
        proof.check(hook("github"), headers, b"{}", ["word"], NOW)
