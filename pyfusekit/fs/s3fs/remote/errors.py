"""What the store says went wrong, as an errno: the one place where S3's error codes are translated.

S3 answers an error with an HTTP status and a code (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html);
servers that are not Amazon's know fewer codes, so the status decides when the code is unknown. HEAD answers have no body:
their code is the status.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, NamedTuple


class StoreError(OSError):
    """A request to the store failed for good: an errno with S3's own words.

    *code* is S3's, or "" when the store was not reached; *status* is HTTP's, or 0; *request_id* is what the store's
    operator asks for. *retryable* says that the same request may succeed a moment later.
    """

    def __init__(
        self, number: int, message: str, *, code: str = "", status: int = 0, request_id: str = "", retryable: bool = False
    ) -> None:
        super().__init__(number, message)
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retryable = retryable
        self.tries = 0
        """How often the request was sent; a condition refused at the first attempt was refused for somebody else's change."""


class Row(NamedTuple):
    """One line of the table."""

    errno: int
    retryable: bool = False


BY_CODE: dict[str, Row] = {
    # There is no such thing. A bucket that vanished takes every name with it.
    "NoSuchKey": Row(errno.ENOENT),
    "NoSuchBucket": Row(errno.ENOENT),
    "NoSuchVersion": Row(errno.ENOENT),
    "NoSuchUpload": Row(errno.ENOENT),
    "InvalidBucketName": Row(errno.ENOENT),
    "KeyTooLongError": Row(errno.ENAMETOOLONG),
    # Who asks, or with what: the file's permissions as far as a program is concerned.
    "AccessDenied": Row(errno.EACCES),
    "AccountProblem": Row(errno.EACCES),
    "AllAccessDisabled": Row(errno.EACCES),
    "InvalidAccessKeyId": Row(errno.EACCES),
    "SignatureDoesNotMatch": Row(errno.EACCES),
    "ExpiredToken": Row(errno.EACCES),
    "InvalidToken": Row(errno.EACCES),
    "TokenRefreshRequired": Row(errno.EACCES),
    "RequestTimeTooSkewed": Row(errno.EACCES),
    "RequestExpired": Row(errno.EACCES),
    "KMS.DisabledException": Row(errno.EACCES),
    "KMS.NotFoundException": Row(errno.EACCES),
    # Another version than the one that was opened. InvalidRange: it became shorter.
    "PreconditionFailed": Row(errno.ESTALE),
    "InvalidRange": Row(errno.ESTALE),
    # Two conditional writes met: whether it may be tried again is the writer's to say (a multipart upload is lost).
    "ConditionalRequestConflict": Row(errno.EBUSY),
    # Archived (Glacier) and not restored. "No data available" sends nobody looking at permissions (the status is 403) or at
    # a broken disk (EIO), and it is what Lustre says of an archived file that it cannot restore.
    "InvalidObjectState": Row(errno.ENODATA),
    # Limits of the store.
    "EntityTooLarge": Row(errno.EFBIG),
    "MetadataTooLarge": Row(errno.E2BIG),
    "RequestHeaderSectionTooLarge": Row(errno.E2BIG),
    "QuotaExceeded": Row(errno.EDQUOT),
    "InsufficientStorage": Row(errno.ENOSPC),
    # Too much is asked of the store. EBUSY, not EAGAIN: programs take EAGAIN for a non-blocking descriptor, and spin.
    "SlowDown": Row(errno.EBUSY, True),
    "ServiceUnavailable": Row(errno.EBUSY, True),
    "RequestLimitExceeded": Row(errno.EBUSY, True),
    "Throttling": Row(errno.EBUSY, True),
    "ThrottlingException": Row(errno.EBUSY, True),
    "TooManyRequests": Row(errno.EBUSY, True),
    "RequestTimeout": Row(errno.ETIMEDOUT, True),
    # The store's own trouble, or the line's: what arrived was not what was sent.
    "InternalError": Row(errno.EIO, True),
    "OperationAborted": Row(errno.EBUSY, True),
    "BadDigest": Row(errno.EIO, True),
    "IncompleteBody": Row(errno.EIO, True),
    # What the store does not do.
    "NotImplemented": Row(errno.EOPNOTSUPP),
    "MethodNotAllowed": Row(errno.EOPNOTSUPP),
    # The bucket is in another region and the store did not say where.
    "PermanentRedirect": Row(errno.EIO),
    "AuthorizationHeaderMalformed": Row(errno.EIO),
    "IllegalLocationConstraintException": Row(errno.EIO),
}

BY_STATUS: dict[int, Row] = {
    400: Row(errno.EINVAL),
    401: Row(errno.EACCES),
    403: Row(errno.EACCES),
    404: Row(errno.ENOENT),
    405: Row(errno.EOPNOTSUPP),
    408: Row(errno.ETIMEDOUT, True),
    409: Row(errno.EBUSY),
    412: Row(errno.ESTALE),
    413: Row(errno.EFBIG),
    416: Row(errno.ESTALE),
    429: Row(errno.EBUSY, True),
    500: Row(errno.EIO, True),
    501: Row(errno.EOPNOTSUPP),
    502: Row(errno.EIO, True),
    503: Row(errno.EBUSY, True),
    504: Row(errno.ETIMEDOUT, True),
    507: Row(errno.ENOSPC),
}

