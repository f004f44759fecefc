"""Open files with every combination of flags, use what was opened, and print what happened.

``python openflags.py DIRECTORY WHAT``: on tmpfs it prints what Linux does; on a mount it must print the same. WHAT is RDONLY,
WRONLY or RDWR for a third of the matrix, or "sequences": what several descriptors of one file see of each other.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import mmap
import os
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CREATION = ("", "CREAT", "CREAT|EXCL")
TRUNCATION = ("", "TRUNC")
APPENDING = ("", "APPEND")
OTHERS = {
    "RDONLY": ("", "NOFOLLOW", "DIRECTORY", "PATH"),
    "WRONLY": ("", "NOFOLLOW", "SYNC"),
    "RDWR": ("", "NOFOLLOW", "DIRECTORY"),
}
STATES = ("missing", "full", "empty", "directory", "link", "dangling")
FULL = b"0123456789"
WORKERS = 12


def flags_of(text: str) -> int:
    """Return names joined by "|" as a number."""
    return sum(getattr(os, f"O_{name}") for name in text.split("|") if name)


def prepare(path: str, state: str) -> None:
    """Put something at *path*."""
    target = f"{os.path.dirname(path)}/target"
    if state in ("full", "empty"):
        write_file(path, FULL if state == "full" else b"")
    elif state == "directory":
        os.mkdir(path)
    elif state in ("link", "dangling"):
        os.symlink("target", path)
        if state == "link":
            write_file(target, FULL)


def write_file(path: str, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def outcome(action: Callable[[], Any]) -> Any:
    """Return what an action returns, or its errno's name."""
    try:
        value = action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def use(descriptor: int) -> dict[str, Any]:
    """Read, write and measure an open file."""
    attributes = os.fstat(descriptor)
    return {
        "type": stat.filemode(attributes.st_mode),
        "size": attributes.st_size if stat.S_ISREG(attributes.st_mode) else None,
        "read": outcome(lambda: os.read(descriptor, 4)),
        "write": outcome(lambda: os.write(descriptor, b"XY")),
        "position": outcome(lambda: os.lseek(descriptor, 0, os.SEEK_CUR)) if stat.S_ISREG(attributes.st_mode) else None,
        "pread": outcome(lambda: os.pread(descriptor, 20, 0)),
        "grown": outcome(lambda: os.ftruncate(descriptor, 12)),
        "fsync": outcome(lambda: os.fsync(descriptor)),
    }


def contents(directory: str) -> dict[str, Any]:
    """Return what is in a directory: name -> type and mode, and bytes or target."""
    found = {}
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        row: list[Any] = [stat.filemode(entry.stat(follow_symlinks=False).st_mode)]
        if entry.is_symlink():
            row.append(os.readlink(entry.path))
        elif entry.is_file():
            with open(entry.path, "rb") as file:
                data = file.read()
            row.append(data.decode("latin-1") if len(data) < 100 else f"{len(data)} {hashlib.sha256(data).hexdigest()}")
        found[entry.name] = row
    return found


def attempt(directory: str, state: str, text: str) -> dict[str, Any]:
    """Do one case in a directory of its own."""
    os.mkdir(directory)
    path = f"{directory}/f"
    prepare(path, state)
    result: dict[str, Any] = {}
    try:
        descriptor = os.open(path, flags_of(text), 0o640)
    except OSError as error:
        result["open"] = errno.errorcode[error.errno or 0]
    else:
        result.update(use(descriptor))
        result["close"] = outcome(lambda: os.close(descriptor))
    result["after"] = contents(directory)
    return result


def matrix(top: str, access: str) -> dict[str, Any]:
    """Do all cases of one access mode, several at once."""
    cases = {}
    for parts in itertools.product(CREATION, TRUNCATION, APPENDING, OTHERS[access]):
        if all(parts[2:]):
            continue  # appending has nothing to do with them
        text = "|".join(part for part in (access, *parts) if part)
        for state in STATES:
            cases[f"{state} {text}"] = (f"{top}/{len(cases):04}", state, text)
    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(cases, pool.map(lambda case: attempt(*case), cases.values()), strict=True))


# What several descriptors of one file see.


def append_twice(path: str) -> Any:
    write_file(path, b"start ")
    one, two = (os.open(path, os.O_WRONLY | os.O_APPEND) for _ in "12")
    for descriptor, data in ((one, b"a"), (two, b"b"), (one, b"c"), (two, b"d")):
        os.write(descriptor, data)
    os.pwrite(one, b"e", 0)  # Linux appends this too
    return [os.close(one), os.close(two)]


def read_own_writes(path: str) -> Any:
    writer = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    reader = os.open(path, os.O_RDONLY)
    seen = []
    for number in range(5):
        os.write(writer, b"%d" % number * 5000)
        seen.append([os.fstat(reader).st_size, os.pread(reader, 3, number * 5000 - 1 if number else 0).decode()])
    os.pwrite(writer, b"middle", 7000)
    seen.append(os.pread(reader, 8, 6999).decode())
    os.close(writer)
    seen.append(os.pread(reader, 8, 6999).decode())
    os.close(reader)
    return seen


def truncate_under_a_reader(path: str) -> Any:
    write_file(path, FULL * 2000)
    reader = os.open(path, os.O_RDONLY)
    seen = [len(os.pread(reader, 30_000, 0))]
    other = os.open(path, os.O_WRONLY | os.O_TRUNC)
    seen += [os.fstat(reader).st_size, len(os.pread(reader, 10, 0))]
    os.write(other, b"new")
    seen += [os.fstat(reader).st_size, os.pread(reader, 10, 0).decode()]
    os.ftruncate(other, 6)
    seen.append(os.pread(reader, 10, 0).decode("latin-1"))
    return [*seen, os.close(other), os.close(reader)]


