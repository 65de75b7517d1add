"""Signatures by OpenSSF model signing, with a key of one's own: no network, no account.

The signature covers every file of the version except itself and the manifest, which names them all.
"""

import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from model_signing import hashing, signing, verifying

from trainyard import secrets
from trainyard.errors import InputError, Refused
from trainyard.recipe.register import SigningSpec
from trainyard.version import MANIFEST, SIGNATURE


def sign(folder: Path, spec: SigningSpec) -> None:
    """Write the signature into the folder; InputError for a key that cannot be used."""
    with tempfile.TemporaryDirectory() as scratch:  # 0700, and the library takes a path only
        key = Path(scratch) / "key.pem"
        key.write_text(secrets.resolve(spec.private_key) + "\n", encoding="utf-8")
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=key)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{spec.private_key} holds no elliptic-curve key in PEM: {error}"
            ) from None
        config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)
    check(folder, Path(spec.public_key))


def check(folder: Path, public_key: Path) -> None:
    """Raises Refused unless the key's owner signed exactly these files."""
    if not public_key.is_file():
        raise InputError(f"register.sign.public_key: {public_key} does not exist")
    if not (folder / SIGNATURE).is_file():
        raise Refused(f"{folder} is not signed, and {public_key} says that versions must be")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except ValueError as error:
        raise InputError(f"{public_key} holds no public key in PEM: {error}") from None
    try:
        config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except (ValueError, InvalidSignature) as error:
        said = " ".join(str(error).split()) or "another key signed it"
        raise Refused(f"{folder}: its signature does not hold for {public_key}: {said}") from None


def _hashing() -> hashing.Config:
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE, MANIFEST], ignore_git_paths=False)
