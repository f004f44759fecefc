"""Measure mounted web servers side by side: pyfusekit, rclone, httpfs2 and simple-httpfs, with curl as the yardstick.

One nginx serves all from memory, at three ports: as it is, with 20 ms before each request, and with each connection throttled.
For each row the tools take turns, round after round; each sample begins with a fresh mount, an empty cache directory and
dropped kernel caches, and the median counts. Requests and bytes are what nginx logs while the load runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mounted import (
    LIMIT_S,
    MIB,
    OURS,
    RANDOM,
    READ,
    ROOT,
    SHELL,
    child_of,
    peak_kib,
    run,
    write_between,
)
from mounts import Quiet, Server, ServerError, mount_fusectl

START, END = "<!-- web table: written by web.py -->", "<!-- end of web table -->"
CONNECTIONS = 8
CURL, FILE = f"curl, {CONNECTIONS} ranges", "the cache file"
"""Not tools but yardsticks: curl with as many connections as ours, and our cache file read without a mount."""
LATENCY_S = 0.02
RATE_MIB = 20
SLOW = f"{LATENCY_S * 1000:.0f} ms a request"
THROTTLED = f"{RATE_MIB} MiB/s a connection"
PEAK_MIB = 100
"""The most memory a mount should take."""

_NGINX = """
user root root;
load_module {modules}/ngx_http_echo_module.so;
daemon off;
worker_processes 1;
pid {work}/pid;
error_log {work}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format counted '$body_bytes_sent';
    access_log {work}/access.log counted;
    types {{}}
    default_type application/octet-stream;
    client_body_temp_path {work}/temp;
    proxy_temp_path {work}/temp;
    fastcgi_temp_path {work}/temp;
    uwsgi_temp_path {work}/temp;
    scgi_temp_path {work}/temp;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    root {work}/www;
    autoindex on;
    # httpfs2 wants it in an answer to a range, too.
    map $http_range $accepted {{ default bytes; "" ""; }}
    add_header Accept-Ranges $accepted;
    server {{ listen 127.0.0.1:{ports[0]}; }}
    server {{
        listen 127.0.0.1:{ports[1]};
        location / {{ echo_sleep {latency}; echo_exec @files; }}
        location @files {{ autoindex on; }}
    }}
    server {{ listen 127.0.0.1:{ports[2]}; }}
}}
"""
_SO_MAX_PACING_RATE = 47
_MODULES = Path("/usr/lib/nginx/modules")


class Web:
    """nginx with its files in memory, as a context manager: what dropped caches do is not its affair."""

    def __init__(self, work: Path, size: int) -> None:
        self.work = work
        self.www = work / "www"
        self._size = size
        self._ports = _free_ports(3)
        self._log = work / "access.log"
        self._said = work / "nginx.log"
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, condition: str) -> str:
        """Return where the server answers under a row's *condition*."""
        return f"http://127.0.0.1:{self._ports[('', SLOW, THROTTLED).index(condition)]}/"

    def __enter__(self) -> Web:
        if not (_MODULES / "ngx_http_echo_module.so").exists():
            raise SystemExit("nginx or its echo module is missing: apt-get install nginx-light libnginx-mod-http-echo")
        self.www.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._size}", "bench-web", str(self.www)], check=True, timeout=20)
        words = _NGINX.format(work=self.work, modules=_MODULES, ports=self._ports, latency=LATENCY_S)
        config = self.work / "nginx.conf"
        config.write_text(words)
        # Its directory may be root's alone: so its worker is root, too.
        with _paced_listener(self._ports[2]) as listener:
            # It takes listening sockets over as from a predecessor.
            environment = {**os.environ, "NGINX": f"{listener.fileno()};"}
            self._process = subprocess.Popen(
                ["nginx", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stderr=self._said.open("wb"),
                env=environment,
                pass_fds=[listener.fileno()],
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url(""), timeout=5):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise SystemExit(f"nginx did not start: {self._said.read_text()}")
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        subprocess.run(["umount", str(self.www)], check=False, timeout=20)

    def mark(self) -> int:
        """Return a place in the log."""
        return self._log.stat().st_size

    def since(self, mark: int) -> tuple[int, int]:
        """Return how many requests were answered since *mark*, and the bytes of their bodies.

        An answer is logged when it is over, one that was given up a moment after that.
        """
        time.sleep(0.1)
        with self._log.open("rb") as log:
            log.seek(mark)
            lines = log.read().splitlines()
        return len(lines), sum(map(int, lines))


def _paced_listener(port: int) -> socket.socket:
    """Return a socket whose connections the kernel sends so fast and no faster: they inherit it (tcp(7), SO_MAX_PACING_RATE).

    nginx's own limit_rate lets the first second's worth of each answer go at once, which is all of a small range.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, RATE_MIB * MIB)
    listener.bind(("127.0.0.1", port))
    listener.listen(512)
    return listener


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


class Tool(NamedTuple):
    """A way to mount a URL; WORK is a directory that is new for each sample, but in rows that are warm."""

    name: str
    words: tuple[str, ...]
    place: str = "{mountpoint}/{path}"
    """Where *path* of the server is."""
    lists: bool = True
    """It shows directories."""
    keeping: tuple[str, ...] = ()
    """What makes it keep on disk what was read, for rows that are warm."""


def tools() -> list[Tool]:
    """Return the tools and yardsticks, those that are installed."""
    ours = (
        str(ROOT / ".venv" / "bin" / "pyfusekit"), "mount", "URL", "MOUNTPOINT", "-f", "--cache-dir", "WORK/cache",
        "--log-level", "error",
    )  # fmt: skip
    rclone = ROOT / ".venv-bench" / "bin" / "rclone"
    mount = (
        str(rclone), "mount", ":http:", "MOUNTPOINT", "--http-url", "URL",
        "--config", "/dev/null", "--cache-dir", "WORK/rclone",
    )  # fmt: skip
    chunks = ("--vfs-read-chunk-streams", str(CONNECTIONS), "--vfs-read-chunk-size", "8M")
    simple = ROOT / ".venv-bench" / "bin" / "simple-httpfs"
    found = [Tool(OURS, ours, keeping=("--cache-size", "4G"))]
    if shutil.which("curl"):
        found.append(Tool(CURL, (), lists=False))
    found.append(Tool(FILE, (), lists=False))
    if rclone.exists():
        found += [Tool("rclone", mount), Tool("rclone full", (*mount, "--vfs-cache-mode", "full", *chunks))]
    if shutil.which("httpfs2"):
        words = ("httpfs2", "-c", "/dev/null", "-f", "URLPATH", "MOUNTPOINT")
        found.append(Tool("httpfs2", words, "{mountpoint}/{name}", lists=False))
    if simple.exists():
        words = (str(simple), "-f", "--schema", "http", "--disk-cache-dir", "WORK/simple", "-l", "/dev/null", "MOUNTPOINT")
        found.append(Tool("simple-httpfs", words, "{mountpoint}/{host}/{path}..", lists=False))
    return found


class Row(NamedTuple):
    """A line of the table: what is timed, on what, and under which condition. *count* is what the seconds are divided by."""

    title: str
    path: str
    load: Callable[[Path], float]
    condition: str = ""
    count: int = 1
    counted: str = ""
    """"requests" or "bytes": what else is shown."""
    warm: bool = False
    """The tool's own directories stay from the round before, are in the kernel's pages, and one round is not counted."""
    goal: Callable[[dict[str, Any]], str] = lambda cells: ""
    """Returns what is missed, from the cells of the row."""

    @property
    def is_read(self) -> bool:
        """Say whether a whole file is read, which curl can do."""
        return self.count == 1 and not self.counted


class Cell(NamedTuple):
    """What a tool did in a row: medians."""

    seconds: float
    requests: float
    bytes: float
    peak_mib: float


Table = dict[str, dict[str, Cell | str]]


def rows(scale: float) -> list[Row]:
    """Return the rows; *scale* makes them smaller than the issue's sizes for a trial."""
    big, quarter = max(32, int(1024 * scale)), max(16, int(256 * scale))
    many, few = max(1000, int(100_000 * scale)), 1000
    randoms = 50

    def listed(count: int) -> Callable[[Path], float]:
        # One line more: the total.
        return lambda path: run(SHELL, f"ls -l {path} | wc -l | grep -qx {count + 1}")

    def read(path: Path) -> float:
        return run(READ, path)

    return [
        Row(f"ls -l of {few} entries", f"d{few}", listed(few), SLOW, counted="requests", goal=_one_request(0.15)),
        Row(f"ls -l of {many} entries", f"d{many}", listed(many), SLOW, counted="requests", goal=_one_request(3.0)),
        Row(f"read {big} MiB in order", f"f{big}", read, goal=_like_curl),
        Row(f"read {big} MiB in order", f"f{big}", read, SLOW, goal=_like_curl),
        Row(f"read {quarter} MiB in order", f"f{quarter}", read, THROTTLED, goal=_like_curl),
        Row(
            "read 4 KiB at random",
            f"f{big}",
            lambda path: run(RANDOM, path, 4096, randoms),
            SLOW,
            randoms,
            "bytes",
            goal=_one_round_trip,
        ),
        Row(f"read {big} MiB again, mounted before", f"f{big}", read, warm=True, goal=_like_the_file),
    ]


def _figure(cells: dict[str, Any], name: str) -> Cell | None:
    cell = cells.get(name)
    return cell if isinstance(cell, Cell) else None


def _one_request(seconds: float) -> Callable[[dict[str, Any]], str]:
    def goal(cells: dict[str, Any]) -> str:
        ours = cells[OURS]
        missed = [f"{ours.requests:.0f} requests"] if ours.requests > 1 else []
        return ", ".join(missed + ([f"{seconds} s"] if ours.seconds >= seconds else []))

    return goal


def _like_curl(cells: dict[str, Any]) -> str:
    curl = _figure(cells, CURL)
    share = curl.seconds / cells[OURS].seconds if curl is not None else 1.0
    return f"{share:.2f} of curl < 0.8" if share < 0.8 else ""


def _one_round_trip(cells: dict[str, Any]) -> str:
    ours = cells[OURS]
    missed = [f"{LATENCY_S * 1000 + 2:.0f} ms"] if ours.seconds > LATENCY_S + 0.002 else []
    return ", ".join(missed + (["128 KiB"] if ours.bytes > 128 << 10 else []))


def _like_the_file(cells: dict[str, Any]) -> str:
    file = _figure(cells, FILE)
    share = file.seconds / cells[OURS].seconds if file is not None else 0.0
    return f"{share:.2f} of the cache file < 0.8" if share < 0.8 else ""


class Bench:
    """The server, and what every row needs."""

    def __init__(self, web: Web, work: Path) -> None:
        self.web = web
        self.work = work
        self.quiet = Quiet(float(os.environ.get("PATIENCE", "600")))
        self._numbers = iter(range(1 << 30))

    def furnish(self, path: str) -> None:
        """Make dN, a directory of N files, or fN, a file of N MiB, unless it is there."""
        place, count = self.web.www / path, int(path[1:])
        if place.exists():
            return
        if path[0] == "f":
            with place.open("wb") as file:
                for _ in range(count):
                    file.write(os.urandom(MIB))
            return
        place.mkdir()
        for number in range(count):
            (place / f"file-{number:06}.txt").write_bytes(b"x" * (number % 1000))

    def sample(self, tool: Tool, row: Row) -> Cell:
        """Let *tool* do the work of *row* once."""
        warm = f"{tool.name} {row.title} {row.condition}".replace(" ", "-").replace("/", "-") if row.warm else ""
        work = self.work / (warm or f"sample-{next(self._numbers)}")
        work.mkdir(exist_ok=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        # The programs of the loads come from the disk again: that is not the tools' time.
        run(SHELL, "ls -l / | wc -l | grep -q .; curl --version")
        try:
            if tool.name == CURL:
                return Cell(self._curl(row), 0, 0, 0)
            if tool.name == FILE:
                return Cell(self._file(row), 0, 0, 0)
            return self._mounted(tool, row, work)
        finally:
            if not row.warm:
                shutil.rmtree(work, ignore_errors=True)

    def _mounted(self, tool: Tool, row: Row, work: Path) -> Cell:
        url = self.web.url(row.condition)
        given = (*tool.words, *tool.keeping) if row.warm else tool.words
        words = [word.replace("URLPATH", url + row.path).replace("URL", url).replace("WORK", str(work)) for word in given]
        if row.warm:
            _into_pages(work)
        server = Server(tool.name, words)
        with server:
            assert server.process is not None
            pid = child_of(server.process.pid)
            host = url.removeprefix("http://").rstrip("/")
            place = tool.place.format(mountpoint=server.mountpoint, path=row.path, name=Path(row.path).name, host=host)
            mark = self.web.mark()
            taken = row.load(Path(place))
            requests, size = self.web.since(mark)
            return Cell(taken, requests, size, peak_kib(pid) / 1024)

    def _curl(self, row: Row) -> float:
        """Fetch the file in as many ranges as ours has connections, all at the same time."""
        size = (self.web.www / row.path).stat().st_size
        step = -(-size // CONNECTIONS)
        words = ["curl", "--parallel", "--parallel-immediate", "--parallel-max", str(CONNECTIONS)]
        for number in range(CONNECTIONS):
            span = f"{number * step}-{min(size, (number + 1) * step) - 1}"
            words += ["--next"] * bool(number) + [
                "-s", "-S", "-f", "-r", span, "-o", "/dev/null", "-w", "%{size_download}\n",
                self.web.url(row.condition) + row.path,
            ]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        taken = time.perf_counter() - began
        if done.returncode or sum(map(int, done.stdout.split())) != size:
            raise ServerError(done.stderr.strip() or "curl did not get all of it")
        return taken

    def _file(self, row: Row) -> float:
        """Read what our mount has cached, without the mount."""
        work = self.work / f"{OURS} {row.title} {row.condition}".replace(" ", "-").replace("/", "-")
        size = (self.web.www / row.path).stat().st_size
        files = [path for path in work.rglob("*") if path.is_file() and path.stat().st_size == size]
        if not files:
            raise ServerError("nothing is cached")
        _into_pages(work)
        return run(READ, files[0])


def _into_pages(work: Path) -> None:
    """Have the kernel keep what lies in *work*: how fast the disk is says nothing of a mount."""
    for path in work.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(MIB):
                    pass


def takes_part(tool: Tool, row: Row) -> bool:
    """Say whether a tool can do what a row asks for."""
    if tool.name == CURL:
        return row.is_read and not row.warm
    if tool.name == FILE:
        return row.warm
    return tool.lists or not row.path.startswith("d")


def measure(bench: Bench, chosen: list[Row], peers: list[Tool], rounds: int) -> Table:
    """Return by row and tool what it took, or why there is nothing."""
    table: Table = {}
    for row in chosen:
        bench.furnish(row.path)
        taking = [tool for tool in peers if takes_part(tool, row)]
        samples: dict[str, list[Cell]] = {tool.name: [] for tool in taking}
        failures: dict[str, str] = {}
        for number in range(rounds + row.warm):
            for tool in taking:
                if tool.name in failures:
                    continue
                bench.quiet.wait()
                try:
                    cell = bench.sample(tool, row)
                    if number or not row.warm:
                        samples[tool.name].append(cell)
                except (ServerError, AssertionError, OSError, subprocess.TimeoutExpired) as exc:
                    failures[tool.name] = (str(exc) or type(exc).__name__).splitlines()[-1]
        cells: dict[str, Cell | str] = {
            tool.name: failures.get(tool.name) or _median(samples[tool.name], row.count) for tool in taking
        }
        title = row.title + (f", {row.condition}" if row.condition else "")
        table[title] = cells
        print(
            title, {name: cell if isinstance(cell, str) else tuple(round(n, 4) for n in cell) for name, cell in cells.items()}
        )
    return table


def _median(cells: list[Cell], count: int) -> Cell:
    seconds, requests, size, peak = (statistics.median(column) for column in zip(*cells, strict=True))
    return Cell(seconds / count, requests / count, size / count, peak)


def markdown(table: Table, chosen: list[Row], peers: list[Tool]) -> list[str]:
    """Return the table's lines: our figure, and each peer's with how many times ours is faster."""
    names = [tool.name for tool in peers]
    lines = ["| | " + " | ".join(names) + " | goal |", "|---|" + "--:|" * len(names) + "---|"]
    for row, (title, cells) in zip(chosen, table.items(), strict=True):
        ours = _figure(cells, OURS)
        lines.append(
            f"| {title} | "
            + " | ".join(_cell(cells.get(name), ours, row, name) for name in names)
            + f" | {_goal(row, cells)} |"
        )
    return lines


def _cell(cell: Cell | str | None, ours: Cell | None, row: Row, name: str) -> str:
    if not isinstance(cell, Cell):
        return f"fails: {cell[:50]}" if cell else ""
    figure = f"{cell.seconds * 1000:.1f} ms" if row.count > 1 else f"{cell.seconds:.2f} s"
    figure = f"**{figure}**" if name == OURS else f"{figure} ({cell.seconds / ours.seconds:.2f} x)" if ours else figure
    if row.counted == "requests":
        figure += f", {cell.requests:.0f} requests" if cell.requests != 1 else ", 1 request"
    elif row.counted == "bytes":
        figure += f", {cell.bytes / 1024:.0f} KiB"
    return figure


def _goal(row: Row, cells: dict[str, Cell | str]) -> str:
    ours = _figure(cells, OURS)
    if ours is None:
        return "missed"
    missed = [row.goal(cells)] if row.goal(cells) else []
    if ours.peak_mib >= PEAK_MIB:
        missed.append(f"{ours.peak_mib:.0f} MiB of memory")
    missed += [
        f"behind {name}"
        for name, cell in cells.items()
        if name not in (OURS, CURL, FILE) and isinstance(cell, Cell) and cell.seconds < ours.seconds
    ]
    return f"missed: {', '.join(missed)}" if missed else "reached"


def memory(table: Table, peers: list[Tool]) -> str:
    """Return the line that says how much memory each tool took at most, and in which row."""
    said = []
    for tool in peers:
        peaks = [(cell.peak_mib, title) for title, cells in table.items() if isinstance(cell := cells.get(tool.name), Cell)]
        most, title = max(peaks, default=(0.0, ""))
        if most:
            said.append(f"{tool.name} {most:.0f} MiB ({title})")
    return f"Most memory: {'; '.join(said)}."


def heading(scale: float, rounds: int) -> str:
    """Return the line that says what machine it was, and how it was measured."""
    sizes = "" if scale == 1 else f" --scale {scale:g}"
    return (
        f"`.venv/bin/python benchmarks/web.py --write{sizes}`, {time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}; medians of {rounds} rounds."
    )


def main() -> None:
    """Measure what is asked for, and write README.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the sizes of the table; 0.05 is a trial")
    parser.add_argument("--rows", default="", help="only rows whose title or condition has one of these words, comma separated")
    parser.add_argument("--tools", default="", help="only those whose name begins so, comma separated")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    mount_fusectl()
    words = [word for word in given.rows.split(",") if word]
    chosen = [row for row in rows(given.scale) if not words or any(word in f"{row.title}, {row.condition}" for word in words)]
    wanted = [name for name in given.tools.split(",") if name]
    peers = [tool for tool in tools() if not wanted or any(tool.name.startswith(name) for name in wanted)]
    peers = [tool for tool in peers if any(takes_part(tool, row) for row in chosen)]
    work = Path(tempfile.mkdtemp(prefix="pyfusekit-bench-web-"))
    try:
        with Web(work, int(2 * 1024 * max(given.scale, 0.1)) * MIB) as web:
            table = measure(Bench(web, work), chosen, peers, given.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sections = [heading(given.scale, given.rounds), "", *markdown(table, chosen, peers), "", memory(table, peers)]
    text = "\n".join(sections)
    print(text)
    if given.write:
        write_between(START, END, text)


if __name__ == "__main__":
    main()
