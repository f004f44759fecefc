"""The codec, held against byte literals: requests into calls, values into replies, notifications, and all of it back."""

from __future__ import annotations

import errno
import math
import struct
import time
from typing import Any

import pytest
from wire import (
    BY_OPCODE,
    EXAMPLES,
    F1,
    F2,
    F3,
    F4,
    GROUPS_BLOCK,
    NODEID,
    OLD_FORMS,
    PID,
    SECURITY_BLOCK,
    UID,
    UNIQUE,
    W1,
    W2,
    W3,
    Example,
    Handles,
    cut,
    message,
)  # fmt: skip

from pyfusekit.core import abi, calls, codec, encoders
from pyfusekit.core.calls import compile_call
from pyfusekit.core.encoders import DirentPacker
from pyfusekit.core.errors import ProtocolError
from pyfusekit.core.types import Attr, DirEntry, Lock, Request, SetAttr, StatFs

ALL = EXAMPLES + OLD_FORMS
NAMES = [f"{example.name}-{'old' if example.layout else 'new'}" for example in ALL]
each_example = pytest.mark.parametrize("example", ALL, ids=NAMES)


def call_of(example: Example) -> calls.Call:
    op = abi.OPS[example.opcode]
    if example.layout is not None:
        op = op._replace(struct=example.layout, flags="")
    return compile_call(op)


def called(example: Example, data: bytes | bytearray, n: int | None = None, objects: Any = None) -> tuple[Request, Any]:
    """Decode and call; return the Request and what the method got, with views made bytes."""
    request = Request(UNIQUE, 1, 2, 3)
    got: list[Any] = []

    def method(request: Request, *arguments: Any) -> None:
        got.extend(bytes(a) if isinstance(a, memoryview) else a for a in arguments)

    n = len(data) if n is None else n
    call_of(example)(method, request, data, n, NODEID, Handles() if objects is None else objects)
    return request, tuple(got)


# --- requests -----------------------------------------------------------------------------------------------------------


def test_the_corpus_has_every_operation() -> None:
    assert sorted(BY_OPCODE) == sorted(abi.OPS)
    assert len(EXAMPLES) == len(abi.OPS)


@each_example
def test_the_header_says_how_long_the_example_is(example: Example) -> None:
    length, opcode = struct.unpack_from("<II", example.message)
    assert (length, opcode) == (len(example.message), example.opcode)


@each_example
def test_a_call_gets_just_the_fields_it_takes(example: Example) -> None:
    request, arguments = called(example, example.message)
    assert arguments == example.arguments
    assert (request.flags, request.size) == (example.flags, example.size)


@each_example
def test_a_message_in_a_longer_buffer_is_the_same_call(example: Example) -> None:
    buffer = bytearray(example.message + b"\xee" * 200)
    assert called(example, buffer, len(example.message))[1] == example.arguments


@each_example
def test_a_request_is_encoded_to_these_bytes(example: Example) -> None:
    encoded = codec.encode_request(
        example.opcode, UNIQUE, NODEID, uid=UID, gid=0x44434241, pid=PID, names=example.names, data=example.data,
        layout=example.layout, body=example.fields,
    )  # fmt: skip
    assert encoded == example.message


@each_example
def test_a_request_is_taken_apart_into_its_fields(example: Example) -> None:
    parts = codec.decode_request(example.message, example.layout)
    assert parts.header == {
        "len": len(example.message), "opcode": example.opcode, "unique": UNIQUE, "nodeid": NODEID, "uid": UID,
        "gid": 0x44434241, "pid": PID, "total_extlen": 0, "padding": 0,
    }  # fmt: skip
    assert {name: value for name, value in parts.fields.items() if value and name != "unused"} == {
        name: value for name, value in example.fields.items() if value
    }
    assert (tuple(parts.names), parts.data, parts.extensions) == (example.names, example.data, b"")


@each_example
def test_every_truncation_is_a_protocol_error_and_no_call(example: Example) -> None:
    whole = example.message
    for n in range(40, len(whole)):
        if example.opcode == abi.INIT:
            break  # the session takes it apart with decode_request
        with pytest.raises(ProtocolError):
            called(example, bytearray(cut(whole, n) + whole[n:]), n)


@each_example
def test_every_truncation_is_a_protocol_error_when_taken_apart(example: Example) -> None:
    for n in range(len(example.message)):
        short = cut(example.message, n)
        assert isinstance(codec.describe_request(short), str)
        if example.opcode == abi.INIT and example.layout is None and n == 56:
            continue  # the form of kernels before 7.36
        if abi.OPS[example.opcode].data and n >= len(example.message) - len(example.data):
            continue  # a general decoder does not know how long the bytes at the end should be
        with pytest.raises(ProtocolError):
            codec.decode_request(short, example.layout)


@each_example
def test_a_length_that_is_not_the_messages_is_a_protocol_error(example: Example) -> None:
    with pytest.raises(ProtocolError, match="the header says"):
        codec.decode_request(example.message + b"\0", example.layout)


@each_example
def test_bytes_behind_the_fields_are_a_protocol_error_where_none_belong(example: Example) -> None:
    whole = example.message + b"\0" * 8
    longer = cut(whole, len(whole))
    if not abi.OPS[example.opcode].data:
        with pytest.raises(ProtocolError, match="too many"):
            codec.decode_request(longer, example.layout)


