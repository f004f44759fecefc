"""Telling the kernel what changed behind its back: all nine notifications, off the event loop.

A notification is a write to the device that may block inside the kernel, until requests in flight were answered
(fs/fuse/dir.c fuse_reverse_inval_entry takes the directory's lock, fs/fuse/inode.c fuse_reverse_inval_inode waits for pages).
So they are written by a thread, and three rules keep that from waiting for itself:

- A handler's notification goes out after the handler's own reply when it would wait for it, and never before a plain
  ``def`` has answered.
- A notification that would wait for a request whose handler is itself awaiting a notification is put off until that handler
  has answered. One that is already being written costs another thread.
- Awaiting what can only happen after one's own reply raises DeadlockError.

Notifications about one node keep their order; others may overtake one that is put off.

NOTE: what a handler waits for in another way than by awaiting a notification itself cannot be seen here: not a task that it
started and awaits, nor a lock.
"""

from __future__ import annotations

import errno
import logging
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import abi
from .codec import encode_notification
from .errors import DeadlockError
from .notification import InFlight, Notification
from .types import Data

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_log = logging.getLogger(__name__)

MAX_NAME_BYTES = 4095
"""The longest name the kernel takes from a connection with MAX_PAGES (fs/fuse/inode.c); otherwise it takes 1024."""
MAX_DATA_BYTES = (1 << 31) - 4096 - 64
"""Most bytes of one store: one write takes no more than 2 GiB less a page (MAX_RW_COUNT), header included."""
MAX_PRUNED = 1 << 16
"""Most nodes of one prune message; longer lists go out as several."""
MAX_OFFSET = (1 << 63) - 1
MAX_THREADS = 8
JOIN_TIMEOUT_S = 1.0


