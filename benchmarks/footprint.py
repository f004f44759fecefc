"""What a mount costs when nobody uses it: time to come up, memory, processor; and the memory of a million files."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from mounts import Server, ServerError, cpu_ticks, minor_of, rss_bytes, settle

MIB = 1 << 20
MILLION = 1_000_000
FOREGROUND = [sys.executable, "-m", "pyfusekit", "mount", "mem", "MOUNTPOINT", "--foreground"]


def seconds_to_mount(times: int) -> list[float]:
    """Return the seconds that `pyfusekit mount mem` took each time: when it returns, the mount can be used.

    With compiled modules, as an installed package has them; the first mount, which compiles, does not count.
    """
    command = [sys.executable, "-m", "pyfusekit"]
    samples = []
    with tempfile.TemporaryDirectory(prefix="pyfusekit-bench-") as directory:
        mountpoint = os.path.join(directory, "mnt")
        os.mkdir(mountpoint)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = os.path.join(directory, "compiled")
        for _ in range(times + 1):
            start = time.monotonic()
            done = subprocess.run(
                [*command, "mount", "mem", mountpoint], env=environment, capture_output=True, text=True, timeout=30
            )
            samples.append(time.monotonic() - start)
            if done.returncode or minor_of(mountpoint) is None:
                raise ServerError(f"mount mem: {done.stderr.strip() or done.stdout.strip()}")
            unmount = [*command, "umount", mountpoint]
            subprocess.run(unmount, env=environment, check=True, capture_output=True, timeout=30)
    return samples[1:]


def judged(value: str, goal: str, *, reached: bool) -> str:
    """Return a value with its goal and what came of it."""
    return f"{value} | {goal} | {'reached' if reached else 'missed'} |"


def small(_client: str) -> str:
    """Measure one idle memory filesystem, and the time to mount it."""
    samples = seconds_to_mount(15)
    median_ms, least_ms = 1000 * statistics.median(samples), 1000 * min(samples)
    with Server("mem", FOREGROUND) as server:
        pid = server.pid()
        settle(pid)
        before, end = cpu_ticks(pid), time.monotonic() + 5
        while time.monotonic() < end:
            time.sleep(0.5)
        ticks, rss = cpu_ticks(pid) - before, rss_bytes(pid)
    return "\n".join(
        [
            "| memory filesystem, idle | | goal | |",
            "|---|--:|--:|---|",
            "| `mount mem` until it is usable, median of 15 (least) | "
            + judged(f"{median_ms:.0f} ms ({least_ms:.0f} ms)", "< 150 ms", reached=median_ms < 150),
            "| processor time in 5 s | " + judged(f"{ticks} ticks of 10 ms", "0", reached=ticks == 0),
            "| resident memory | " + judged(f"{rss / MIB:.1f} MiB", "< 30 MiB", reached=rss < 30 * MIB),
        ]
    )


def million(client: str) -> str:
    """Measure the memory of a million empty files, a thousand in a directory, made one by one through the kernel."""
    with Server("mem", FOREGROUND) as server:
        pid = server.pid()
        settle(pid)
        empty = rss_bytes(pid)
        each_ns = server.load([client, "mknod", "MOUNTPOINT", str(MILLION)], timeout=900)
        each = (rss_bytes(pid) - empty) / MILLION
        with open("/proc/sys/vm/drop_caches", "w") as drop:
            drop.write("2")
    return "\n".join(
        [
            f"| {MILLION:,} empty files in the memory filesystem | | goal | |",
            "|---|--:|--:|---|",
            "| resident memory, a file | " + judged(f"{each:.0f} bytes", "< 1536", reached=each < 1536),
            f"| time to make one | {each_ns / 1000:.1f} µs | | |",
        ]
    )
