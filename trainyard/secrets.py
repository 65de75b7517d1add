"""Secrets are named in recipes and resolved where they are used; what was resolved is masked."""

import os
import re
from pathlib import Path

from trainyard.errors import InputError

_resolved: set[str] = set()

_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[baprs]-[A-Za-z0-9-]{10,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
    re.DOTALL,
)
_ASSIGNED = re.compile(
    r"(?i)((?:password|passwd|secret|token|api_?key|access_?key|secret_?key)\w*[\"']?\s*[:=]\s*[\"']?)"
    r"(?!env:|file:|block:)([^\s\"',;]{6,})"
)
_IN_URL = re.compile(r"(\w+://)[^/\s:@]+(?::[^/\s@]*)?@")


def resolve(reference: str) -> str:
    """Return the secret behind `env:NAME` or `file:PATH`; InputError when there is none."""
    kind, _, place = reference.partition(":")
    if kind == "env":
        value = os.environ.get(place, "")
        if not value:
            raise InputError(f"{reference}: the environment variable {place} is not set")
    elif kind == "file":
        try:
            value = Path(place).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputError(f"{reference} cannot be read: {error.strerror}") from None
        if not value:
            raise InputError(f"{reference}: the file is empty")
    else:
        raise InputError(f"a secret is named as env:NAME or file:PATH, found {kind}:...")
    if len(value) >= 6:
        _resolved.add(value)
    return value


def mask(text: str) -> str:
    """Replace resolved secrets, and what has the shape of one, by `***`."""
    for value in sorted(_resolved, key=len, reverse=True):
        text = text.replace(value, "***")
    text = _SHAPES.sub("***", text)
    text = _ASSIGNED.sub(r"\1***", text)
    return _IN_URL.sub(r"\1***@", text)
