"""Bytes to values and back, compiled from the rows of abi.py; no file descriptor, no event loop.

Three kinds of reader use it. The session calls :func:`compile_call` and :func:`compile_replies` once and then only what
they made. The notifier packs with :func:`encode_notification`. Traces, the fake kernel and tests use the slow general forms,
``encode_*`` and ``decode_*``, which know every field by its name in the header.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from . import abi
from .abi import Layout, Note, Op, Out
from .errors import ProtocolError
from .types import Attr, Data, DirEntry, Extensions, Lock, SetAttr

Buffer = bytes | bytearray | memoryview

_SECOND_NS = 1_000_000_000
LONGEST_TTL = 1_000_000_000
"""Seconds; what inf becomes. The kernel turns timeouts into jiffies, which must not overflow."""


def compile_layout(layout: Layout) -> struct.Struct:
    """Return the struct module's form of *layout*. The header pads by hand, so there is no alignment to add."""
    return struct.Struct("=" + "".join(layout.fields.values()))


STRUCTS: dict[str, struct.Struct] = {
    value.name: compile_layout(value) for value in vars(abi).values() if isinstance(value, Layout)
}
IN_HEADER = STRUCTS["fuse_in_header"]
OUT_HEADER = STRUCTS["fuse_out_header"]
DIRENT = STRUCTS["fuse_dirent"]
DIRENTPLUS = STRUCTS["fuse_direntplus"]
FORGET_ONE = STRUCTS["fuse_forget_one"]

HEADER_BYTES = IN_HEADER.size
REPLY_HEADER_BYTES = OUT_HEADER.size


def struct_of(layout: Layout) -> struct.Struct:
    """Return the compiled form of *layout*."""
    return STRUCTS[layout.name]


def split_ttl(seconds: float) -> tuple[int, int]:
    """Return (seconds, nanoseconds) of a timeout; negative and NaN are 0, inf is LONGEST_TTL."""
    if not seconds > 0:
        return 0, 0
    if seconds >= LONGEST_TTL:
        return LONGEST_TTL, 0
    whole = int(seconds)
    return whole, int((seconds - whole) * _SECOND_NS)


# Requests, compiled: message -> call of the method.


def _letters(layout: Layout, wanted: set[str]) -> tuple[str, list[str]]:
    """Return a format in which unwanted fields are pad bytes, and the wanted fields in the order they come out."""
    letters, names = [], []
    for field, letter in layout.fields.items():
        if field in wanted:
            letters.append(letter)
            names.append(field)
        else:
            letters.append(f"{struct.calcsize('=' + letter)}x")
    return "".join(letters), names


_CHANGES = ("valid", "size", "lock_owner", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec", "mode", "uid",
            "gid")  # fmt: skip
_LOCK = ("lk_start", "lk_end", "lk_type", "lk_pid")
_GIVEN_BY = {
    "GETATTR": f"getattr_flags & {abi.GETATTR_FH}",
    "STATX": f"getattr_flags & {abi.GETATTR_FH}",
    "SETATTR": f"valid & {abi.FATTR_FH}",
    "POLL": f"flags & {abi.POLL_SCHEDULE_NOTIFY}",
}
"""Which condition says that a token with a question mark is given."""
_LENGTH_OF = {
    "WRITE": "size",
    "SETXATTR": "size",
    "IOCTL": "in_size",
    "NOTIFY_REPLY": "size",
    "BATCH_FORGET": f"count * {FORGET_ONE.size}",
    "REMOVEMAPPING": f"count * {STRUCTS['fuse_removemapping_one'].size}",
}
"""How long the bytes at the end must be: a field, or so many times a field."""
_MOST_COPIED = 0xFFFFF000
"""Bytes that one COPY_FILE_RANGE may copy: its reply has 32 bits, and older kernels do not think of it."""


