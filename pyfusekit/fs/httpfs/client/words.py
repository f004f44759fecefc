"""What a server or the way to it says went wrong, as an errno and in words: the one place where HTTP's errors are translated.

Nothing that may be a secret is repeated: URLs are shown without credentials and query, a page's text never, and what a
server says in plain text only as a short printable excerpt.
"""

from __future__ import annotations

import email.utils
import errno
import functools
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit
from xml.etree import ElementTree

from ..values import HttpError

EXCERPT = 120
"""Characters of a server's own words that are repeated."""
_SHOWN = 200


class Row(NamedTuple):
    """One line of the table."""

    errno: int
    retryable: bool = False
    remedy: str = ""


BY_STATUS: dict[int, Row] = {
    304: Row(errno.EIO, False, "the server answers a condition that was not set"),
    400: Row(errno.EINVAL),
    401: Row(errno.EACCES, False, "it wants a user: --user and --password, --bearer-token, or a line in ~/.netrc"),
    402: Row(errno.EACCES),
    403: Row(errno.EACCES),
    404: Row(errno.ENOENT),
    405: Row(errno.EOPNOTSUPP),
    406: Row(errno.EOPNOTSUPP),
    407: Row(errno.EACCES, False, "the proxy wants a user: --proxy http://USER:PASSWORD@HOST:PORT"),
    408: Row(errno.ETIMEDOUT, True),
    409: Row(errno.ESTALE),
    410: Row(errno.ENOENT),
    411: Row(errno.EOPNOTSUPP),
    412: Row(errno.ESTALE),
    413: Row(errno.ENOSPC, False, "it takes no file of this size"),
    414: Row(errno.ENAMETOOLONG),
    415: Row(errno.EOPNOTSUPP),
    416: Row(errno.ESTALE),
    421: Row(errno.EIO, True),
    423: Row(errno.EBUSY, False, "somebody has locked it"),
    425: Row(errno.EBUSY, True),
    429: Row(errno.EBUSY, True),
    431: Row(errno.E2BIG, False, "the headers or cookies are too large for it"),
    451: Row(errno.EACCES),
    500: Row(errno.EIO, True),
    501: Row(errno.EOPNOTSUPP),
    502: Row(errno.EIO, True),
    503: Row(errno.EBUSY, True),
    504: Row(errno.ETIMEDOUT, True),
    507: Row(errno.ENOSPC),
    508: Row(errno.ELOOP),
    511: Row(errno.EACCES, False, "the network wants you to log in first"),
    # Cloudflare's words for a server behind it that does not answer.
    520: Row(errno.EIO, True),
    521: Row(errno.ECONNREFUSED, True),
    522: Row(errno.ETIMEDOUT, True),
    523: Row(errno.EHOSTUNREACH, True),
    524: Row(errno.ETIMEDOUT, True),
}

_GONE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENETDOWN})
_GONE_STATUS = frozenset({502, 503, 504, 521, 522, 523, 524})


def unreachable(error: BaseException) -> bool:
    """Return whether *error* says that the host is gone: refused, no route, no name, no answer in time, 502, 503, 504."""
    if not isinstance(error, HttpError):
        return False
    return error.status in _GONE_STATUS if error.status else error.errno in _GONE


@functools.lru_cache(maxsize=1024)
def shown(url: str) -> str:
    """Return *url* as it may be shown and logged: without user and password, and without what its query says."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a URL that is none"
    host = parts.netloc.rpartition("@")[2]
    text = printable(urlunsplit((parts.scheme, host, parts.path, "", "")), _SHOWN)
    return f"{text}?..." if parts.query else text


def printable(text: str, limit: int = EXCERPT) -> str:
    """Return *text* in one line of at most *limit* characters, all of them printable."""
    text = " ".join(text[: 8 * limit].split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def said(content_type: str, body: bytes) -> str:
    """Return what a refusing answer's body says, when it is plain text or an XML error with a message (WebDAV, S3)."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/plain":
        return printable(body[: 8 * EXCERPT].decode("utf-8", "replace"))
    if (
        kind in ("application/xml", "text/xml")
        and len(body) <= 16 << 10
        and b"<!DOCTYPE" not in body
        and b"<!ENTITY" not in body
    ):
        try:
            root = ElementTree.fromstring(body)
        except (ElementTree.ParseError, ValueError, LookupError):
            return ""
        for element in root.iter():
            if element.tag.rpartition("}")[2].lower() == "message" and element.text:
                return printable(element.text)
    return ""


