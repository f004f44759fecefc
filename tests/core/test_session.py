"""The session: what is called, what is answered, and that each request is answered once, whatever a handler does."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import os
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from driver import OFFERED, Counting, Driver, attr, make_fs
from wire import BY_OPCODE, EXAMPLES, GROUPS_BLOCK, NODEID, SECURITY_BLOCK, Handle, cut

from pyfusekit.core import abi, codec
from pyfusekit.core.capabilities import Limits
from pyfusekit.core.errors import ProtocolError
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.notify import Notifier
from pyfusekit.core.session import KEPT, SCHEDULED, Session
from pyfusekit.core.table import COPY_UP_TO
from pyfusekit.core.types import Attr, DirEntry, Ioctl, Lock, Opened, Request, SetAttr, StatFs

LOGGER = "pyfusekit.core.session"


def records(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= level and record.name.startswith("pyfusekit")]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


def arguments_of(opcode: int) -> dict[str, Any]:
    """Return what encode_request takes for a well-formed request of *opcode*, with handle 0."""
    example = BY_OPCODE[opcode]
    fields = {name: 0 if name.startswith("fh") else value for name, value in example.fields.items()}
    return {"names": example.names, "data": example.data, "body": fields}


# --- what is not overridden ---------------------------------------------------------------------------------------------

NOT_OVERRIDDEN = {
    # ENOSYS, which the kernel remembers (fuse.md 2.4).
    "LINK": errno.ENOSYS, "RENAME2": errno.ENOSYS, "ACCESS": errno.ENOSYS, "FLUSH": errno.ENOSYS, "FSYNC": errno.ENOSYS,
    "FSYNCDIR": errno.ENOSYS, "SETXATTR": errno.ENOSYS, "GETXATTR": errno.ENOSYS, "LISTXATTR": errno.ENOSYS,
    "REMOVEXATTR": errno.ENOSYS, "LSEEK": errno.ENOSYS, "FALLOCATE": errno.ENOSYS, "COPY_FILE_RANGE": errno.ENOSYS,
    "COPY_FILE_RANGE_64": errno.ENOSYS, "STATX": errno.ENOSYS, "TMPFILE": errno.ENOSYS, "POLL": errno.ENOSYS,
    "BMAP": errno.ENOSYS, "CREATE": errno.ENOSYS, "SYNCFS": errno.ENOSYS,
    # ENOSYS, which it makes ENOTTY or does not send without being asked to.
    "IOCTL": errno.ENOSYS, "READDIRPLUS": errno.ENOSYS, "GETLK": errno.ENOSYS, "SETLK": errno.ENOSYS,
    "SETLKW": errno.ENOSYS, "SETUPMAPPING": errno.ENOSYS, "REMOVEMAPPING": errno.ENOSYS, "GETATTR": errno.ENOSYS,
    # What a person understands.
    "LOOKUP": errno.ENOENT, "SETATTR": errno.EPERM, "READLINK": errno.EINVAL, "SYMLINK": errno.EPERM, "MKNOD": errno.EPERM,
    "MKDIR": errno.EPERM, "UNLINK": errno.EPERM, "RMDIR": errno.EPERM, "RENAME": errno.EPERM,
    "READ": errno.EOPNOTSUPP, "WRITE": errno.EOPNOTSUPP, "READDIR": errno.EOPNOTSUPP,
    # Success.
    "OPEN": 0, "OPENDIR": 0, "RELEASE": 0, "RELEASEDIR": 0, "STATFS": 0, "DESTROY": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "opcode", [opcode for opcode, op in abi.OPS.items() if op.out is not abi.NO_REPLY and op.name != "INIT"]
)
def test_what_is_not_overridden_is_answered_by_the_table(opcode: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(Filesystem())
    assert driver.ask(opcode, **arguments_of(opcode)).error == NOT_OVERRIDDEN[abi.OPS[opcode].name]
    assert records(caplog) == []


def test_a_setxattr_that_is_not_overridden_has_the_short_form() -> None:
    driver = Driver(Filesystem())
    assert driver.ask(abi.SETXATTR, names=[b"user.x"], data=b"v", layout=abi.SETXATTR_IN_COMPAT, size=1).error == errno.ENOSYS


def test_open_that_is_not_overridden_has_no_handle() -> None:
    driver = Driver(Filesystem())
    assert driver.ask(abi.OPEN).fields == {"fh": 0, "open_flags": 0, "backing_id": 0}


def test_statfs_that_is_not_overridden_says_zeros() -> None:
    fields = Driver(Filesystem()).ask(abi.STATFS).fields
    assert (fields["st_blocks"], fields["st_bsize"], fields["st_namelen"]) == (0, 4096, 255)


def test_stateless_opens_are_enosys_so_that_the_kernel_stops_asking() -> None:
    driver = Driver(make_fs(stateless_open=True, stateless_opendir=True, create=lambda *a: None))
    assert driver.ask(abi.OPEN).error == errno.ENOSYS
    assert driver.ask(abi.OPENDIR).error == errno.ENOSYS
    assert driver.ask(abi.CREATE, names=[b"x"]).error == errno.ENOSYS


def test_stateless_opens_are_not_enosys_to_a_kernel_that_does_not_know_it() -> None:
    driver = Driver(make_fs(stateless_open=True, stateless_opendir=True), offered=0)
    assert driver.ask(abi.OPEN).error == 0
    assert driver.ask(abi.OPENDIR).error == 0


def test_flush_is_0_where_locks_are_kept() -> None:
    locks = {name: lambda *a: None for name in ("getlk", "setlk", "setlkw")}
    assert Driver(make_fs(**locks)).ask(abi.FLUSH).error == 0
    assert Driver(make_fs(**locks), offered=0).ask(abi.FLUSH).error == errno.ENOSYS
    assert Driver(Filesystem()).ask(abi.FLUSH).error == errno.ENOSYS


def test_interrupt_and_forgets_are_never_answered() -> None:
    driver = Driver(Filesystem())
    driver.interrupt(98)
    driver.send(abi.FORGET, nlookup=1)
    driver.send(abi.BATCH_FORGET, count=1, data=struct.pack("<QQ", 1, 1))
    driver.send(abi.NOTIFY_REPLY, size=0)
    assert len(driver.replies) == 1  # INIT's


@pytest.mark.parametrize("opcode", [0, 7, 19, 54, 61, 4096, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_unknown_operation_is_enosys(opcode: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(Filesystem())
    driver.feed(struct.pack("<IIQQIIIHH", 48, opcode, 50, 1, 0, 0, 0, 0, 0) + b"\0" * 8)
    assert driver.replies[-1] == (50, struct.pack("<IiQ", 16, -errno.ENOSYS, 50))
    assert len(records(caplog)) == 1


def test_implements_may_be_overridden() -> None:
    fs = make_fs(readlink=lambda request, ino: b"target", implements=lambda method: False)
    assert Driver(fs).ask(abi.READLINK).error == errno.EINVAL


# --- calls --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [e for e in EXAMPLES if abi.OPS[e.opcode].method], ids=lambda e: e.name)
def test_every_method_gets_its_request_and_arguments(example: Any) -> None:
    op = abi.OPS[example.opcode]
    got: list[Any] = []

    def handler(request: Request, *arguments: Any) -> Any:
        got.append(request)
        got.extend(bytes(a) if isinstance(a, memoryview) else a for a in arguments)
        raise OSError(errno.EDOM, "seen")

    extra = {name: handler for name in ("getlk", "setlk", "setlkw")} if op.method.startswith(("getlk", "setlk")) else {}
    driver = Driver(make_fs(**{**extra, op.method: handler}, handle_killpriv=True))
    driver.session.handles.objects[:] = [None, "first", "second"]
    fields = {name: {"fh_out": 2}.get(name, 1) if name.startswith("fh") else value for name, value in example.fields.items()}
    unique = driver.send(example.opcode, 0x33, uid=1000, gid=100, pid=4321, names=example.names, data=example.data, body=fields)
    assert driver.reply(unique).error == errno.EDOM
    request = got.pop(0)
    assert (request.unique, request.uid, request.gid, request.pid) == (unique, 1000, 100, 4321)
    assert (request.flags, request.size, request.extensions) == (example.flags, example.size, None)
    expected = ["first" if isinstance(wanted, Handle) else wanted for wanted in example.arguments]
    expected = [0x33 if value == NODEID else value for value in expected]
    if "fh_out" in fields:
        expected[4] = "second"
    assert got == expected


@pytest.mark.parametrize("size", [0, 1, 5, 6, 100])
def test_setxattr_without_the_extension_has_the_short_form(size: int) -> None:
    got: list[Any] = []
    fs = make_fs(setxattr=lambda request, ino, name, value, flags: got.append((name, bytes(value), flags, request.flags)))
    driver = Driver(fs, offered=OFFERED & ~abi.SETXATTR_EXT)
    value = b"v" * size
    reply = driver.ask(abi.SETXATTR, names=[b"user.n"], data=value, layout=abi.SETXATTR_IN_COMPAT, size=size, flags=2)
    assert reply.error == 0
    assert got == [(b"user.n", value, 2, 0)]


def test_extensions_come_with_the_request() -> None:
    got: list[Any] = []

    def mkdir(request: Request, parent: int, name: bytes, mode: int, umask: int) -> Attr:
        got.append((name, request.extensions))
        return attr()

    driver = Driver(make_fs(mkdir=mkdir, security_ctx=True, create_supp_group=True))
    driver.ask(abi.MKDIR, names=[b"d"], mode=0o755, extensions=SECURITY_BLOCK + GROUPS_BLOCK)
    driver.ask(abi.MKDIR, names=[b"e"], mode=0o755)
    (name, extensions), (other, none) = got
    assert (name, extensions.secctx) == (b"d", [(b"security.selinux", b"label_t:s")])
    assert extensions.groups == [0x04030201, 0x0D0C0B0A]
    assert (other, none) == (b"e", None)


@pytest.mark.parametrize("units", [1, 2, 4, 100, 65535])
def test_extensions_that_do_not_fit_are_eio_and_logged(units: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(make_fs(mkdir=lambda *a: attr()))
    unique, message = driver.encode(abi.MKDIR, names=[b"d"], extensions=GROUPS_BLOCK)
    broken = bytearray(message)
    struct.pack_into("<H", broken, 36, units)
    driver.feed(bytes(broken))
    assert driver.reply(unique).error == errno.EIO
    assert "protocol error" in caplog.text


def test_rename_has_no_flags_and_rename2_has_them() -> None:
    got: list[Any] = []
    driver = Driver(make_fs(rename=lambda *a: got.append(a[1:])))
    driver.ask(abi.RENAME, 5, names=[b"a", b"b"], newdir=6)
    driver.ask(abi.RENAME2, 5, names=[b"a", b"b"], newdir=6, flags=abi.RENAME_NOREPLACE)
    assert got == [(5, b"a", 6, b"b", 0), (5, b"a", 6, b"b", 1)]


# --- answers ------------------------------------------------------------------------------------------------------------


def test_a_found_name_is_an_entry_with_the_filesystems_timeouts() -> None:
    fs = make_fs(lookup=lambda *a: attr(9, generation=3), entry_ttl=2.5, attr_ttl=math.inf)
    fields = Driver(fs).ask(abi.LOOKUP, names=[b"x"]).fields
    assert (fields["nodeid"], fields["generation"], fields["attr_ino"]) == (9, 3, 9)
    assert (fields["entry_valid"], fields["entry_valid_nsec"]) == (2, 500_000_000)
    assert fields["attr_valid"] == codec.LONGEST_TTL


def test_none_is_a_name_that_is_absent_for_negative_ttl() -> None:
    fields = Driver(make_fs(lookup=lambda *a: None, negative_ttl=7.0)).ask(abi.LOOKUP, names=[b"x"]).fields
    assert (fields["nodeid"], fields["entry_valid"]) == (0, 7)


def test_create_answers_the_entry_and_the_open_file() -> None:
    fs = make_fs(create=lambda *a: (attr(9), Opened("handle", abi.FOPEN_KEEP_CACHE)))
    driver = Driver(fs)
    fields = driver.ask(abi.CREATE, names=[b"x"]).fields
    assert (fields["entry_nodeid"], fields["open_open_flags"]) == (9, abi.FOPEN_KEEP_CACHE)
    assert driver.session.handles[fields["open_fh"]] == "handle"


class _Backing:
    id = 17


@pytest.mark.parametrize(("admin", "flags", "backing_id"), [(True, abi.FOPEN_PASSTHROUGH, 17), (False, 0, 0)])
def test_a_backing_file_is_used_where_the_kernel_agreed(admin: bool, flags: int, backing_id: int) -> None:
    fs = make_fs(open=lambda *a: Opened("h", backing=_Backing()))
    fields = Driver(fs, limits=Limits(may_passthrough=admin)).ask(abi.OPEN).fields
    assert (fields["open_flags"], fields["backing_id"]) == (flags, backing_id)


@pytest.mark.parametrize(
    ("opcode", "returned", "body"),
    [
        (abi.READLINK, b"to", b"to"),
        (abi.READLINK, bytearray(b"to"), b"to"),
        (abi.READ, b"", b""),
        (abi.READ, b"data", b"data"),
        (abi.READ, bytearray(b"data"), b"data"),
        (abi.READ, memoryview(b"xdatax")[1:5], b"data"),
        (abi.READ, b"d" * 100_000, b"d" * 100_000),
        (abi.READ, bytearray(b"d" * 100_000), b"d" * 100_000),
        (abi.READ, memoryview(b"d" * 100_000), b"d" * 100_000),
        (abi.READ, [], b""),
        (abi.READ, [b"da", memoryview(b"ta")], b"data"),
        (abi.READ, [b"d" * 50_000, bytearray(b"e" * 50_000)], b"d" * 50_000 + b"e" * 50_000),
        (abi.READ, [bytes([i & 255]) * 10 for i in range(10_000)], b"".join(bytes([i & 255]) * 10 for i in range(10_000))),
        (abi.LISTXATTR, [b"user.a", b"user.b"], b"user.a\0user.b\0"),
        (abi.LISTXATTR, [], b""),
        (abi.GETXATTR, b"value", b"value"),
        (abi.GETXATTR, memoryview(b"value"), b"value"),
    ],
)
async def test_bytes_arrive_as_they_are(opcode: int, returned: Any, body: bytes) -> None:
    async def later(*a: Any) -> Any:
        return returned

    method = abi.OPS[opcode].method
    for handler in (lambda *a: returned, later):
        driver = Driver(make_fs(**{method: handler}))
        names = [b"user.x"] if opcode == abi.GETXATTR else []
        fields = {} if opcode == abi.READLINK else {"size": 100_000}
        assert (await driver.wait(opcode, names=names, **fields)).data == body


def test_a_read_of_exactly_what_was_asked_is_fine_and_one_byte_more_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    for piece in (b"12345", [b"12", b"345"], memoryview(b"12345")):
        driver = Driver(make_fs(read=lambda *a, piece=piece: piece))
        assert driver.ask(abi.READ, size=5).data == b"12345"
        caplog.clear()
        assert driver.ask(abi.READ, size=4).error == errno.EIO
        assert len(tracebacks(caplog)) == 1


def test_a_symlink_target_longer_than_a_path_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    assert Driver(make_fs(readlink=lambda *a: b"t" * 4095)).ask(abi.READLINK).data == b"t" * 4095
    assert Driver(make_fs(readlink=lambda *a: b"t" * 4096)).ask(abi.READLINK).error == errno.EIO
    assert len(records(caplog)) == 1


@pytest.mark.parametrize(
    ("size", "error", "data"),
    [(0, 0, struct.pack("<II", 5, 0)), (4, errno.ERANGE, b""), (5, 0, b"value"), (6, 0, b"value"), (65536, 0, b"value")],
)
def test_getxattr_answers_size_queries_and_erange(size: int, error: int, data: bytes) -> None:
    reply = Driver(make_fs(getxattr=lambda *a: b"value")).ask(abi.GETXATTR, names=[b"user.x"], size=size)
    assert (reply.error, reply.data) == (error, data)


@pytest.mark.parametrize(
    ("size", "error", "data"),
    [(0, 0, struct.pack("<II", 14, 0)), (13, errno.ERANGE, b""), (14, 0, b"user.a\0user.b\0"), (99, 0, b"user.a\0user.b\0")],
)
def test_listxattr_answers_size_queries_and_erange(size: int, error: int, data: bytes) -> None:
    reply = Driver(make_fs(listxattr=lambda *a: [b"user.a", b"user.b"])).ask(abi.LISTXATTR, size=size)
    assert (reply.error, reply.data) == (error, data)


def test_an_empty_xattr_and_an_empty_list_are_answers() -> None:
    fs = make_fs(getxattr=lambda *a: b"", listxattr=lambda *a: [])
    for size in (0, 10):
        assert Driver(fs).ask(abi.GETXATTR, names=[b"user.x"], size=size).data == (b"" if size else b"\0" * 8)
        assert Driver(fs).ask(abi.LISTXATTR, size=size).data == (b"" if size else b"\0" * 8)


@pytest.mark.parametrize(
    ("opcode", "returned", "fields"),
    [
        (abi.WRITE, 5, {"size": 5}),
        (abi.POLL, 5, {"revents": 5}),
        (abi.LSEEK, 2**40, {"offset": 2**40}),
        (abi.BMAP, 77, {"block": 77}),
        (abi.COPY_FILE_RANGE, 2**31, {"size": 2**31}),
        (abi.COPY_FILE_RANGE_64, 2**40, {"bytes_copied": 2**40}),
        (abi.GETLK, None, {"lk_type": 2}),
        (abi.GETLK, Lock(1, 5, 9, 44), {"lk_type": 1, "lk_start": 5, "lk_end": 9, "lk_pid": 44}),
        (
            abi.STATFS,
            StatFs(1, 2, 3, 4, 5, 6, 7, 8),
            {"st_blocks": 1, "st_ffree": 5, "st_bsize": 6, "st_frsize": 7, "st_namelen": 8},
        ),
        (abi.IOCTL, None, {"result": 0}),
        (abi.IOCTL, Ioctl(-3, b"abc"), {"result": -3}),
        (abi.STATX, attr(9, btime_ns=5 * 10**9), {"stat_ino": 9, "stat_btime_tv_sec": 5}),
        (abi.GETATTR, attr(9, size=55), {"attr_ino": 9, "attr_size": 55}),
    ],
)
async def test_values_arrive_in_their_fields(opcode: int, returned: Any, fields: dict[str, int]) -> None:
    async def later(*a: Any) -> Any:
        return returned

    locks: dict[str, Any] = {name: lambda *a: None for name in ("getlk", "setlk", "setlkw")}
    for handler in (lambda *a: returned, later):
        driver = Driver(make_fs(**{**locks, abi.OPS[opcode].method: handler}))
        got = await driver.wait(opcode, **{**arguments_of(opcode)})
        assert {name: got.fields[name] for name in fields} == fields
        if opcode == abi.IOCTL and returned is not None:
            assert got.data == b"abc"


def test_an_ioctl_that_returns_more_than_fits_is_eio() -> None:
    driver = Driver(make_fs(ioctl=lambda *a: Ioctl(0, b"12345")))
    assert driver.ask(abi.IOCTL, out_size=5).data == b"12345"
    assert driver.ask(abi.IOCTL, out_size=4).error == errno.EIO


# Listings.


def entries(count: int = 5, *, plus: bool = False) -> list[DirEntry]:
    return [DirEntry(b"name%d" % i, i + 10, 0o100644, i + 1, attr(i + 10) if plus else None) for i in range(count)]


def listed(reply: codec.ReplyMessage, plus: bool = False) -> list[bytes]:
    return [entry["name"] for entry in codec.decode_dirents(reply.data, plus)]


@pytest.mark.parametrize(
    "kind", ["list", "tuple", "generator", "iterator", "async generator", "coroutine", "coroutine of async"]
)
@pytest.mark.parametrize("plus", [False, True])
async def test_anything_that_yields_entries_is_a_listing(kind: str, plus: bool) -> None:
    def generator() -> Iterator[DirEntry]:
        yield from entries(plus=plus)

    async def agenerator(*a: Any) -> AsyncIterator[DirEntry]:
        for entry in entries(plus=plus):
            await asyncio.sleep(0)
            yield entry

    async def coroutine(*a: Any) -> list[DirEntry]:
        return entries(plus=plus)

    async def coroutine_of_async(*a: Any) -> Any:
        return agenerator()

    handler = {
        "list": lambda *a: entries(plus=plus),
        "tuple": lambda *a: tuple(entries(plus=plus)),
        "generator": lambda *a: generator(),
        "iterator": lambda *a: iter(entries(plus=plus)),
        "async generator": agenerator,
        "coroutine": coroutine,
        "coroutine of async": coroutine_of_async,
    }[kind]
    opcode = abi.READDIRPLUS if plus else abi.READDIR
    driver = Driver(make_fs(Counting, **{abi.OPS[opcode].method: handler}))
    assert listed(await driver.wait(opcode, size=4096), plus) == [b"name%d" % i for i in range(5)]
    assert driver.fs.lookups == (dict.fromkeys(range(10, 15), 1) if plus else {})  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listing_stops_where_the_reply_is_full_and_closes_its_source(is_async: bool) -> None:
    taken: list[int] = []
    closed: list[bool] = []

    def sync() -> Iterator[DirEntry]:
        try:
            for entry in entries(10_000):
                taken.append(entry.ino)
                yield entry
        finally:
            closed.append(True)

    async def lazy(*a: Any) -> AsyncIterator[DirEntry]:
        try:
            for entry in entries(10_000):
                taken.append(entry.ino)
                yield entry
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    driver = Driver(make_fs(readdir=lazy if is_async else lambda *a: sync()))
    reply = await driver.wait(abi.READDIR, size=100)
    assert listed(reply) == [b"name0", b"name1", b"name2"]
    assert len(taken) == 4
    assert closed == [True]


async def test_an_entry_that_fits_nowhere_is_einval_and_not_the_end() -> None:
    async def lazy(*a: Any) -> AsyncIterator[DirEntry]:
        yield entries()[0]

    for handler in (lambda *a: entries(), lazy):
        driver = Driver(make_fs(readdir=handler))
        assert (await driver.wait(abi.READDIR, size=31)).error == errno.EINVAL
    assert Driver(make_fs(readdir=lambda *a: [])).ask(abi.READDIR, size=0).data == b""


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "gone"), ValueError("a bug")])
async def test_a_listing_that_fails_half_way_takes_its_counts_back(is_async: bool, error: Exception) -> None:
    def sync() -> Iterator[DirEntry]:
        yield from entries(3, plus=True)
        raise error

    async def lazy(*a: Any) -> AsyncIterator[DirEntry]:
        for entry in entries(3, plus=True):
            yield entry
        raise error

    driver = Driver(make_fs(Counting, readdirplus=lazy if is_async else lambda *a: sync()))
    reply = await driver.wait(abi.READDIRPLUS, size=4096)
    assert reply.error == (errno.ESTALE if isinstance(error, OSError) else errno.EIO)
    assert set(driver.fs.lookups.values()) == {0}  # type: ignore[attr-defined]


async def test_a_source_that_fails_when_it_is_closed_takes_its_counts_back() -> None:
    async def lazy(*a: Any) -> AsyncIterator[DirEntry]:
        try:
            for entry in entries(100, plus=True):
                yield entry
        finally:
            raise OSError(errno.EREMOTEIO, "closing failed")

    driver = Driver(make_fs(Counting, readdirplus=lazy))
    assert (await driver.wait(abi.READDIRPLUS, size=400)).error == errno.EREMOTEIO
    assert set(driver.fs.lookups.values()) == {0}  # type: ignore[attr-defined]


async def test_an_interrupted_listing_closes_its_source_and_takes_its_counts_back() -> None:
    closed: list[bool] = []

    async def lazy(*a: Any) -> AsyncIterator[DirEntry]:
        try:
            yield entries(1, plus=True)[0]
            await asyncio.sleep(3600)
        finally:
            closed.append(True)

    driver = Driver(make_fs(Counting, readdirplus=lazy))
    unique = driver.send(abi.READDIRPLUS, size=4096)
    await driver.settle()
    assert driver.fs.lookups == {10: 1}  # type: ignore[attr-defined]
    driver.interrupt(unique)
    await driver.settle()
    assert driver.reply(unique).error == errno.EINTR
    assert closed == [True]
    assert driver.fs.lookups == {10: 0}  # type: ignore[attr-defined]


# --- errors -------------------------------------------------------------------------------------------------------------


class Bare(OSError):
    """An error without a number."""


RAISED: list[tuple[BaseException, int, bool]] = [
    (OSError(errno.ENOSPC, "full"), errno.ENOSPC, False),
    (FileNotFoundError("no number"), errno.ENOENT, False),
    (PermissionError("no number"), errno.EACCES, False),
    (TimeoutError("no number"), errno.ETIMEDOUT, False),
    (InterruptedError(), errno.EINTR, False),
    (OSError(0, "zero"), errno.EIO, False),
    (OSError(-5, "negative"), errno.EIO, False),
    (OSError(511, "the last"), 511, False),
    (OSError(512, "ERESTARTSYS"), errno.EIO, False),
    (OSError(10**9, "huge"), errno.EIO, False),
    (OSError(2**70, "beyond"), errno.EIO, False),
    (OSError(errno.ENOSYS, "only the core says so"), errno.EOPNOTSUPP, False),
    (OSError(None, "none"), errno.EIO, True),
    (OSError("no number"), errno.EIO, True),
    (OSError(), errno.EIO, True),
    (Bare("x"), errno.EIO, True),
    (NotImplementedError(), errno.EIO, True),
    (ValueError("a bug"), errno.EIO, True),
    (KeyError("a bug"), errno.EIO, True),
    (AssertionError(), errno.EIO, True),
    (StopIteration(), errno.EIO, True),
    (RecursionError(), errno.EIO, True),
    (MemoryError(), errno.EIO, True),
    (KeyboardInterrupt(), errno.EIO, True),
    (SystemExit(3), errno.EIO, True),
    (GeneratorExit(), errno.EIO, True),
    (BaseException("base"), errno.EIO, True),
    (asyncio.CancelledError(), errno.EINTR, False),
]


@pytest.mark.parametrize(("error", "number", "logged"), RAISED, ids=[repr(row[0]) for row in RAISED])
def test_whatever_a_handler_raises_is_one_answer(
    error: BaseException, number: int, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(*a: Any) -> Any:
        raise error

    driver = Driver(make_fs(getattr=handler))
    assert driver.ask(abi.GETATTR).error == number
    assert len(tracebacks(caplog)) == len(records(caplog)) == int(logged)
    assert driver.ask(abi.STATFS).error == 0


@pytest.mark.parametrize(("error", "number", "logged"), RAISED, ids=[repr(row[0]) for row in RAISED])
@pytest.mark.parametrize("waits", [False, True])
async def test_whatever_an_async_handler_raises_is_one_answer(
    error: BaseException, number: int, logged: bool, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(*a: Any) -> Any:
        if waits:
            await asyncio.sleep(0)
        raise error

    driver = Driver(make_fs(getattr=handler))
    reply = await driver.wait(abi.GETATTR)
    assert reply.error == number
    assert len(tracebacks(caplog)) == len(records(caplog)) == int(logged)
    assert driver.session.inflight == {}


def test_enosys_of_an_ioctl_is_enotty() -> None:
    def handler(*a: Any) -> Any:
        raise OSError(errno.ENOSYS, "unknown")

    assert Driver(make_fs(ioctl=handler)).ask(abi.IOCTL).error == errno.ENOTTY


@pytest.mark.parametrize("opcode", [opcode for opcode, op in abi.OPS.items() if op.method and op.out is not abi.NO_REPLY])
async def test_enosys_raised_by_a_handler_never_reaches_the_kernel(opcode: int) -> None:
    def handler(*a: Any) -> Any:
        raise OSError(errno.ENOSYS, "not mine to say")

    async def later(*a: Any) -> Any:
        raise OSError(errno.ENOSYS, "not mine to say")

    locks = {name: handler for name in ("getlk", "setlk", "setlkw")}
    for how in (handler, later):
        driver = Driver(make_fs(**{**locks, abi.OPS[opcode].method: how}, handle_killpriv=True))
        assert (await driver.wait(opcode, **arguments_of(opcode))).error in (errno.EOPNOTSUPP, errno.ENOTTY)


GARBAGE: list[Any] = [
    None, 0, -1, 2**64, 1.5, "text", b"bytes", object(), [], [None], ["x"], [1], {}, (), (1,), (None, None), (1, 2, 3), True,
    Attr(ino=-1), Attr(ino=2**64), Attr(ino=1, size=-1), Attr(ino=1, mtime_ns=2**80), Attr(ino=1, mode=-1), "t" * 10_000,
    ["t" * 10_000], [b"ok", "t" * 10_000], b"x" * 10_000, memoryview(b"12345678" * 10).cast("Q"),
    memoryview(b"12345678" * 4000).cast("Q"), [memoryview(b"12345678" * 4000).cast("Q")], memoryview(b"x" * 9999)[::2],
    (Attr(ino=-1), "handle"), (Attr(ino=1), Opened("h", flags=-1)), (Attr(ino=1), Opened("h", flags=2**40)),
    Opened("h", flags="many"), [DirEntry(b"x", -1, 0, 0)], [DirEntry("text", 1, 0, 0)], [DirEntry(b"x", 1, 0, 0, "attr")],  # type: ignore[arg-type]
    Lock(-1, -1, -1, -1), Ioctl(2**40, b""), Ioctl(0, "text"), StatFs(blocks=-1),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("opcode", [opcode for opcode, op in abi.OPS.items() if op.method and op.out is not abi.NO_REPLY])
async def test_whatever_a_handler_returns_is_one_answer(opcode: int) -> None:
    """Garbage is answered with an error or taken for what it looks like, but it is answered, and the next request too."""
    for garbage in GARBAGE:

        async def later(*a: Any, garbage: Any = garbage) -> Any:
            return garbage

        for handler in (lambda *a, garbage=garbage: garbage, later):
            locks = {name: handler for name in ("getlk", "setlk", "setlkw")}
            driver = Driver(make_fs(**{**locks, abi.OPS[opcode].method: handler}, handle_killpriv=True))
            arguments = arguments_of(opcode)
            if "size" in arguments["body"] and not arguments["data"]:
                arguments["body"]["size"] = 1 << 17
            unique = driver.send(opcode, **arguments)
            await driver.settle()
            assert driver.reply(unique).error < 512, garbage
            assert driver.session.inflight == {}
            assert (await driver.wait(abi.DESTROY)).error == 0


async def test_an_awaitable_that_is_no_coroutine_is_answered() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(attr())
    assert (await Driver(make_fs(getattr=lambda *a: future)).wait(abi.GETATTR)).error == errno.EIO


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EMSGSIZE])
@pytest.mark.parametrize("is_async", [False, True])
async def test_an_answer_the_kernel_refuses_is_eio_and_logged(
    number: int, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What is refused for its form stays pending, and its caller would wait for ever."""

    async def later(*a: Any) -> Attr:
        return attr()

    driver = Driver(make_fs(getattr=later if is_async else lambda *a: attr()))
    driver.refuse = lambda unique: 0 if unique in driver.refused else number
    reply = await driver.wait(abi.GETATTR)
    assert reply.error == errno.EIO
    assert len(records(caplog)) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.ECONNABORTED])
