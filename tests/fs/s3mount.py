"""A bucket of SeaweedFS mounted with the real command, and what programs leave behind in a directory."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seaweed import ACCESS, SeaweedServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline

SECONDS = 45
"""What a program on a mount may take."""


class BucketMount:
    """*bucket*, on *path* after mount(). *url* is the server's or that of a proxy before it."""

    def __init__(self, command: Commandline, server: SeaweedServer, bucket: str, *options: str, url: str = "") -> None:
        self.command = command
        self.server = server
        self.bucket = bucket
        self.options = options
        self.url = url or server.url
        self.path = command.folder(f"mnt-{bucket}-{len(os.listdir(command.top))}")
        self.log = command.top / f"{self.path.name}.log"
        command.environment.update(ACCESS)
        command.environment["AWS_EC2_METADATA_DISABLED"] = "true"

    def mount(self) -> Path:
        """Mount it and return where."""
        arguments = ("--endpoint-url", self.url, "--log", str(self.log), *self.options)
        result = self.command.run("mount", "s3", self.bucket, self.path, *arguments)
        assert result.returncode == 0, result.stderr
        return self.path

    def unmount(self) -> str:
        """Unmount it, see that nothing is left and that the log has no bug in it; return the log."""
        result = self.command.run("umount", self.path)
        log = self.log.read_text() if self.log.exists() else ""
        assert result.returncode == 0, f"{result.stderr}\n{log}"
        assert str(self.path) not in {info.mountpoint for info in self.command.mounts()}
        assert self.command.settle() == {}
        bug = log.find("Traceback")
        assert bug < 0, log[max(0, bug - 500) : bug + 2000]
        return log

    def remount(self) -> None:
        """Unmount and mount again: what only the server's memory knew is forgotten."""
        self.unmount()
        self.mount()

    def stored(self) -> dict[str, bytes]:
        """Return what the store holds, as a plain client sees it: key -> bytes."""
        client = self.server.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [row["Key"] for page in pages for row in page.get("Contents", ())]
        return {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}


def run(
    *words: str | Path, cwd: Path, check: bool = True, input: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that uses a mount, ended by force when the mount hangs; its failure shows what it said."""
    result = subprocess.run(
        ["timeout", "-s", "KILL", str(SECONDS), *map(os.fspath, words)],
        cwd=cwd,
        env={**plain_environment(), **environment},
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert not check or result.returncode == 0, f"{words} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def plain_environment() -> Mapping[str, str]:
    """Return an environment without a person's settings."""
    kept = {name: os.environ[name] for name in ("PATH", "PYFUSEKIT_TEST_SESSION") if name in os.environ}
    return {**kept, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "TZ": "UTC", "GIT_CONFIG_NOSYSTEM": "1"}


def walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all that is below *top*: its path from there and its own attributes."""
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            yield os.path.relpath(path, top), os.lstat(path)


def tree(top: Path, *, times: bool = False) -> dict[str, tuple[Any, ...]]:
    """Return what is below *top*: path -> type and mode, a file's size and contents, and if wanted its modification time."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, attributes in walk(top):
        mode = attributes.st_mode
        row: list[Any] = [stat.filemode(mode)]
        if stat.S_ISREG(mode):
            row += [attributes.st_size, hashlib.sha256((top / name).read_bytes()).hexdigest()]
        elif stat.S_ISLNK(mode):
            row.append(os.readlink(top / name))
        if times and not stat.S_ISDIR(mode):
            row.append(attributes.st_mtime_ns)
        found[name] = tuple(row)
    return found


def assert_published(mount: BucketMount) -> None:
    """See that the store holds the regular files of a mount under their paths, with their bytes, and no other files."""
    here = {name: mount.path / name for name, row in walk(mount.path) if stat.S_ISREG(row.st_mode)}
    links = {name for name, row in walk(mount.path) if stat.S_ISLNK(row.st_mode)}
    there = {key: body for key, body in mount.stored().items() if not key.endswith("/") and key not in links}
    assert sorted(there) == sorted(here)
    assert {key: len(body) for key, body in there.items()} == {name: path.stat().st_size for name, path in here.items()}
    assert [name for name, path in here.items() if path.read_bytes() != there[name]] == []