def write_after_unlink(path: str) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(descriptor, b"before")
    os.unlink(path)
    os.write(descriptor, b" after")
    seen = [os.pread(descriptor, 20, 0).decode(), os.fstat(descriptor).st_size, os.path.exists(path)]
    seen += [outcome(lambda: os.fsync(descriptor)), os.close(descriptor), os.path.exists(path)]
    return seen


def unlink_and_create_again(path: str) -> Any:
    write_file(path, b"old")
    old = os.open(path, os.O_RDWR)
    os.unlink(path)
    write_file(path, b"newer")
    os.pwrite(old, b"O", 0)
    seen = [os.pread(old, 10, 0).decode(), os.fstat(old).st_ino != os.stat(path).st_ino]
    os.close(old)
    return seen


def rename_while_written(path: str) -> Any:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"one ")
    os.rename(path, f"{path}-moved")
    os.write(descriptor, b"two")
    return [os.close(descriptor), os.path.exists(path)]


def rename_over_an_open_file(path: str) -> Any:
    write_file(path, b"old contents")
    write_file(f"{path}-new", b"new")
    old = os.open(path, os.O_RDONLY)
    os.rename(f"{path}-new", path)
    seen = [os.read(old, 20).decode(), os.fstat(old).st_size, os.stat(path).st_size]
    os.close(old)
    return seen


def sparse_writes(path: str) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, b"far", 300_000)
    os.pwrite(descriptor, b"near", 10)
    seen = [os.fstat(descriptor).st_size, sum(os.pread(descriptor, 400_000, 0))]
    os.ftruncate(descriptor, 100)
    os.ftruncate(descriptor, 200_000)
    seen += [os.fstat(descriptor).st_size, sum(os.pread(descriptor, 400_000, 0))]
    os.close(descriptor)
    with open(path, "rb") as file:
        data = file.read()
    return [*seen, len(data), sum(data)]


def rewrite_the_middle(path: str) -> Any:
    write_file(path, FULL * 30_000)
    with open(path, "r+b", buffering=0) as file:
        file.seek(123_456)
        file.write(b"changed")
        file.seek(0)
        data = file.read(1 << 20)
    with open(path, "rb") as file:
        again = file.read()
    return [len(data), data[123_450:123_470].decode(), data == again]


def write_through_a_map(path: str) -> Any:
    write_file(path, b"\0" * 10_000)
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 10_000) as area:
        area[5000:5006] = b"mapped"
        area.flush()
    seen = [os.pread(descriptor, 6, 5000).decode(), os.close(descriptor)]
    with open(path, "rb") as file:
        return [*seen, file.read()[4999:5007].decode("latin-1")]


def close_a_duplicate(path: str) -> Any:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"one ")
    os.close(os.dup(descriptor))
    with open(path, "rb") as file:
        seen = [file.read().decode()]
    os.write(descriptor, b"two")
    os.close(descriptor)
    with open(path, "rb") as file:
        return [*seen, file.read().decode()]


def fsync_and_go_on(path: str) -> Any:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    seen = []
    for number in range(3):
        os.write(descriptor, b"%d" % number * 1000)
        seen += [os.fsync(descriptor), os.fdatasync(descriptor), os.stat(path).st_size]
    return [*seen, os.close(descriptor)]


def change_mode_and_time_while_written(path: str) -> Any:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"data")
    os.fchmod(descriptor, 0o751)
    os.utime(descriptor, ns=(1_111_111_111_123_456_789, 1_222_222_222_987_654_321))
    os.close(descriptor)
    found = os.stat(path)
    return [stat.filemode(found.st_mode), found.st_mtime_ns, found.st_atime_ns, found.st_size]


def readable_by_whoever_opened_it_before(path: str) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o000)
    os.write(descriptor, b"locked")
    seen = [os.pread(descriptor, 10, 0).decode(), stat.filemode(os.fstat(descriptor).st_mode)]
    return [*seen, os.close(descriptor)]


def allocate(path: str) -> Any:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.posix_fallocate(descriptor, 0, 70_000)
    os.pwrite(descriptor, b"x", 69_999)
    seen = [os.fstat(descriptor).st_size, sum(os.pread(descriptor, 80_000, 0))]
    return [*seen, os.close(descriptor), os.stat(path).st_size]


SEQUENCES = (
    append_twice,
    read_own_writes,
    truncate_under_a_reader,
    write_after_unlink,
    unlink_and_create_again,
    rename_while_written,
    rename_over_an_open_file,
    sparse_writes,
    rewrite_the_middle,
    write_through_a_map,
    close_a_duplicate,
    fsync_and_go_on,
    change_mode_and_time_while_written,
    readable_by_whoever_opened_it_before,
    allocate,
)


def sequences(top: str) -> dict[str, Any]:
    """Do each sequence in a directory of its own."""
    found = {}
    for sequence in SEQUENCES:
        directory = f"{top}/{sequence.__name__}"
        os.mkdir(directory)
        result = outcome(lambda: sequence(f"{directory}/f"))  # noqa: B023 (it is called at once)
        found[sequence.__name__] = {"seen": result, "after": contents(directory)}
    return found


def main() -> None:
    """Print one part."""
    os.umask(0o022)
    top, what = sys.argv[1:]
    print(json.dumps(sequences(top) if what == "sequences" else matrix(top, what)))


if __name__ == "__main__":
    main()