async def test_an_answer_that_is_always_refused_is_given_up(number: int) -> None:
    driver = Driver(make_fs(getattr=lambda *a: attr(), read=lambda *a: "t" * 10_000))
    driver.refuse = lambda unique: number
    for opcode in (abi.GETATTR, abi.READ, abi.LOOKUP, abi.DESTROY):
        driver.feed(driver.encode(opcode, **arguments_of(opcode))[1])
    assert len(driver.replies) == 1
    assert len(driver.refused) <= 8


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.ECONNABORTED])
def test_an_answer_to_nobody_is_not_logged(number: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(make_fs(getattr=lambda *a: attr()))
    driver.refuse = lambda unique: number
    driver.send(abi.GETATTR)
    driver.send(abi.LOOKUP, names=[b"x"])
    assert records(caplog) == []


# --- lookup counts and handles ------------------------------------------------------------------------------------------

MAKING = [abi.LOOKUP, abi.MKNOD, abi.MKDIR, abi.SYMLINK, abi.LINK, abi.CREATE, abi.TMPFILE]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.EINVAL])
@pytest.mark.parametrize("opcode", MAKING)
async def test_a_lookup_whose_answer_does_not_arrive_is_taken_back(opcode: int, number: int, is_async: bool) -> None:
    def result() -> Any:
        made = fs.counted()
        return (made, fs.opened("handle")) if opcode in (abi.CREATE, abi.TMPFILE) else made

    async def later(*a: Any) -> Any:
        await asyncio.sleep(0)
        return result()

    fs: Any = make_fs(Counting, **{abi.OPS[opcode].method: later if is_async else lambda *a: result()})
    driver = Driver(fs)
    assert (await driver.wait(opcode, **arguments_of(opcode))).error == 0
    assert fs.lookups == {7: 1}
    driver.refuse = lambda unique: number
    driver.send(opcode, **arguments_of(opcode))
    await driver.settle()
    assert fs.lookups == {7: 1}
    if opcode in (abi.CREATE, abi.TMPFILE):
        assert fs.files == ["handle"]
        assert fs.released == [(7, "handle")]
        assert len(driver.session.handles) == 1


