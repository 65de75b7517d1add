"""Secrets are named in recipes and resolved where they are used; what was resolved is masked."""

import logging
import os
import pickle
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from trainyard.errors import InputError, TrainyardError

P = ParamSpec("P")
R = TypeVar("R")

_resolved: set[str] = set()

sources: dict[str, Callable[[str], str]] = {}
"""More kinds of references, as `block:NAME` where Prefect is at hand: kind -> name -> value."""

_REFERENCE = re.compile(r"(env|file|block):.+")

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
    """Return the secret behind `env:NAME`, `file:PATH` or `block:NAME`; InputError without one."""
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
    elif kind in sources:
        value = sources[kind](place)
    else:
        kinds = " or ".join(["env:NAME", "file:PATH", *(f"{more}:NAME" for more in sources)])
        raise InputError(f"a secret is named as {kinds}, found {kind}:...")
    if len(value) >= 6:
        _resolved.add(value)
    return value


def know(values: Any) -> None:
    """Resolve every reference in a recipe's values, so that `mask` knows it wherever it turns up.

    What cannot be resolved here is left to whoever needs it.
    """
    if isinstance(values, str) and _REFERENCE.fullmatch(values):
        with suppress(InputError):
            resolve(values)
    elif isinstance(values, Mapping):
        know(list(values.values()))
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            know(value)


def mask_logs() -> None:
    """From here on, no record of any logger in this process shows a secret, nor its traceback."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks", False):
        return

    def masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(Exception):  # a record that cannot be formatted is its handler's to report
            record.msg, record.args = mask(record.getMessage()), ()
        if record.exc_info and record.exc_info[0]:
            record.exc_text = mask("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    masked.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(masked)


class MaskedError(RuntimeError):
    """What another library's error said, without the secret that was in it."""


def kept_from_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Let no error out that shows a secret: others store its words, and itself, as they are.

    One of ours keeps its class, any other becomes a MaskedError; both keep their traceback.
    """

    @wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not _shows_a_secret(error):
                raise
            masked = _masked(error)
        # not in the handler: there the error that it replaces would come along as its context
        raise masked

    return kept


def _masked(error: Exception) -> Exception:
    if not isinstance(error, TrainyardError):
        masked = MaskedError(mask(f"{type(error).__name__}: {error}"))
        return masked.with_traceback(error.__traceback__)
    error.args = tuple(mask(a) if isinstance(a, str) else a for a in error.args)
    error.__cause__ = error.__context__ = None
    return error


def _shows_a_secret(error: BaseException) -> bool:
    """Look at its words, at those of its causes, and at what it carries along: a request, say."""
    words = "".join(f"{each!r} {each} {each.args}\n" for each in _with_causes(error))
    if mask(words) != words:
        return True
    try:
        carried = pickle.dumps(error)
    except Exception:  # there is no telling what its attributes hold
        return bool(_resolved and vars(error))
    return any(value.encode() in carried for value in _resolved)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def mask_file(path: Path) -> None:
    """Mask a text file in place; one that is not there, or holds no secret, stays as it is."""
    with suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8", errors="replace")
        if (clean := mask(text)) != text:
            path.write_text(clean, encoding="utf-8")


def mask(text: str) -> str:
    """Replace resolved secrets, and what has the shape of one, by `***`."""
    for value in sorted(_resolved, key=len, reverse=True):
        text = text.replace(value, "***")
    text = _SHAPES.sub("***", text)
    text = _ASSIGNED.sub(r"\1***", text)
    return _IN_URL.sub(r"\1***@", text)
