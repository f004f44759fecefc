"""Measure pyfusekit against its peers, side by side in one run, and print the tables of README.md.

Every server is up at the same time, idle; for each row the load goes to one after the other, again and again, and the
median of the rounds is reported. So whatever else the machine does meanwhile falls on all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import footprint
from mounts import Quiet, Server, ServerError, mount_fusectl, settle

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
OURS = "pyfusekit"
START, END = "<!-- table: written by run.py -->", "<!-- end of table -->"
FILES = 200
"""Files made, looked up and removed in one round."""


class Row(NamedTuple):
    """One line of the null table: what the load generator does."""

    title: str
    words: tuple[str, ...]
    """Arguments of the client; SECONDS is the length of a slice."""
    small: bool
    """Whether the 3 x goal against pyfuse3 holds for it."""


NULL_ROWS = (
    Row("stat, 1 client", ("stat", "MOUNTPOINT/file", "SECONDS", "1"), True),
    Row("stat, 4 clients", ("stat", "MOUNTPOINT/file", "SECONDS", "4"), True),
    Row("open + close", ("open", "MOUNTPOINT/file", "SECONDS", "1"), True),
    Row("read 4 KiB", ("read", "MOUNTPOINT/file", "SECONDS", "1", "4096"), True),
    Row("write 4 KiB", ("write", "MOUNTPOINT/file", "SECONDS", "1", "4096"), True),
    Row("read 1 MiB", ("read", "MOUNTPOINT/file", "SECONDS", "1", "1048576"), False),
    Row("write 1 MiB", ("write", "MOUNTPOINT/file", "SECONDS", "1", "1048576"), False),
)
FILE_ROWS = {
    "create": "create + write 4 KiB + close",
    "lookup": "stat after dropped caches",
    "unlink": "unlink",
}

Samples = dict[str, list[float]]


def say(text: str) -> None:
    """Print progress where it does not disturb the tables."""
    print(text, file=sys.stderr, flush=True)


def build(directory: Path) -> None:
    """Compile the load generator and the C peer into *directory*."""
    cflags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    for source, extra in ((HERE / "client.c", ["-pthread"]), (PEERS / "null_libfuse.c", cflags.stdout.split())):
        subprocess.run(["gcc", "-O2", "-o", str(directory / source.stem), str(source), *extra], check=True, timeout=120)


def null_servers(binaries: Path, peer_python: str) -> dict[str, list[str]]:
    """Return the commands of the null filesystems; mfusepy has two loops and neither is always the better one."""
    return {
        OURS: [sys.executable, str(PEERS / "null_pyfusekit.py"), "MOUNTPOINT"],
        "libfuse": [str(binaries / "null_libfuse"), "MOUNTPOINT"],
        "pyfuse3": [peer_python, str(PEERS / "null_pyfuse3.py"), "MOUNTPOINT"],
        "mfusepy threads": [peer_python, str(PEERS / "null_mfusepy.py"), "MOUNTPOINT"],
        "mfusepy": [peer_python, str(PEERS / "null_mfusepy.py"), "MOUNTPOINT", "--nothreads"],
    }


def memory_servers(peer_python: str, example: str) -> dict[str, list[str]]:
    """Return the commands of the memory filesystems."""
    commands = {
        OURS: [sys.executable, "-m", "pyfusekit", "mount", "mem", "MOUNTPOINT", "--foreground"],
        "pyfuse3": [peer_python, str(PEERS / "mem_pyfuse3.py"), "MOUNTPOINT"],
        "mfusepy threads": [peer_python, str(PEERS / "mem_mfusepy.py"), "MOUNTPOINT"],
        "mfusepy": [peer_python, str(PEERS / "mem_mfusepy.py"), "MOUNTPOINT", "--nothreads"],
    }
    if example:
        commands["pyfuse3 tmpfs.py"] = [peer_python, example, "MOUNTPOINT"]
    return commands


@contextlib.contextmanager
def all_of(commands: dict[str, list[str]]) -> Iterator[dict[str, Server]]:
    """Start every server; those of *commands* that cannot start end the run."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Server(name, words)) for name, words in commands.items()}


def in_turn(servers: dict[str, Server], turn: int) -> list[Server]:
    """Return the servers, another one first each time."""
    order = list(servers.values())
    start = turn % len(order)
    return order[start:] + order[:start]


def measure_null(servers: dict[str, Server], client: str, rounds: int, seconds: float, quiet: Quiet) -> dict[str, Samples]:
    """Return title -> server -> ns per operation in each round."""
    table: dict[str, Samples] = {}
    for row in NULL_ROWS:
        say(row.title)
        samples = table[row.title] = {name: [] for name in servers}
        words = [client, *(word.replace("SECONDS", str(seconds)) for word in row.words)]
        for turn in range(rounds):
            quiet.wait()
            for server in in_turn(servers, turn):
                samples[server.name].append(server.load(words))
    return table