def refused(
    what: str, status: int, reason: str, headers: Mapping[str, str], body: bytes, url: str, hint: str = ""
) -> HttpError:
    """Return the error of an answer that is no success. Whatever the server said may be missing or anything."""
    row = BY_STATUS.get(status) or (Row(errno.EIO, True) if status >= 500 else Row(errno.EIO))
    words = printable(reason, 60) or _phrase(status)
    text = said(headers.get("content-type", ""), body)
    message = f"{what}: {status} {words}".rstrip()
    if text and text.lower() != words.lower():
        message += f" ({text})"
    if 300 <= status < 400 and status != 304:
        hint = hint or f"it is at {shown(headers.get('location', '')) or 'an unknown place'} now"
    remedy = hint or row.remedy
    return HttpError(
        row.errno,
        f"{message}; {remedy}" if remedy else message,
        url=shown(url),
        status=status,
        retryable=row.retryable,
        retry_after=retry_after(headers) if row.retryable else None,
    )


def challenges(header: str) -> list[str]:
    """Return the schemes that a WWW-Authenticate asks for (RFC 9110, section 11.6.1): words that no "=" follows."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', header)
    found = [part.strip().partition(" ")[0] for part in text.split(",")]
    return [word for word in dict.fromkeys(found) if re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,30}", word)]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds Retry-After asks for (RFC 9110, section 10.2.3), in either of its forms; None when it does not.

    A date is compared with the answer's own Date when there is one: the clocks may differ.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?", text):
        return float(text)
    then = _date(text)
    if then is None:
        return None
    base = _date(headers.get("date", ""))
    if base is None:
        base = time.time() if now is None else now
    return max(0.0, then - base)


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def never_sent(exc: BaseException | None) -> bool:
    """Return whether a failure came before the request was sent: no connection was made."""
    import aiohttp

    return isinstance(exc, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError))


def translate(what: str, exc: BaseException, url: str) -> HttpError:
    """Return any exception of aiohttp as an HttpError; *what* names the request.

    An exception that is none of theirs is a bug: it is raised here.
    """
    import aiohttp

    def failed(number: int, why: str, retryable: bool = True, status: int = 0) -> HttpError:
        return HttpError(number, f"{what}: {why}", url=shown(url), retryable=retryable, status=status)

    if isinstance(exc, HttpError):
        return exc
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return _proxy_refused(what, exc, url)
    # aiohttp's own class for it is one of ssl's too, without what ssl's tell.
    plain = (cause for cause in _causes(exc) if not isinstance(cause, aiohttp.ClientError))
    tls = next((cause for cause in plain if isinstance(cause, ssl.SSLError)), None)
    if tls is not None:
        number, why, retryable = tls_words(tls)
        return failed(number, why, retryable)
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return failed(errno.ETIMEDOUT, "no connection in time; the host is down, or a firewall drops what is sent to it")
    if isinstance(exc, aiohttp.ClientConnectorError):
        number, why = _connect_words(exc)
        if isinstance(exc, aiohttp.ClientProxyConnectionError):
            why = f"through the proxy {exc.host}:{exc.port}: {why}"
        return failed(number, why)
    if isinstance(exc, TimeoutError):
        return failed(errno.ETIMEDOUT, "no answer in time: the server keeps the connection and sends nothing")
    if isinstance(exc, (aiohttp.InvalidURL, UnicodeError)):
        # UnicodeError is the resolver's: a label of the name is empty or too long.
        return failed(errno.EINVAL, "this is no URL that can be asked for", False)
    if isinstance(exc, aiohttp.ClientResponseError):
        return failed(errno.EIO, f"the answer is not HTTP ({printable(exc.message)}); is it the right port?", False)
    if isinstance(exc, aiohttp.ClientPayloadError):
        return failed(errno.EIO, "the connection broke in the middle of the answer")
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return failed(errno.EIO, "the server closed the connection without an answer")
    if isinstance(exc, (aiohttp.ClientError, OSError)):
        number = errno.ECONNRESET if isinstance(exc, ConnectionResetError) else errno.EIO
        return failed(number, f"the connection broke: {_reason(exc)}")
    raise exc


def _proxy_refused(what: str, exc: BaseException, url: str) -> HttpError:
    """Return what a proxy's refusal to connect is: a gateway's 5xx says that it does not reach the host."""
    status, message = int(getattr(exc, "status", 0)), printable(str(getattr(exc, "message", "")))
    row = BY_STATUS.get(status) or Row(errno.EIO)
    number = errno.EHOSTUNREACH if status in _GONE_STATUS else row.errno if status == 407 else errno.EACCES
    why = f"{what}: the proxy refuses to connect: {status} {message}"
    return HttpError(
        number, f"{why}; {row.remedy}" if row.remedy else why, url=shown(url), status=status, retryable=row.retryable
    )


def _connect_words(exc: BaseException) -> tuple[int, str]:
    """Return the errno and the words of a connection that was not made."""
    for cause in _causes(exc):
        if isinstance(cause, socket.gaierror):
            if cause.errno == socket.EAI_AGAIN:
                return errno.EHOSTUNREACH, "the name service does not answer; is this machine on a network?"
            return errno.EHOSTUNREACH, "no host has this name; look at how it is spelled, and whether you are on its network"
    if any(isinstance(cause, (ConnectionResetError, ConnectionAbortedError)) for cause in _causes(exc)):
        return errno.ECONNRESET, "the connection was closed before it was made; is it the right port, and does it speak TLS?"
    numbers = [cause.errno for cause in _causes(exc) if isinstance(cause, OSError) and cause.errno]
    number = numbers[-1] if numbers else errno.EHOSTUNREACH
    text = _reason(exc)
    if number == errno.ECONNREFUSED or "Connection refused" in str(exc):
        return errno.ECONNREFUSED, "connection refused; no server listens on this port, or not yet"
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return number, f"{text}; there is no way to this address from here"
    return (number if 0 < number < 4096 else errno.EHOSTUNREACH), text


_CERTIFICATE: dict[int, str] = {
    9: "the server's certificate is not valid yet; is this machine's clock right?",
    10: "the server's certificate has expired; its operator must renew it, unless this machine's clock is wrong",
    18: "the server's certificate is signed by itself; name it with --ca-file if you trust it",
    19: "the server's certificate comes from an unknown authority; name that authority's with --ca-file if you trust it",
    20: "the server's certificate comes from an unknown authority; name that authority's with --ca-file if you trust it",
    21: "the server's certificate comes from an unknown authority; name that authority's with --ca-file if you trust it",
    23: "the server's certificate was revoked",
    62: "the server's certificate is for another host; look at how the host is spelled",
    64: "the server's certificate is not for this address; write the host's name instead",
}
"""By X509_V_ERR (openssl/x509_vfy.h)."""

_ALERTS: tuple[tuple[str, str], ...] = (
    ("CERTIFICATE_REQUIRED", "the server wants a client's certificate: --client-cert"),
    ("BAD_CERTIFICATE", "the server does not take this client's certificate: look at --client-cert"),
    ("UNKNOWN_CA", "the server does not know who signed the client's certificate: look at --client-cert"),
    ("CERTIFICATE_EXPIRED", "the client's certificate has expired: look at --client-cert"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS on this port; is it http://, or another port?"),
    ("HTTP_REQUEST", "the server does not speak TLS on this port; is it http://, or another port?"),
    ("PACKET_LENGTH_TOO_LONG", "the server does not speak TLS on this port; is it http://, or another port?"),
    ("RECORD_LAYER_FAILURE", "the server does not speak TLS on this port; is it http://, or another port?"),
    ("UNSUPPORTED_PROTOCOL", "the server speaks only versions of TLS that are not safe any more"),
    ("PROTOCOL_VERSION", "the server speaks other versions of TLS than this machine"),
    ("UNRECOGNIZED_NAME", "the server knows no host of this name"),
    ("HANDSHAKE_FAILURE", "the server and this machine have no way of TLS in common, or it wants a client's certificate"),
)


def tls_words(exc: BaseException) -> tuple[int, str, bool]:
    """Return the errno of a failure of TLS, its words, and whether it may pass."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        why = _CERTIFICATE.get(exc.verify_code) or f"the server's certificate is refused: {printable(exc.verify_message)}"
        return errno.EIO, why, False
    if isinstance(exc, ssl.SSLEOFError):
        return errno.EIO, "the connection was closed in the middle of TLS; is it https on this port?", True
    reason = str(getattr(exc, "reason", "") or exc).upper().replace(" ", "_")
    for token, why in _ALERTS:
        if token in reason:
            return errno.EACCES if "client's certificate" in why and "HANDSHAKE" not in token else errno.EIO, why, False
    return errno.EIO, f"TLS failed: {printable(str(getattr(exc, 'reason', '') or exc)).lower().replace('_', ' ')}", True


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield *exc* and what it came from."""
    for _ in range(8):
        if exc is None:
            return
        yield exc
        exc = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None) or exc.__cause__ or exc.__context__


def _reason(exc: BaseException) -> str:
    """Return why a connection failed in the system's words, without URL and class names."""
    reason = ""
    for cause in _causes(exc):
        if isinstance(cause, OSError) and cause.strerror:
            reason = str(cause.strerror)
    reason = printable(reason or str(exc) or type(exc).__name__)
    return reason[:1].lower() + reason[1:]


__all__ = [
    "BY_STATUS",
    "EXCERPT",
    "Row",
    "challenges",
    "never_sent",
    "printable",
    "refused",
    "retry_after",
    "said",
    "shown",
    "tls_words",
    "translate",
    "unreachable",
]
