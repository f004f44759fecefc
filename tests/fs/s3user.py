"""s3fs on a store in memory behind a fake kernel, and a program that uses it: paths, descriptors, errnos.

Nothing is cached here: each path is looked up name by name, each time, so what costs no request costs none by s3fs's doing.
As in the kernel (fs/namei.c), ESTALE of a path has it looked up once more.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fakestore import FakeStore

from pyfusekit.core import Request, abi, codec
from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.testing.kernel import FakeKernel
from pyfusekit.testing.pending import Pending

T = TypeVar("T")
CALLER = (1000, 1000, 4711)
ME = Request(2, *CALLER)
MIB = 1 << 20
_NOT_SENT = os.O_CREAT | os.O_EXCL | os.O_NOCTTY
_MAX_WRITE = 64 << 10
_UMASK = 0o022


class Fd(NamedTuple):
    """An open file."""

    ino: int
    fh: int
    flags: int
    open_flags: int
    """What the kernel was told: FOPEN_KEEP_CACHE, say."""


class Stat(NamedTuple):
    """What stat(2) says."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class User:
    """A program on the mount of *fs*. Every method is a system call and raises its OSError."""

    def __init__(self, fs: S3FS, kernel: FakeKernel, store: FakeStore) -> None:
        self.fs = fs
        self.kernel = kernel
        self.store = store
        self.fds: list[Fd] = []

    @property
    def calls(self) -> list[str]:
        """The requests to the store since the last time this was asked."""
        calls, self.store.calls = self.store.calls, []
        return calls

    def ask(self, opcode: int, ino: int, **arguments: Any) -> Pending:
        """Send a request; awaiting what is returned is waiting for the answer."""
        return self.kernel.send(opcode, ino, caller=CALLER, **arguments)

    def masked(self, mode: int) -> int:
        """Return the mode of something new: the kernel takes the umask off, unless the server does."""
        return mode if self.kernel.has(abi.DONT_MASK) else mode & ~_UMASK

    # Paths.

    async def entry(self, parent: int, name: bytes) -> dict[str, Any] | None:
        """LOOKUP; None where there is no such name."""
        try:
            fields = (await self.ask(abi.LOOKUP, parent, names=[name])).fields
        except FileNotFoundError:
            return None
        return fields if fields["nodeid"] else None

    async def ino(self, path: str, *, directory: bool = False) -> int:
        """Return the inode of *path*; ENOENT, and ENOTDIR where it must be a *directory*."""
        ino = 1
        for name in filter(None, path.split("/")):
            found = await self.entry(ino, os.fsencode(name))
            if found is None:
                raise FileNotFoundError(errno.ENOENT, path)
            ino = found["nodeid"]
            if directory and not stat.S_ISDIR(found["attr_mode"]):
                raise NotADirectoryError(errno.ENOTDIR, path)
        return ino

    async def parent(self, path: str) -> tuple[int, bytes]:
        """Return the inode of the directory of *path*, and its last name."""
        head, _, tail = path.rpartition("/")
        return await self.ino(head, directory=True), os.fsencode(tail)

    async def _again(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except OSError as exc:
            if exc.errno != errno.ESTALE:
                raise
        return await work()

    # Files.

    async def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Fd:
        """open(2): LOOKUP, then OPEN or CREATE."""
        return await self._again(lambda: self._open(path, flags, mode))

    async def _open(self, path: str, flags: int, mode: int) -> Fd:
        parent, name = await self.parent(path)
        found = await self.entry(parent, name)
        if found is None and flags & os.O_CREAT:
            mode = stat.S_IFREG | self.masked(mode)
            fields = (await self.ask(abi.CREATE, parent, names=[name], flags=flags, mode=mode, umask=_UMASK)).fields
            fd = Fd(fields["entry_nodeid"], fields["open_fh"], flags, fields["open_open_flags"])
        elif found is None:
            raise FileNotFoundError(errno.ENOENT, path)
        elif flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, path)
        else:
            fd = await self.open_ino(found["nodeid"], flags)
        if fd not in self.fds:
            self.fds.append(fd)
        return fd

    async def open_ino(self, ino: int, flags: int = os.O_RDONLY) -> Fd:
        """OPEN."""
        fields = (await self.ask(abi.OPEN, ino, flags=flags & ~_NOT_SENT)).fields
        fd = Fd(ino, fields["fh"], flags, fields["open_flags"])
        self.fds.append(fd)
        return fd

    async def pread(self, fd: Fd, size: int, offset: int) -> bytes:
        """pread(2)."""
        return (await self.ask(abi.READ, fd.ino, fh=fd.fh, offset=offset, size=size)).data

    async def pwrite(self, fd: Fd, data: bytes, offset: int) -> None:
        """pwrite(2), all of *data*."""
        for start in range(0, len(data), _MAX_WRITE):
            piece = data[start : start + _MAX_WRITE]
            reply = await self.ask(abi.WRITE, fd.ino, fh=fd.fh, offset=offset + start, size=len(piece), data=piece)
            assert reply.fields["size"] == len(piece)

    async def flush(self, fd: Fd) -> None:
        """FLUSH: what close(2) waits for and whose error it returns."""
        await self.ask(abi.FLUSH, fd.ino, fh=fd.fh, lock_owner=7)

    async def release(self, fd: Fd) -> None:
        """RELEASE: nobody waits for it and nobody sees its error."""
        self.fds.remove(fd)
        await self.ask(abi.RELEASE, fd.ino, fh=fd.fh)

    async def close(self, fd: Fd) -> None:
        """close(2)."""
        try:
            await self.flush(fd)
        finally:
            await self.release(fd)

    async def fsync(self, fd: Fd) -> None:
        """fsync(2)."""
        await self.ask(abi.FSYNC, fd.ino, fh=fd.fh)

    async def fallocate(self, fd: Fd, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        await self.ask(abi.FALLOCATE, fd.ino, fh=fd.fh, mode=mode, offset=offset, length=length)

    async def write(self, path: str, data: bytes, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC, offset: int = 0) -> None:
        """Write a whole file, as "cp" and ">" do."""
        fd = await self.open(path, flags)
        try:
            await self.pwrite(fd, data, offset)
        finally:
            await self.close(fd)

    async def append(self, path: str, data: bytes) -> None:
        """Write behind a file's end, as ">>" does."""
        size = (await self.stat(path)).size
        await self.write(path, data, os.O_WRONLY | os.O_APPEND, size)

    async def read(self, path: str, step: int = 128 << 10) -> bytes:
        """Read a whole file."""
        fd = await self.open(path)
        try:
            return await self.read_fd(fd, step)
        finally:
            await self.close(fd)

    async def read_fd(self, fd: Fd, step: int = 128 << 10) -> bytes:
        """Read all of an open file."""
        data = b""
        while piece := await self.pread(fd, step, len(data)):
            data += piece
        return data

    # Attributes.

    async def stat(self, path: str) -> Stat:
        """lstat(2): LOOKUP brings the attributes with it."""
        if not path:
            return await self.fstat(Fd(1, 0, 0, 0), by_fh=False)
        parent, name = await self.parent(path)
        found = await self.entry(parent, name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, path)
        return _stat(found, "attr_")

    async def fstat(self, fd: Fd, by_fh: bool = True) -> Stat:
        """fstat(2): GETATTR."""
        fields = {"getattr_flags": abi.GETATTR_FH, "fh": fd.fh} if by_fh else {}
        return _stat((await self.ask(abi.GETATTR, fd.ino, **fields)).fields, "attr_")

    async def set(self, path: str | Fd, by_fh: bool = True, **changes: int) -> None:
        """SETATTR of mode, uid, gid, size, and times in nanoseconds (mtime_ns, atime_ns); by path, or of an open file."""
        ino = path.ino if isinstance(path, Fd) else await self.ino(path)
        held = isinstance(path, Fd) and by_fh
        valid = abi.FATTR_FH if held else 0
        fields: dict[str, int] = {"fh": path.fh} if isinstance(path, Fd) and held else {}
        for name, value in changes.items():
            word = name.removesuffix("_ns")
            valid |= getattr(abi, f"FATTR_{word.upper()}")
            if name.endswith("_ns"):
                fields[word], fields[f"{word}nsec"] = divmod(value, 10**9)
            else:
                fields[word] = value
        if "mode" in changes:
            fields["mode"] = (await self.fstat(Fd(ino, 0, 0, 0), by_fh=False)).mode & ~0o7777 | changes["mode"]
        await self.ask(abi.SETATTR, ino, valid=valid, **fields)

    async def getxattr(self, path: str, name: bytes) -> bytes:
        """getxattr(2)."""
        return (await self.ask(abi.GETXATTR, await self.ino(path), names=[name], size=65536)).data

    async def setxattr(self, path: str, name: bytes, value: bytes) -> None:
        """setxattr(2)."""
        await self.ask(abi.SETXATTR, await self.ino(path), names=[name], size=len(value), data=value)

    async def removexattr(self, path: str, name: bytes) -> None:
        """removexattr(2)."""
        await self.ask(abi.REMOVEXATTR, await self.ino(path), names=[name])

    async def listxattr(self, path: str) -> list[bytes]:
        """listxattr(2)."""
        return (await self.ask(abi.LISTXATTR, await self.ino(path), size=65536)).data.split(b"\0")[:-1]

    # Names.

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        """mkdir(2)."""
        parent, name = await self.parent(path)
        await self.ask(abi.MKDIR, parent, names=[name], mode=self.masked(mode), umask=_UMASK)

    async def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        """mknod(2)."""
        parent, name = await self.parent(path)
        await self.ask(abi.MKNOD, parent, names=[name], mode=self.masked(mode), rdev=rdev, umask=_UMASK)

    async def symlink(self, target: str, path: str) -> None:
        """symlink(2)."""
        parent, name = await self.parent(path)
        await self.ask(abi.SYMLINK, parent, names=[name, os.fsencode(target)])

    async def readlink(self, path: str) -> str:
        """readlink(2)."""
        return os.fsdecode((await self.ask(abi.READLINK, await self.ino(path))).data)

    async def unlink(self, path: str) -> None:
        """unlink(2)."""
        parent, name = await self.parent(path)
        if await self.entry(parent, name) is None:
            raise FileNotFoundError(errno.ENOENT, path)
        await self.ask(abi.UNLINK, parent, names=[name])

    async def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        parent, name = await self.parent(path)
        await self.ask(abi.RMDIR, parent, names=[name])

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        """renameat2(2)."""
        (parent, name), (newdir, newname) = await self.parent(old), await self.parent(new)
        await self.entry(parent, name)
        await self.entry(newdir, newname)
        await self.ask(abi.RENAME2, parent, newdir=newdir, names=[name, newname], flags=flags)

    async def list(self, path: str = "", size: int = 4096) -> dict[str, dict[str, Any]]:
        """Read a directory with READDIRPLUS: name -> fields of the entry, without "." and ".."."""
        ino = await self.ino(path, directory=True)
        fh = (await self.ask(abi.OPENDIR, ino, flags=0)).fields["fh"]
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        try:
            while data := (await self.ask(abi.READDIRPLUS, ino, fh=fh, offset=offset, size=size)).data:
                for entry in codec.decode_dirents(data, plus=True):
                    offset = entry["dirent_off"]
                    name = os.fsdecode(entry["name"])
                    assert name not in found, f"{name} is listed twice"
                    found[name] = entry
        finally:
            await self.ask(abi.RELEASEDIR, ino, fh=fh)
        del found["."], found[".."]
        return found

    async def names(self, path: str = "") -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(await self.list(path))

    async def ls_l(self, path: str = "") -> dict[str, Stat]:
        """List a directory and stat what the listing said nothing of, one after the other, as "ls -l" does."""
        found = {}
        for name, entry in (await self.list(path)).items():
            known = entry["entry_out_nodeid"]
            found[name] = _stat(entry, "entry_out_attr_") if known else await self.stat(f"{path}/{name}")
        return found


def _stat(fields: dict[str, Any], prefix: str) -> Stat:
    get = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    times = (get[word] * 10**9 + get[f"{word}nsec"] for word in ("atime", "mtime", "ctime"))
    return Stat(get["ino"], get["mode"], get["nlink"], get["uid"], get["gid"], get["size"], *times)


@asynccontextmanager
async def using(store: FakeStore, home: Path, source: str | None = "bucket", **options: Any) -> AsyncIterator[User]:
    """Mount *store*, its cache, journal and staging files below *home*; at the end the kernel's reckoning must come out.

    What is not said in *options*: nothing is probed, and names are believed for a minute.
    """
    given = {"probe": False, "metadata_ttl": 60.0, "cache_dir": str(home / "cache"), "staging_dir": str(home / "staging")}
    fs = S3FS(source, S3Options(**{**given, **options}), store=store)
    kernel = FakeKernel(fs)
    async with kernel:
        user = User(fs, kernel, store)
        store.calls.clear()
        yield user
        for fd in user.fds[:]:
            with suppress(OSError):
                await user.close(fd)
        kernel.forget_all()
        await kernel.settle()
        await kernel.request(abi.STATFS, 1)
        kernel.check()


async def eventually(check: Callable[[], object], what: str = "") -> None:
    """Wait until *check* is true; the test's own time limit is the only one."""
    for _ in range(20_000):
        if check():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"never came: {what}")


def refusal(number: int) -> Any:
    """Return a context in which an OSError with this errno must be raised: ``with refusal(errno.ESTALE):``"""
    return _Refusal(number)


class _Refusal:
    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> bool:
        assert exc is not None, f"{errno.errorcode[self.number]} was not raised"
        if not isinstance(exc, OSError):
            return False
        assert exc.errno == self.number, f"{exc!r} instead of {errno.errorcode[self.number]}"
        return True


__all__ = ["CALLER", "ME", "MIB", "Fd", "Stat", "User", "eventually", "refusal", "using"]