def changes_of(
    valid: int,
    size: int,
    lock_owner: int,
    atime: int,
    mtime: int,
    ctime: int,
    atimensec: int,
    mtimensec: int,
    ctimensec: int,
    mode: int,
    uid: int,
    gid: int,
) -> SetAttr:
    """Return the SetAttr of a fuse_setattr_in. UTIME_NOW becomes the time of the call."""
    changes = SetAttr()
    if valid & abi.FATTR_MODE:
        changes.mode = mode
    if valid & abi.FATTR_UID:
        changes.uid = uid
    if valid & abi.FATTR_GID:
        changes.gid = gid
    if valid & abi.FATTR_SIZE:
        changes.size = size
    if valid & (abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW):
        now = time.time_ns()
        if valid & abi.FATTR_ATIME_NOW:
            changes.atime_ns, changes.atime_now = now, True
        if valid & abi.FATTR_MTIME_NOW:
            changes.mtime_ns, changes.mtime_now = now, True
    if valid & abi.FATTR_ATIME and not changes.atime_now:
        changes.atime_ns = atime * _SECOND_NS + atimensec
    if valid & abi.FATTR_MTIME and not changes.mtime_now:
        changes.mtime_ns = mtime * _SECOND_NS + mtimensec
    if valid & abi.FATTR_CTIME:
        changes.ctime_ns = ctime * _SECOND_NS + ctimensec
    if valid & abi.FATTR_KILL_SUIDGID:
        changes.kill_suidgid = True
    if valid & abi.FATTR_LOCKOWNER:
        changes.lock_owner = lock_owner
    return changes


def _bad_handle(fh: int) -> OSError:
    return OSError(errno.EBADF, f"no open file has the handle {fh}")


def _short(name: str, size: int) -> ProtocolError:
    return ProtocolError(f"{name}: the message is too short ({size} bytes)")


def _malformed(name: str, what: str) -> ProtocolError:
    return ProtocolError(f"{name}: {what}")


def _argument(op: Op, token: str, lines: list[str]) -> str:
    """Return the Python expression for one word of Op.takes; what must happen before it goes to *lines*."""
    if token.startswith("fh"):
        field = token.rstrip("?")
        take = [
            f"try: handle_{field} = objects[{field}]",
            f"except IndexError: raise bad_handle({field}) from None",
            f"if handle_{field} is None and {field}: raise bad_handle({field})",
        ]
        if token.endswith("?"):
            lines.append(f"handle_{field} = None")
            lines.append(f"if {_GIVEN_BY[op.name]}:")
            lines.extend("    " + line for line in take)
        else:
            lines.extend(take)
        return f"handle_{field}"
    if token == "kh?":
        return f"kh if {_GIVEN_BY[op.name]} else None"
    if token == "len" and op.out is abi.WRITTEN:
        return f"min(len, {_MOST_COPIED})"
    if token == "lock":
        return "Lock(lk_type, lk_start, lk_end, lk_pid)"
    if token == "changes":
        return f"changes_of({', '.join(_CHANGES)})"
    return token


def _fields_of(op: Op) -> set[str]:
    """Return the fields of the struct that a call of *op* needs."""
    wanted: set[str] = {op.flags, op.limit, _LENGTH_OF.get(op.name, "").partition(" ")[0]}
    for token in op.takes.split():
        if token == "changes":
            wanted.update(_CHANGES)
        elif token == "lock":
            wanted.update(_LOCK)
        else:
            wanted.add(token.rstrip("?"))
        if token.endswith("?"):
            wanted.add(_GIVEN_BY[op.name].split()[0])
    return wanted