class Notifier:
    """Sends notifications. All methods are called on the event loop's thread, return at once, and keep what they are given.

    *write* sends the parts of one message with one writev(2) and returns when the kernel has taken it. It runs on the
    notifier's own thread, which begins with the first notification.
    """

    def __init__(self, write: Callable[[Sequence[Data]], int]) -> None:
        self.kernel_minor = abi.KERNEL_MINOR_VERSION
        """The protocol's minor version that was agreed; what it does not know is EOPNOTSUPP."""
        self.current: Callable[[], InFlight | None] = lambda: None
        """Returns the request whose handler is the running task, or None; set by the session."""
        self._write = write
        self._loop: asyncio.AbstractEventLoop | None = None
        self._posted: list[Notification[Any]] = []
        """Not yet handed to the thread: that happens in the loop's next turn."""
        self._newest: dict[int, Notification[Any]] = {}
        """The last notification about each node, while it is not finished."""
        self._mergeable: dict[bytes, Notification[Any]] = {}
        """Unfinished invalidations by what they say."""
        self._retrieving: dict[int, Notification[bytes]] = {}
        self._next_unique = 2
        self._finished: list[tuple[Notification[Any], int]] = []
        """Written, with the errno: not yet known on the loop."""
        self._ready = threading.Condition()
        """Guards what follows, which the threads share with the loop."""
        self._queue: OrderedDict[Notification[Any], None] = OrderedDict()
        self._writing: list[Notification[Any]] = []
        self._holders: set[InFlight] = set()
        """Requests that notifications wait for."""
        self._awaiting: dict[InFlight, list[Notification[Any]]] = {}
        """Requests whose handlers await notifications."""
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin: *loop* is running, and its thread is the one that calls. What was posted before goes out now."""
        self._loop = loop
        if self._posted:
            loop.call_soon(self._submit)

    def close(self) -> None:
        """End: what is not finished fails with ENODEV, as everything later does. To be called when the mount is gone.

        Waits a moment for the thread; one that the kernel does not let go is left behind, it is a daemon.
        """
        with self._ready:
            if self._closed:
                return
            self._closed = True
            pending = [*self._posted, *self._queue, *self._writing, *self._retrieving.values()]
            self._queue.clear()
            self._ready.notify_all()
        self._posted.clear()
        self._newest.clear()
        self._mergeable.clear()
        self._retrieving.clear()
        for note in pending:
            note.finish(None, _gone())
        until = time.monotonic() + JOIN_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _log.warning("the kernel does not return from a notification")

    # The nine.

    def inval_inode(self, ino: int, offset: int = -1, length: int = 0) -> Notification[bool]:
        """Drop the cached attributes of *ino*, and its cached contents of *length* bytes from *offset*.

        With offset -1 only the attributes (and ACLs), which never waits for anything, not even for its turn; a length of 0 or
        less reaches to the end.
        """
        _check_node(ino)
        if not -1 <= offset <= MAX_OFFSET or length > MAX_OFFSET:
            raise ValueError(f"{offset} and {length} are no range")
        if offset < 0:
            return self._post(self._make(abi.NOTIFY_INVAL_INODE, ino=ino, off=-1), mergeable=True)
        note = self._make(abi.NOTIFY_INVAL_INODE, (ino,), ino=ino, off=offset, len=max(length, 0))
        note.pages = ino
        return self._post(note, mergeable=True)

    def inval_entry(self, parent: int, name: bytes, *, expire_only: bool = False) -> Notification[bool]:
        """Forget what *name* in *parent* is, a cached absence too, and the attributes of *parent*.

        With *expire_only* the name is looked up again at its next use but stays until then, with what is mounted on it;
        kernels before 7.38 forget it anyway.
        """
        _check_node(parent)
        _check_name(name)
        flags = abi.EXPIRE_ONLY if expire_only else 0
        note = self._make(abi.NOTIFY_INVAL_ENTRY, (parent,), names=(name,), parent=parent, flags=flags)
        note.locks = (parent,)
        return self._post(note, mergeable=True)

    def delete(self, parent: int, ino: int, name: bytes) -> Notification[bool]:
        """Say that *name* in *parent*, which was *ino*, is gone: as inval_entry, and watchers (inotify) see it deleted.

        EBUSY when something is mounted there, ENOTEMPTY when the kernel still knows names in it.
        """
        _check_node(parent)
        _check_node(ino)
        _check_name(name)
        note = self._make(abi.NOTIFY_DELETE, (parent, ino), names=(name,), parent=parent, child=ino)
        note.locks = (parent, ino)
        return self._post(note)

    def store(self, ino: int, offset: int, data: Data) -> Notification[bool]:
        """Put *data* into the kernel's cache of the regular file *ino*.

        The kernel asks for the file's attributes at its next use, and its size is what those say.
        """
        _check_node(ino)
        data = bytes(data)  # writing it happens later, in another thread
        if len(data) > MAX_DATA_BYTES:
            raise ValueError(f"{len(data)} bytes are more than {MAX_DATA_BYTES}")
        if not 0 <= offset <= MAX_OFFSET - len(data):
            raise ValueError(f"{offset} is no offset")
        note = self._make(abi.NOTIFY_STORE, (ino,), data=data, nodeid=ino, offset=offset, size=len(data))
        note.pages = ino
        return self._post(note)

    def retrieve(self, ino: int, offset: int, size: int) -> Notification[bytes]:
        """Ask for what the kernel has cached of *ino*: from *offset* to the first gap, at most *size* bytes and one write's."""
        _check_node(ino)
        if not 0 <= offset <= MAX_OFFSET or not 0 <= size <= 0xFFFFFFFF:
            raise ValueError(f"{size} bytes from {offset} are no range")
        unique, self._next_unique = self._next_unique, self._next_unique + 2
        parts = encode_notification(abi.NOTIFY_RETRIEVE, notify_unique=unique, nodeid=ino, offset=offset, size=size)
        note: Notification[bytes] = Notification(abi.NOTIFY_RETRIEVE, parts, (ino,), self._wait_for)
        note.pages = ino
        if not self._closed:
            self._retrieving[unique] = note
        return self._post(note)

    def retrieved(self, notify_unique: int, offset: int, data: Data) -> None:
        """Take a NOTIFY_REPLY; the session calls it. An unknown one is ignored: it was asked for before a restart."""
        note = self._retrieving.pop(notify_unique, None)
        if note is not None:
            note.finish(bytes(data), None)

    def poll(self, kh: int) -> Notification[bool]:
        """Wake those who poll the file whose ``poll`` was given *kh*: they ask again."""
        return self._post(self._make(abi.NOTIFY_POLL, (), kh=kh))

    def resend(self) -> Notification[bool]:
        """Have every request that was read and not answered sent again, UNIQUE_RESEND in its number: a server took over."""
        return self._post(self._make(abi.NOTIFY_RESEND))

    def inc_epoch(self) -> Notification[bool]:
        """Have every cached name looked up again at its next use."""
        return self._post(self._make(abi.NOTIFY_INC_EPOCH), mergeable=True)

    def prune(self, inos: Iterable[int]) -> Notification[bool]:
        """Ask the kernel to forget nodes that nobody uses; FORGETs follow for those it lets go."""
        every = list(inos)
        for ino in every:
            _check_node(ino)
        for at in range(0, len(every), MAX_PRUNED):
            chunk = every[at : at + MAX_PRUNED]
            note = self._make(abi.NOTIFY_PRUNE, data=struct.pack(f"={len(chunk)}Q", *chunk), count=len(chunk))
            self._post(note)
        if every:
            return note
        empty: Notification[bool] = Notification(abi.NOTIFY_PRUNE, [], (), self._wait_for)
        empty.finish(True, None)
        return empty

    # On the loop.

    def _make(self, code: int, keys: tuple[int, ...] = (), **fields: Any) -> Notification[bool]:
        return Notification(code, encode_notification(code, **fields), keys, self._wait_for)

    def _post(self, note: Notification[T], mergeable: bool = False) -> Notification[T]:
        """Let *note* go out in the loop's next turn: after the reply of the plain ``def`` that may be calling."""
        if self._closed:
            note.finish(None, _gone())
            return note
        if self.kernel_minor < abi.NOTES[note.code].since:
            note.finish(None, _unsupported(note.code))
            return note
        request = self.current()
        if request is not None and note.conflicts(request):
            note.holder = request
            self._watch(request)
        if mergeable:
            said = bytes(note.parts[0])
            former = self._mergeable.get(said)
            # Not when something else about the same nodes has followed: then saying it again is not the same.
            same = former is not None and not former.begun and former.holder is note.holder
            if former is not None and same and all(self._newest.get(key) is former for key in note.keys):
                return former
            self._mergeable[said] = note
        for key in note.keys:
            self._newest[key] = note
        if not self._posted and self._loop is not None:
            self._loop.call_soon(self._submit)
        self._posted.append(note)
        return note

    def _submit(self) -> None:
        """Hand what was posted to the thread."""
        if self._closed:
            return
        with self._ready:
            self._queue.update(dict.fromkeys(self._posted))
            self._posted.clear()
            if not self._threads:
                self._spawn()
            self._ready.notify()

    def _watch(self, request: InFlight) -> None:
        """Learn of *request*'s answer."""
        if request not in self._holders:
            with self._ready:
                self._holders.add(request)
            request.after.append(lambda: self._answered(request))

    def _answered(self, request: InFlight) -> None:
        with self._ready:
            self._holders.discard(request)
            self._ready.notify_all()

    async def _wait_for(self, note: Notification[Any]) -> None:
        """Wait until *note* is finished; DeadlockError when that is after the answer of the handler that waits."""
        if self._loop is None:
            raise RuntimeError("the notifier is not attached to a loop")
        request = self.current()
        if request is not None:
            with self._ready:
                self._awaiting.setdefault(request, []).append(note)
                if self._waits_for(note, request):
                    self._stop_awaiting(request, note)
                    raise DeadlockError(f"{note!r} can only happen after the answer to {request!r}, which awaits it")
                # If a thread is stuck until this request is answered, the rest needs another.
                if not self._idle and any(other.conflicts(request) for other in self._writing):
                    if len(self._threads) == MAX_THREADS:
                        self._stop_awaiting(request, note)
                        raise DeadlockError(f"{MAX_THREADS} notifications wait for handlers that await notifications")
                    self._spawn()
        future: asyncio.Future[None] = self._loop.create_future()
        note.waiters.append(future)
        try:
            await future
        finally:
            if future in note.waiters:
                note.waiters.remove(future)
            if request is not None:
                with self._ready:
                    self._stop_awaiting(request, note)
                    self._ready.notify_all()

    def _stop_awaiting(self, request: InFlight, note: Notification[Any]) -> None:
        awaited = self._awaiting[request]
        awaited.remove(note)
        if not awaited:
            del self._awaiting[request]

    # Who waits for whom. With the lock.

    def _waits_for(self, note: Notification[Any], request: InFlight) -> bool:
        """Say whether *note* can only be finished when *request* was answered, however indirectly."""
        seen: set[InFlight] = set()
        pending = [note]
        visited: set[Notification[Any]] = set()
        while pending:
            current = pending.pop()
            if current in visited:
                continue
            visited.add(current)
            for blocker in self._requests_before(current):
                if blocker is request:
                    return True
                if blocker not in seen:
                    seen.add(blocker)
                    pending += self._awaiting.get(blocker, ())
            pending += self._earlier(current)
        return False

    def _requests_before(self, note: Notification[Any]) -> Iterator[InFlight]:
        """Go through the requests that must be answered before *note* is written."""
        if note.holder in self._holders and note.holder is not None:
            yield note.holder
        for request in self._awaiting:
            if note.conflicts(request):
                yield request

    def _earlier(self, note: Notification[Any]) -> Iterator[Notification[Any]]:
        """Go through the unfinished notifications before *note* about the same nodes."""
        keys = set(note.keys)
        for other in (*self._writing, *self._queue, *self._posted):
            if other is note:
                return
            if not keys.isdisjoint(other.keys):
                yield other

    def _next(self) -> Notification[Any] | None:
        """Take the first notification that may be written now."""
        blocked: set[int] = set()
        for other in self._writing:
            blocked.update(other.keys)
        for note in self._queue:
            may = (
                note.holder not in self._holders
                and blocked.isdisjoint(note.keys)
                and not any(note.conflicts(request) for request in self._awaiting)
            )
            if may:
                del self._queue[note]
                note.begun = True
                return note
            blocked.update(note.keys)
        return None

    # On the thread.

    def _spawn(self) -> None:
        thread = threading.Thread(target=self._work, name="fuse-notify", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._ready:
                while True:
                    if self._closed:
                        return
                    note = self._next()
                    if note is not None:
                        break
                    self._idle += 1
                    self._ready.wait()
                    self._idle -= 1
                self._writing.append(note)
            number = 0
            try:
                self._write(note.parts)
            except OSError as error:
                number = error.errno or errno.EIO
            except Exception:
                _log.exception("writing %r failed", note)
                number = errno.EIO
            with self._ready:
                self._writing.remove(note)
                self._finished.append((note, number))
                first = len(self._finished) == 1
                if self._idle:
                    self._ready.notify()
            if first and self._loop is not None:
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop is closed

    def _deliver(self) -> None:
        """Tell the loop's side what the threads have written."""
        with self._ready:
            finished, self._finished = self._finished, []
        for note, number in finished:
            for key in note.keys:
                if self._newest.get(key) is note:
                    del self._newest[key]
            said = bytes(note.parts[0]) if note.parts else b""
            if self._mergeable.get(said) is note:
                del self._mergeable[said]
            if note.code == abi.NOTIFY_RETRIEVE:
                self._retrieve_written(note, number)
            elif not number or number == errno.ENOENT:
                note.finish(not number, None)
            elif number == errno.EINVAL and note.code >= abi.NOTIFY_RESEND:
                note.finish(None, _unsupported(note.code))
            else:
                note.finish(None, OSError(number, f"the kernel refused {note!r}"))

    def _retrieve_written(self, note: Notification[bytes], number: int) -> None:
        """Go on waiting for the data, unless there will be none."""
        if not number:
            return
        for unique, waiting in list(self._retrieving.items()):
            if waiting is note:
                del self._retrieving[unique]
        if number == errno.ENOENT:
            note.finish(b"", None)
        else:
            note.finish(None, OSError(number, f"the kernel refused {note!r}"))


def _gone() -> OSError:
    return OSError(errno.ENODEV, "the mount is gone")


def _unsupported(code: int) -> OSError:
    return OSError(errno.EOPNOTSUPP, f"this kernel does not know the notification {abi.NOTES[code].name}")


def _check_node(ino: int) -> None:
    if not 0 < ino < 1 << 64:
        raise ValueError(f"{ino} is no node id")


def _check_name(name: bytes) -> None:
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(f"{name!r} is no name")
    if len(name) > MAX_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"a name of {len(name)} bytes")


__all__ = ["Notifier"]
