"""Measure AsyncFd's spin: how often an idle descriptor is asked again before the loop goes to sleep.

A longer spin answers a lone client sooner, and keeps the loop from its other tasks. For each bound, a null filesystem is
served beside two such tasks, in turn: a clock that wants to tick every millisecond, and a worker that takes whatever the
loop gives it. Prints the table that docs/decisions.md quotes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import run
from mounts import Server, ServerError, cpu_ticks, mount_fusectl
from peers.null_pyfusekit import Null

from pyfusekit.core import MountOptions, serve

TICK_SECONDS = 0.001
WORK = range(500)
"""What the worker adds up between two turns: some 10 us."""


class Company:
    """The task beside the filesystem, and what it has measured since the last SIGUSR1; SIGUSR2 writes it to *report*."""

    def __init__(self, report: str) -> None:
        self.report = report
        self.late: list[float] = []
        self.turns = 0
        self.since = time.monotonic()

    async def clock(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.late.append(loop.time() - due)

    async def worker(self) -> None:
        while True:
            sum(WORK)
            self.turns += 1
            await asyncio.sleep(0)

    async def nobody(self) -> None:
        await asyncio.Event().wait()

    def reset(self) -> None:
        self.late.clear()
        self.turns = 0
        self.since = time.monotonic()

    def write(self) -> None:
        elapsed = time.monotonic() - self.since
        part = self.report + ".part"
        Path(part).write_text(json.dumps({"late": sorted(self.late), "turns": self.turns / elapsed}))
        os.rename(part, self.report)


async def serve_beside(mountpoint: str, spin: int, kind: str, report: str) -> None:
    """Serve the null filesystem with *spin* tries, beside the task *kind*, until it is unmounted."""
    company = Company(report)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, company.reset)
    loop.add_signal_handler(signal.SIGUSR2, company.write)
    options = MountOptions(source="null", default_permissions=False)
    async with serve(Null(), mountpoint, options, spin=spin) as served:
        beside = asyncio.create_task({"clock": company.clock, "worker": company.worker, "nobody": company.nobody}[kind]())
        await served.wait()
        beside.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beside


def told(server: Server, report: str, load: list[str]) -> tuple[float, dict[str, Any]]:
    """Put *load* on *server*; return its ns per operation, and what the task beside it measured meanwhile."""
    os.kill(server.pid(), signal.SIGUSR1)
    each = server.load(load)
    os.kill(server.pid(), signal.SIGUSR2)
    deadline = time.monotonic() + 10
    while not os.path.exists(report):
        if time.monotonic() > deadline:
            raise ServerError(f"{server.name} did not report")
        time.sleep(0.01)
    measured: dict[str, Any] = json.loads(Path(report).read_text())
    os.unlink(report)
    return each, measured


def measure(bounds: list[int], rounds: int, seconds: float, directory: str) -> list[list[str]]:
    """Return the rows of the table, one for each bound."""
    client = os.path.join(directory, "client")
    load = [client, "stat", "MOUNTPOINT/file", str(seconds), "1"]
    names = {(spin, kind): f"{kind}-{spin}" for spin in bounds for kind in ("nobody", "clock", "worker")}
    commands = {
        name: [sys.executable, __file__, "--serve", "MOUNTPOINT", str(spin), kind, os.path.join(directory, name)]
        for (spin, kind), name in names.items()
        if kind != "worker"
    }
    found: dict[tuple[int, str], list[Any]] = {key: [] for key in names}
    busy: dict[int, list[float]] = {spin: [] for spin in bounds}
    with run.all_of(commands) as servers:
        for _ in range(rounds):
            for (spin, kind), name in names.items():
                if kind != "worker":
                    before = cpu_ticks(servers[name].pid())
                    each, measured = told(servers[name], os.path.join(directory, name), load)
                    found[spin, kind].append((each, measured))
                    if kind == "nobody":
                        busy[spin].append((cpu_ticks(servers[name].pid()) - before) / 100 / seconds * each / 1000)
    for _ in range(rounds):
        for spin in bounds:  # a worker is never idle, so only one is up at a time
            name = f"worker-{spin}"
            words = [sys.executable, __file__, "--serve", "MOUNTPOINT", str(spin), "worker", os.path.join(directory, name)]
            with Server(name, words) as server:
                found[spin, "worker"].append(told(server, os.path.join(directory, name), load))
    rows = []
    for spin in bounds:
        late = [1e6 * sum(m["late"]) / len(m["late"]) for _, m in found[spin, "clock"]]
        worst = [1e6 * m["late"][len(m["late"]) * 99 // 100] for _, m in found[spin, "clock"]]
        alone = [each / 1000 for each, _ in found[spin, "nobody"]]
        with_worker = [each / 1000 for each, _ in found[spin, "worker"]]
        turns = [m["turns"] / 1000 for _, m in found[spin, "worker"]]
        values = (alone, busy[spin], late, worst, with_worker, turns)
        rows.append([str(spin), *(f"{statistics.median(column):.1f}" for column in values)])
    return rows


def main(arguments: list[str]) -> int:
    """Print the table, or serve one filesystem of it."""
    if arguments[:1] == ["--serve"]:
        mountpoint, spin, kind, report = arguments[1:]
        asyncio.run(serve_beside(mountpoint, int(spin), kind, report))
        return 0
    parser = argparse.ArgumentParser(prog="python benchmarks/spin.py", description=__doc__)
    parser.add_argument("--bounds", default="0,5,10,20,50,100,200", help="tries to measure (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args(arguments)
    mount_fusectl()
    os.nice(-20)
    directory = Path(tempfile.mkdtemp(prefix="pyfusekit-bench-"))
    try:
        run.build(directory)
        bounds = [int(word) for word in options.bounds.split(",")]
        rows = measure(bounds, options.rounds, options.seconds, str(directory))
    finally:
        shutil.rmtree(directory)
    header = ["tries", "stat, µs", "server's CPU a stat, µs", "1 ms clock late by, mean µs", "99 %, µs"]
    print(run.markdown([*header, "stat beside a worker, µs", "worker's turns, 1000/s"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
