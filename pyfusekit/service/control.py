"""The per-mount control socket: who serves it, where it lies, what it answers.

A unix socket named by the device minor of the mount (46.sock), in a directory only its owner may enter; beside it 46.json
says the same things without a server. Both ends speak JSON, one object a line. Only the owner of the server and root are
answered. The client does not use asyncio; the server lives on the daemon's loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from .exits import ACCESS, Failure
from .procs import start_time

if TYPE_CHECKING:
    import asyncio

Answer = Mapping[str, Any]
Command = Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]

MAX_LINE = 1 << 20
"""Most bytes of a line in either direction."""
FAREWELL_S = 1.0
"""How long the server that ends lets commands finish that it is still busy with."""

_PEERCRED = struct.Struct("=iII")


def directories(uid: int) -> list[str]:
    """Return where the sockets of *uid*'s mounts may lie, the one that is used for new ones first."""
    places = []
    if uid == 0:
        places.append("/run/pyfusekit")
    else:
        if uid == os.geteuid() and os.environ.get("XDG_RUNTIME_DIR"):
            places.append(os.path.join(os.environ["XDG_RUNTIME_DIR"], "pyfusekit"))
        places.append(f"/run/user/{uid}/pyfusekit")
    places.append(f"/tmp/pyfusekit-{uid}")
    return list(dict.fromkeys(places))


def own_directory() -> str:
    """Make the directory for this user's sockets where it is missing, and return it.

    A directory that somebody else could have made (in /tmp) is only taken when it is a real directory, ours, and closed to
    others; otherwise Failure.
    """
    places = directories(os.geteuid())
    for place in places:
        if not os.path.isdir(os.path.dirname(place)):
            continue
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            pass
        except OSError:
            continue
        if _is_private(place):
            return place
    raise Failure(
        f"no directory for the control socket: {places[-1]} belongs to somebody else or is open to others",
        f"rm -r {places[-1]}, or set XDG_RUNTIME_DIR to a directory of your own",
        code=ACCESS,
    )


