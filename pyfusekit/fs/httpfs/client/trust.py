"""Whom we trust and through whom we go: TLS contexts, with the client's certificate for the source only, and proxies."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from pyfusekit.core import MountError

from ..options import HttpOptions
from .access import proxy_user
from .urls import Origin
from .words import printable


def context(options: HttpOptions, *, own: bool) -> ssl.SSLContext:
    """Return the TLS context for the source (*own*) or for anybody else, who sees no client certificate; MountError.

    Reading the system's authorities takes 20 ms: it is not for the event loop.
    """
    try:
        made = ssl.create_default_context(cafile=options.ca_file or None)
    except (OSError, ValueError) as error:
        raise _bad("--ca-file", options.ca_file, error, "a PEM file of certificates is expected") from error
    if options.insecure:
        # Whoever can pretend to be the source can send us anywhere: verifying the others would guard nothing.
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if own and options.client_cert:
        try:
            made.load_cert_chain(options.client_cert, options.client_key or None, password=_no_password)
        except _EncryptedError as error:
            raise MountError(
                "the client's key is encrypted",
                kind="bad-option",
                remedy="decrypt it with openssl pkey, into a file that only you can read",
            ) from error
        except (OSError, ValueError) as error:
            path = f"{options.client_cert} {options.client_key}".strip()
            raise _bad("--client-cert", path, error, "PEM files are expected, and the key must be the certificate's") from error
    return made


class _EncryptedError(Exception):
    """A key that only a passphrase opens; nobody is there to be asked."""


def _no_password() -> str:
    raise _EncryptedError


def _bad(flag: str, path: str, error: Exception, remedy: str) -> MountError:
    if isinstance(error, ssl.SSLError):
        why = (error.reason or "not PEM").lower().replace("_", " ")
    elif isinstance(error, OSError) and error.strerror:
        why = error.strerror
    else:
        why = printable(str(error))
    return MountError(f"{flag} {path}: {why}", kind="bad-option", remedy=remedy)


class Proxy(NamedTuple):
    """Through whom a request goes."""

    url: str
    """Without user and password."""
    authorization: str = ""
    """The value of Proxy-Authorization; the proxy gets it, and nobody else."""


class Proxies:
    """Who the proxy is for a URL: the option's, or the environment's as urllib reads it, no_proxy included."""

    def __init__(self, option: str | None, environment: Mapping[str, str] | None = None) -> None:
        found = environment if environment is not None else urllib.request.getproxies_environment()
        self._only = _proxy(option, "--proxy") if option else None
        self._by_scheme: dict[str, Proxy] = {}
        if self._only is None:
            for scheme in ("http", "https"):
                text = found.get(scheme) or found.get("all", "")
                if text:
                    self._by_scheme[scheme] = _proxy(text, f"${scheme}_proxy")
        self._none = found if found.get("no") else None

    def find(self, origin: Origin) -> Proxy | None:
        """Return the proxy for requests to *origin*."""
        if self._only is not None or not self._by_scheme:
            return self._only
        if self._none is not None:
            host = f"[{origin[1]}]" if ":" in origin[1] else origin[1]
            for name in (origin[1], f"{host}:{origin[2]}"):
                if urllib.request.proxy_bypass_environment(name, dict(self._none)):  # type: ignore[attr-defined]
                    return None
        return self._by_scheme.get(origin[0])


def _proxy(text: str, flag: str) -> Proxy:
    remedy = "write http://HOST:PORT"
    try:
        url, authorization = proxy_user(text if "://" in text else f"http://{text}")
        parts = urlsplit(url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise MountError(f"{flag}: not a proxy's URL", kind="bad-option", remedy=remedy) from None
    if parts.scheme not in ("http", "https"):
        raise MountError(f"{flag}: {parts.scheme} proxies are not supported", kind="bad-option", remedy=remedy)
    if not good:
        raise MountError(f"{flag}: not a proxy's URL", kind="bad-option", remedy=remedy)
    return Proxy(url, authorization)


__all__ = ["Proxies", "Proxy", "context"]