@pytest.mark.parametrize("opcode", [opcode for opcode, op in abi.OPS.items() if op.names])
def test_an_empty_name_is_a_protocol_error(opcode: int) -> None:
    example = BY_OPCODE[opcode]
    if opcode == abi.TMPFILE:
        return  # its name is not looked at, but must be one: see the truncations
    fixed = example.message[: len(example.message) - len(example.data) - sum(len(name) + 1 for name in example.names)]
    for at in range(len(example.names)):
        names = [b"" if i == at else name for i, name in enumerate(example.names)]
        whole = fixed + b"".join(name + b"\0" for name in names) + example.data
        if opcode == abi.SYMLINK and at == 1:
            continue
        with pytest.raises(ProtocolError):
            called(example, cut(whole, len(whole)))


@pytest.mark.parametrize("opcode", [abi.LOOKUP, abi.MKDIR, abi.UNLINK, abi.GETXATTR, abi.CREATE])
def test_two_names_where_one_belongs_are_a_protocol_error(opcode: int) -> None:
    whole = BY_OPCODE[opcode].message + b"more\0"
    with pytest.raises(ProtocolError):
        called(BY_OPCODE[opcode], cut(whole, len(whole)))


@pytest.mark.parametrize("opcode", [abi.SYMLINK, abi.RENAME, abi.RENAME2])
def test_three_names_where_two_belong_are_a_protocol_error(opcode: int) -> None:
    whole = BY_OPCODE[opcode].message + b"more\0"
    with pytest.raises(ProtocolError):
        called(BY_OPCODE[opcode], cut(whole, len(whole)))


@pytest.mark.parametrize("opcode", [abi.WRITE, abi.SETXATTR, abi.IOCTL, abi.NOTIFY_REPLY, abi.BATCH_FORGET])
def test_more_bytes_than_a_request_says_are_a_protocol_error(opcode: int) -> None:
    whole = BY_OPCODE[opcode].message + b"\0"
    with pytest.raises(ProtocolError):
        called(BY_OPCODE[opcode], cut(whole, len(whole)))


def test_a_count_that_overflows_is_a_protocol_error() -> None:
    whole = message(abi.BATCH_FORGET, struct.pack("<IIQQ", 0xFFFFFFFF, 0, 1, 2))
    with pytest.raises(ProtocolError):
        called(BY_OPCODE[abi.BATCH_FORGET], whole)


def test_names_of_4095_bytes_and_any_bytes_arrive_whole() -> None:
    name = bytes(byte for byte in range(1, 256)) * 16 + b"x" * 15
    assert called(BY_OPCODE[abi.LOOKUP], message(abi.LOOKUP, name + b"\0"))[1] == (NODEID, name)


def test_an_unknown_opcode_is_a_protocol_error() -> None:
    for opcode in (0, 7, 19, 54, 4096, 0xFFFFFFFF):
        with pytest.raises(ProtocolError, match="unknown"):
            codec.decode_request(message(opcode))


def test_init_of_an_old_kernel_has_no_flags2() -> None:
    fields = codec.decode_request(OLD_FORMS[1].message).fields
    assert fields == {"major": 7, "minor": 23, "max_readahead": W1, "flags": W2}


# Handles and the words that are only sometimes there.


@pytest.mark.parametrize("opcode", [abi.GETATTR, abi.SETATTR, abi.STATX])
def test_a_handle_that_is_not_given_is_none(opcode: int) -> None:
    example = BY_OPCODE[opcode]
    word = struct.unpack_from("<I", example.message, 40)[0]
    without = word & ~(abi.FATTR_FH if opcode == abi.SETATTR else abi.GETATTR_FH)
    whole = example.message[:40] + struct.pack("<I", without) + example.message[44:]
    arguments = called(example, whole, objects=[None])[1]
    assert None in arguments
    assert not any(isinstance(argument, tuple) for argument in arguments)


def test_a_poll_without_notification_has_no_kh() -> None:
    whole = message(abi.POLL, struct.pack("<QQII", F1, F2, 0, 5))
    assert called(BY_OPCODE[abi.POLL], whole)[1][-1] is None


@pytest.mark.parametrize("fh", [3, 4, 2**31, 2**63, 2**64 - 1])
def test_a_handle_that_is_not_open_is_ebadf(fh: int) -> None:
    objects = [None, "one", "two", None]
    whole = message(abi.READ, struct.pack("<QQIIQII", fh, 0, 1, 0, 0, 0, 0))
    with pytest.raises(OSError, match="handle") as caught:
        called(BY_OPCODE[abi.READ], whole, objects=objects)
    assert caught.value.errno == errno.EBADF


def test_handle_0_is_none() -> None:
    whole = message(abi.READ, struct.pack("<QQIIQII", 0, 7, 9, 0, 0, 0, 0))
    assert called(BY_OPCODE[abi.READ], whole, objects=[None])[1] == (NODEID, None, 7, 9)


def test_a_falsy_handle_is_a_handle() -> None:
    whole = message(abi.READ, struct.pack("<QQIIQII", 1, 7, 9, 0, 0, 0, 0))
    assert called(BY_OPCODE[abi.READ], whole, objects=[None, 0])[1] == (NODEID, 0, 7, 9)


def test_the_32_bit_copy_asks_for_no_more_than_its_reply_can_say() -> None:
    body = struct.pack("<QQQQQQQ", F1, F2, F3, F4, 0, 1 << 40, 0)
    asked = called(BY_OPCODE[abi.COPY_FILE_RANGE], message(abi.COPY_FILE_RANGE, body))[1][6]
    assert 0 < asked <= 0xFFFFFFFF
    assert called(BY_OPCODE[abi.COPY_FILE_RANGE_64], message(abi.COPY_FILE_RANGE_64, body))[1][6] == 1 << 40


# SETATTR.


def changes(valid: int, **fields: int) -> SetAttr:
    whole = codec.encode_request(abi.SETATTR, UNIQUE, NODEID, valid=valid, body=fields)
    result: SetAttr = called(BY_OPCODE[abi.SETATTR], whole)[1][1]
    return result


