"""Who we are for the source, and for nobody else: users and passwords, tokens, cookies, headers."""

from __future__ import annotations

import asyncio
import errno
import http.cookiejar
import logging
import netrc
import os
import re
import shlex
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyfusekit.core import MountError

from ..options import HttpOptions
from ..values import HttpError
from .urls import Origin, User, basic, origin_of, without_user
from .words import printable

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("pyfusekit.httpfs")

COMMAND_SECONDS = 30.0
"""How long the token command may take."""
COMMAND_PAUSE = 5.0
"""Seconds between two runs of it: a server that refuses every token must not have it run for each request."""
_TOKEN_BYTES = 64 << 10
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A header's name: token of RFC 9110, section 5.6.2."""
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "expect",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that a person may not set: they say how a message is framed, to whom it goes, and which bytes are meant."""


def parse_headers(text: str) -> dict[str, str]:
    """Return the headers a person wrote, one a line; MountError for what is none, or is not theirs to set."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _NAME.fullmatch(name):
            # The line may hold a secret: only what stands before the colon is repeated.
            raise _wrong(f"--header: {printable(name, 40)!r} is no header's name", "write NAME: VALUE, one header a line")
        if any((ord(letter) < 32 and letter != "\t") or ord(letter) == 127 for letter in value):
            raise _wrong(f"--header {name}: the value holds a control character", "write it in one line of plain text")
        if name.lower() in _OURS:
            raise _wrong(f"--header {name}: this header is pyfusekit's to set", "leave it out")
        if name.lower() in found:
            raise _wrong(f"--header {name} is given twice", "write its values in one line, with commas between")
        found[name.lower()] = value
    return found


def _wrong(cause: str, remedy: str) -> MountError:
    return MountError(cause, kind="bad-option", remedy=remedy)


class TokenCommand:
    """The command that prints a bearer token; its last output is kept. One run at a time serves everybody who waits."""

    def __init__(self, line: str) -> None:
        try:
            self.words = shlex.split(line)
        except ValueError as error:
            raise _wrong(f"--token-command: {error}", "close the quotes") from error
        if not self.words:
            raise _wrong("--token-command names no command", "write it as in a shell; pipes need sh -c '...'")
        self._token = ""
        self._ended = float("-inf")
        self._running: asyncio.Task[str] | None = None

    async def token(self, refused: str = "") -> str:
        """Return the token, another one than *refused* if the command has it; HttpError EACCES when the command fails."""
        if self._token and (self._token != refused or time.monotonic() - self._ended < COMMAND_PAUSE):
            return self._token
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="token command")
            self._running.add_done_callback(self._done)
        running = self._running
        try:
            # Who is interrupted must not take the others' token away.
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if running.cancelled() and task is not None and not task.cancelling():
                raise HttpError(errno.ESHUTDOWN, "the mount is being ended") from None
            raise

    async def close(self) -> None:
        """End a run."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def _done(self, task: asyncio.Task[str]) -> None:
        self._running = None
        if not task.cancelled() and task.exception() is None:
            self._token, self._ended = task.result(), time.monotonic()

    async def _run(self) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *self.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise self._failed(f"cannot be started: {why}") from error
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                output, errors = await process.communicate()
        except TimeoutError:
            raise self._failed(f"took longer than {COMMAND_SECONDS:.0f} s") from None
        finally:
            if process.returncode is None:
                _kill(process.pid)
                await process.wait()
        if process.returncode:
            said = printable(errors.decode("utf-8", "replace"))
            raise self._failed(f"ended with status {process.returncode}" + (f": {said}" if said else ""))
        token = output[:_TOKEN_BYTES].decode("utf-8", "replace").strip()
        if not token or not re.fullmatch(r"[!-~]+", token):
            raise self._failed("printed no token: one word of ASCII is expected" if token else "printed nothing")
        return token

    def _failed(self, why: str) -> HttpError:
        # The arguments may be secrets.
        return HttpError(errno.EACCES, f"the token command {self.words[0]!r} {why}; run it by hand, or change --token-command")


def _kill(pid: int) -> None:
    """End the command with all it started: it leads a session of its own."""
    try:
        os.killpg(pid, 9)
    except ProcessLookupError:
        return


class Access:
    """What the source gets of a mount's credentials.

    ``load()`` reads files and is not for the event loop. What is wrong but may not matter is in *hints*, for the day when the
    server refuses.
    """

    def __init__(self, options: HttpOptions, source: str) -> None:
        self.options = options
        self.source, self._url_user = without_user(source)
        """The URL as it may be shown."""
        self.origin: Origin | None = origin_of(self.source)
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.hints: list[str] = []
        self.cookies: list[http.cookiejar.Cookie] = []
        self.command: TokenCommand | None = None
        self._fixed = ""

    def load(self) -> None:
        """Read what the options name; MountError."""
        options = self.options
        self.headers = parse_headers(options.header)
        own = self.headers.pop("authorization", "")
        ways = [
            ("--header Authorization", bool(own)),
            ("--bearer-token", options.bearer_token is not None),
            ("--token-command", bool(options.token_command)),
            ("--user", bool(options.user)),
        ]
        given = [name for name, there in ways if there]
        if len(given) > 1:
            raise _wrong(f"{given[0]} and {given[1]} exclude each other", "give one of them")
        if options.token_command:
            self.command = TokenCommand(options.token_command)
        elif own:
            self._fixed = own
        elif options.bearer_token is not None:
            if not re.fullmatch(r"[!-~]+", options.bearer_token.strip()):
                raise _wrong("the bearer token holds spaces or control characters", "give the token alone")
            self._fixed = f"Bearer {options.bearer_token.strip()}"
        else:
            user = self._user()
            self._fixed = basic(user) if user is not None else ""
        if options.cookie_jar:
            self.cookies = list(_cookies(options.cookie_jar))

    def _user(self) -> User | None:
        options, named = self.options, self._url_user
        name = options.user or (named.name if named is not None else "")
        if options.password is not None:
            if not name:
                raise _wrong("a password is given without a user", "give --user too")
            return User(name, str(options.password))
        if named is not None and named.password and name == named.name:
            return named
        found = self._netrc(name) if options.netrc and self.origin is not None else None
        return found or (User(name, "") if name else None)

    def _netrc(self, name: str) -> User | None:
        """Return the user of the source's host in the netrc file; any, or the one called *name*."""
        given = os.environ.get("NETRC", "")
        path = Path(given) if given else Path("~/.netrc").expanduser()
        try:
            status = path.stat()
            found = netrc.netrc(str(path))
        except FileNotFoundError:
            if given:
                self._hint(f"there is no {path}, which $NETRC names")
            return None
        except (netrc.NetrcParseError, UnicodeDecodeError) as error:
            line = getattr(error, "lineno", None)
            self._hint(f"{path} is not used: " + (f"line {line} is not netrc's" if line else "it is not netrc's"))
            return None
        except OSError as error:
            self._hint(f"{path} is not used: {error.strerror}")
            return None
        assert self.origin is not None
        row = found.authenticators(self.origin[1])
        if row is None or (name and row[0] != name) or not row[0]:
            return None
        if row[2] and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            self._hint(f"{path} is not used: others may read the passwords in it (chmod 600 {path})")
            return None
        if status.st_uid not in (os.geteuid(), 0):
            self._hint(f"{path} is not used: it belongs to somebody else")
            return None
        return User(row[0], row[2] or "")

    def _hint(self, text: str) -> None:
        log.warning("%s", text)
        self.hints.append(text)

    def owns(self, origin: Origin | None) -> bool:
        """Return whether *origin* is the source's: nobody else gets anything."""
        return origin is not None and origin == self.origin

    async def authorization(self, refused: str = "") -> str:
        """Return the value of Authorization for the source; "" is none. *refused* is one that it answered with 401."""
        if self.command is None:
            return self._fixed
        return "Bearer " + await self.command.token(refused.removeprefix("Bearer "))

    @property
    def renewable(self) -> bool:
        """Whether another value of Authorization may be had."""
        return self.command is not None

    @property
    def identified(self) -> bool:
        """Whether the source is told who we are."""
        return bool(self._fixed) or self.command is not None

    async def close(self) -> None:
        """End what runs."""
        if self.command is not None:
            await self.command.close()