def drop_caches(server: Server) -> None:
    """Make the kernel forget every name and inode that nobody uses, and let *server* take the forgets."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    settle(server.pid())


def measure_files(servers: dict[str, Server], client: str, rounds: int, quiet: Quiet) -> dict[str, Samples]:
    """Return title -> server -> ns per file in each round."""
    table: dict[str, Samples] = {title: {name: [] for name in servers} for title in FILE_ROWS.values()}
    for turn in range(rounds):
        say(f"files, round {turn + 1} of {rounds}")
        quiet.wait()
        for server in in_turn(servers, turn):
            for action, title in FILE_ROWS.items():
                if action == "lookup":
                    drop_caches(server)
                table[title][server.name].append(server.load([client, action, "MOUNTPOINT", str(FILES)]))
            settle(server.pid())
    return table


def measure_together(servers: dict[str, Server], client: str, count: int) -> dict[str, float]:
    """Return the seconds until *count* reads of 100 ms each, all at once, are done."""
    say(f"{count} slow reads at once")
    words = [client, "together", "MOUNTPOINT/slow", str(count)]
    return {name: server.load(words) / 1e9 for name, server in servers.items() if name != "mfusepy"}


def merged(samples: Samples) -> dict[str, float]:
    """Return the medians, mfusepy's by whichever of its two loops did better in this row."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    if "mfusepy threads" in medians:
        medians["mfusepy"] = min(medians["mfusepy"], medians.pop("mfusepy threads"))
    return medians


def shown(medians: dict[str, float], goals: dict[str, float]) -> list[str]:
    """Return the cells of a row: the times, how many times faster than each peer, and whether the goals were reached."""
    ours = medians[OURS]
    cells = [f"**{ours / 1000:.1f}**"]
    missed = []
    for name in (name for name in medians if name != OURS):
        ratio = medians[name] / ours
        cells.append(f"{medians[name] / 1000:.1f} ({ratio:.2f} x)")
        if ratio < goals.get(name, 0):
            missed.append(f"{name} {ratio:.2f} < {goals[name]:g}")
    return [*cells, "reached" if not missed else "missed: " + ", ".join(missed)]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 2) + "---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def null_section(table: dict[str, Samples]) -> str:
    """Return the null filesystem's table."""
    rows = []
    names: list[str] = []
    for row in NULL_ROWS:
        medians = merged(table[row.title])
        names = list(medians)
        rows.append([row.title, *shown(medians, {"libfuse": 0.9, "mfusepy": 1.0, "pyfuse3": 3.0 if row.small else 1.0})])
    return markdown(["null filesystem, µs", *names, "goal"], rows)


def files_section(table: dict[str, Samples]) -> str:
    """Return the memory filesystem's table."""
    rows = []
    names: list[str] = []
    for title, samples in table.items():
        medians = merged(samples)
        names = list(medians)
        rows.append([title, *shown(medians, {name: 4.0 for name in ("pyfuse3 tmpfs.py", "mfusepy")})])
    return markdown(["memory filesystem, µs a file", *names, "goal"], rows)


def together_section(seconds: dict[str, float], count: int) -> str:
    """Return the line about many slow reads."""
    words = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    return f"{count} reads of 100 ms each at once, one thread a read: {words} (goal: well under 1 s)."


def facts(command: str) -> str:
    """Return what the numbers depend on."""
    cores = len(os.sched_getaffinity(0))
    when = time.strftime("%Y-%m-%d", time.gmtime())
    load = os.getloadavg()[1]
    machine = f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}"
    return f"`{command}`, {when}: {machine}; load average before the run {load:.1f}."


def write_readme(text: str) -> None:
    """Put *text* between the markers of README.md."""
    path = HERE / "README.md"
    before, _, rest = path.read_text().partition(START)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="times each load is repeated (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a slice (default: %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds to wait, in all, for idle processors (default: %(default)s)"
    )
    parser.add_argument("--peer-python", default=str(HERE.parent / ".venv-bench/bin/python"), help="Python with the peers")
    parser.add_argument("--example", help="pyfuse3's examples/tmpfs.py (default: the one `make bench` unpacked)")
    parser.add_argument("--part", action="append", choices=("null", "files", "footprint", "million"), default=[])
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args(arguments)
    options.part = options.part or ["null", "files", "footprint"]
    if options.example is None:
        found = sorted(HERE.parent.glob(".venv-bench/src/pyfuse3-*/examples/tmpfs.py"))
        options.example = str(found[-1]) if found else ""
    return options


def sections(options: argparse.Namespace, binaries: Path) -> Iterator[str]:
    """Yield the parts of the report, one after the other."""
    client = str(binaries / "client")
    quiet = Quiet(options.patience)
    if "null" in options.part:
        with all_of(null_servers(binaries, options.peer_python)) as servers:
            yield null_section(measure_null(servers, client, options.rounds, options.seconds, quiet))
            yield together_section(measure_together(servers, client, 1000), 1000)
    if "files" in options.part:
        with all_of(memory_servers(options.peer_python, options.example)) as servers:
            yield files_section(measure_files(servers, client, options.rounds, quiet))
    parts: dict[str, Callable[[str], str]] = {"footprint": footprint.small, "million": footprint.million}
    for part, measure in parts.items():
        if part in options.part:
            say(part)
            yield measure(client)


def main(arguments: list[str]) -> int:
    """Run the chosen parts; 0 when all of them could be measured."""
    options = parse(arguments)
    if os.geteuid() != 0:
        say("benchmarks need root: they mount, and they drop the kernel's caches")
        return 77
    if not os.path.exists(options.peer_python):
        say(f"{options.peer_python} is not there: `make bench` makes it")
        return 2
    mount_fusectl()
    os.nice(-20)  # load and servers alike: what else the machine runs should not be what is measured
    binaries = Path(tempfile.mkdtemp(prefix="pyfusekit-bench-bin-"))
    try:
        build(binaries)
        text = facts(" ".join([".venv/bin/python benchmarks/run.py", *arguments]))
        for section in sections(options, binaries):
            print(section + "\n", flush=True)
            text += "\n\n" + section
    except (ServerError, subprocess.SubprocessError) as error:
        say(f"benchmark failed: {error}")
        return 1
    finally:
        shutil.rmtree(binaries)
    if options.write:
        write_readme(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