def test_an_absent_name_whose_answer_does_not_arrive_takes_nothing_back() -> None:
    fs: Any = make_fs(Counting, lookup=lambda *a: None)
    driver = Driver(fs)
    driver.refuse = lambda unique: errno.ENOENT
    driver.send(abi.LOOKUP, names=[b"x"])
    assert fs.lookups == {}


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listing_whose_answer_does_not_arrive_is_taken_back(is_async: bool) -> None:
    async def later(*a: Any) -> AsyncIterator[DirEntry]:
        for entry in entries(5, plus=True):
            yield entry

    fs: Any = make_fs(Counting, readdirplus=later if is_async else lambda *a: entries(5, plus=True))
    driver = Driver(fs)
    driver.refuse = lambda unique: errno.ENOENT
    driver.send(abi.READDIRPLUS, size=4096)
    await driver.settle()
    assert fs.lookups == dict.fromkeys(range(10, 15), 0)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("handle", ["handle", None])
@pytest.mark.parametrize("opcode", [abi.OPEN, abi.OPENDIR])
async def test_a_handle_whose_answer_does_not_arrive_is_released(opcode: int, handle: Any, is_async: bool) -> None:
    async def later(*a: Any) -> Any:
        return fs.opened(handle)

    fs: Any = make_fs(Counting, **{abi.OPS[opcode].method: later if is_async else lambda *a: fs.opened(handle)})
    driver = Driver(fs)
    driver.refuse = lambda unique: errno.ENOENT
    driver.send(opcode, 5)
    await driver.settle()
    assert fs.released == [(5, handle)]
    assert fs.files == []
    assert len(driver.session.handles) == 0


