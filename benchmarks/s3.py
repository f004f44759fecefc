"""Measure mounted buckets side by side: pyfusekit, rclone mount (without and with its cache) and Debian's s3fs.

One SeaweedFS serves all. For each row the tools take turns, round after round; each sample begins with a fresh mount, an empty
cache directory and dropped kernel caches, and the median counts. A write is over when the bucket shows it: a tool that
acknowledges earlier is waited for. Requests are counted by a proxy in runs of their own, because it costs time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "fs")]

from faultproxy import FaultProxy  # noqa: E402
from mounted import (  # noqa: E402
    LIMIT_S,
    MIB,
    OURS,
    RANDOM,
    READ,
    SHELL,
    child_of,
    peak_kib,
    run,
    write_between,
)
from mounts import Quiet, Server, ServerError, mount_fusectl  # noqa: E402
from seaweed import ACCESS, SeaweedServer  # noqa: E402

START, END = "<!-- s3 table: written by s3.py -->", "<!-- end of s3 table -->"


class Tool(NamedTuple):
    """A way to mount a bucket; WORK is a directory that is new for each sample, but in rows that are warm."""

    name: str
    words: tuple[str, ...]


def tools(endpoint: str, work: Path) -> list[Tool]:
    """Return the peers, those that are installed."""
    rclone = ROOT / ".venv-bench" / "bin" / "rclone"
    remote = f":s3,provider=Other,access_key_id=testing,secret_access_key=testing,endpoint='{endpoint}':BUCKET"
    mount = (str(rclone), "mount", remote, "MOUNTPOINT", "--config", "/dev/null", "--cache-dir", "WORK/rclone")
    chunks = ("--vfs-read-chunk-streams", "8", "--vfs-read-chunk-size", "8M", "--vfs-write-back", "0s")
    password = work / "s3fs-password"
    password.write_text("testing:testing\n")
    password.chmod(0o600)
    s3fs = ("s3fs", "BUCKET", "MOUNTPOINT", "-f", "-o", f"url={endpoint},use_path_request_style,passwd_file={password}")
    ours = (
        str(ROOT / ".venv" / "bin" / "pyfusekit"), "mount", "s3", "BUCKET", "MOUNTPOINT", "-f", "--endpoint-url", endpoint,
        "--cache-dir", "WORK/cache", "--staging-dir", "WORK/staging",
    )  # fmt: skip
    # What the peers do unasked: believe names for minutes (rclone 5, s3fs 15), answer close before the store has the file.
    relaxed = (*ours, "--metadata-ttl", "5m", "--write-back", "--cache-size", "4G")
    found = [Tool(OURS, ours), Tool("relaxed", relaxed)]
    if rclone.exists():
        found += [Tool("rclone", mount), Tool("rclone, full", (*mount, "--vfs-cache-mode", "full", *chunks))]
    if shutil.which("s3fs"):
        found.append(Tool("s3fs", s3fs))
    return found


class Bench:
    """The store, its client, and what every row needs."""

    def __init__(self, store: SeaweedServer, endpoint: str, work: Path) -> None:
        self.store = store
        self.endpoint = endpoint
        self.work = work
        self.client = store.client()
        self.peak: dict[str, int] = {}
        """KiB that a tool's process had resident at most."""
        self.quiet = Quiet(float(os.environ.get("PATIENCE", "600")))
        self._numbers = iter(range(1 << 30))

    def bucket(self) -> str:
        """Return a new bucket that takes writes at once."""
        return self.store.bucket()

    def put(self, bucket: str, key: str, size: int) -> None:
        """Put an object of random bytes, in parts when it is large."""
        from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]

        path = self.work / "object"
        with open(path, "wb") as file:
            for at in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - at)))
        self.client.upload_file(str(path), bucket, key, Config=TransferConfig(multipart_chunksize=8 * MIB))
        path.unlink()

    def put_many(self, bucket: str, prefix: str, count: int, size: int) -> None:
        """Put *count* small objects, as fast as the store takes them."""
        from pyfusekit.fs.s3fs.options import S3Options
        from pyfusekit.fs.s3fs.remote.aio import AioStore
        from pyfusekit.fs.s3fs.remote.store import Attributes, Bytes

        async def work() -> None:
            store = AioStore(bucket, S3Options(endpoint_url=self.store.url, region="us-east-1"))  # type: ignore[arg-type]
            await store.start()
            numbers = iter(range(count))

            async def one() -> None:
                for number in numbers:
                    await store.put(f"{prefix}{number:06}", Bytes(os.urandom(size)), Attributes())

            await asyncio.gather(*(one() for _ in range(32)))
            await store.close()

        asyncio.run(work())

    @contextlib.contextmanager
    def mounted(self, tool: Tool, bucket: str, warm: str = "") -> Iterator[Path]:
        """Mount *bucket* with nothing cached in the kernel, and nothing on disk but what the mounts named *warm* left."""
        work = self.work / (f"warm-{tool.name}-{warm}" if warm else f"sample-{next(self._numbers)}")
        work.mkdir(exist_ok=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        words = [word.replace("BUCKET", bucket).replace("WORK", str(work)) for word in tool.words]
        server = Server(tool.name, words)
        try:
            with server:
                pid = child_of(server.process.pid) if server.process is not None else 0
                yield Path(server.mountpoint)
                self.peak[tool.name] = max(self.peak.get(tool.name, 0), peak_kib(pid))
        finally:
            if not warm:
                shutil.rmtree(work, ignore_errors=True)

    def wait_for(self, bucket: str, key: str, size: int) -> None:
        """Wait until the bucket shows *key* with *size* bytes."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(self.client.exceptions.ClientError):
                if self.client.head_object(Bucket=bucket, Key=key)["ContentLength"] == size:
                    return
            if time.monotonic() > deadline:
                raise ServerError(f"{key} never came to the bucket")
            time.sleep(0.01)

    def count(self, bucket: str, prefix: str) -> int:
        """Return how many keys begin with *prefix*."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sum(page.get("KeyCount", 0) for page in pages)

    def wait_for_count(self, bucket: str, prefix: str, count: int) -> None:
        """Wait until *count* keys begin with *prefix*."""
        deadline = time.monotonic() + LIMIT_S
        while self.count(bucket, prefix) < count:
            if time.monotonic() > deadline:
                raise ServerError(f"{prefix}: not all of {count} keys came to the bucket")
            time.sleep(0.05)


_WRITE = """
path, mib = sys.argv[1], int(sys.argv[2])
block = os.urandom(1 << 20)
def work():
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(mib): assert os.write(fd, block) == len(block)
    os.close(fd)
clock(work)
"""
_PATCH = """
path, offset, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def work():
    fd = os.open(path, os.O_WRONLY | (os.O_APPEND if offset < 0 else 0))
    os.pwrite(fd, os.urandom(size), max(0, offset)) if offset >= 0 else os.write(fd, os.urandom(size))
    os.close(fd)
clock(work)
"""


class Row(NamedTuple):
    """A line of the table: what is prepared once, and what is timed. *per* is what the seconds are divided by, and shown as."""

    title: str
    prepare: Callable[[Bench, str], None]
    load: Callable[[Bench, str, Path], float]
    count: int = 1
    unit: str = "s"
    warm: bool = False
    """The tool's own directories stay from the round before, and one round is not counted."""


def _nothing(bench: Bench, bucket: str) -> None:
    """Nothing is there before."""


def rows(scale: float) -> list[Row]:
    """Return the rows; *scale* makes them smaller than the issue's sizes for a trial."""
    big = max(32, int(1024 * scale))
    middle = max(16, int(256 * scale))
    many = max(200, int(10_000 * scale))
    most = max(500, int(100_000 * scale))
    small = max(50, int(2000 * scale))

    def objects(count: int, mib: int) -> Callable[[Bench, str], None]:
        return lambda bench, bucket: [bench.put(bucket, f"o{n}", mib * MIB) for n in range(count)] and None

    def keys(count: int, size: int = 100) -> Callable[[Bench, str], None]:
        return lambda bench, bucket: bench.put_many(bucket, "d/", count, size)

    def write(bench: Bench, bucket: str, mountpoint: Path) -> float:
        name = f"w{random.randrange(1 << 40)}"
        began = time.perf_counter()
        run(_WRITE, mountpoint / name, big)
        bench.wait_for(bucket, name, big * MIB)
        taken = time.perf_counter() - began
        bench.client.delete_object(Bucket=bucket, Key=name)
        return taken

    def patch(offset: int, size: int) -> Callable[[Bench, str, Path], float]:
        def load(bench: Bench, bucket: str, mountpoint: Path) -> float:
            was = bench.client.head_object(Bucket=bucket, Key="o0")
            began = time.perf_counter()
            run(_PATCH, mountpoint / "o0", offset, size)
            while bench.client.head_object(Bucket=bucket, Key="o0")["ETag"] == was["ETag"]:
                if time.perf_counter() - began > LIMIT_S:
                    raise ServerError("the change never came to the bucket")
                time.sleep(0.005)
            return time.perf_counter() - began

        return load

    def copy_in(bench: Bench, bucket: str, mountpoint: Path) -> float:
        source = bench.work / "small"
        if not source.exists():
            source.mkdir()
            for number in range(small):
                (source / f"f{number:05}").write_bytes(os.urandom(4096))
        name = f"in{random.randrange(1 << 40)}"
        began = time.perf_counter()
        run(SHELL, f"cp -r {source} {mountpoint}/{name}")
        bench.wait_for_count(bucket, f"{name}/f", small)
        return time.perf_counter() - began

    def copy_out(bench: Bench, bucket: str, mountpoint: Path) -> float:
        target = Path(tempfile.mkdtemp(dir=bench.work))
        taken = run(SHELL, f"cp -r {mountpoint}/d {target}/")
        assert len(list((target / "d").iterdir())) == small
        shutil.rmtree(target)
        return taken

    def rename(bench: Bench, bucket: str, mountpoint: Path) -> float:
        began = time.perf_counter()
        size = bench.client.head_object(Bucket=bucket, Key="o0")["ContentLength"]
        run(SHELL, f"mv {mountpoint}/o0 {mountpoint}/renamed")
        bench.wait_for(bucket, "renamed", size)
        taken = time.perf_counter() - began
        run(SHELL, f"mv {mountpoint}/renamed {mountpoint}/o0")
        bench.wait_for(bucket, "o0", size)
        return taken

    def rename_directory(bench: Bench, bucket: str, mountpoint: Path) -> float:
        taken = run(SHELL, f"mv {mountpoint}/d {mountpoint}/e")
        assert (bench.count(bucket, "d/"), bench.count(bucket, "e/") >= 1) == (0, True)
        run(SHELL, f"mv {mountpoint}/e {mountpoint}/d")
        return taken

    def clone(bench: Bench, bucket: str, mountpoint: Path) -> float:
        name = f"clone{random.randrange(1 << 40)}"
        return run(SHELL, f"git -c advice.detachedHead=false clone -q --no-hardlinks {ROOT} {mountpoint}/{name}")

    def shell(words: str) -> Callable[[Bench, str, Path], float]:
        return lambda bench, bucket, mountpoint: run(SHELL, words.replace("MNT", str(mountpoint)))

    def reads(count: int) -> Callable[[Bench, str, Path], float]:
        return lambda bench, bucket, mountpoint: run(READ, *(mountpoint / f"o{n}" for n in range(count)))

    def randoms(size: int, count: int) -> Callable[[Bench, str, Path], float]:
        return lambda bench, bucket, mountpoint: run(RANDOM, mountpoint / "o0", size, count)

    return [
        Row(f"read {big} MiB in order", objects(1, big), reads(1)),
        Row(f"4 readers, {big // 4} MiB each", objects(4, big // 4), reads(4)),
        Row(f"16 readers, {big // 16} MiB each", objects(16, max(1, big // 16)), reads(16)),
        Row(f"read {big} MiB in order, mounted before", objects(1, big), reads(1), warm=True),
        Row("read 4 KiB at random", objects(1, big), randoms(4096, 100), 100, "ms"),
        Row("read 1 MiB at random", objects(1, big), randoms(MIB, 30), 30, "ms"),
        Row(f"ls -l of {many} keys", keys(many), shell("ls -l MNT/d")),
        Row(f"ls -l of {many} keys, mounted before", keys(many), shell("ls -l MNT/d"), warm=True),
        Row(f"find in {many} keys", keys(many), shell("find MNT/d")),
        Row(f"ls -l of {most} keys", keys(most), shell("ls -l MNT/d")),
        Row(f"ls -l of {most} keys, mounted before", keys(most), shell("ls -l MNT/d"), warm=True),
        Row(f"find in {most} keys", keys(most), shell("find MNT/d")),
        Row(f"cp -r of {small} files out", keys(small, 4096), copy_out),
        Row(f"cp -r of {small} files in", _nothing, copy_in),
        Row(f"write {big} MiB in order", _nothing, write),
        Row(f"append a line to {middle} MiB", objects(1, middle), patch(-1, 80)),
        Row(f"rewrite 4 KiB inside {middle} MiB", objects(1, middle), patch(middle * MIB // 2, 4096)),
        Row(f"rename a file of {middle} MiB", objects(1, middle), rename),
        Row(f"rename a directory of {max(50, int(1000 * scale))}", keys(max(50, int(1000 * scale))), rename_directory),
        Row("git clone onto it", _nothing, clone),
    ]


def measure(bench: Bench, chosen: list[Row], peers: list[Tool], rounds: int) -> dict[str, dict[str, Any]]:
    """Return by row and tool the median seconds, or why there are none."""
    table: dict[str, dict[str, Any]] = {}
    buckets: dict[str, str] = {}
    for row in chosen:
        same = f"{row.prepare.__code__.co_consts} {[cell.cell_contents for cell in row.prepare.__closure__ or ()]}"
        if same not in buckets or row.prepare is _nothing:
            buckets[same] = bench.bucket()
            row.prepare(bench, buckets[same])
        bucket = buckets[same]
        samples: dict[str, list[float]] = {tool.name: [] for tool in peers}
        failures: dict[str, str] = {}
        for number in range(rounds + row.warm):
            for tool in peers:
                if tool.name in failures:
                    continue
                bench.quiet.wait()
                try:
                    with bench.mounted(tool, bucket, row.title.replace(" ", "-") if row.warm else "") as mountpoint:
                        taken = row.load(bench, bucket, mountpoint)
                    if number or not row.warm:
                        samples[tool.name].append(taken)
                except (ServerError, AssertionError, OSError, bench.client.exceptions.ClientError) as exc:
                    failures[tool.name] = str(exc) or type(exc).__name__
        table[row.title] = {
            tool.name: failures.get(tool.name) or statistics.median(samples[tool.name]) / row.count for tool in peers
        }
        print(row.title, {name: f"{v:.4f}" if isinstance(v, float) else v for name, v in table[row.title].items()}, flush=True)
    return table


def markdown(table: dict[str, dict[str, Any]], chosen: list[Row], peers: list[Tool]) -> list[str]:
    """Return the table's lines: our figure, and each peer's with how many times ours is faster."""
    names = [tool.name for tool in peers]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    units = {row.title: row.unit for row in chosen}
    for title, figures in table.items():
        scale, unit = (1000.0, "ms") if units[title] == "ms" else (1.0, "s")
        ours = figures[OURS]
        cells = []
        for name in names:
            value = figures[name]
            if not isinstance(value, float):
                cells.append(f"failed: {value[:60]}")
            elif name == OURS or not isinstance(ours, float):
                cells.append(f"**{value * scale:.2f} {unit}**")
            else:
                cells.append(f"{value * scale:.2f} ({value / ours:.2f} x)")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def baseline(bench: Bench, mib: int) -> list[str]:
    """Return what aiobotocore alone moves: ranges of 8 MiB, 16 at a time, and the mount beside it, interleaved."""
    bucket = bench.bucket()
    bench.put(bucket, "o0", mib * MIB)
    ours = tools(bench.endpoint, bench.work)[0]
    alone: dict[str, list[float]] = {"read": [], "write": []}
    mount: dict[str, list[float]] = {"read": [], "write": []}
    for number in range(3):
        bench.quiet.wait()
        alone["read"].append(asyncio.run(_aiobotocore(bench, bucket, "o0", mib, False)))
        with bench.mounted(ours, bucket) as mountpoint:
            mount["read"].append(run(READ, mountpoint / "o0"))
        bench.quiet.wait()
        alone["write"].append(asyncio.run(_aiobotocore(bench, bucket, f"a{number}", mib, True)))
        with bench.mounted(ours, bucket) as mountpoint:
            mount["write"].append(run(_WRITE, mountpoint / f"m{number}", mib))
    lines = ["| against aiobotocore alone | mount | aiobotocore | mount's share | goal |", "|---|--:|--:|--:|---|"]
    for what in ("read", "write"):
        one, other = statistics.median(mount[what]), statistics.median(alone[what])
        share = other / one
        said = "reached" if share >= 0.8 else "missed"
        lines.append(f"| {what} {mib} MiB | {one:.2f} s | {other:.2f} s | {share:.2f} | 0.8: {said} |")
    return lines


def from_cache(bench: Bench, mib: int) -> list[str]:
    """Return what reading a completely cached file costs beside its file in the cache: from the disk, and from memory."""
    bucket = bench.bucket()
    bench.put(bucket, "o0", mib * MIB)
    relaxed = tools(bench.endpoint, bench.work)[1]
    figures: dict[str, list[tuple[float, float]]] = {"disk": [], "memory": []}
    with bench.mounted(relaxed, bucket, "cached") as mountpoint:
        run(READ, mountpoint / "o0")
    cached = max(bench.work.glob("warm-relaxed-cached/cache/**/*.data"), key=lambda path: path.stat().st_size)
    assert cached.stat().st_size == mib * MIB
    for _ in range(3):
        bench.quiet.wait()
        with bench.mounted(relaxed, bucket, "cached") as mountpoint:
            through = run(READ, mountpoint / "o0")
            warm = run(READ, mountpoint / "o0")
            direct = run(READ, cached)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        figures["disk"].append((through, run(READ, cached)))
        figures["memory"].append((warm, direct))
    lines = ["| a completely cached file | mount | the file in the cache | mount's share | goal |", "|---|--:|--:|--:|---|"]
    for where, pairs in figures.items():
        through, direct = (statistics.median(column) for column in zip(*pairs, strict=True))
        share = statistics.median(direct / through for through, direct in pairs)
        said = "reached" if share >= 0.8 else "missed"
        lines.append(f"| read {mib} MiB from {where} | {through:.3f} s | {direct:.3f} s | {share:.2f} | 0.8: {said} |")
    return lines


async def _aiobotocore(bench: Bench, bucket: str, key: str, mib: int, writing: bool) -> float:
    """Move an object with aiobotocore, 16 parts of 8 MiB at a time, and return the seconds."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    config = AioConfig(max_pool_connections=32, request_checksum_calculation="when_required")
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    async with AioSession().create_client("s3", endpoint_url=bench.endpoint, config=config, **keys) as client:
        block = os.urandom(8 * MIB)
        numbers = iter(range(mib // 8))
        parts: list[dict[str, Any]] = []
        upload = (await client.create_multipart_upload(Bucket=bucket, Key=key))["UploadId"] if writing else ""

        async def one() -> None:
            for number in numbers:
                if writing:
                    answer = await client.upload_part(
                        Bucket=bucket, Key=key, UploadId=upload, PartNumber=number + 1, Body=block
                    )
                    parts.append({"PartNumber": number + 1, "ETag": answer["ETag"]})
                else:
                    span = f"bytes={number * 8 * MIB}-{(number + 1) * 8 * MIB - 1}"
                    answer = await client.get_object(Bucket=bucket, Key=key, Range=span)
                    async for _ in answer["Body"].iter_chunks(MIB):
                        pass

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(16)))
        if writing:
            listed = {"Parts": sorted(parts, key=lambda part: part["PartNumber"])}
            await client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=listed)
        return time.perf_counter() - began


def main() -> None:
    """Measure what is asked for, and write README.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the sizes of the table; 0.05 is a trial")
    parser.add_argument("--rows", default="", help="only rows whose title has one of these words, comma separated")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to each request")
    parser.add_argument("--tools", default="", help="only these, comma separated")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    os.environ.update(ACCESS, AWS_EC2_METADATA_DISABLED="true")
    mount_fusectl()
    words = [word for word in given.rows.split(",") if word]
    chosen = [row for row in rows(given.scale) if not words or any(word in row.title for word in words)]
    work = Path(tempfile.mkdtemp(prefix="pyfusekit-bench-s3-"))
    sections: list[str] = []
    try:
        with SeaweedServer() as store, contextlib.ExitStack() as stack:
            endpoint = store.url
            if given.latency:
                endpoint = stack.enter_context(FaultProxy(store.url, latency=given.latency)).url
            bench = Bench(store, endpoint, work)
            peers = [tool for tool in tools(endpoint, work) if not given.tools or tool.name in given.tools.split(",")]
            table = measure(bench, chosen, peers, given.rounds)
            sections += markdown(table, chosen, peers)
            sections += ["", "Most memory: " + ", ".join(f"{name} {kib >> 10} MiB" for name, kib in bench.peak.items()) + "."]
            if not given.no_baseline and not given.latency:
                sections += ["", *baseline(bench, max(64, int(1024 * given.scale)))]
                sections += ["", *from_cache(bench, max(64, int(1024 * given.scale)))]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = "\n".join(sections)
    print(text)
    if given.write:
        write_between(START, END, text)


if __name__ == "__main__":
    main()