@pytest.mark.parametrize(
    ("bit", "fields", "expected"),
    [
        (abi.FATTR_MODE, {"mode": 0o104755}, SetAttr(mode=0o104755)),
        (abi.FATTR_UID, {"uid": 11}, SetAttr(uid=11)),
        (abi.FATTR_GID, {"gid": 12}, SetAttr(gid=12)),
        (abi.FATTR_SIZE, {"size": 0}, SetAttr(size=0)),
        (abi.FATTR_SIZE, {"size": 2**63 - 1}, SetAttr(size=2**63 - 1)),
        (abi.FATTR_ATIME, {"atime": 1, "atimensec": 2}, SetAttr(atime_ns=1_000_000_002)),
        (abi.FATTR_MTIME, {"mtime": -1, "mtimensec": 999_999_999}, SetAttr(mtime_ns=-1)),
        (abi.FATTR_MTIME, {"mtime": -(2**63), "mtimensec": 0}, SetAttr(mtime_ns=-(2**63) * 10**9)),
        (abi.FATTR_CTIME, {"ctime": 2**63 - 1, "ctimensec": 5}, SetAttr(ctime_ns=(2**63 - 1) * 10**9 + 5)),
        (abi.FATTR_LOCKOWNER, {"lock_owner": F3}, SetAttr(lock_owner=F3)),
        (abi.FATTR_KILL_SUIDGID, {}, SetAttr(kill_suidgid=True)),
        (0, {"mode": 1, "uid": 2, "gid": 3, "size": 4, "atime": 5, "mtime": 6, "ctime": 7, "lock_owner": 8}, SetAttr()),
    ],
)
def test_each_bit_of_valid_changes_one_thing(bit: int, fields: dict[str, int], expected: SetAttr) -> None:
    assert changes(bit, **fields) == expected


def test_utime_now_is_this_moment_and_says_so() -> None:
    before = time.time_ns()
    got = changes(abi.FATTR_ATIME | abi.FATTR_ATIME_NOW | abi.FATTR_MTIME | abi.FATTR_MTIME_NOW, atime=5, mtime=6)
    assert got.atime_now
    assert got.mtime_now
    assert got.atime_ns is not None
    assert before <= got.atime_ns <= time.time_ns()
    assert got.mtime_ns == got.atime_ns


def test_utime_now_of_one_leaves_the_other_as_it_was_asked() -> None:
    got = changes(abi.FATTR_ATIME | abi.FATTR_MTIME | abi.FATTR_MTIME_NOW, atime=5, mtime=6)
    assert (got.atime_ns, got.atime_now, got.mtime_now) == (5 * 10**9, False, True)


# --- replies ------------------------------------------------------------------------------------------------------------

ATTR = Attr(
    ino=F1, mode=0o100640, nlink=0x0D0C0B0A, uid=W3, gid=0xE4E3E2E1, rdev=0x0103, size=0x0777767574737271,
    blocks=0x0887868584838281, blksize=0x1000, atime_ns=-1, mtime_ns=1_000_000_001, ctime_ns=0x0123456789 * 10**9 + 3,
    btime_ns=4 * 10**9 + 5, generation=F4,
)  # fmt: skip
# fmt: off
ATTR_BYTES = (
    "6162636465666768"  # ino
    "7172737475767707"  # size
    "8182838485868708"  # blocks
    "ffffffffffffffff"  # atime: -1 s
    "0100000000000000"  # mtime
    "8967452301000000"  # ctime
    "ffc99a3b"  # atimensec: 999,999,999, as -1 ns is one second less and all but one nanosecond
    "01000000"  # mtimensec
    "03000000"  # ctimensec
    "a0810000"  # mode
    "0a0b0c0d"  # nlink
    "d1d2d3d4"  # uid
    "e1e2e3e4"  # gid
    "03010000"  # rdev
    "00100000"  # blksize
    "00000000"  # flags
)
ENTRY_BYTES = (
    "6162636465666768"  # nodeid
    "9192939495969798"  # generation
    "0500000000000000"  # entry_valid
    "0700000000000000"  # attr_valid
    "06000000"  # entry_valid_nsec
    "08000000"  # attr_valid_nsec
    + ATTR_BYTES
)
# fmt: on


def reply_bytes(body: str) -> bytes:
    """Return a reply: len, error 0, the corpus's unique, *body* in hex."""
    raw = bytes.fromhex(body)
    return struct.pack("<IiQ", 16 + len(raw), 0, UNIQUE) + raw


STATX_TIMES = (
    "ffffffffffffffff" "ffc99a3b" "00000000"  # atime: -1 s, 999,999,999 ns
    "0400000000000000" "05000000" "00000000"  # btime
    "8967452301000000" "03000000" "00000000"  # ctime
    "0100000000000000" "01000000" "00000000"  # mtime
)  # fmt: skip