async def test_handles_that_take_long_to_release_are_all_waited_for() -> None:
    going = asyncio.Event()
    done: list[Any] = []

    async def release(request: Request, ino: int, handle: Any) -> None:
        await going.wait()
        done.append(handle)

    handles = iter("abc")
    driver = Driver(make_fs(open=lambda *a: next(handles), release=release))
    driver.refuse = lambda unique: errno.ENOENT
    for _ in range(3):
        driver.send(abi.OPEN)
    assert len(driver.session.inflight) == 3
    await driver.settle()
    going.set()
    await driver.settle()
    assert done == ["a", "b", "c"]
    assert driver.session.inflight == {}


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_release_of_a_lost_handle_that_fails_is_logged_and_answered_to_nobody(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def release(*a: Any) -> Any:
        raise ValueError("a bug")

    async def later(*a: Any) -> Any:
        raise ValueError("a bug")

    driver = Driver(make_fs(open=lambda *a: "h", release=later if is_async else release))
    driver.refuse = lambda unique: errno.ENOENT
    unique = driver.send(abi.OPEN)
    await driver.settle()
    assert driver.taken(unique) == []
    assert driver.refused == [unique]
    assert len(tracebacks(caplog)) == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "late"), ValueError("a bug")])
def test_an_error_whose_answer_does_not_arrive_takes_nothing_back(error: Exception) -> None:
    def handler(*a: Any) -> Any:
        raise error

    fs: Any = make_fs(Counting, create=handler, lookup=handler, open=handler)
    driver = Driver(fs)
    driver.refuse = lambda unique: errno.ENOENT
    for opcode in (abi.CREATE, abi.LOOKUP, abi.OPEN):
        driver.send(opcode, **arguments_of(opcode))
    assert fs.lookups == {}
    assert fs.released == []


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("opcode", MAKING)
async def test_a_lookup_that_cannot_be_put_into_words_is_taken_back(opcode: int, is_async: bool) -> None:
    def result() -> Any:
        made = fs.counted()
        made.size = -1
        return (made, "handle") if opcode in (abi.CREATE, abi.TMPFILE) else made

    async def later(*a: Any) -> Any:
        return result()

    fs: Any = make_fs(Counting, **{abi.OPS[opcode].method: later if is_async else lambda *a: result()})
    driver = Driver(fs)
    assert (await driver.wait(opcode, **arguments_of(opcode))).error == errno.EIO
    assert fs.lookups == {7: 0}
    assert len(driver.session.handles) == 0