THROTTLED = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
"""Codes with which the store says that it is asked too much; so do the statuses 429 and 503."""

RENEWABLE = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "RequestExpired"})
"""Codes that other credentials would mend: somebody may have renewed them meanwhile."""


def row_of(code: str, status: int) -> Row:
    """Return what a code stands for, or else its status, or else EIO."""
    return BY_CODE.get(code) or BY_STATUS.get(status) or Row(errno.EIO)


def throttled(error: StoreError) -> bool:
    """Return whether the store said that it is asked too much."""
    return error.code in THROTTLED or error.status in (429, 503)


def translate(what: str, exc: Exception) -> StoreError:
    """Return any exception of botocore, aiobotocore or aiohttp as a StoreError; *what* names the request and its object.

    An exception that is none of theirs is a bug and comes back as the caller raised it: it is raised here.
    """
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(exc, StoreError):
        return exc
    if isinstance(exc, boto.ClientError):
        return _answered(what, exc.response)
    if isinstance(exc, boto.ParamValidationError):
        return StoreError(errno.EINVAL, f"{what}: {_one_line(exc)}", code="ParamValidation")
    if isinstance(exc, _credential_errors()):
        return StoreError(errno.EACCES, f"{what}: {_one_line(exc)}", code="NoCredentials")
    if isinstance(exc, ResponseParserError):
        return StoreError(errno.EIO, f"{what}: the answer is not S3's: {_one_line(exc)}", code="NotS3")
    if isinstance(exc, (boto.ReadTimeoutError, boto.ConnectTimeoutError, TimeoutError)):
        return StoreError(errno.ETIMEDOUT, f"{what}: no answer in time", retryable=True)
    if isinstance(exc, (boto.SSLError, aiohttp.ClientSSLError)):
        return StoreError(errno.EHOSTDOWN, f"{what}: {reason_of(exc)}")
    if isinstance(exc, (boto.EndpointConnectionError, boto.ProxyConnectionError, aiohttp.ClientConnectorError)):
        return StoreError(errno.EHOSTDOWN, f"{what}: {reason_of(exc)}", retryable=True)
    if isinstance(
        exc, (boto.HTTPClientError, boto.IncompleteReadError, boto.ResponseStreamingError, aiohttp.ClientError, OSError)
    ):
        return StoreError(errno.EIO, f"{what}: the connection broke: {reason_of(exc)}", retryable=True)
    if isinstance(exc, boto.BotoCoreError):
        return StoreError(errno.EIO, f"{what}: {_one_line(exc)}")
    raise exc


def refused(what: str, status: int, code: str, words: str, request_id: str) -> StoreError:
    """Return the error of an answer that said *status*, *code* and *words*: they come from the network, and may be empty."""
    row = row_of(code, status)
    words = " ".join(words.split())
    text = " ".join(part for part in (str(status or ""), code if code != str(status) else "") if part)
    message = f"{what}: {text}" + (f": {words}" if words else "") + (f" (request {request_id})" if request_id else "")
    return StoreError(row.errno, message, code=code, status=status, request_id=request_id, retryable=row.retryable)


def _answered(what: str, response: dict[str, Any]) -> StoreError:
    """Return the error of an answer as botocore parsed it. Anything may be missing."""
    said = response.get("Error") or {}
    meta = response.get("ResponseMetadata") or {}
    return refused(
        what,
        int(meta.get("HTTPStatusCode") or 0),
        str(said.get("Code") or ""),
        str(said.get("Message") or ""),
        str(meta.get("RequestId") or ""),
    )


def _credential_errors() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto

    return (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.SSOError,
        boto.ProfileNotFound,
        boto.NoAuthTokenError,
    )


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield *exc* and what it came from; botocore keeps the cause in an attribute of its own."""
    for _ in range(8):
        if exc is None:
            return
        yield exc
        wrapped = getattr(exc, "kwargs", {}).get("error") if isinstance(getattr(exc, "kwargs", None), dict) else None
        exc = getattr(exc, "os_error", None) or wrapped or exc.__cause__


def reason_of(exc: BaseException) -> str:
    """Return why a connection failed in the system's words: "connection refused", without URL and class names."""
    reason = _one_line(exc)
    for cause in _causes(exc):
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
    # asyncio words a failed connect as "Connect call failed ('127.0.0.1', 9)"; the number says it better.
    for cause in _causes(exc):
        if isinstance(cause, ConnectionRefusedError):
            reason = "connection refused"
    return reason[:1].lower() + reason[1:]


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


__all__ = [
    "BY_CODE",
    "BY_STATUS",
    "RENEWABLE",
    "THROTTLED",
    "Row",
    "StoreError",
    "reason_of",
    "refused",
    "row_of",
    "throttled",
    "translate",
]