# fmt: off
REPLIES: list[tuple[str, abi.Out, bytes, str]] = [
    ("entry", abi.ENTRY, encoders.encode_entry(UNIQUE, ATTR, (5, 6), (7, 8)), ENTRY_BYTES),
    (
        "attr",
        abi.ATTRS,
        encoders.encode_attr(UNIQUE, ATTR, (7, 8)),
        "0700000000000000"  # attr_valid
        "08000000"  # attr_valid_nsec
        "00000000"  # dummy
        + ATTR_BYTES,
    ),
    (
        "statx",
        abi.STATX_ATTRS,
        encoders.encode_statx(UNIQUE, ATTR, (7, 8)),
        "0700000000000000"  # attr_valid
        "08000000"  # attr_valid_nsec
        "00000000"  # flags
        + "00" * 16  # spare
        + "ff0f0000"  # mask: BASIC_STATS | BTIME
        "00100000"  # blksize
        "0000000000000000"  # attributes
        "0a0b0c0d"  # nlink
        "d1d2d3d4"  # uid
        "e1e2e3e4"  # gid
        "a081"  # mode
        "0000"  # __spare0
        "6162636465666768"  # ino
        "7172737475767707"  # size
        "8182838485868708"  # blocks
        "0000000000000000"  # attributes_mask
        + STATX_TIMES
        + "01000000"  # rdev_major
        "03000000"  # rdev_minor
        "00000000"  # dev_major
        "00000000"  # dev_minor
        + "00" * 112,  # __spare2
    ),
    (
        "negative entry",
        abi.ENTRY,
        encoders.encode_negative_entry(UNIQUE, (5, 6)),
        "0000000000000000"  # nodeid: none
        "0000000000000000"  # generation
        "0500000000000000"  # entry_valid
        "0000000000000000"  # attr_valid
        "06000000"  # entry_valid_nsec
        "00000000"  # attr_valid_nsec
        + "00" * 88,  # attr
    ),
    (
        "created",
        abi.CREATED,
        encoders.encode_created(UNIQUE, ATTR, (5, 6), (7, 8), F2, 0x81, -3),
        ENTRY_BYTES + "7172737475767778"  # fh
        "81000000"  # open_flags: PASSTHROUGH | DIRECT_IO
        "fdffffff",  # backing_id
    ),
    (
        "opened",
        abi.OPENED,
        encoders.encode_opened(UNIQUE, F2, 0x02, 0x04030201),
        "7172737475767778"  # fh
        "02000000"  # open_flags: KEEP_CACHE
        "01020304",  # backing_id
    ),
    ("written", abi.WRITTEN, encoders.encode_written(UNIQUE, W1), "01020304" "00000000"),  # size, padding
    ("revents", abi.REVENTS, encoders.encode_written(UNIQUE, W1), "01020304" "00000000"),  # revents, padding
    ("offset", abi.OFFSET, encoders.encode_offset(UNIQUE, F1), "6162636465666768"),
    ("block", abi.BLOCK, encoders.encode_offset(UNIQUE, F2), "7172737475767778"),
    ("copied", abi.COPIED, encoders.encode_offset(UNIQUE, F3), "8182838485868788"),
    (
        "lock",
        abi.LOCK,
        encoders.encode_lock(UNIQUE, Lock(1, F1, F2, W1)),
        "6162636465666768"  # start
        "7172737475767778"  # end
        "01000000"  # type: F_WRLCK
        "01020304",  # pid
    ),
    (
        "no lock",
        abi.LOCK,
        encoders.encode_lock(UNIQUE, None),
        "0000000000000000"  # start
        "0000000000000000"  # end
        "02000000"  # type: F_UNLCK
        "00000000",  # pid
    ),
    (
        "ioctl",
        abi.IOCTL_RESULT,
        encoders.encode_ioctl(UNIQUE, -7, memoryview(b"out")),
        "f9ffffff"  # result
        "00000000"  # flags
        "00000000"  # in_iovs
        "00000000"  # out_iovs
        + b"out".hex(),
    ),
    (
        "statfs",
        abi.TOTALS,
        encoders.encode_statfs(UNIQUE, StatFs(F1, F2, F3, F4, 0xA8, 0x1000, 0x0200, 0xFE)),
        "6162636465666768"  # blocks
        "7172737475767778"  # bfree
        "8182838485868788"  # bavail
        "9192939495969798"  # files
        "a800000000000000"  # ffree
        "00100000"  # bsize
        "fe000000"  # namelen
        "00020000"  # frsize
        "00000000"  # padding
        + "00" * 24,  # spare
    ),
]
# fmt: on
each_reply = pytest.mark.parametrize(("out", "made", "body"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])


@each_reply
def test_a_reply_is_these_bytes(out: abi.Out, made: bytes, body: str) -> None:
    assert made == reply_bytes(body)


@each_reply
def test_a_reply_taken_apart_and_encoded_again_is_the_same(out: abi.Out, made: bytes, body: str) -> None:
    parts = codec.decode_reply(out, made)
    assert (parts.unique, parts.error) == (UNIQUE, 0)
    assert codec.encode_reply(out, UNIQUE, data=parts.data, **parts.fields) == made


@each_reply
def test_every_truncation_of_a_reply_is_a_protocol_error(out: abi.Out, made: bytes, body: str) -> None:
    for n in range(len(made)):
        with pytest.raises(ProtocolError):
            codec.decode_reply(out, made[:n])
        if n < len(made) - (3 if out.data else 0):
            with pytest.raises(ProtocolError):
                codec.decode_reply(out, struct.pack("<I", n) + made[4:n])


@each_reply
def test_a_reply_that_is_too_long_is_a_protocol_error(out: abi.Out, made: bytes, body: str) -> None:
    if not out.data:
        with pytest.raises(ProtocolError, match="too many"):
            codec.decode_reply(out, struct.pack("<I", len(made) + 8) + made[4:] + b"\0" * 8)


@pytest.mark.parametrize("out", [abi.EMPTY, abi.TARGET, abi.DATA, abi.XATTR, abi.XATTR_NAMES, abi.DIRENTS, abi.DIRENTS_PLUS])
def test_a_reply_without_a_struct_is_its_bytes(out: abi.Out) -> None:
    data = b"" if out is abi.EMPTY else b"\0bytes"
    made = codec.encode_reply(out, UNIQUE, data=data)
    assert made == reply_bytes(data.hex())
    assert codec.decode_reply(out, made) == (UNIQUE, 0, {}, data)