def _name_lines(op: Op, start: int) -> list[str]:
    """Return the lines that take the strings and bytes behind the struct, which begin at *start*."""
    names = op.names.split()
    lines = []
    if op.data and names:
        lines += [
            f"end = buffer.find(0, {start}, n)",
            f"if end <= {start}: raise malformed('{op.name}', 'no name')",
            f"{names[0]} = bytes(buffer[{start}:end])",
            "data = memoryview(buffer)[end + 1:n]",
        ]
    elif op.data:
        lines.append(f"data = memoryview(buffer)[{start}:n]")
    elif len(names) == 1:
        name = names[0]
        lines += [
            f"{name} = bytes(buffer[{start}:n - 1])",
            f"if not {name} or 0 in {name} or buffer[n - 1]: raise malformed('{op.name}', 'the name is not one string')",
        ]
    elif names:
        lines += [
            f"names = bytes(buffer[{start}:n]).split(b'\\0')",
            "if len(names) != 3 or names[2] or not names[0] or not names[1]:",
            f"    raise malformed('{op.name}', 'the names are not two strings')",
            f"{names[0]}, {names[1]}, _ = names",
        ]
    if op.name in _LENGTH_OF:
        length = _LENGTH_OF[op.name]
        lines.append(f"if len(data) != {length}: raise malformed('{op.name}', 'the data is not as long as it says')")
    return lines


def source_of_call(op: Op) -> str:
    """Return the Python text of *op*'s call: it decodes just the fields the method takes, and calls it."""
    lines = []
    start = HEADER_BYTES
    if op.struct is not None:
        start += struct_of(op.struct).size
    if start > HEADER_BYTES:
        lines.append(f"if n < {start}: raise short('{op.name}', n)")
    elif op.names:
        lines.append(f"if n < {start + 1}: raise short('{op.name}', n)")
    if op.struct is not None:
        fields = _letters(op.struct, _fields_of(op))[1]
        if fields:
            lines.append(f"{', '.join(fields)}, = unpack(buffer, {HEADER_BYTES})")
    lines += _name_lines(op, start)
    if op.flags:
        lines.append(f"request.flags = {op.flags}")
    if op.limit:
        lines.append(f"request.size = {op.limit}")
    arguments = [_argument(op, token, lines) for token in op.takes.split()]
    lines.append(f"return method({', '.join(['request', *arguments])})")
    return "def call(method, request, buffer, n, nodeid, objects):\n" + "".join(f"    {line}\n" for line in lines)


Call = Callable[..., Any]
"""call(method, request, buffer, n, nodeid, objects): decode the message buffer[:n] and call the method; ProtocolError when
it is malformed."""


def compile_call(op: Op) -> Call:
    """Compile *op*'s row into the function that the session calls for each of its messages."""
    scope: dict[str, Any] = {
        "Lock": Lock,
        "bad_handle": _bad_handle,
        "changes_of": changes_of,
        "malformed": _malformed,
        "short": _short,
    }
    if op.struct is not None:
        scope["unpack"] = struct.Struct("=" + _letters(op.struct, _fields_of(op))[0]).unpack_from
    exec(compile(source_of_call(op), f"<{op.name}>", "exec"), scope)
    call: Call = scope["call"]
    return call


# Replies, compiled: value -> message.

_ENTRY_REPLY = struct.Struct("=IiQ" + "".join(abi.ENTRY_OUT.fields.values()))
_ATTR_REPLY = struct.Struct("=IiQ" + "".join(abi.ATTR_OUT.fields.values()))
_CREATE_REPLY = struct.Struct("=IiQ" + "".join(abi.CREATE_OUT.fields.values()))
_STATX_REPLY = struct.Struct("=IiQ" + "".join(abi.STATX_OUT.fields.values()))
_OPEN_REPLY = struct.Struct("=IiQ" + "".join(abi.OPEN_OUT.fields.values()))
_WRITE_REPLY = struct.Struct("=IiQ" + "".join(abi.WRITE_OUT.fields.values()))
_OFFSET_REPLY = struct.Struct("=IiQQ")
_LOCK_REPLY = struct.Struct("=IiQ" + "".join(abi.LK_OUT.fields.values()))
_IOCTL_REPLY = struct.Struct("=IiQ" + "".join(abi.IOCTL_OUT.fields.values()))
_STATFS_REPLY = struct.Struct("=IiQ" + "".join(abi.STATFS_OUT.fields.values()))

pack_reply_header = OUT_HEADER.pack
"""pack_reply_header(length, -errno, unique)"""


