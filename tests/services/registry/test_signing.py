"""Versions signed with keys of one's own, by OpenSSF model signing."""

import os
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

from tests.services.registry.conftest import key_pair
from trainyard import signing, version
from trainyard.errors import InputError, Refused, Unavailable
from trainyard.process import free_port
from trainyard.recipe.register import KeySigning, SigstoreSigning

# the attestation's protobuf classes warn about their own builder
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def keys(tmp_path: Path) -> KeySigning:
    return key_pair(tmp_path, "team")


@pytest.fixture
def signed(tmp_path: Path, keys: KeySigning) -> version.Version:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
    parts: dict[str, Path | str] = {"lineage.json": "{}", ".gitattributes": "* binary"}
    digest = version.digest_of(adapter)
    return version.assemble(
        tmp_path / "home", "support", digest, adapter, parts, sign=lambda f: signing.sign(f, keys)
    )


def test_a_signed_version_verifies_whole_and_by_key(
    signed: version.Version, keys: KeySigning
) -> None:
    assert version.SIGNATURE in version.verify(signed.folder).files
    signing.check(signed.folder, keys)


def test_another_key_does_not_verify(signed: version.Version, tmp_path: Path) -> None:
    other = key_pair(tmp_path, "other")
    with pytest.raises(Refused, match="does not hold"):
        signing.check(signed.folder, other)


@pytest.mark.parametrize("place", ["lineage.json", "adapter/adapter_model.safetensors"])
def test_a_resealed_change_is_found_and_named(
    signed: version.Version, keys: KeySigning, place: str
) -> None:
    (signed.folder / place).unlink()
    (signed.folder / place).write_bytes(b"[]")
    version.seal(signed.folder, signed.name, signed.digest)
    with pytest.raises(Refused, match=place):
        signing.check(signed.folder, keys)


def test_an_added_file_is_found(signed: version.Version, keys: KeySigning) -> None:
    (signed.folder / "adapter" / "run_me.py").write_text("import os")
    with pytest.raises(Refused, match=r"adapter/run_me\.py"):
        signing.check(signed.folder, keys)


def test_an_unsigned_version_is_refused(signed: version.Version, keys: KeySigning) -> None:
    (signed.folder / version.SIGNATURE).unlink()
    with pytest.raises(Refused, match="is not signed"):
        signing.check(signed.folder, keys)


def test_what_is_no_key_is_named_without_being_shown(tmp_path: Path, keys: KeySigning) -> None:
    (tmp_path / "bad.pem").write_text("hunter2hunter2")
    bad = keys.model_copy(update={"private_key": f"file:{tmp_path / 'bad.pem'}"})
    with pytest.raises(InputError, match=r"bad\.pem holds no elliptic-curve key") as caught:
        signing.sign(tmp_path, bad)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError, match=r"nowhere\.pem does not exist"):
        signing.check(
            tmp_path, keys.model_copy(update={"public_key": str(tmp_path / "nowhere.pem")})
        )


def test_keyless_signing_without_its_service_or_a_token_is_said_in_one_sentence(
    signed: version.Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sigstore itself is not reached: what is tested is what happens then."""
    (signed.folder / version.SIGNATURE).unlink()
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HOME", str(tmp_path))  # no cached trust
    monkeypatch.setenv("TOKEN", "not.a.token")
    spec = SigstoreSigning(
        kind="sigstore",
        identity="https://github.com/team/models/.github/workflows/release.yaml@refs/heads/main",
        issuer="https://token.actions.githubusercontent.com",
        identity_token="env:TOKEN",
    )
    with pytest.raises((Unavailable, InputError), match="Sigstore"):
        signing.sign(signed.folder, spec)
    with pytest.raises(Refused, match="is not signed, and versions must be, by https://github"):
        signing.check(signed.folder, spec)
