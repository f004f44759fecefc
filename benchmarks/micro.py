"""Time the core alone: Session.receive fed with canned messages, and nobody behind write(). Prints ns per request.

No kernel, no descriptor, no event loop: what is left is decode, dispatch, the handler of the null filesystem and the reply.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from peers.null_pyfusekit import FILE, Null

from pyfusekit.core import abi, codec
from pyfusekit.core.session import Session
from pyfusekit.core.types import Data

OFFERED = abi.INIT_EXT | abi.ASYNC_READ | abi.BIG_WRITES | abi.MAX_PAGES | abi.HANDLE_KILLPRIV_V2 | abi.ABORT_ERROR
FOUR_KIB = bytes(4096)


def nothing(message: bytes | Sequence[Data]) -> None:
    """Take a reply and drop it."""


def session() -> Session:
    """Return a session of the null filesystem that has had its INIT."""
    made = Session(Null(), nothing, nothing)
    flags, flags2 = OFFERED & 0xFFFFFFFF, OFFERED >> 32
    hello = codec.encode_request(abi.INIT, 2, major=7, minor=45, max_readahead=1 << 17, flags=flags, flags2=flags2)
    made.receive(bytearray(hello), len(hello))
    if made.agreed is None:
        raise RuntimeError("INIT was refused")
    return made


def messages() -> dict[str, list[bytes]]:
    """Return name -> the messages of one turn."""
    build = codec.encode_request
    return {
        "LOOKUP": [build(abi.LOOKUP, 4, 1, names=[b"file"])],
        "GETATTR": [build(abi.GETATTR, 4, FILE)],
        "READ 4 KiB": [build(abi.READ, 4, FILE, fh=0, offset=4096, size=4096)],
        "WRITE 4 KiB": [build(abi.WRITE, 4, FILE, fh=0, offset=4096, size=4096, data=FOUR_KIB)],
        "OPEN + RELEASE": [build(abi.OPEN, 4, FILE), build(abi.RELEASE, 6, FILE, fh=0)],
        "FORGET": [build(abi.FORGET, 4, FILE, nlookup=1)],
    }


def measure(made: Session, turn: list[bytes], count: int) -> float:
    """Return the ns of one request, over *count* turns."""
    feed = []
    for message in turn:
        buffer = bytearray(1 << 17)
        buffer[: len(message)] = message
        feed.append((buffer, len(message)))
    receive = made.receive
    start = time.perf_counter_ns()
    for _ in range(count):
        for buffer, n in feed:
            receive(buffer, n)
    return (time.perf_counter_ns() - start) / (count * len(turn))


def main(arguments: list[str]) -> int:
    """Print a table: the least and the median of the rounds."""
    parser = argparse.ArgumentParser(prog="python benchmarks/micro.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=5000, help="turns in a round")
    options = parser.parse_args(arguments)
    made = session()
    samples: dict[str, list[float]] = {name: [] for name in messages()}
    for _ in range(options.rounds):
        for name, turn in messages().items():
            samples[name].append(measure(made, turn, options.count))
    print("| request | least ns | median ns |\n|---|--:|--:|")
    for name, values in samples.items():
        print(f"| {name} | {min(values):.0f} | {statistics.median(values):.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
