"""Requests, compiled: a message becomes the call of its method, and just the fields that the method takes are unpacked.

One Python function an operation is written from its row of abi.py and compiled when the session begins, as dataclasses and
namedtuples are; :func:`source_of_call` shows the text.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable
from typing import Any

from . import abi
from .abi import Layout, Op
from .codec import FORGET_ONE, HEADER_BYTES, SECOND_NS, STRUCTS, struct_of
from .errors import ProtocolError
from .types import Lock, SetAttr


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


LONGEST_QUICK_NAME = 256
_NAME_OF = [struct.Struct(f"{length}s").unpack_from for length in range(LONGEST_QUICK_NAME)]
"""length -> the function that takes so many bytes out of a buffer: one object made, where slicing a bytearray makes two."""
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
        changes.atime_ns = atime * SECOND_NS + atimensec
    if valid & abi.FATTR_MTIME and not changes.mtime_now:
        changes.mtime_ns = mtime * SECOND_NS + mtimensec
    if valid & abi.FATTR_CTIME:
        changes.ctime_ns = ctime * SECOND_NS + ctimensec
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
            f"if n <= {start + LONGEST_QUICK_NAME}: {name}, = name_of[n - {start + 1}](buffer, {start})",
            f"else: {name} = bytes(buffer[{start}:n - 1])",
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
    least = start + bool(op.names)
    if least > HEADER_BYTES:
        lines.append(f"if n < {least}: raise short('{op.name}', n)")
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
        "name_of": _NAME_OF,
        "short": _short,
    }
    if op.struct is not None:
        scope["unpack"] = struct.Struct("=" + _letters(op.struct, _fields_of(op))[0]).unpack_from
    exec(compile(source_of_call(op), f"<{op.name}>", "exec"), scope)
    call: Call = scope["call"]
    return call