def encode_attr(unique: int, attr: Attr, ttl: tuple[int, int]) -> bytes:
    """Encode the reply to GETATTR and SETATTR; *ttl* holds unless the Attr has its own."""
    if attr.attr_ttl is not None:
        ttl = split_ttl(attr.attr_ttl)
    atime, atimensec = divmod(attr.atime_ns, _SECOND_NS)
    mtime, mtimensec = divmod(attr.mtime_ns, _SECOND_NS)
    ctime, ctimensec = divmod(attr.ctime_ns, _SECOND_NS)
    return _ATTR_REPLY.pack(
        120, 0, unique, ttl[0], ttl[1], 0,
        attr.ino, attr.size, attr.blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0,
    )  # fmt: skip


def entry_fields(attr: Attr, entry_ttl: tuple[int, int], attr_ttl: tuple[int, int]) -> tuple[int, ...]:
    """Return the values of a fuse_entry_out."""
    if attr.attr_ttl is not None:
        attr_ttl = split_ttl(attr.attr_ttl)
    if attr.entry_ttl is not None:
        entry_ttl = split_ttl(attr.entry_ttl)
    atime, atimensec = divmod(attr.atime_ns, _SECOND_NS)
    mtime, mtimensec = divmod(attr.mtime_ns, _SECOND_NS)
    ctime, ctimensec = divmod(attr.ctime_ns, _SECOND_NS)
    ino = attr.ino
    return (
        ino, attr.generation, entry_ttl[0], attr_ttl[0], entry_ttl[1], attr_ttl[1],
        ino, attr.size, attr.blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0,
    )  # fmt: skip


def encode_entry(unique: int, attr: Attr, entry_ttl: tuple[int, int], attr_ttl: tuple[int, int]) -> bytes:
    """Encode the reply to LOOKUP and whatever makes a name."""
    if attr.attr_ttl is not None:
        attr_ttl = split_ttl(attr.attr_ttl)
    if attr.entry_ttl is not None:
        entry_ttl = split_ttl(attr.entry_ttl)
    atime, atimensec = divmod(attr.atime_ns, _SECOND_NS)
    mtime, mtimensec = divmod(attr.mtime_ns, _SECOND_NS)
    ctime, ctimensec = divmod(attr.ctime_ns, _SECOND_NS)
    ino = attr.ino
    # entry_fields again, spelled out: a tuple in between costs a fifth of the call.
    return _ENTRY_REPLY.pack(
        144, 0, unique, ino, attr.generation, entry_ttl[0], attr_ttl[0], entry_ttl[1], attr_ttl[1],
        ino, attr.size, attr.blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0,
    )  # fmt: skip


_NO_ATTR = (0,) * len(abi.ATTR.fields)


def encode_negative_entry(unique: int, ttl: tuple[int, int]) -> bytes:
    """Encode "there is no such name, and so it stays for *ttl*"."""
    return _ENTRY_REPLY.pack(144, 0, unique, 0, 0, ttl[0], 0, ttl[1], 0, *_NO_ATTR)


def encode_created(
    unique: int, attr: Attr, entry_ttl: tuple[int, int], attr_ttl: tuple[int, int], fh: int, flags: int, backing_id: int
) -> bytes:
    """Encode the reply to CREATE and TMPFILE."""
    return _CREATE_REPLY.pack(160, 0, unique, *entry_fields(attr, entry_ttl, attr_ttl), fh, flags, backing_id)


def encode_opened(unique: int, fh: int, flags: int, backing_id: int) -> bytes:
    """Encode the reply to OPEN and OPENDIR."""
    return _OPEN_REPLY.pack(32, 0, unique, fh, flags, backing_id)


def encode_written(unique: int, size: int) -> bytes:
    """Encode the reply to WRITE and COPY_FILE_RANGE, and likewise to POLL: one u32 and padding."""
    return _WRITE_REPLY.pack(24, 0, unique, size, 0)


def encode_offset(unique: int, offset: int) -> bytes:
    """Encode the reply to LSEEK, BMAP and COPY_FILE_RANGE_64: one u64."""
    return _OFFSET_REPLY.pack(24, 0, unique, offset)