def test_every_kind_of_reply_has_an_example() -> None:
    plain = {op.out for op in abi.OPS.values() if op.out.layout is None} | {abi.INITIAL}
    assert {row[1] for row in REPLIES} | plain == {op.out for op in abi.OPS.values()}


def test_the_answer_to_init_is_these_bytes() -> None:
    made = codec.encode_reply(
        abi.INITIAL, UNIQUE, major=7, minor=45, max_readahead=W1, flags=W2, max_background=0x0605, congestion_threshold=0x0807,
        max_write=W3, time_gran=1, max_pages=0x1211, map_alignment=0, flags2=0x7FD, max_stack_depth=2, request_timeout=0x1413,
    )  # fmt: skip
    # fmt: off
    assert made == reply_bytes(
        "07000000"  # major
        "2d000000"  # minor
        "01020304"  # max_readahead
        "0a0b0c0d"  # flags
        "0506"  # max_background
        "0708"  # congestion_threshold
        "d1d2d3d4"  # max_write
        "01000000"  # time_gran
        "1112"  # max_pages
        "0000"  # map_alignment
        "fd070000"  # flags2
        "02000000"  # max_stack_depth
        "1314"  # request_timeout
        + "00" * 22  # unused
    )
    # fmt: on


@pytest.mark.parametrize("opcode", sorted(abi.OPS))
def test_an_error_is_a_header_whatever_was_asked(opcode: int) -> None:
    out = abi.OPS[opcode].out
    made = codec.encode_reply(out, UNIQUE, error=errno.ENOSPC)
    assert made == struct.pack("<IiQ", 16, -28, UNIQUE)
    assert codec.decode_reply(out, made) == (UNIQUE, errno.ENOSPC, {}, b"")


@pytest.mark.parametrize("error", [5, 1, -512, -1000, -(2**31)])
def test_an_error_that_the_kernel_does_not_take_is_a_protocol_error(error: int) -> None:
    with pytest.raises(ProtocolError, match="not an error number"):
        codec.decode_reply(abi.EMPTY, struct.pack("<IiQ", 16, error, UNIQUE))


def test_an_error_with_a_body_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="an error with a body"):
        codec.decode_reply(abi.DATA, struct.pack("<IiQ", 17, -5, UNIQUE) + b"x")


def test_an_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no field colour"):
        codec.pack(abi.OPEN_OUT, fh=1, colour=2)


# Times.


@pytest.mark.parametrize(
    ("ns", "seconds", "rest"),
    [
        (0, 0, 0),
        (-1, -1, 999_999_999),
        (-(10**9), -1, 0),
        (-(10**9) - 1, -2, 999_999_999),
        (253402300799 * 10**9 + 999_999_999, 253402300799, 999_999_999),
        ((2**63 - 1) * 10**9 + 999_999_999, 2**63 - 1, 999_999_999),
        (-(2**63) * 10**9, -(2**63), 0),
    ],
)
def test_times_before_1970_and_far_away_keep_their_nanoseconds(ns: int, seconds: int, rest: int) -> None:
    attr = Attr(ino=9, atime_ns=ns, mtime_ns=ns, ctime_ns=ns, btime_ns=ns)
    for made, out, prefix in (
        (encoders.encode_attr(1, attr, (0, 0)), abi.ATTRS, "attr"),
        (encoders.encode_entry(1, attr, (0, 0), (0, 0)), abi.ENTRY, "attr"),
        (encoders.encode_created(1, attr, (0, 0), (0, 0), 0, 0, 0), abi.CREATED, "entry_attr"),
    ):
        fields = codec.decode_reply(out, made).fields
        for which in ("atime", "mtime", "ctime"):
            assert (fields[f"{prefix}_{which}"], fields[f"{prefix}_{which}nsec"]) == (seconds, rest)
    fields = codec.decode_reply(abi.STATX_ATTRS, encoders.encode_statx(1, attr, (0, 0))).fields
    for which in ("atime", "btime", "ctime", "mtime"):
        assert (fields[f"stat_{which}_tv_sec"], fields[f"stat_{which}_tv_nsec"]) == (seconds, rest)


def test_a_time_beyond_64_bits_is_refused() -> None:
    with pytest.raises(struct.error):
        encoders.encode_attr(1, Attr(ino=1, mtime_ns=2**63 * 10**9), (0, 0))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, (0, 0)),
        (0.0, (0, 0)),
        (0.5, (0, 500_000_000)),
        (1, (1, 0)),
        (1.25, (1, 250_000_000)),
        (86400 * 365, (31_536_000, 0)),
        (1e-9, (0, 1)),
        (1e-12, (0, 0)),
        (-1.0, (0, 0)),
        (-math.inf, (0, 0)),
        (math.nan, (0, 0)),
        (math.inf, (codec.LONGEST_TTL, 0)),
        (1e300, (codec.LONGEST_TTL, 0)),
        (2**64, (codec.LONGEST_TTL, 0)),
        (codec.LONGEST_TTL - 1, (codec.LONGEST_TTL - 1, 0)),
    ],
)
def test_a_timeout_is_seconds_and_nanoseconds(seconds: float, expected: tuple[int, int]) -> None:
    assert codec.split_ttl(seconds) == expected


@pytest.mark.parametrize("seconds", [1 - 2**-53, 0.9999999999, 999_999_999.9999999, 5 - 2**-50])
def test_nanoseconds_never_reach_a_second(seconds: float) -> None:
    whole, rest = codec.split_ttl(seconds)
    assert 0 <= rest < 10**9
    assert whole <= seconds


