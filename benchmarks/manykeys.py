"""Measure what a million known keys cost a mounted bucket: memory, requests, seconds. The store is made up: it only lists.

A real store would take longer to fill than to list. This one answers ListObjectsV2 with pages of 1,000 keys that do not
exist, so what is measured is `pyfusekit mount s3` and the kernel. `find -size` looks at every file: the server then knows all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mounts import Server, ServerError, mount_fusectl

PAGE = 1000
LIMIT_S = 300
_ROW = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag>"
    "<Size>100</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Lister:
    """A store whose bucket has *count* keys, in directories of *width* when that is not 0."""

    def __init__(self, count: int, width: int, pages: Any) -> None:
        self.count = count
        self.width = width
        self.pages = pages
        """A shared number: the pages that were listed."""

    def listing(self, query: dict[str, list[str]]) -> str:
        """Return a page of ListObjectsV2; the continuation token is the number of the first row."""
        directory, slash, stem = query.get("prefix", [""])[0].rpartition("/")
        folders = bool(self.width) and not directory
        total = self.count if not self.width else self.count // self.width if folders else self.width
        first = int(query.get("continuation-token", ["0"])[0])
        if stem[1:]:
            # The whole name of a key: somebody looks it up.
            first = int(stem[1:])
            total = min(total, first + 1)
        elif after := query.get("start-after", [""])[0].rpartition("/")[2].strip("~"):
            first = int(after[1:8] or "0")
        upto = min(total, first + min(PAGE, int(query.get("max-keys", [str(PAGE)])[0])))
        if folders:
            rows = [f"<CommonPrefixes><Prefix>d{n:06}/</Prefix></CommonPrefixes>" for n in range(first, upto)]
        else:
            rows = [_ROW.format(key=f"{directory}{slash}k{n:07}", etag=f"{n:032x}") for n in range(first, upto)]
        more = f"<NextContinuationToken>{upto}</NextContinuationToken>" if upto < total else ""
        self.pages.value += 1
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><KeyCount>{len(rows)}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
            + "".join(rows)
            + "</ListBucketResult>"
        )

    async def serve(self, port: Any) -> None:
        """Serve until the process ends; *port* is a shared number that says where."""
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        """Return a request without a body; empty when there is none any more."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            return await reader.readuntil(b"\r\n\r\n")
        return b""

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await self._head(reader):
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            url = urlsplit(target)
            query = parse_qs(url.query, keep_blank_values=True)
            status, body = "404 Not Found", ""
            if "list-type" in query:
                status, body = "200 OK", self.listing(query)
            elif url.path.strip("/") == "bucket":
                status, body = "200 OK", '<?xml version="1.0"?><LocationConstraint/>'
            data = body.encode()
            writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(data)}\r\n\r\n".encode())
            writer.write(b"" if method == "HEAD" else data)


def _serve(count: int, width: int, port: Any, pages: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Lister(count, width, pages).serve(port))


def _kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ServerError(f"process {pid} has no {field}")


def measure(count: int, width: int) -> str:
    """Return a row of the table: `find` over *count* keys, and what the server then holds."""
    port, pages = multiprocessing.Value("i", 0), multiprocessing.Value("i", 0)
    lister = multiprocessing.Process(target=_serve, args=(count, width, port, pages), daemon=True)
    lister.start()
    try:
        while not port.value:
            time.sleep(0.01)
        endpoint = f"http://127.0.0.1:{port.value}"
        words = [
            sys.executable, "-m", "pyfusekit", "mount", "s3", "bucket", "MOUNTPOINT", "-f", "--endpoint-url", endpoint,
            "--no-probe", "--metadata", "none", "--metadata-ttl", "1h", "-o",
            "ro",
        ]  # fmt: skip
        with Server("pyfusekit", words) as server:
            before, listed = _kib(server.pid(), "VmRSS"), pages.value
            began = time.perf_counter()
            done = subprocess.run(
                ["timeout", "-s", "KILL", str(LIMIT_S), "sh", "-c", f"find {server.mountpoint} -type f -size +0 | wc -l"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            taken = time.perf_counter() - began
            if done.returncode or int(done.stdout) != count:
                server.abort()
                raise ServerError(f"find saw {done.stdout.strip()} of {count} keys: {done.stderr.strip()}")
            most = _kib(server.pid(), "VmHWM")
            shape = f"{count // width:,} directories of {width:,}" if width else "one directory"
            memory = f"{before >> 10} MiB | {most >> 10} MiB"
            return f"| {count:,} keys, {shape} | {taken:.1f} s | {pages.value - listed:,} | {memory} |"
    finally:
        lister.kill()
        lister.join()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    given = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_EC2_METADATA_DISABLED="true")
    mount_fusectl()
    print("| `find -size` | time | pages listed | memory before | most memory |\n|---|--:|--:|--:|--:|")
    for count, width in ((given.count // 10, 0), (given.count, 1000), (given.count, 0)):
        print(measure(count, width), flush=True)


if __name__ == "__main__":
    main()
