"""Malformed, mutated and random messages into a Session: it never raises, never hangs, and answers each request once.

Always the same examples; PYFUSEKIT_FUZZ_EXAMPLES=100000 looks further, with others each time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from driver import OFFERED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire import EXAMPLES, GROUPS_BLOCK, OLD_FORMS, SECURITY_BLOCK

from pyfusekit.core import abi, codec
from pyfusekit.core.errors import ProtocolError
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.notify import Notifier
from pyfusekit.core.session import KEPT, Session
from pyfusekit.core.types import Attr, Data, DirEntry, Ioctl, Lock, Opened, Request, StatFs

_MORE = os.environ.get("PYFUSEKIT_FUZZ_EXAMPLES")
profile = settings(
    max_examples=int(_MORE or 80),
    derandomize=_MORE is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

HELLO = codec.encode_request(
    abi.INIT, 2, major=7, minor=45, max_readahead=1 << 17, flags=OFFERED & 0xFFFFFFFF, flags2=OFFERED >> 32
)


# --- a filesystem that answers plausibly, or not at all -----------------------------------------------------------------


def plausible(method: str, chance: random.Random, size: int) -> Any:
    """Return what *method* might return."""
    attr = Attr(
        ino=chance.choice([1, 2, 7, 2**64 - 1]), mode=chance.choice([0o100644, 0o040755, 0o104755]), size=chance.randrange(9)
    )
    opened = chance.choice([None, "handle", Opened("handle", chance.choice([0, 1, 0x7F])), Opened()])
    entries = [
        DirEntry(b"n" * (i % 40 + 1), i + 2, 0o100644, i + 1, attr if i % 2 else None) for i in range(chance.randrange(30))
    ]
    if method in ("lookup", "mknod", "mkdir", "symlink", "link", "getattr", "setattr", "statx"):
        return chance.choice([attr, None]) if method == "lookup" else attr
    if method in ("create", "tmpfile"):
        return attr, opened
    if method in ("open", "opendir"):
        return opened
    if method in ("readdir", "readdirplus"):
        return chance.choice([entries, iter(entries), later_entries(entries)])
    if method in ("read", "getxattr", "readlink"):
        piece = b"d" * min(size, chance.choice([0, 1, 4000, 9000]))
        return chance.choice(
            [piece, memoryview(piece), bytearray(piece)] + ([[piece[:5], piece[5:]]] if method == "read" else [])
        )
    if method == "listxattr":
        return [b"user.a"] * chance.randrange(4)
    if method == "statfs":
        return StatFs(1, 2, 3, 4, 5)
    if method == "getlk":
        return chance.choice([None, Lock(1, 2, 3, 4)])
    if method == "ioctl":
        return chance.choice([None, Ioctl(chance.randrange(-5, 5), b"o" * min(size, 3))])
    return chance.choice([None, 0, 1, 2**31, 2**63])


async def later_entries(entries: list[DirEntry]) -> Any:
    for entry in entries:
        await asyncio.sleep(0)
        yield entry


class Moody(Filesystem):
    """Answers by the number of the request: a value, an error, a bug, garbage, soon, or never."""

    notifier: Any = None

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.handle_killpriv = bool(seed & 1)
        self.security_ctx = self.create_supp_group = bool(seed & 2)
        self.keep_own_locks = bool(seed & 4)

    def forget(self, ino: int, nlookup: int) -> None:
        if (ino ^ self.seed) % 5 == 0:
            raise KeyError(ino)

    def answer(self, method: str, request: Request, arguments: Sequence[Any]) -> Any:
        chance = random.Random(f"{self.seed} {method} {request.unique}")
        mood = chance.randrange(12)
        views = [argument for argument in arguments if isinstance(argument, memoryview)]
        before = [bytes(view) for view in views]

        def result() -> Any:
            assert [bytes(view) for view in views] == before, "the data changed under the handler"
            if mood in (0, 1):
                raise OSError(chance.choice([errno.ENOENT, errno.ENOSYS, 0, -5, 512, 10**9]), "raised")
            if mood == 2:
                raise chance.choice([ValueError, KeyboardInterrupt, SystemExit, asyncio.CancelledError, StopIteration])("a bug")
            if mood == 3:
                return chance.choice([None, -1, "t" * 5000, object(), [None], (1, 2), b"x" * 100_000, Attr(ino=-1)])
            return plausible(method, chance, min(request.size, 1 << 16))

        async def later() -> Any:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if mood == 8:
                await asyncio.sleep(3600)
            return result()

        return later() if mood >= 7 or chance.random() < 0.3 else result()


def _handler(method: str) -> Any:
    def handler(self: Moody, request: Request, *arguments: Any) -> Any:
        return self.answer(method, request, arguments)

    return handler


for _name in {op.method for op in abi.OPS.values() if op.method}:
    setattr(Moody, _name, _handler(_name))


# --- the messages -------------------------------------------------------------------------------------------------------

VALID = [example.message for example in EXAMPLES + OLD_FORMS]
SEEDS = st.integers(0, 7)
INTERESTING = st.sampled_from([0, 1, 2, 7, 8, 39, 40, 41, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])


def whole(body: bytes) -> bytes:
    """Return a message whose header says how long it is."""
    return struct.pack("<I", len(body) & 0xFFFFFFFF) + body[4:] if len(body) >= 4 else body


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a valid message with a few bytes changed, added or taken away."""
    message = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(message)))
        kind = draw(st.integers(0, 3))
        if kind == 0 and at < len(message):
            message[at] = draw(st.integers(0, 255))
        elif kind == 1:
            message[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == 2:
            del message[at : at + draw(st.integers(1, 9))]
        elif at + 8 <= len(message):
            struct.pack_into("<Q", message, at, draw(INTERESTING))
    return whole(bytes(message)) if draw(st.booleans()) else bytes(message)


@st.composite
def truncated(draw: st.DrawFn) -> bytes:
    message = draw(st.sampled_from(VALID))
    cut = message[: draw(st.integers(0, len(message)))]
    return whole(cut) if draw(st.booleans()) else cut


@st.composite
def headed(draw: st.DrawFn) -> bytes:
    """Return any bytes behind a right header."""
    opcode = draw(st.sampled_from(sorted(abi.OPS)))
    body = draw(st.binary(max_size=150))
    header = struct.pack(
        "<IIQQIIIHH", 40 + len(body), opcode, draw(st.sampled_from([2, 4, 6, 8, 2**63 + 8])), draw(INTERESTING), 0, 0, 0,
        draw(st.sampled_from([0, 0, 0, 1, 2, 5, 65535])), 0,
    )  # fmt: skip
    return header + body


@st.composite
def filled(draw: st.DrawFn) -> bytes:
    """Return a well-formed request with any values in its fields."""
    opcode = draw(st.sampled_from(sorted(abi.OPS)))
    op = abi.OPS[opcode]
    fields: dict[str, Any] = {}
    for name, letter in op.struct.fields.items() if op.struct is not None else ():
        if len(letter) == 1:
            bits = 8 * struct.calcsize("=" + letter)
            value = draw(INTERESTING) & ((1 << bits) - 1)
            fields[name] = value - (1 << bits) if letter in "iq" and value >> (bits - 1) else value
    data = draw(st.binary(max_size=64)) if op.data else b""
    for name in ("size", "in_size"):
        if op.data and name in fields and draw(st.booleans()):
            fields[name] = len(data)
    for name in fields:
        if name.startswith("fh") and draw(st.booleans()):
            fields[name] = draw(st.integers(0, 3))
    return codec.encode_request(
        opcode, draw(st.integers(1, 40)) * 2, draw(INTERESTING), uid=draw(st.sampled_from([0, 1000])),
        names=[draw(st.binary(min_size=1, max_size=20)) for _ in op.names.split()], data=data, body=fields,
        extensions=draw(st.sampled_from([b"", b"", SECURITY_BLOCK, GROUPS_BLOCK + SECURITY_BLOCK, b"\xff" * 16])),
    )  # fmt: skip


@st.composite
def interrupting(draw: st.DrawFn) -> bytes:
    target = draw(st.one_of(st.integers(1, 40).map(lambda n: n * 2), INTERESTING))
    return codec.encode_request(abi.INTERRUPT, 1, body={"unique": target})


messages = st.one_of(
    st.binary(max_size=200), st.binary(max_size=200).map(whole), mutated(), truncated(), headed(), filled(), interrupting()
)


# --- the properties -----------------------------------------------------------------------------------------------------


class Kernel:
    """Takes what the session writes, and remembers it."""

    def __init__(self, refusing: int) -> None:
        self.refusing = refusing
        self.taken: list[bytes] = []
        self.refused = 0

    def write(self, message: bytes) -> None:
        length, error, unique = codec.OUT_HEADER.unpack_from(message)
        if length != len(message) or not -512 < error <= 0:
            self.refused += 1
            raise OSError(errno.EINVAL, "malformed")
        if self.refusing and unique % 7 == self.refusing:
            self.refused += 1
            raise OSError(errno.ENOENT if unique % 2 else errno.EINVAL, "refused")
        self.taken.append(message)

    def writev(self, parts: Sequence[Data]) -> None:
        self.write(b"".join(memoryview(part) for part in parts))


def outs_of(fed: Sequence[bytes]) -> tuple[Counter[int], dict[int, set[abi.Out]]]:
    """Return how many answers each number is owed, and of which kinds they may be."""
    owed: Counter[int] = Counter()
    outs: dict[int, set[abi.Out]] = {}
    for message in fed:
        if len(message) < 40:
            continue
        opcode, unique = struct.unpack_from("<IQ", message, 4)
        op = abi.OPS.get(opcode)
        if op is None or op.out is not abi.NO_REPLY:
            owed[unique] += 1
            outs.setdefault(unique, set()).add(op.out if op is not None else abi.EMPTY)
    return owed, outs


async def run(seed: int, refusing: int, begin: bool, fed: list[bytes]) -> Kernel:
    """Feed messages to a session from buffers that are used again, and let everything end."""
    kernel = Kernel(refusing)
    buffers = [bytearray(b"\xcc" * 4096) for _ in range(len(fed) + 2)]
    session = Session(Moody(seed), kernel.write, kernel.writev, notifier=Notifier(lambda parts: 0), recycle=buffers.append)
    for i, message in enumerate([HELLO, *fed] if begin else fed):
        buffer = buffers[-1]
        buffer[: len(message)] = message
        said = session.receive(buffer, len(message))
        assert said in (0, 1, 3)
        if said & KEPT:
            buffers.pop()
        if i % 3 == 0:
            await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    await session.drain()
    assert session.inflight == {}
    return kernel


def check(kernel: Kernel, fed: list[bytes]) -> None:
    """Each request was answered once, in a form that the kernel takes."""
    owed, outs = outs_of(fed)
    answers = Counter(struct.unpack_from("<Q", message, 8)[0] for message in kernel.taken)
    if kernel.refusing:
        assert all(count <= owed[unique] for unique, count in answers.items())
    else:
        assert answers == owed
    for message in kernel.taken:
        unique = struct.unpack_from("<Q", message, 8)[0]
        decoded = 0
        for out in outs[unique]:
            try:
                codec.decode_reply(out, message)
                decoded += 1
            except ProtocolError:
                continue
        assert decoded, f"the answer to {unique} is malformed"


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    logging.disable(logging.CRITICAL)
    try:
        with asyncio.Runner() as made:
            yield made
    finally:
        logging.disable(logging.NOTSET)


def test_any_messages_are_each_answered_once(runner: asyncio.Runner) -> None:
    @profile
    @given(seed=SEEDS, fed=st.lists(messages, min_size=1, max_size=25))
    def inner(seed: int, fed: list[bytes]) -> None:
        check(runner.run(run(seed, 0, True, fed)), [HELLO, *fed])

    inner()


def test_well_formed_requests_are_each_answered_once(runner: asyncio.Runner) -> None:
    @profile
    @given(seed=SEEDS, fed=st.lists(st.one_of(filled(), interrupting()), min_size=1, max_size=40))
    def inner(seed: int, fed: list[bytes]) -> None:
        check(runner.run(run(seed, 0, True, fed)), [HELLO, *fed])

    inner()


def test_answers_the_kernel_refuses_are_not_sent_twice(runner: asyncio.Runner) -> None:
    @profile
    @given(seed=SEEDS, refusing=st.integers(1, 6), fed=st.lists(st.one_of(filled(), messages), min_size=1, max_size=25))
    def inner(seed: int, refusing: int, fed: list[bytes]) -> None:
        check(runner.run(run(seed, refusing, True, fed)), [HELLO, *fed])

    inner()


def test_messages_before_init_are_each_answered_once(runner: asyncio.Runner) -> None:
    @profile
    @given(seed=SEEDS, fed=st.lists(messages, min_size=1, max_size=10))
    def inner(seed: int, fed: list[bytes]) -> None:
        check(runner.run(run(seed, 0, False, fed)), fed)

    inner()


def test_every_valid_message_cut_at_every_byte_is_answered_once(runner: asyncio.Runner) -> None:
    for message in VALID:
        fed = [whole(message[:n]) for n in range(len(message) + 1)]
        check(runner.run(run(len(message), 0, True, fed)), [HELLO, *fed])


def test_a_session_in_the_middle_of_it_all_still_works(runner: asyncio.Runner) -> None:
    """What was fed before leaves nothing behind that changes an ordinary answer."""

    @profile
    @given(fed=st.lists(messages, min_size=1, max_size=25))
    def inner(fed: list[bytes]) -> None:
        kernel = Kernel(0)
        session = Session(Moody(0), kernel.write, kernel.writev)
        for message in (HELLO, *fed):
            session.receive(message, len(message))
        kernel.taken.clear()
        ask = codec.encode_request(abi.DESTROY, 1 << 40)
        session.receive(ask, len(ask))
        assert kernel.taken == [struct.pack("<IiQ", 16, 0, 1 << 40)]

    async def inside() -> None:
        await asyncio.sleep(0)
        inner()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
            task.cancel()

    runner.run(inside())


def test_decoders_raise_nothing_but_protocol_errors() -> None:
    @profile
    @given(message=messages)
    def inner(message: bytes) -> None:
        assert "\n" not in codec.describe_request(message)
        for out in {op.out for op in abi.OPS.values()}:
            for decode in (codec.decode_request, codec.decode_notification, codec.decode_dirents, codec.parse_extensions):
                try:
                    decode(message)
                except ProtocolError:
                    continue
            try:
                codec.decode_reply(out, message)
            except ProtocolError:
                continue

    inner()