def test_an_attr_may_have_timeouts_of_its_own() -> None:
    attr = Attr(ino=5, entry_ttl=0.5, attr_ttl=math.inf)
    expected = {"entry_valid": 0, "entry_valid_nsec": 500_000_000, "attr_valid": codec.LONGEST_TTL, "attr_valid_nsec": 0}
    fields = codec.decode_reply(abi.ENTRY, encoders.encode_entry(1, attr, (7, 7), (8, 8))).fields
    assert {name: fields[name] for name in expected} == expected
    created = codec.decode_reply(abi.CREATED, encoders.encode_created(1, attr, (7, 7), (8, 8), 0, 0, 0)).fields
    assert {name: created[f"entry_{name}"] for name in expected} == expected
    made_by = {abi.ATTRS: encoders.encode_attr, abi.STATX_ATTRS: encoders.encode_statx}
    for out, encode in made_by.items():
        made = encode(1, attr, (8, 8))
        assert codec.decode_reply(out, made).fields["attr_valid"] == codec.LONGEST_TTL


def test_a_device_number_of_statx_is_taken_apart_as_the_kernel_packs_it() -> None:
    packed = (0x34567 & 0xFF) | (0xABC << 8) | ((0x34567 & ~0xFF) << 12)  # new_encode_dev(MKDEV(0xABC, 0x34567))
    fields = codec.decode_reply(abi.STATX_ATTRS, encoders.encode_statx(1, Attr(ino=1, rdev=packed), (0, 0))).fields
    assert (fields["stat_rdev_major"], fields["stat_rdev_minor"]) == (0xABC, 0x34567)


# --- listings -----------------------------------------------------------------------------------------------------------


def packer(limit: int, plus: bool = False) -> tuple[DirentPacker, list[int]]:
    entered: list[int] = []
    return DirentPacker(limit, plus, (5, 6), (7, 8), entered.append), entered


def test_a_dirent_is_these_bytes() -> None:
    pack, _ = packer(4096)
    assert pack.add(DirEntry(b"abc", F1, 0o040000, F2))
    # fmt: off
    assert b"".join(pack.parts) == bytes.fromhex(
        "6162636465666768"  # ino
        "7172737475767778"  # off
        "03000000"  # namelen
        "04000000"  # type: DT_DIR
        + b"abc".hex()
        + "0000000000"  # padding
    )
    # fmt: on


def test_a_direntplus_is_these_bytes() -> None:
    pack, entered = packer(4096, plus=True)
    assert pack.add(DirEntry(b"12345678", 0x99, 0o100000, F2, ATTR))
    # fmt: off
    assert b"".join(pack.parts) == bytes.fromhex(
        ENTRY_BYTES + "9900000000000000"  # ino
        "7172737475767778"  # off
        "08000000"  # namelen
        "08000000"  # type: DT_REG
        + b"12345678".hex()  # no padding
    )
    # fmt: on
    assert entered == [F1]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 255])
def test_a_record_is_padded_to_8_bytes_and_read_back(length: int, plus: bool) -> None:
    pack, _ = packer(8192, plus)
    names = [bytes([65 + i]) * length for i in range(3)]
    for at, name in enumerate(names):
        assert pack.add(DirEntry(name, at + 10, 0o120000, at + 1, Attr(ino=at + 10, mode=0o120777)))
    assert all(len(part) % 8 == 0 for part in pack.parts)
    listed = codec.decode_dirents(b"".join(pack.parts), plus)
    prefix = "dirent_" if plus else ""
    assert [(e["name"], e[f"{prefix}ino"], e[f"{prefix}off"], e[f"{prefix}type"]) for e in listed] == [
        (name, at + 10, at + 1, 10) for at, name in enumerate(names)
    ]


@pytest.mark.parametrize(("plus", "header"), [(False, 24), (True, 152)])
def test_what_fits_exactly_is_taken_and_one_byte_less_is_not(plus: bool, header: int) -> None:
    entry = DirEntry(b"123456789", 3, 0o100000, 1, Attr(ino=3))
    first = DirEntry(b"x", 2, 0o100000, 1, Attr(ino=2))
    size = (header + 8) + (header + 16)
    exact, entered = packer(size, plus)
    assert exact.add(first)
    assert exact.add(entry)
    assert len(b"".join(exact.parts)) == size
    short, counted = packer(size - 1, plus)
    assert short.add(first)
    assert not short.add(entry)
    assert len(b"".join(short.parts)) == header + 8
    assert entered == ([2, 3] if plus else [])
    assert counted == short.counted == ([2] if plus else [])


def test_an_entry_that_fits_into_no_reply_is_an_error_and_not_the_end_of_the_directory() -> None:
    pack, _ = packer(40)
    with pytest.raises(OSError, match="too small") as caught:
        pack.add(DirEntry(b"longer than sixteen", 3, 0o100000, 1))
    assert caught.value.errno == errno.EINVAL


def test_readdirplus_counts_what_has_attributes_but_not_the_dots() -> None:
    pack, entered = packer(8192, plus=True)
    for entry in (
        DirEntry(b".", 7, 0o040000, 1, Attr(ino=7)),
        DirEntry(b"..", 1, 0o040000, 2, Attr(ino=1)),
        DirEntry(b"with", 8, 0o100000, 3, Attr(ino=8, generation=4)),
        DirEntry(b"without", 9, 0o100000, 4),
    ):
        assert pack.add(entry)
    assert entered == pack.counted == [8]
    listed = codec.decode_dirents(b"".join(pack.parts), plus=True)
    assert [e["entry_out_nodeid"] for e in listed] == [0, 0, 8, 0]
    assert [e["dirent_ino"] for e in listed] == [7, 1, 8, 9]
    assert listed[2]["entry_out_generation"] == 4
    assert listed[3]["entry_out_entry_valid"] == 0


def test_readdir_counts_nothing() -> None:
    pack, entered = packer(8192)
    assert pack.add(DirEntry(b"with", 8, 0o100000, 3, Attr(ino=8)))
    assert entered == pack.counted == []