def _cookies(path: str) -> Iterator[http.cookiejar.Cookie]:
    """Yield the cookies of a file in Netscape's format that are still good; MountError."""
    jar = http.cookiejar.MozillaCookieJar()
    try:
        # Cookies of a session are why the file is named; their time is 0, or empty: http.cookiejar takes 0 for 1970.
        jar.load(os.path.expanduser(path), ignore_discard=True, ignore_expires=True)
    except http.cookiejar.LoadError as error:
        raise _wrong(
            f"--cookie-jar {path}: not a cookie file in Netscape's format",
            'its first line is "# Netscape HTTP Cookie File"; curl -c and browser extensions write one',
        ) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise _wrong(f"--cookie-jar {path}: {why}", "look at the path") from error
    now = time.time()
    for cookie in jar:
        cookie.expires = cookie.expires or None
        if not cookie.is_expired(int(now)):
            yield cookie


def fill_jar(jar: aiohttp.CookieJar, cookies: list[http.cookiejar.Cookie]) -> None:
    """Put the cookies of the file into *jar*: each for its own host or domain, path and kind of connection."""
    from http.cookies import CookieError, Morsel

    from yarl import URL

    for cookie in cookies:
        morsel: Morsel[str] = Morsel()
        try:
            morsel.set(cookie.name, cookie.value or "", cookie.value or "")
        except CookieError:
            log.warning("a cookie of %s has a name that is none; it is not sent", cookie.domain)
            continue
        host = cookie.domain.lstrip(".")
        morsel["path"] = cookie.path
        if cookie.secure:
            morsel["secure"] = True
        if cookie.domain_specified and not _is_address(host):
            morsel["domain"] = host
        if cookie.expires is not None:
            morsel["max-age"] = str(max(1, int(cookie.expires) - int(time.time())))
        netloc = f"[{host}]" if ":" in host else host
        jar.update_cookies({cookie.name: morsel}, URL(f"{'https' if cookie.secure else 'http'}://{netloc}/"))


def _is_address(host: str) -> bool:
    return ":" in host or re.fullmatch(r"[0-9.]+", host) is not None


def proxy_user(url: str) -> tuple[str, str]:
    """Return a proxy's URL without user and password, and the value of Proxy-Authorization; "" is none. ValueError."""
    plain, user = without_user(url)
    return plain, basic(user) if user is not None else ""


__all__ = ["COMMAND_PAUSE", "COMMAND_SECONDS", "Access", "TokenCommand", "fill_jar", "parse_headers", "proxy_user"]
