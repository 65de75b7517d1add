"""What an S3 server says when it says no, and what that means for the one who asked."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import urllib3
from minio.error import InvalidResponseError, S3Error, ServerError

from trainyard.errors import InputError, NotFound, Unavailable
from trainyard.recipe.register import S3Archive


class Damaged(Exception):
    """The server has other bytes than were sent."""


FAILURES = (
    S3Error,
    ServerError,
    InvalidResponseError,
    urllib3.exceptions.HTTPError,
    Damaged,
)
"""What the client raises when a server says no, nothing, or something else than was asked."""

MISSING = {"NoSuchKey", "NoSuchObject", "ResourceNotFound", "NotFound", "NoSuchVersion"}
NO_RESUME = {"NotImplemented", "MethodNotAllowed", "NoSuchUpload"}
WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
TRANSIENT = {
    *("InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
}

_CODE = re.compile(r"<Code>(\w+)</Code>")


def code_of(error: Exception) -> str | None:
    """Return S3's name of the error, also where the client could not read the answer."""
    if isinstance(error, S3Error):
        return str(error.code)
    if isinstance(error, ServerError):
        return "ServiceUnavailable"
    if isinstance(error, InvalidResponseError):
        # several servers send errors as text/xml, which the client does not take for XML
        found = _CODE.search(str(error))
        return found[1] if found else None
    return None


def explain(spec: S3Archive, bucket: str, what: str, error: Exception) -> Exception:
    if isinstance(error, Damaged):
        return Unavailable(f"{what} arrived damaged at {spec.endpoint}, again and again")
    code = code_of(error)
    if code is None:
        return _unanswered(spec, error)
    if code in MISSING or (code == "NoSuchBucket" and spec.create_bucket):
        return NotFound(f"{what} does not exist")
    if code == "NoSuchBucket":
        return InputError(
            f"{spec.endpoint} has no bucket {bucket}; create it, or set `create_bucket: true` in "
            "register.archive"
        )
    if code in EXPIRED:
        return InputError(
            f"{spec.endpoint}: the credentials of {spec.access_key} have expired; run again "
            "with new ones, what was sent is kept"
        )
    if code in WRONG_KEY:
        return InputError(
            f"{spec.endpoint} does not accept the key in {spec.access_key} and "
            f"{spec.secret_key} ({code})"
        )
    if code == "RequestTimeTooSkewed":
        return InputError(f"{spec.endpoint} refuses requests because {_skew(error)}; set the clock")
    if code in {"AccessDenied", "Forbidden"}:
        return InputError(
            f"{spec.endpoint}: the key in {spec.access_key} may not do this with {what} ({code})"
        )
    if code in {"XMinioStorageFull", "EntityTooLarge", "QuotaExceeded"}:
        return InputError(f"{spec.endpoint} has no room for {what} ({code})")
    return Unavailable(f"{spec.endpoint} answered {code} for {what}; try again later")


def heals(error: Exception) -> bool:
    """Whether the same request may be answered soon."""
    if isinstance(error, Damaged):
        return True
    if isinstance(error, urllib3.exceptions.HTTPError):
        return not _is_distrust(error)
    return code_of(error) in TRANSIENT


def short(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    first = (str(reason).splitlines() or [""])[0]
    return first.rsplit(": ", 1)[-1] or type(reason).__name__


def _unanswered(spec: S3Archive, error: Exception) -> Exception:
    if _is_distrust(error):
        return InputError(
            f"{spec.endpoint} shows a certificate that is not trusted ({short(error)}); name its "
            "authority in register.archive.ca"
        )
    return Unavailable(f"{spec.endpoint} did not answer: {short(error)}")


def _is_distrust(error: Exception) -> bool:
    return isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError)


def _skew(error: Exception) -> str:
    date = error.response.headers.get("date") if isinstance(error, S3Error) else None
    if not date:
        return "this machine's clock is too far from its own"
    ahead = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    return f"this machine's clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