@pytest.mark.parametrize("plus", [False, True])
def test_a_truncated_listing_is_a_protocol_error(plus: bool) -> None:
    pack, _ = packer(8192, plus)
    pack.add(DirEntry(b"abc", 3, 0o100000, 1, Attr(ino=3)))
    whole = b"".join(pack.parts)
    assert codec.decode_dirents(b"", plus) == []
    for n in range(1, len(whole)):
        with pytest.raises(ProtocolError):
            codec.decode_dirents(whole[:n], plus)


# --- extensions ---------------------------------------------------------------------------------------------------------


def test_a_security_context_is_a_name_and_a_value() -> None:
    assert codec.parse_extensions(SECURITY_BLOCK).secctx == [(b"security.selinux", b"label_t:s")]


def test_supplementary_groups_are_numbers() -> None:
    assert codec.parse_extensions(GROUPS_BLOCK).groups == [W1, W2]


@pytest.mark.parametrize("block", [SECURITY_BLOCK + GROUPS_BLOCK, GROUPS_BLOCK + SECURITY_BLOCK])
def test_both_extensions_come_in_any_order(block: bytes) -> None:
    both = codec.parse_extensions(block)
    assert (both.secctx, both.groups) == ([(b"security.selinux", b"label_t:s")], [W1, W2])


def test_two_security_contexts_are_each_padded_to_8_bytes() -> None:
    block = bytes.fromhex(
        "38000000"  # size: 56
        "02000000"  # nr_secctx
        "01000000" "00000000"  # [0] size, padding
        + b"security.a\0V".hex() + "00000000"
        + "02000000" "00000000"  # [1]
        + b"b\0XY".hex() + "00000000"
        + "0000000000000000"  # more than is needed
    )  # fmt: skip
    assert codec.parse_extensions(block).secctx == [(b"security.a", b"V"), (b"b", b"XY")]


def test_no_security_context_at_all_is_fine() -> None:
    assert codec.parse_extensions(bytes.fromhex("0800000000000000")).secctx == []


def test_an_unknown_extension_is_passed_over() -> None:
    block = bytes.fromhex("10000000 21000000 ffffffffffffffff") + GROUPS_BLOCK
    assert codec.parse_extensions(block).groups == [W1, W2]


@pytest.mark.parametrize("block", [SECURITY_BLOCK, GROUPS_BLOCK], ids=["security", "groups"])
def test_every_truncation_of_an_extension_is_a_protocol_error(block: bytes) -> None:
    for n in range(1, len(block)):
        with pytest.raises(ProtocolError):
            codec.parse_extensions(block[:n])