def encode_lock(unique: int, lock: Lock | None) -> bytes:
    """Encode the reply to GETLK; None is F_UNLCK."""
    if lock is None:
        return _LOCK_REPLY.pack(40, 0, unique, 0, 0, 2, 0)
    return _LOCK_REPLY.pack(40, 0, unique, lock.start, lock.end, lock.type, lock.pid)


def encode_ioctl(unique: int, result: int, data: Data) -> bytes:
    """Encode the reply to a restricted IOCTL."""
    return _IOCTL_REPLY.pack(32 + len(data), 0, unique, result, 0, 0, 0) + bytes(data)


def encode_statfs(unique: int, totals: Any) -> bytes:
    """Encode the reply to STATFS."""
    return _STATFS_REPLY.pack(
        96, 0, unique, totals.blocks, totals.bfree, totals.bavail, totals.files, totals.ffree, totals.bsize, totals.namelen,
        totals.frsize, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800


def encode_statx(unique: int, attr: Attr, ttl: tuple[int, int]) -> bytes:
    """Encode the reply to STATX: the basic stats and btime (all that the kernel takes, fs/fuse/dir.c fuse_do_statx)."""
    if attr.attr_ttl is not None:
        ttl = split_ttl(attr.attr_ttl)
    times: list[int] = []
    for moment in (attr.atime_ns, attr.btime_ns, attr.ctime_ns, attr.mtime_ns):
        times += (*divmod(moment, _SECOND_NS), 0)
    major, minor = (attr.rdev >> 8) & 0xFFF, (attr.rdev & 0xFF) | ((attr.rdev >> 12) & 0xFFF00)
    return _STATX_REPLY.pack(
        REPLY_HEADER_BYTES + struct_of(abi.STATX_OUT).size, 0, unique, ttl[0], ttl[1], 0, 0, 0,
        STATX_BASIC_STATS | STATX_BTIME, attr.blksize, 0, attr.nlink, attr.uid, attr.gid, attr.mode, 0,
        attr.ino, attr.size, attr.blocks, 0, *times, major, minor, 0, 0, *(0,) * 14,
    )  # fmt: skip


_PADDING = (b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0")


class DirentPacker:
    """Packs entries of one READDIR or READDIRPLUS reply until it is full."""

    __slots__ = ("_attr_ttl", "_entered", "_entry_ttl", "_plus", "_room", "counted", "parts")

    def __init__(
        self,
        limit: int,
        plus: bool,
        entry_ttl: tuple[int, int],
        attr_ttl: tuple[int, int],
        entered: Callable[[int], None],
    ) -> None:
        self.parts: list[bytes] = []
        self.counted: list[int] = []
        """The nodes whose lookup count was raised, to be taken back if the reply is not delivered."""
        self._room = limit
        self._plus = plus
        self._entry_ttl = entry_ttl
        self._attr_ttl = attr_ttl
        self._entered = entered

    def add(self, entry: DirEntry) -> bool:
        """Take *entry* and return True, or return False when it does not fit any more.

        OSError(EINVAL), as getdents(2) says it, when it is the first and does not fit: an empty reply would be the end.
        """
        name = entry.name
        length = len(name)
        size = (152 if self._plus else 24) + ((length + 7) & ~7)
        if size > self._room:
            if not self.parts:
                raise OSError(errno.EINVAL, f"a reply of {self._room} bytes is too small for an entry of {size}")
            return False
        self._room -= size
        kind = (entry.mode >> 12) & 15
        if not self._plus:
            self.parts.append(DIRENT.pack(entry.ino, entry.offset, length, kind) + name + _PADDING[length & 7])
            return True
        attr = entry.attr
        if attr is None or name in (b".", b".."):
            fields: tuple[int, ...] = (0,) * len(abi.ENTRY_OUT.fields)
        else:
            fields = entry_fields(attr, self._entry_ttl, self._attr_ttl)
            self._entered(attr.ino)
            self.counted.append(attr.ino)
        self.parts.append(DIRENTPLUS.pack(*fields, entry.ino, entry.offset, length, kind) + name + _PADDING[length & 7])
        return True


def parse_extensions(block: Buffer) -> Extensions:
    """Parse what follows a request's fields when total_extlen is not 0 (fs/fuse/dir.c get_create_ext).

    Each extension is a fuse_ext_header {size, type}, whole to the next 8 bytes: types up to 31 are that many security
    contexts, 32 is the supplementary groups. Unknown types are passed over. ProtocolError when lengths do not add up.
    """
    extensions = Extensions([], [])
    data = bytes(block)
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ProtocolError("extension: the header is cut off")
        size, kind = struct.unpack_from("=II", data, at)
        if size < 8 or at + size > len(data):
            raise ProtocolError(f"extension: a size of {size} bytes does not fit")
        if kind <= abi.MAX_NR_SECCTX:
            extensions.secctx += _security_contexts(data[at + 8 : at + size], kind)
        elif kind == abi.EXT_GROUPS:
            extensions.groups += _groups(data[at + 8 : at + size])
        at += (size + 7) & ~7
    return extensions


def _security_contexts(body: bytes, count: int) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(count):
        if at + 8 > len(body):
            raise ProtocolError("security context: the header is cut off")
        size, _padding = struct.unpack_from("=II", body, at)
        end = body.find(b"\0", at + 8)
        if end < 0 or end + 1 + size > len(body):
            raise ProtocolError("security context: the value is cut off")
        yield body[at + 8 : end], body[end + 1 : end + 1 + size]
        at = (end + 1 + size + 7) & ~7


def _groups(body: bytes) -> tuple[int, ...]:
    if len(body) < 4:
        raise ProtocolError("supplementary groups: no count")
    (count,) = struct.unpack_from("=I", body)
    if 4 + 4 * count > len(body):
        raise ProtocolError(f"supplementary groups: {count} do not fit")
    groups: tuple[int, ...] = struct.unpack_from(f"={count}I", body, 4)
    return groups


# The general forms: every field by name, both directions.


def pack(layout: Layout, **fields: Any) -> bytes:
    """Pack *layout*; fields that are not named are 0, arrays take a tuple."""
    values: list[int] = []
    unknown = fields.keys() - layout.fields.keys()
    if unknown:
        raise TypeError(f"{layout.name} has no field {', '.join(sorted(unknown))}")
    for field, letter in layout.fields.items():
        count = int(letter[:-1] or 1)
        value = fields.get(field, 0 if count == 1 else (0,) * count)
        values += (value,) if count == 1 else value
    return struct_of(layout).pack(*values)


def unpack(layout: Layout, buffer: Buffer, offset: int = 0) -> dict[str, Any]:
    """Unpack *layout*; arrays come as tuples. ProtocolError when *buffer* is too short."""
    compiled = struct_of(layout)
    if len(buffer) < offset + compiled.size:
        raise ProtocolError(f"{layout.name}: {len(buffer) - offset} bytes are too few")
    values = iter(compiled.unpack_from(buffer, offset))
    return {
        field: next(values) if len(letter) == 1 or letter[:-1] == "1" else tuple(next(values) for _ in range(int(letter[:-1])))
        for field, letter in layout.fields.items()
    }


class RequestMessage(NamedTuple):
    """A request, taken apart."""

    header: dict[str, Any]
    fields: dict[str, Any]
    names: list[bytes]
    data: bytes
    extensions: bytes


def encode_request(
    opcode: int,
    unique: int,
    nodeid: int = 0,
    *,
    uid: int = 0,
    gid: int = 0,
    pid: int = 0,
    names: Iterable[bytes] = (),
    data: Buffer = b"",
    extensions: bytes = b"",
    layout: Layout | None = None,
    body: Mapping[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """Encode a request as the kernel does; *layout* stands in for the row's own struct (SETXATTR_IN_COMPAT, INIT_IN_COMPAT).

    The struct's fields are keywords, or in *body*: where they are called like the header's, as SETATTR's uid and gid and
    INTERRUPT's unique are, only there.
    """
    op = abi.OPS[opcode]
    layout = layout or op.struct
    content = pack(layout, **{**fields, **(body or {})}) if layout is not None else b""
    content += b"".join(name + b"\0" for name in names) + bytes(data)
    if len(extensions) % 8:
        raise ValueError("extensions come in units of 8 bytes")
    header = IN_HEADER.pack(
        HEADER_BYTES + len(content) + len(extensions), opcode, unique, nodeid, uid, gid, pid, len(extensions) // 8, 0
    )
    return header + content + extensions


def decode_request(message: Buffer, layout: Layout | None = None) -> RequestMessage:
    """Take a request apart; ProtocolError when it is malformed or its opcode is unknown."""
    header = unpack(abi.IN_HEADER, message)
    op = abi.OPS.get(header["opcode"])
    if op is None:
        raise ProtocolError(f"opcode {header['opcode']} is unknown")
    if header["len"] != len(message):
        raise ProtocolError(f"{op.name}: {len(message)} bytes, the header says {header['len']}")
    end = len(message) - 8 * header["total_extlen"]
    if end < HEADER_BYTES:
        raise ProtocolError(f"{op.name}: extensions of {len(message) - end} bytes in a message of {len(message)}")
    layout = layout or op.struct
    at = HEADER_BYTES
    fields: dict[str, Any] = {}
    if layout is not None:
        if op.name == "INIT" and end - at < struct_of(layout).size:
            layout = abi.INIT_IN_COMPAT
        fields = unpack(layout, bytes(message[:end]), at)
        at += struct_of(layout).size
    rest = bytes(message[at:end])
    names = []
    for _ in op.names.split():
        name, terminator, rest = rest.partition(b"\0")
        if not terminator:
            raise ProtocolError(f"{op.name}: a name is not terminated")
        names.append(name)
    if rest and not op.data:
        raise ProtocolError(f"{op.name}: {len(rest)} bytes too many")
    return RequestMessage(header, fields, names, rest, bytes(message[end:]))


class ReplyMessage(NamedTuple):
    """A reply, taken apart."""

    unique: int
    error: int
    """An errno, or 0."""
    fields: dict[str, Any]
    data: bytes


def encode_reply(out: Out, unique: int, *, error: int = 0, data: Buffer = b"", **fields: Any) -> bytes:
    """Encode a reply by field names; an error has no body."""
    body = b""
    if not error:
        body = (pack(out.layout, **fields) if out.layout is not None else b"") + bytes(data)
    return OUT_HEADER.pack(REPLY_HEADER_BYTES + len(body), -error, unique) + body


def decode_reply(out: Out, message: Buffer) -> ReplyMessage:
    """Take a reply apart, as strictly as fs/fuse/dev.c: ProtocolError when the sizes are not exact."""
    header = unpack(abi.OUT_HEADER, message)
    if header["len"] != len(message):
        raise ProtocolError(f"reply: {len(message)} bytes, the header says {header['len']}")
    error = -header["error"]
    if not 0 <= error < 512:
        raise ProtocolError(f"reply: {header['error']} is not an error number the kernel takes")
    body = bytes(message[REPLY_HEADER_BYTES:])
    if error:
        if body:
            raise ProtocolError("reply: an error with a body")
        return ReplyMessage(header["unique"], error, {}, b"")
    fields: dict[str, Any] = {}
    if out.layout is not None:
        fields = unpack(out.layout, body)
        body = body[struct_of(out.layout).size :]
    if body and not out.data:
        raise ProtocolError(f"reply ({out.name}): {len(body)} bytes too many")
    return ReplyMessage(header["unique"], 0, fields, body)


_NOTE_LENGTH = {"STORE": ("size", 1), "PRUNE": ("count", 8)}
"""Which field counts the bytes at the end, and in which unit."""


class NotificationMessage(NamedTuple):
    """A notification, taken apart."""

    code: int
    fields: dict[str, Any]
    names: list[bytes]
    data: bytes


def encode_notification(code: int, *, names: Iterable[bytes] = (), data: Buffer = b"", **fields: Any) -> list[Buffer]:
    """Encode a notification as the parts of one writev; lengths of names and data are filled in."""
    note = abi.NOTES[code]
    names = list(names)
    if names:
        fields["namelen"] = len(names[0])
    if note.data:
        field, unit = _NOTE_LENGTH[note.name]
        fields.setdefault(field, len(data) // unit)
    body = pack(note.struct, **fields) if note.struct is not None else b""
    body += b"".join(name + b"\0" for name in names)
    parts: list[Buffer] = [OUT_HEADER.pack(REPLY_HEADER_BYTES + len(body) + len(data), code, 0) + body]
    if len(data):
        parts.append(data)
    return parts


def decode_notification(message: Buffer) -> NotificationMessage:
    """Take a notification apart; ProtocolError when it is malformed (fs/fuse/dev.c fuse_notify)."""
    header = unpack(abi.OUT_HEADER, message)
    note: Note | None = abi.NOTES.get(header["error"])
    if header["unique"] or note is None or header["len"] != len(message):
        raise ProtocolError(f"not a notification: {header}")
    at = REPLY_HEADER_BYTES
    fields: dict[str, Any] = {}
    if note.struct is not None:
        fields = unpack(note.struct, message, at)
        at += struct_of(note.struct).size
    rest = bytes(message[at:])
    names = []
    if note.names:
        if len(rest) != fields["namelen"] + 1 or rest[-1:] != b"\0":
            raise ProtocolError(f"{note.name}: the name is not as long as it says")
        names, rest = [rest[:-1]], b""
    if note.data:
        field, unit = _NOTE_LENGTH[note.name]
        if len(rest) != fields[field] * unit:
            raise ProtocolError(f"{note.name}: the data is not as long as it says")
    elif rest:
        raise ProtocolError(f"{note.name}: {len(rest)} bytes too many")
    return NotificationMessage(header["error"], fields, names, rest)


def decode_dirents(data: Buffer, plus: bool = False) -> list[dict[str, Any]]:
    """Take a READDIR or READDIRPLUS reply's body apart: the header's fields by name, and ``name``."""
    layout = abi.DIRENTPLUS if plus else abi.DIRENT
    prefix = "dirent_" if plus else ""
    entries = []
    at = 0
    while at < len(data):
        fields = unpack(layout, data, at)
        at += struct_of(layout).size
        length = fields[f"{prefix}namelen"]
        end = at + ((length + 7) & ~7)
        if end > len(data) or not length:
            raise ProtocolError("dirent: the name is cut off")
        fields["name"] = bytes(data[at : at + length])
        entries.append(fields)
        at = end
    return entries


# Traces.


def describe_request(message: Buffer, layout: Layout | None = None) -> str:
    """Return one line about a request: its name, number, node, and every field that is not 0; *layout* as in encode_request."""
    try:
        parts = decode_request(message, layout)
    except ProtocolError as error:
        return f"-> malformed: {error}"
    header = parts.header
    words = [f"-> {abi.OPS[header['opcode']].name} #{header['unique']} nodeid={header['nodeid']}"]
    named = {name: value for name, value in parts.fields.items() if value and name != "unused"}
    words += [f"{name}={value:#x}" if "flags" in name else f"{name}={value}" for name, value in named.items()]
    words += [repr(name) for name in parts.names]
    if parts.data:
        words.append(f"{len(parts.data)} bytes")
    words.append(f"uid={header['uid']} gid={header['gid']} pid={header['pid']}")
    return " ".join(words)


def describe_reply(header: Buffer) -> str:
    """Return one line about a reply, from its first part: its number, and its error or its length."""
    length, error, unique = OUT_HEADER.unpack_from(header)
    if error:
        return f"<- #{unique} {errno.errorcode.get(-error, -error)}"
    return f"<- #{unique} {length - REPLY_HEADER_BYTES} bytes"
