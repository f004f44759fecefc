"""What the benchmarks of mounted remote filesystems share: loads in processes of their own, memory, tables in README.md."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from mounts import ServerError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OURS = "pyfusekit"
MIB = 1 << 20
LIMIT_S = 240
"""A load that takes longer is given up, and its mount aborted."""

PRELUDE = """
import os, sys, time, random, subprocess, threading, shutil
def failed(args):
    # A thread that fails would end early, and the load look quick.
    print(f"{args.exc_type.__name__}: {args.exc_value}", file=sys.stderr, flush=True); os._exit(1)
threading.excepthook = failed
def clock(work):
    began = time.perf_counter(); work(); print(time.perf_counter() - began)
def read(path):
    fd = os.open(path, os.O_RDONLY); size = 0
    while piece := os.read(fd, 1 << 20): size += len(piece)
    os.close(fd); assert size == os.stat(path).st_size, size
"""
READ = """
def work():
    threads = [threading.Thread(target=read, args=(path,)) for path in sys.argv[1:]]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
clock(work)
"""
RANDOM = """
path, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDONLY); total = os.fstat(fd).st_size
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
rng = random.Random(4711)
offsets = [rng.randrange(total - size) // 4096 * 4096 for _ in range(count)]
def work():
    for offset in offsets: assert len(os.pread(fd, size, offset)) == size
clock(work)
"""
SHELL = """
clock(lambda: subprocess.run(sys.argv[1], shell=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
"""


def run(script: str, *words: object) -> float:
    """Run a load in a process of its own under a time limit, and return the seconds it says."""
    command = ["timeout", "-s", "KILL", str(LIMIT_S), sys.executable, "-c", PRELUDE + script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")
    return float(done.stdout.split()[-1])


def child_of(pid: int) -> int:
    """Return the process that timeout(1) started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def peak_kib(pid: int) -> int:
    """Return the most KiB that a process had resident; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def write_between(start: str, end: str, text: str) -> None:
    """Put *text* between two markers of README.md."""
    path = HERE / "README.md"
    readme = path.read_text()
    before, _, rest = readme.partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")
