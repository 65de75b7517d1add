"""Signatures by OpenSSF model signing: with a key of one's own offline, or keyless by Sigstore.

The signature covers every file of the version except itself and the manifest, which names them all.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_never

from cryptography.exceptions import InvalidSignature
from model_signing import hashing, signing, verifying
from sigstore.errors import Error as SigstoreError
from sigstore.errors import NetworkError, TUFError
from sigstore.oidc import IdentityError

from trainyard import secrets
from trainyard.errors import InputError, Refused, TrainyardError, Unavailable
from trainyard.recipe.register import KeySigning, SigningSpec, SigstoreSigning
from trainyard.version import MANIFEST, SIGNATURE


def sign(folder: Path, spec: SigningSpec) -> None:
    """Write the signature into the folder, and check it.

    Raises InputError for a key or token that cannot be used, Unavailable without Sigstore.
    """
    with _explained():
        match spec:
            case KeySigning():
                config = _by_key(spec)
            case SigstoreSigning():
                config = _keyless(spec)
            case _:
                assert_never(spec)
        config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)
    check(folder, spec)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (NetworkError, TUFError, OSError) as error:
        raise Unavailable(f"Sigstore did not answer: {secrets.mask(str(error))}") from error
    except (SigstoreError, IdentityError) as error:
        raise InputError(f"Sigstore: {secrets.mask(str(error))}; see register.sign") from error


def _by_key(spec: KeySigning) -> Any:
    with tempfile.TemporaryDirectory() as scratch:  # 0700, and the library takes a path only
        key = Path(scratch) / "key.pem"
        key.write_text(secrets.resolve(spec.private_key) + "\n", encoding="utf-8")
        try:
            return signing.Config().use_elliptic_key_signer(private_key=key)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{spec.private_key} holds no elliptic-curve key in PEM: {error}"
            ) from None


def _keyless(spec: SigstoreSigning) -> Any:
    token = secrets.resolve(spec.identity_token) if spec.identity_token else None
    return signing.Config().use_sigstore_signer(
        oidc_issuer=spec.issuer,
        identity_token=token,
        use_ambient_credentials=token is None,  # a release never opens a browser
        trust_config=Path(spec.trust_config) if spec.trust_config else None,
    )


def check(folder: Path, spec: SigningSpec) -> None:
    """Raises Refused unless the one whom `spec` names signed exactly these files."""
    signer = spec.public_key if isinstance(spec, KeySigning) else spec.identity
    if isinstance(spec, KeySigning) and not Path(signer).is_file():
        raise InputError(f"register.sign.public_key: {signer} does not exist")
    if not (folder / SIGNATURE).is_file():
        raise Refused(f"{folder} is not signed, and versions must be, by {signer}")
    try:
        with _explained():
            config = _verifier(spec)
    except ValueError as error:
        if isinstance(error, TrainyardError):
            raise
        raise InputError(f"{signer} holds no public key in PEM: {error}") from None
    try:
        with _explained():
            config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except InputError as error:
        raise Refused(f"{folder}: its signature does not hold for {signer}: {error}") from error
    except (ValueError, InvalidSignature) as error:
        said = " ".join(str(error).split()) or "another key signed it"
        raise Refused(f"{folder}: its signature does not hold for {signer}: {said}") from None


def _verifier(spec: SigningSpec) -> Any:
    if isinstance(spec, KeySigning):
        return verifying.Config().use_elliptic_key_verifier(public_key=Path(spec.public_key))
    return verifying.Config().use_sigstore_verifier(
        identity=spec.identity,
        oidc_issuer=spec.issuer,
        trust_config=Path(spec.trust_config) if spec.trust_config else None,
    )


def _hashing() -> hashing.Config:
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE, MANIFEST], ignore_git_paths=False)