@pytest.mark.parametrize(
    "block",
    [
        bytes.fromhex("0000000020000000"),  # a size of 0 would never end
        bytes.fromhex("0700000020000000"),
        bytes.fromhex("ffffffff20000000"),
        bytes.fromhex("0800000020000000"),  # groups without a count
        bytes.fromhex("1000000020000000 ffffffff00000000"),  # more groups than fit
        bytes.fromhex("0800000001000000"),  # a context without its header
        bytes.fromhex("1800000001000000 ff00000000000000") + b"name\0val",  # a value longer than what is there
        bytes.fromhex("1800000001000000 0100000000000000") + b"no-end!!",  # a name without its end
        bytes.fromhex("180000001f000000 0000000000000000") + b"name\0\0\0\0",  # 31 contexts, of which one is there
    ],
    ids=range(9),
)
def test_lengths_that_do_not_add_up_are_a_protocol_error(block: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.parse_extensions(block)


def test_extensions_travel_behind_a_request() -> None:
    whole = codec.encode_request(abi.MKDIR, UNIQUE, NODEID, names=[b"d"], mode=0o755, extensions=SECURITY_BLOCK + GROUPS_BLOCK)
    assert struct.unpack_from("<IIQQIIIHH", whole)[7] == (48 + 24) // 8
    parts = codec.decode_request(whole)
    assert (parts.names, parts.extensions) == ([b"d"], SECURITY_BLOCK + GROUPS_BLOCK)


def test_extensions_come_in_units_of_8_bytes() -> None:
    with pytest.raises(ValueError, match="units of 8"):
        codec.encode_request(abi.MKDIR, UNIQUE, names=[b"d"], extensions=b"1234567")


@pytest.mark.parametrize("units", [1, 2, 100, 0xFFFF])
def test_extensions_longer_than_the_message_are_a_protocol_error(units: int) -> None:
    whole = bytearray(message(abi.GETATTR, struct.pack("<IIQ", 0, 0, 0)))
    struct.pack_into("<H", whole, 36, units)
    with pytest.raises(ProtocolError):
        codec.decode_request(bytes(whole))
    assert "malformed" in codec.describe_request(bytes(whole))


# --- notifications ------------------------------------------------------------------------------------------------------

# fmt: off
NOTIFICATIONS: list[tuple[int, dict[str, Any], str]] = [
    (abi.NOTIFY_POLL, {"kh": F1}, "6162636465666768"),  # kh
    (
        abi.NOTIFY_INVAL_INODE,
        {"ino": F1, "off": -1, "len": 0x0877767574737271},
        "6162636465666768"  # ino
        "ffffffffffffffff"  # off
        "7172737475767708",  # len
    ),
    (
        abi.NOTIFY_INVAL_ENTRY,
        {"parent": F1, "flags": 1, "names": [b"gone"]},
        "6162636465666768"  # parent
        "04000000"  # namelen
        "01000000"  # flags: EXPIRE_ONLY
        + b"gone\0".hex(),
    ),
    (
        abi.NOTIFY_STORE,
        {"nodeid": F1, "offset": F2, "data": b"st\0re"},
        "6162636465666768"  # nodeid
        "7172737475767778"  # offset
        "05000000"  # size
        "00000000"  # padding
        + b"st\0re".hex(),
    ),
    (
        abi.NOTIFY_RETRIEVE,
        {"notify_unique": F1, "nodeid": F2, "offset": F3, "size": W1},
        "6162636465666768"  # notify_unique
        "7172737475767778"  # nodeid
        "8182838485868788"  # offset
        "01020304"  # size
        "00000000",  # padding
    ),
    (
        abi.NOTIFY_DELETE,
        {"parent": F1, "child": F2, "names": [b"removed"]},
        "6162636465666768"  # parent
        "7172737475767778"  # child
        "07000000"  # namelen
        "00000000"  # padding
        + b"removed\0".hex(),
    ),
    (abi.NOTIFY_RESEND, {}, ""),
    (abi.NOTIFY_INC_EPOCH, {}, ""),
    (
        abi.NOTIFY_PRUNE,
        {"data": struct.pack("<2Q", F1, F2)},
        "02000000"  # count
        "00000000"  # padding
        "0000000000000000"  # spare
        "6162636465666768"  # nodeids[0]
        "7172737475767778",  # nodeids[1]
    ),
]
# fmt: on
each_notification = pytest.mark.parametrize(
    ("code", "fields", "body"), NOTIFICATIONS, ids=[abi.NOTES[row[0]].name for row in NOTIFICATIONS]
)


def notification_bytes(code: int, body: str) -> bytes:
    """Return a notification: len, the code where a reply has its error, unique 0, *body* in hex."""
    raw = bytes.fromhex(body)
    return struct.pack("<IiQ", 16 + len(raw), code, 0) + raw


def test_every_notification_has_an_example() -> None:
    assert [row[0] for row in NOTIFICATIONS] == sorted(abi.NOTES)


@each_notification
def test_a_notification_is_these_bytes(code: int, fields: dict[str, Any], body: str) -> None:
    parts = codec.encode_notification(code, **fields)
    assert b"".join(bytes(part) for part in parts) == notification_bytes(code, body)


@each_notification
def test_a_notification_is_taken_apart(code: int, fields: dict[str, Any], body: str) -> None:
    got = codec.decode_notification(notification_bytes(code, body))
    assert got.code == code
    assert got.names == fields.get("names", [])
    assert got.data == fields.get("data", b"")
    for name, value in fields.items():
        if name not in ("names", "data"):
            assert got.fields[name] == value


@each_notification
def test_every_truncation_of_a_notification_is_a_protocol_error(code: int, fields: dict[str, Any], body: str) -> None:
    whole = notification_bytes(code, body)
    for n in range(len(whole)):
        with pytest.raises(ProtocolError):
            codec.decode_notification(whole[:n])
        if n >= 16:
            with pytest.raises(ProtocolError):
                codec.decode_notification(cut(whole, n))


@each_notification
def test_a_notification_that_is_too_long_is_a_protocol_error(code: int, fields: dict[str, Any], body: str) -> None:
    whole = notification_bytes(code, body + "00" * 8)
    with pytest.raises(ProtocolError):
        codec.decode_notification(whole)


def test_a_reply_is_no_notification() -> None:
    with pytest.raises(ProtocolError, match="not a notification"):
        codec.decode_notification(struct.pack("<IiQ", 16, 7, 2))
    for code in (0, 10, -5):
        with pytest.raises(ProtocolError, match="not a notification"):
            codec.decode_notification(struct.pack("<IiQ", 16, code, 0))


# --- traces -------------------------------------------------------------------------------------------------------------


def test_a_trace_names_the_operation_its_fields_and_who_asks() -> None:
    whole = codec.encode_request(
        abi.WRITE, 42, 7, uid=1000, gid=100, pid=4321, data=b"12345", fh=3, offset=4096, size=5, write_flags=5
    )
    assert codec.describe_request(whole) == (
        "-> WRITE #42 nodeid=7 fh=3 offset=4096 size=5 write_flags=0x5 5 bytes uid=1000 gid=100 pid=4321"
    )


def test_a_trace_shows_names_and_leaves_out_what_is_0() -> None:
    whole = codec.encode_request(abi.RENAME, 44, 1, newdir=9, names=[b"a b", b"\xff\n"])
    assert codec.describe_request(whole) == "-> RENAME #44 nodeid=1 newdir=9 b'a b' b'\\xff\\n' uid=0 gid=0 pid=0"


def test_a_trace_of_an_old_form_can_be_told_so() -> None:
    line = codec.describe_request(OLD_FORMS[0].message, abi.SETXATTR_IN_COMPAT)
    assert "b'user.old'" in line
    assert "3 bytes" in line


@each_example
def test_every_request_has_a_trace_of_one_line(example: Example) -> None:
    line = codec.describe_request(example.message, example.layout)
    assert line.startswith(f"-> {example.name} #{UNIQUE} ")
    assert "\n" not in line


def test_a_malformed_message_has_a_trace_too() -> None:
    for junk in (b"", b"\0" * 40, b"\xff" * 100, message(7), cut(message(abi.LOOKUP, b"x"), 41)):
        assert codec.describe_request(junk).startswith("-> malformed: ")


def test_a_trace_of_a_reply_says_the_error_or_the_length() -> None:
    assert codec.describe_reply(codec.encode_reply(abi.DATA, 42, data=b"12345")) == "<- #42 5 bytes"
    assert codec.describe_reply(codec.encode_reply(abi.DATA, 44, error=errno.ENOENT)) == "<- #44 ENOENT"
    assert codec.describe_reply(struct.pack("<IiQ", 16, -510, 46)) == "<- #46 510"