def test_a_forget_that_fails_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, int]] = []

    def forget(ino: int, nlookup: int) -> None:
        seen.append((ino, nlookup))
        if ino == 6:
            raise KeyError("a bug")
        if ino == 8:
            raise SystemExit

    driver = Driver(make_fs(forget=forget))
    driver.send(abi.FORGET, 6, nlookup=3)
    driver.send(abi.BATCH_FORGET, 0, count=4, data=struct.pack("<8Q", 5, 1, 6, 2, 8, 3, 7, 2**63))
    assert seen == [(6, 3), (5, 1), (6, 2), (8, 3), (7, 2**63)]
    assert len(tracebacks(caplog)) == 3
    assert len(driver.replies) == 1


def test_a_batch_forget_that_does_not_add_up_forgets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    driver = Driver(make_fs(forget=lambda *a: seen.append(a)))
    for count in (0, 1, 3, 0xFFFFFFFF):
        driver.send(abi.BATCH_FORGET, 0, count=count, data=struct.pack("<4Q", 5, 1, 6, 2))
    assert seen == []
    assert caplog.text.count("protocol error") == 4
    assert len(driver.replies) == 1


def test_a_handle_comes_back_until_it_is_released() -> None:
    seen: list[Any] = []
    handle = object()

    def read(request: Request, ino: int, h: Any, offset: int, size: int) -> bytes:
        seen.append(h)
        return b""

    fs = make_fs(
        open=lambda *a: handle,
        read=read,
        release=lambda request, ino, h: seen.append(h),
    )
    driver = Driver(fs)
    fh = driver.ask(abi.OPEN).fields["fh"]
    assert fh != 0
    driver.ask(abi.READ, fh=fh, size=1)
    assert driver.ask(abi.RELEASE, fh=fh).error == 0
    assert seen == [handle, handle]
    assert driver.ask(abi.READ, fh=fh, size=1).error == errno.EBADF
    assert driver.ask(abi.RELEASE, fh=fh).error == errno.EBADF
    assert seen == [handle, handle]


def test_handle_0_is_none_and_may_be_released_often() -> None:
    seen: list[Any] = []
    driver = Driver(make_fs(release=lambda request, ino, handle: seen.append(handle)))
    assert driver.ask(abi.RELEASE, fh=0).error == driver.ask(abi.RELEASE, fh=0).error == 0
    assert seen == [None, None]


@pytest.mark.parametrize(
    "opcode", [o for o, op in abi.OPS.items() if op.struct is not None and "fh" in op.struct.fields and op.method]
)
def test_a_handle_that_was_never_given_is_ebadf(opcode: int) -> None:
    called: list[Any] = []
    names = ("getlk", "setlk", "setlkw", abi.OPS[opcode].method)
    driver = Driver(make_fs(**{name: lambda *a: called.append(a) for name in names}, handle_killpriv=True))
    for fh in (1, 99, 2**63, 2**64 - 1):
        arguments = arguments_of(opcode)
        arguments["body"]["fh"] = fh
        assert driver.ask(opcode, **arguments).error == errno.EBADF
    assert called == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "late"), ValueError("a bug")])
async def test_a_handle_ends_with_its_release_even_when_that_fails(error: Exception) -> None:
    async def later(*a: Any) -> None:
        await asyncio.sleep(0)
        raise error

    def release(*a: Any) -> None:
        raise error

    for handler in (release, later):
        driver = Driver(make_fs(open=lambda *a: "h", release=handler))
        fh = driver.ask(abi.OPEN).fields["fh"]
        assert (await driver.wait(abi.RELEASE, fh=fh)).error == errno.EIO
        assert len(driver.session.handles) == 0


# --- handlers that wait -------------------------------------------------------------------------------------------------


