"""Bytes to values and back, by the rows of abi.py; no file descriptor, no event loop.

The general forms, ``encode_*`` and ``decode_*``, know every field by its name in the header: for the notifier, traces, the fake
kernel and tests. What the session does a hundred thousand times a second is compiled from the same rows, by calls.py for
requests and encoders.py for replies.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from . import abi
from .abi import Layout, Note, Out
from .errors import ProtocolError
from .types import Extensions

Buffer = bytes | bytearray | memoryview

SECOND_NS = 1_000_000_000
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
    return whole, int((seconds - whole) * SECOND_NS)


# The extensions behind a request.


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