def _is_private(place: str) -> bool:
    try:
        status = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the other end, as the kernel knows them (unix(7), SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, _gid = _PEERCRED.unpack(raw)
    return pid, uid


# The client.


class NoAnswer(Exception):
    """The control socket gave no answer; *pid* is the process that listens on it, when there is one."""

    def __init__(self, reason: str, pid: int | None = None) -> None:
        super().__init__(reason)
        self.pid = pid


def _connected(directory: str, minor: int, seconds: float) -> socket.socket:
    """Return a connection to a mount's socket; the path goes through the directory's descriptor, so it may be long."""
    try:
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise NoAnswer(str(exc)) from exc
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(seconds)
        connection.connect(f"/proc/self/fd/{place}/{minor}.sock")
    except OSError as exc:
        connection.close()
        raise NoAnswer(str(exc)) from exc
    finally:
        os.close(place)
    return connection


def ask(directory: str, minor: int, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Send *message* to the server of mount *minor* and return its answer with the key "peer", its pid.

    NoAnswer when nobody listens, when it takes longer than *seconds*, or when the one who listens is neither root nor the
    owner of the directory.
    """
    deadline = time.monotonic() + seconds
    with begin(directory, minor, message, seconds) as connection:
        return finish(connection, deadline - time.monotonic())


def begin(directory: str, minor: int, message: Mapping[str, Any], seconds: float) -> socket.socket:
    """Send *message* as ask does, and return the connection on which finish will find the answer."""
    connection = _connected(directory, minor, seconds)
    try:
        pid, uid = _peer(connection)
        if uid not in (0, os.stat(directory).st_uid):
            raise NoAnswer(f"the socket is held by user {uid}")
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as exc:
            raise NoAnswer(str(exc), pid) from exc
    except BaseException:
        connection.close()
        raise
    return connection


def finish(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """Return the answer to what begin sent, or NoAnswer."""
    deadline = time.monotonic() + seconds
    pid, _uid = _peer(connection)
    answer = b""
    try:
        while not answer.endswith(b"\n"):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            piece = connection.recv(1 << 16)
            if not piece or len(answer) > MAX_LINE:
                raise NoAnswer("the answer was cut off", pid)
            answer += piece
        parsed = json.loads(answer)
    except (OSError, ValueError) as exc:
        raise NoAnswer(str(exc) or "no answer in time", pid) from exc
    if not isinstance(parsed, dict):
        raise NoAnswer("the answer is not an object", pid)
    return {**parsed, "peer": pid}


def read_state(directory: str, minor: int) -> dict[str, Any] | None:
    """Return what the server of mount *minor* wrote down about itself, or None."""
    try:
        with open(os.path.join(directory, f"{minor}.json"), encoding="utf-8") as file:
            state = json.loads(file.read(MAX_LINE))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def forget(directory: str, minor: int) -> None:
    """Remove the traces of a mount that is gone."""
    for name in (f"{minor}.sock", f"{minor}.json"):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def sweep(directory: str) -> None:
    """Remove the sockets nobody listens on and the states whose process is gone."""
    names = os.listdir(directory)
    for name in names:
        number, _, kind = name.partition(".")
        if not number.isdecimal():
            continue
        minor = int(number)
        if kind == "sock":
            try:
                _connected(directory, minor, 0.2).close()
            except NoAnswer as exc:
                if isinstance(exc.__cause__, ConnectionRefusedError):
                    forget(directory, minor)
        elif kind == "json" and f"{minor}.sock" not in names:
            state = read_state(directory, minor)
            pid = state.get("pid") if state else None
            if not isinstance(pid, int) or state is None or start_time(pid) != state.get("start_time"):
                forget(directory, minor)


# The server.


class ControlServer:
    """Answers one mount's control socket on the running loop: ``async with ControlServer(minor, state, commands)``.

    *state* is written beside the socket; *commands* maps the name in a request's "cmd" to a function of the request, which may
    be a coroutine function: other connections are answered meanwhile. The answer gets "ok": true; an unknown command or one
    that raises gets "ok": false and "error".
    """

    def __init__(self, minor: int, state: Mapping[str, Any], commands: Mapping[str, Command]) -> None:
        self.minor = minor
        self.state = state
        self.commands = commands
        self.directory = own_directory()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._busy: set[asyncio.Task[Any]] = set()
        """Tasks with a request that is not answered yet."""

    async def __aenter__(self) -> ControlServer:
        import asyncio

        sweep(self.directory)
        forget(self.directory, self.minor)
        listener = self._listen()
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE)
        self._write_state()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._say_farewell()
        for writer in list(self._writers):
            writer.close()
        # The kernel may have given the number to another mount already, when this server went on after its own was gone.
        if read_state(self.directory, self.minor) in (None, json.loads(json.dumps(self.state))):
            forget(self.directory, self.minor)

    async def _say_farewell(self) -> None:
        """Give the requests that are being answered a moment, and end those that need longer."""
        import asyncio

        busy = set(self._busy)
        if busy:
            _done, late = await asyncio.wait(busy, timeout=FAREWELL_S)
            for task in late:
                task.cancel()

    def _listen(self) -> socket.socket:
        place = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{place}/{self.minor}.sock")
            listener.listen(64)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        finally:
            os.close(place)
        return listener

    def _write_state(self) -> None:
        path = os.path.join(self.directory, f"{self.minor}.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.state, file)
        os.replace(path + ".new", path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            _pid, uid = _peer(writer.get_extra_info("socket"))
            if uid not in (0, os.geteuid()):
                return
            while line := await reader.readline():
                await self._reply(line, writer)
        except (ConnectionError, ValueError):
            # The client went away, or its line is longer than MAX_LINE: nobody is left to be told.
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _reply(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer one request, in a task of its own: the server's end waits for the answer, and not for the client's next."""
        import asyncio

        task = asyncio.ensure_future(self._answer(line, writer))
        self._busy.add(task)
        try:
            await task
        finally:
            self._busy.discard(task)

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(await self._said(line))
        await writer.drain()

    async def _said(self, line: bytes) -> bytes:
        try:
            message = json.loads(line)
        except ValueError:
            return _line({"ok": False, "error": "not JSON"})
        name = message.get("cmd") if isinstance(message, dict) else None
        command = self.commands.get(name) if isinstance(name, str) else None
        if command is None:
            return _line({"ok": False, "error": f"no such command: {name!r}"})
        try:
            answer = command(message)
            if isinstance(answer, Awaitable):
                answer = await answer
            return _line({"ok": True, **answer})
        except Exception as exc:
            import logging

            logging.getLogger(__name__).exception("control command %s", name)
            return _line({"ok": False, "error": f"{type(exc).__name__}: {exc}"})


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