async def test_other_requests_go_on_while_one_waits() -> None:
    go = asyncio.Event()

    async def read(request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        await go.wait()
        return b"%d" % offset

    driver = Driver(make_fs(read=read, getattr=lambda *a: attr()))
    waiting = [driver.send(abi.READ, offset=i, size=9) for i in range(100)]
    assert driver.ask(abi.GETATTR).error == 0
    assert len(driver.session.inflight) == 100
    go.set()
    await driver.settle()
    assert [driver.reply(unique).data for unique in waiting] == [b"%d" % i for i in range(100)]
    assert driver.session.inflight == {}


async def test_receive_says_that_a_task_waits_and_whether_it_keeps_the_buffer() -> None:
    async def handler(*a: Any) -> Any:
        return 1

    driver = Driver(make_fs(read=handler, write=handler, getattr=lambda *a: attr()))
    assert driver.feed(driver.encode(abi.GETATTR)[1]) == 0
    assert driver.feed(driver.encode(abi.READ, size=5)[1]) == SCHEDULED
    assert driver.feed(driver.encode(abi.WRITE, size=100_000, data=b"a" * 100_000)[1]) == SCHEDULED | KEPT
    await driver.settle()


async def test_small_data_of_an_async_method_is_copied_and_no_buffer_kept() -> None:
    """A thousand small writes in flight would otherwise hold a thousand buffers of a mebibyte."""
    got: list[bytes] = []

    async def write(request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        await asyncio.sleep(0)
        got.append(bytes(data))
        return len(data)

    driver = Driver(make_fs(write=write))
    sent = [bytes([i]) * size for i, size in enumerate((1, 4096, COPY_UP_TO - 80, COPY_UP_TO - 79))]
    said = [driver.feed(driver.encode(abi.WRITE, size=len(data), data=data)[1]) for data in sent]
    assert said == [SCHEDULED] * 3 + [SCHEDULED | KEPT]
    await driver.settle()
    assert got == sent
    assert len(driver.recycled) == 1


@pytest.mark.parametrize("is_def", [False, True])
@pytest.mark.parametrize("length", [1000, 60_000])
@pytest.mark.parametrize("opcode", [abi.WRITE, abi.SETXATTR, abi.IOCTL])
async def test_data_stays_whole_while_a_handler_waits_and_the_buffer_comes_back(opcode: int, length: int, is_def: bool) -> None:
    got: dict[int, bytes] = {}
    go = asyncio.Event()

    async def handler(request: Request, *arguments: Any) -> Any:
        await go.wait()
        (view,) = (a for a in arguments if isinstance(a, memoryview))
        got[request.unique] = bytes(view)
        return Ioctl() if opcode == abi.IOCTL else len(view)

    driver = Driver(make_fs(**{abi.OPS[opcode].method: (lambda *a: handler(*a)) if is_def else handler}))
    sent = {}
    for i in range(5):
        data = bytes([i]) * length
        size = {"in_size": length} if opcode == abi.IOCTL else {"size": length}
        sent[driver.send(opcode, names=[b"user.x"] if opcode == abi.SETXATTR else [], data=data, **size)] = data
    await driver.settle()
    assert driver.recycled == []
    go.set()
    await driver.settle()
    assert got == sent
    assert len({id(buffer) for buffer in driver.recycled}) == (5 if is_def or length > COPY_UP_TO else 0)
    assert all(driver.reply(unique).error == 0 for unique in sent)


@pytest.mark.parametrize("ending", ["error", "bug", "cancel", "refused", "garbage"])
async def test_the_buffer_comes_back_however_the_handler_ends(ending: str) -> None:
    async def write(*a: Any) -> Any:
        if ending == "cancel":
            await asyncio.sleep(3600)
        if ending == "error":
            raise OSError(errno.ENOSPC, "full")
        if ending == "bug":
            raise ValueError("a bug")
        return "text" if ending == "garbage" else 3

    driver = Driver(make_fs(write=write))
    if ending == "refused":
        driver.refuse = lambda unique: errno.ENOENT
    unique = driver.send(abi.WRITE, size=50_000, data=b"x" * 50_000)
    await driver.settle()
    driver.interrupt(unique)
    await driver.settle()
    assert len(driver.recycled) == 1
    assert driver.session.inflight == {}


async def test_a_handler_that_returns_a_value_or_a_coroutine_is_both() -> None:
    async def later() -> Attr:
        return attr(9)

    fs = make_fs(lookup=lambda request, parent, name: attr(8) if name == b"hit" else later())
    driver = Driver(fs)
    assert driver.ask(abi.LOOKUP, names=[b"hit"]).fields["nodeid"] == 8
    assert (await driver.wait(abi.LOOKUP, names=[b"miss"])).fields["nodeid"] == 9


async def test_what_runs_is_not_collected() -> None:
    async def read(*a: Any) -> bytes:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.02, future.set_result, None)
        await future
        return b"x"

    driver = Driver(make_fs(read=read))
    unique = driver.send(abi.READ, size=1)
    await driver.settle()
    gc.collect()
    for _ in range(200):
        if driver.taken(unique):
            break
        await asyncio.sleep(0.01)
    assert driver.reply(unique).data == b"x"


# INTERRUPT.


async def test_interrupt_cancels_and_the_caller_sees_eintr(caplog: pytest.LogCaptureFixture) -> None:
    cleaned: list[bool] = []

    async def read(*a: Any) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(True)
        return b""

    driver = Driver(make_fs(read=read))
    unique = driver.send(abi.READ, size=1)
    other = driver.send(abi.READ, size=1)
    await driver.settle()
    driver.interrupt(unique)
    await driver.settle()
    assert driver.reply(unique).error == errno.EINTR
    assert cleaned == [True]
    assert driver.taken(other) == []
    assert list(driver.session.inflight) == [other]
    assert records(caplog) == []
    await driver.session.drain()


async def test_interrupt_of_an_answered_request_is_nothing() -> None:
    async def read(*a: Any) -> bytes:
        return b"x"

    driver = Driver(make_fs(read=read, getattr=lambda *a: attr()))
    sync = driver.send(abi.GETATTR)
    driver.interrupt(sync)
    unique = driver.send(abi.READ, size=1)
    await driver.settle()
    driver.interrupt(unique)
    driver.interrupt(12345)
    await driver.settle()
    assert driver.reply(unique).data == b"x"
    assert len(driver.replies) == 3


async def test_interrupt_in_the_same_batch_as_its_request_is_answered_once() -> None:
    begun: list[bool] = []

    async def read(*a: Any) -> bytes:
        begun.append(True)
        await asyncio.sleep(3600)
        return b""

    driver = Driver(make_fs(read=read))
    unique = driver.send(abi.READ, size=1)
    driver.interrupt(unique)
    driver.interrupt(unique)
    await driver.settle()
    assert driver.reply(unique).error == errno.EINTR
    assert begun == [True]
    assert driver.session.inflight == {}


async def test_an_interrupted_handler_that_had_finished_its_work_answers_the_real_result() -> None:
    async def write(request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return len(data)
        return 0

    async def create(*a: Any) -> Any:
        try:
            await asyncio.sleep(3600)
        finally:
            return fs.counted(), "handle"  # noqa: B012

    fs: Any = make_fs(Counting, write=write, create=create)
    driver = Driver(fs)
    written = driver.send(abi.WRITE, size=3, data=b"abc")
    created = driver.send(abi.CREATE, names=[b"x"])
    await driver.settle()
    driver.interrupt(written)
    driver.interrupt(created)
    await driver.settle()
    assert driver.reply(written).fields["size"] == 3
    assert driver.reply(created).fields["entry_nodeid"] == 7
    assert fs.lookups == {7: 1}


async def test_interrupt_of_a_task_in_its_last_turn_does_not_lose_the_result() -> None:
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(*a: Any) -> bytes:
        await asyncio.shield(gate)
        return b"done"

    driver = Driver(make_fs(read=read))
    unique = driver.send(abi.READ, size=4)
    await driver.settle()
    gate.set_result(None)
    await driver.settle()
    driver.interrupt(unique)
    await driver.settle()
    assert driver.reply(unique).data == b"done"


async def test_a_handler_that_will_not_be_cancelled_is_answered_when_it_ends() -> None:
    go = asyncio.Event()

    async def stubborn(*a: Any) -> bytes:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return b"at last"

    driver = Driver(make_fs(read=stubborn, getattr=lambda *a: attr()))
    unique = driver.send(abi.READ, size=9)
    for _ in range(3):
        await driver.settle()
        driver.interrupt(unique)
    assert driver.taken(unique) == []
    assert driver.ask(abi.GETATTR).error == 0
    go.set()
    await driver.settle()
    assert driver.reply(unique).data == b"at last"


async def test_a_waiting_lock_is_given_up_by_interrupt() -> None:
    async def setlkw(*a: Any) -> None:
        await asyncio.sleep(3600)

    driver = Driver(make_fs(setlkw=setlkw, setlk=lambda *a: None, getlk=lambda *a: None))
    unique = driver.send(abi.SETLKW, lk_type=1)
    await driver.settle()
    driver.interrupt(unique)
    await driver.settle()
    assert driver.reply(unique).error == errno.EINTR


# RESEND.


async def test_a_resent_request_is_answered_with_its_bit() -> None:
    seen: list[int] = []

    async def read(request: Request, *a: Any) -> bytes:
        seen.append(request.unique)
        return b"x"

    def lookup(request: Request, *a: Any) -> None:
        seen.append(request.unique)

    driver = Driver(make_fs(read=read, lookup=lookup))
    for opcode, arguments in ((abi.READ, {"size": 1}), (abi.LOOKUP, {"names": [b"x"]}), (abi.MKDIR, {"names": [b"x"]})):
        unique = abi.UNIQUE_RESEND | 40 + opcode
        await driver.wait(opcode, unique=unique, **arguments)
    assert seen == [abi.UNIQUE_RESEND | 40 + abi.READ, abi.UNIQUE_RESEND | 40 + abi.LOOKUP]


async def test_interrupt_of_a_resent_request_has_the_bit_too() -> None:
    async def read(*a: Any) -> bytes:
        await asyncio.sleep(3600)
        return b""

    driver = Driver(make_fs(read=read))
    unique = driver.send(abi.READ, size=1, unique=abi.UNIQUE_RESEND | 8)
    await driver.settle()
    driver.interrupt(unique)
    await driver.settle()
    assert driver.reply(unique).error == errno.EINTR


async def test_a_request_and_its_resent_copy_are_two() -> None:
    go = asyncio.Event()

    async def read(*a: Any) -> bytes:
        await go.wait()
        return b"x"

    driver = Driver(make_fs(read=read))
    first = driver.send(abi.READ, size=1, unique=8)
    again = driver.send(abi.READ, size=1, unique=abi.UNIQUE_RESEND | 8)
    await driver.settle()
    go.set()
    await driver.settle()
    assert driver.reply(first).data == driver.reply(again).data == b"x"


async def test_a_request_resent_twice_while_it_runs_is_cancelled_and_waited_for_twice() -> None:
    ended: list[bool] = []

    async def read(*a: Any) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)
        return b""

    driver = Driver(make_fs(read=read))
    for _ in range(3):
        driver.send(abi.READ, size=1, unique=abi.UNIQUE_RESEND | 8)
    assert len(driver.session.inflight) == 3
    await driver.session.drain()
    assert ended == [True] * 3
    assert driver.session.inflight == {}


# --- INIT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", sorted(set(abi.OPS) - {abi.INIT}))
def test_a_request_before_init_is_an_error(opcode: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(make_fs(getattr=lambda *a: attr()), begin=False)
    unique = driver.send(opcode, **arguments_of(opcode))
    if abi.OPS[opcode].out is abi.NO_REPLY:
        assert driver.replies == []
    else:
        assert driver.reply(unique).error == errno.EIO
        assert "before INIT" in caplog.text


def test_init_is_answered_with_what_was_agreed() -> None:
    driver = Driver(Filesystem(), begin=False)
    fields = driver.init(minor=39).fields
    assert (fields["major"], fields["minor"], fields["max_write"]) == (7, 39, 1 << 20)
    assert driver.session.agreed is not None
    assert driver.session.agreed.minor == 39


def test_init_of_an_old_kernel_is_56_bytes() -> None:
    driver = Driver(Filesystem(), begin=False)
    unique, message = driver.encode(abi.INIT, layout=abi.INIT_IN_COMPAT, major=7, minor=23, max_readahead=4096, flags=1)
    assert len(message) == 56
    driver.feed(message)
    assert driver.reply(unique).fields["minor"] == 23
    assert driver.session.agreed is not None
    assert driver.session.agreed.has(abi.ASYNC_READ)


def test_flags2_counts_only_with_init_ext() -> None:
    with_it, without = Driver(Filesystem()), Driver(Filesystem(), offered=OFFERED & ~abi.INIT_EXT)
    assert with_it.session.agreed is not None
    assert without.session.agreed is not None
    assert with_it.session.agreed.has(abi.HAS_RESEND)
    assert not without.session.agreed.has(abi.HAS_RESEND)


@pytest.mark.parametrize(("major", "minor"), [(7, 22), (7, 0), (6, 99), (0, 0)])
async def test_a_kernel_that_is_too_old_is_refused(major: int, minor: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(Filesystem(), begin=False)
    driver.session.initialised = asyncio.get_running_loop().create_future()
    assert driver.init(major=major, minor=minor).error == errno.EPROTO
    assert driver.session.agreed is None
    with pytest.raises(ProtocolError, match=f"speaks FUSE {major}.{minor}"):
        await driver.session.initialised
    assert "protocol error" in caplog.text


async def test_a_newer_major_version_is_asked_to_speak_ours() -> None:
    driver = Driver(Filesystem(), begin=False)
    driver.session.initialised = asyncio.get_running_loop().create_future()
    fields = driver.init(major=8, minor=3).fields
    assert (fields["major"], fields["minor"], fields["flags"]) == (7, 45, 0)
    assert driver.session.agreed is None
    assert not driver.session.initialised.done()
    assert driver.init(major=7, minor=45).fields["flags"] != 0
    assert (await driver.session.initialised).minor == 45


def test_init_twice_is_an_error_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(make_fs(getattr=lambda *a: attr()))
    agreed = driver.session.agreed
    assert driver.init(minor=30).error == errno.EIO
    assert driver.session.agreed is agreed
    assert "INIT came twice" in caplog.text
    assert driver.ask(abi.GETATTR).error == 0


@pytest.mark.parametrize("n", [40, 44, 55, 57, 103, 105])
def test_init_of_another_length_is_an_error(n: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(Filesystem(), begin=False)
    unique, message = driver.encode(abi.INIT, major=7, minor=45)
    driver.feed(cut(message + b"\0" * 8, n))
    assert driver.reply(unique).error == errno.EIO
    assert driver.session.agreed is None
    assert "protocol error" in caplog.text
    assert driver.init().error == 0


# --- malformed messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_every_truncation_is_answered_eio_and_logged_and_calls_nothing(example: Any, caplog: pytest.LogCaptureFixture) -> None:
    called: list[Any] = []
    names = {op.method for op in abi.OPS.values() if op.method} | {"forget"}
    driver = Driver(make_fs(**{name: lambda *a: called.append(a) for name in names}, handle_killpriv=True))
    driver.session.handles.objects[:] = [None, "h"]
    fields = {name: 1 if name.startswith("fh") else value for name, value in example.fields.items()}
    unique, message = driver.encode(example.opcode, names=example.names, data=example.data, body=fields)
    answered = abi.OPS[example.opcode].out is not abi.NO_REPLY
    for n in range(40, len(message)):
        caplog.clear()
        driver.replies.clear()
        driver.feed(cut(message, n))
        assert len(driver.replies) == int(answered), n
        if answered:
            assert driver.reply(unique).error in (errno.EIO, errno.ENOSYS)
        if not answered or driver.reply(unique).error == errno.EIO:
            assert "protocol error" in caplog.text
    assert called == []


@pytest.mark.parametrize("n", range(40))
def test_a_message_shorter_than_its_header_is_logged_and_not_answered(n: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(Filesystem())
    message = driver.encode(abi.STATFS)[1]
    buffers = [message[:n], bytearray(message[:n] + b"\xff" * 100), bytearray(cut(message, n) if n >= 4 else message)]
    for buffer in buffers:
        caplog.clear()
        assert driver.session.receive(buffer, n) == 0
        assert "shorter than its header" in caplog.text
    assert len(driver.replies) == 1


@pytest.mark.parametrize("said", [0, 39, 40, 47, 49, 2**32 - 1])
def test_a_length_that_is_not_the_messages_is_eio_and_logged(said: int, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(make_fs(getattr=lambda *a: attr()))
    unique, message = driver.encode(abi.GETATTR)
    driver.feed(struct.pack("<I", said) + message[4:])
    assert driver.reply(unique).error == errno.EIO
    assert "protocol error" in caplog.text


# --- notifications, traces, the end -------------------------------------------------------------------------------------


def test_a_notify_reply_goes_to_the_notifier() -> None:
    class Listening(Notifier):
        def retrieved(self, notify_unique: int, offset: int, data: Any) -> None:
            got.append((notify_unique, offset, type(data), bytes(data)))

    got: list[Any] = []
    driver = Driver(Filesystem(), notifier=Listening(lambda parts: 0))
    driver.send(abi.NOTIFY_REPLY, 5, unique=1234, offset=4096, size=6, data=b"cached")
    assert got == [(1234, 4096, bytes, b"cached")]
    assert len(driver.replies) == 1


def test_a_notify_reply_without_a_notifier_is_nothing() -> None:
    driver = Driver(Filesystem())
    driver.send(abi.NOTIFY_REPLY, 5, unique=1234, size=6, data=b"cached")
    assert len(driver.replies) == 1


def test_the_notifier_learns_the_kernels_version() -> None:
    notifier = Notifier(lambda parts: 0)
    Driver(Filesystem(), notifier=notifier, minor=31)
    assert notifier.kernel_minor == 31


async def test_the_notifier_knows_which_request_is_asking() -> None:
    seen: list[Any] = []
    notifier = Notifier(lambda parts: 0)

    async def rename(request: Request, *a: Any) -> None:
        before = notifier.current()
        await asyncio.sleep(0)
        seen.append((before, notifier.current(), request.unique))

    driver = Driver(make_fs(rename=rename), notifier=notifier)
    for i in range(3):
        driver.send(abi.RENAME, 5 + i, names=[b"a", b"b"], newdir=60 + i)
    assert notifier.current() is None
    await driver.settle()
    assert len(seen) == 3
    for i, (before, after, unique) in enumerate(seen):
        assert before is after
        assert (after.unique, after.opcode, after.nodeids) == (unique, abi.RENAME, (5 + i, 60 + i))


async def test_what_waits_for_an_answer_is_called_after_it() -> None:
    order: list[str] = []
    notifier = Notifier(lambda parts: 0)

    async def read(*a: Any) -> bytes:
        entry = notifier.current()
        assert entry is not None
        entry.after.append(lambda: order.append(f"after {len(driver.replies)}"))
        return b""

    driver = Driver(make_fs(read=read), notifier=notifier)
    await driver.wait(abi.READ, size=1)
    driver.refuse = lambda unique: errno.ENOENT
    driver.send(abi.READ, size=1)
    await driver.settle()
    assert order == ["after 2", "after 2"]


async def test_a_trace_has_one_line_for_every_message_and_every_answer() -> None:
    async def read(*a: Any) -> bytes:
        await asyncio.sleep(0)  # else an eager task answers before the next message comes
        return b"12345"

    lines: list[str] = []
    driver = Driver(make_fs(read=read, getattr=lambda *a: attr()))
    driver.session.start_trace(lines.append)
    driver.send(abi.GETATTR, 3, unique=100)
    driver.send(abi.READ, 3, unique=102, size=9)
    driver.send(abi.LOOKUP, 3, unique=104, names=[b"x"])
    driver.send(abi.FORGET, 3, unique=106, nlookup=2)
    driver.send(abi.SETXATTR, 3, unique=108, names=[b"user.x"], data=b"v", layout=abi.SETXATTR_IN_COMPAT, size=1)
    await driver.settle()
    assert [line.split(" uid=")[0] for line in lines] == [
        "-> GETATTR #100 nodeid=3",
        "<- #100 104 bytes",
        "-> READ #102 nodeid=3 size=9",
        "-> LOOKUP #104 nodeid=3 b'x'",
        "<- #104 ENOENT",
        "-> FORGET #106 nodeid=3 nlookup=2",
        "-> SETXATTR #108 nodeid=3 size=1 b'user.x' 1 bytes",
        "<- #108 ENOSYS",
        "<- #102 5 bytes",
    ]
    lines.clear()
    driver.session.start_trace(None)
    driver.send(abi.GETATTR, 3)
    assert lines == []


async def test_drain_cancels_what_runs_and_waits_for_its_answers() -> None:
    async def read(*a: Any) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
        return b""

    driver = Driver(make_fs(read=read))
    uniques = [driver.send(abi.READ, size=1) for _ in range(10)]
    await driver.session.drain()
    assert [driver.reply(unique).error for unique in uniques] == [errno.EINTR] * 10
    assert driver.session.inflight == {}
    await driver.session.drain()


async def test_drain_gives_up_on_a_handler_that_will_not_end(caplog: pytest.LogCaptureFixture) -> None:
    go = asyncio.Event()

    async def stubborn(*a: Any) -> bytes:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return b""

    driver = Driver(make_fs(read=stubborn))
    unique = driver.send(abi.READ, size=1)
    await driver.session.drain(grace=0.01)
    assert "did not end" in caplog.text
    go.set()
    await driver.settle()
    assert driver.reply(unique).error == 0


def test_two_sessions_share_nothing() -> None:
    one, two = Driver(make_fs(open=lambda *a: "one")), Driver(make_fs(open=lambda *a: "two"))
    assert one.ask(abi.OPEN).fields["fh"] == two.ask(abi.OPEN).fields["fh"]
    assert list(one.session.handles) == ["one"]
    assert list(two.session.handles) == ["two"]


def test_a_session_works_without_a_loop() -> None:
    sent: list[bytes] = []
    session = Session(make_fs(getattr=lambda *a: attr()), sent.append, lambda parts: sent.append(b"".join(parts)))
    for message in (
        codec.encode_request(abi.INIT, 2, major=7, minor=45, flags=OFFERED & 0xFFFFFFFF),
        codec.encode_request(abi.GETATTR, 4, 1),
        codec.encode_request(abi.INTERRUPT, 5, body={"unique": 4}),
    ):
        assert session.receive(message, len(message)) == 0
    assert len(sent) == 2


# --- set-id bits and capabilities of files ------------------------------------------------------------------------------


class Privileged(Filesystem):
    """One file and one directory with set-id bits and a file capability, and a record of what was done to them."""

    has_xattrs = True

    def __init__(self) -> None:
        self.modes = {7: stat.S_IFREG | 0o6755, 8: stat.S_IFDIR | 0o6755, 9: stat.S_IFREG | 0o2644}
        self.capabilities = {7, 8, 9}
        self.done: list[Any] = []

    def implements(self, method: str) -> bool:
        if method in ("getxattr", "setxattr", "removexattr", "listxattr"):
            return self.has_xattrs
        return super().implements(method)

    def getattr(self, request: Request, ino: int, handle: Any) -> Any:
        return attr(ino, self.modes[ino])

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Any:
        self.done.append(("setattr", ino, changes.mode))
        if changes.mode is not None:
            self.modes[ino] = stat.S_IFMT(self.modes[ino]) | stat.S_IMODE(changes.mode)
        return attr(ino, self.modes[ino])

    def getxattr(self, request: Request, ino: int, name: bytes) -> Any:
        if name != b"security.capability" or ino not in self.capabilities:
            raise OSError(errno.ENODATA, "none")
        return b"cap"

    def removexattr(self, request: Request, ino: int, name: bytes) -> Any:
        self.capabilities.discard(ino)
        self.done.append(("removexattr", ino, name))

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Any:
        self.done.append(("write", ino, bytes(data)))
        return len(data)

    def open(self, request: Request, ino: int, flags: int) -> Any:
        self.done.append(("open", ino, flags))

    def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Any:
        ino = 7 if name == b"there" else 10
        self.modes.setdefault(ino, stat.S_IFREG | mode)
        self.done.append(("create", ino, mode))
        return attr(ino, self.modes[ino]), None

    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> Any:
        self.done.append(("fallocate", ino, length))

    def copy_file_range(self, request: Request, ino: int, handle: Any, offset: int, ino_out: int, *rest: Any) -> Any:
        self.done.append(("copy_file_range", ino, ino_out))
        return 1


def _later(method: str) -> Callable[..., Any]:
    async def handler(self: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        result = getattr(Privileged, method)(self, *arguments)
        await asyncio.sleep(0)
        return result

    return handler


class PrivilegedLater(Privileged):
    """The same, waiting in every method."""


for _method in ("getattr", "setattr", "getxattr", "removexattr", "write", "open", "create", "fallocate", "copy_file_range"):
    setattr(PrivilegedLater, _method, _later(_method))

both_kinds = pytest.mark.parametrize("kind", [Privileged, PrivilegedLater])


@both_kinds
@pytest.mark.parametrize(("flags", "mode", "kept"), [(0, 0o6755, True), (abi.WRITE_KILL_SUIDGID, 0o755, False)])
async def test_a_write_that_says_so_clears_set_id_bits_and_capability(kind: Any, flags: int, mode: int, kept: bool) -> None:
    fs = kind()
    reply = await Driver(fs).wait(abi.WRITE, 7, size=3, data=b"abc", write_flags=flags)
    assert reply.fields["size"] == 3
    assert stat.S_IMODE(fs.modes[7]) == mode
    assert (7 in fs.capabilities) == kept
    assert fs.done[-1] == ("write", 7, b"abc")


@both_kinds
async def test_set_group_id_stays_where_the_group_may_not_execute(kind: Any) -> None:
    fs = kind()
    await Driver(fs).wait(abi.WRITE, 9, size=1, data=b"x", write_flags=abi.WRITE_KILL_SUIDGID)
    assert stat.S_IMODE(fs.modes[9]) == 0o2644
    assert 9 not in fs.capabilities


@both_kinds
@pytest.mark.parametrize("who", [{"uid": 5}, {"gid": 6}, {"uid": 5, "gid": 6}])
async def test_chown_clears_them_on_files_and_not_on_directories(kind: Any, who: dict[str, int]) -> None:
    fs = kind()
    driver = Driver(fs)
    valid = (abi.FATTR_UID if "uid" in who else 0) | (abi.FATTR_GID if "gid" in who else 0)
    reply = await driver.wait(abi.SETATTR, 7, body={"valid": valid, **who})
    assert stat.S_IMODE(reply.fields["attr_mode"]) == 0o755
    assert 7 not in fs.capabilities
    await driver.wait(abi.SETATTR, 8, body={"valid": valid, **who})
    assert stat.S_IMODE(fs.modes[8]) == 0o6755
    assert 8 in fs.capabilities


@both_kinds
async def test_a_truncate_that_says_so_clears_them(kind: Any) -> None:
    fs = kind()
    driver = Driver(fs)
    await driver.wait(abi.SETATTR, 7, body={"valid": abi.FATTR_SIZE, "size": 1})
    assert stat.S_IMODE(fs.modes[7]) == 0o6755
    await driver.wait(abi.SETATTR, 7, body={"valid": abi.FATTR_SIZE | abi.FATTR_KILL_SUIDGID, "size": 1})
    assert stat.S_IMODE(fs.modes[7]) == 0o755
    assert 7 not in fs.capabilities


@both_kinds
async def test_chmod_sets_them(kind: Any) -> None:
    fs = kind()
    await Driver(fs).wait(abi.SETATTR, 7, body={"valid": abi.FATTR_MODE, "mode": 0o4711})
    assert stat.S_IMODE(fs.modes[7]) == 0o4711
    assert 7 in fs.capabilities


@both_kinds
async def test_an_open_that_truncates_and_says_so_clears_them(kind: Any) -> None:
    fs = kind()
    driver = Driver(fs)
    await driver.wait(abi.OPEN, 7, flags=os.O_TRUNC)
    assert stat.S_IMODE(fs.modes[7]) == 0o6755
    await driver.wait(abi.OPEN, 7, flags=os.O_TRUNC, open_flags=abi.OPEN_KILL_SUIDGID)
    assert stat.S_IMODE(fs.modes[7]) == 0o755
    assert 7 not in fs.capabilities


@both_kinds
async def test_a_create_that_finds_the_file_there_clears_them(kind: Any) -> None:
    fs = kind()
    driver = Driver(fs)
    reply = await driver.wait(abi.CREATE, names=[b"there"], mode=0o100644, open_flags=abi.OPEN_KILL_SUIDGID)
    assert stat.S_IMODE(reply.fields["entry_attr_mode"]) == 0o755
    assert stat.S_IMODE(fs.modes[7]) == 0o755
    assert 7 not in fs.capabilities


@both_kinds
async def test_a_create_that_makes_the_file_gives_it_the_mode_that_was_asked(kind: Any) -> None:
    fs = kind()
    reply = await Driver(fs).wait(abi.CREATE, names=[b"new"], mode=0o104755, open_flags=abi.OPEN_KILL_SUIDGID)
    assert stat.S_IMODE(reply.fields["entry_attr_mode"]) == 0o4755
    assert ("setattr", 10, None) not in fs.done


@both_kinds
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o6755), (1000, 0o755)])
async def test_fallocate_and_copies_of_ordinary_users_clear_them(kind: Any, uid: int, mode: int) -> None:
    """The kernel has no flag for these two, and with HANDLE_KILLPRIV_V2 does nothing by itself."""
    fs = kind()
    await Driver(fs).wait(abi.FALLOCATE, 7, uid=uid, length=10)
    assert stat.S_IMODE(fs.modes[7]) == mode
    fs = kind()
    await Driver(fs).wait(abi.COPY_FILE_RANGE, 9, uid=uid, nodeid_out=7, len=10)
    assert stat.S_IMODE(fs.modes[7]) == mode
    assert 9 in fs.capabilities


@both_kinds
async def test_a_filesystem_without_xattrs_loses_only_the_bits(kind: Any) -> None:
    fs = kind()
    fs.has_xattrs = False
    await Driver(fs).wait(abi.WRITE, 7, size=1, data=b"x", write_flags=abi.WRITE_KILL_SUIDGID)
    assert stat.S_IMODE(fs.modes[7]) == 0o755
    assert 7 in fs.capabilities


async def test_a_capability_is_dropped_even_where_modes_cannot_be_changed() -> None:
    class Modeless(Privileged):
        def implements(self, method: str) -> bool:
            return method != "setattr" and super().implements(method)

    fs = Modeless()
    await Driver(fs).wait(abi.WRITE, 7, size=1, data=b"x", write_flags=abi.WRITE_KILL_SUIDGID)
    assert 7 not in fs.capabilities
    assert not any(what == "setattr" for what, *_ in fs.done)


async def test_a_filesystem_that_clears_them_by_itself_is_left_alone() -> None:
    fs = Privileged()
    fs.handle_killpriv = True
    driver = Driver(fs)
    assert driver.ask(abi.WRITE, 7, size=1, data=b"x", write_flags=abi.WRITE_KILL_SUIDGID).error == 0
    assert driver.ask(abi.SETATTR, 7, body={"valid": abi.FATTR_UID, "uid": 5}).error == 0
    assert fs.done == [("write", 7, b"x"), ("setattr", 7, None)]


async def test_an_error_while_clearing_is_the_answer_and_nothing_is_written() -> None:
    class Failing(Privileged):
        def setattr(self, *a: Any) -> Any:
            raise OSError(errno.EROFS, "no")

    fs = Failing()
    reply = await Driver(fs).wait(abi.WRITE, 7, size=1, data=b"x", write_flags=abi.WRITE_KILL_SUIDGID)
    assert reply.error == errno.EROFS
    assert not any(what == "write" for what, *_ in fs.done)


async def test_data_stays_whole_while_bits_are_cleared() -> None:
    fs = PrivilegedLater()
    driver = Driver(fs)
    uniques = [
        driver.send(abi.WRITE, 7, size=4, data=b"abc%d" % i, write_flags=abi.WRITE_KILL_SUIDGID, offset=i) for i in range(4)
    ]
    await driver.settle()
    assert [driver.reply(unique).fields["size"] for unique in uniques] == [4] * 4
    assert sorted(what[2] for what in fs.done if what[0] == "write") == [b"abc0", b"abc1", b"abc2", b"abc3"]
