"""Opening and using files on a mounted bucket is what it is on tmpfs, flag by flag: recorded there, replayed here."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3mount import BucketMount, assert_published, run

pytestmark = pytest.mark.mounted

SCRIPT = Path(__file__).with_name("openflags.py")


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A folder where Linux' own memory filesystem is."""
    with tempfile.TemporaryDirectory(prefix="pyfusekit-openflags-", dir="/dev/shm") as folder:
        yield Path(folder)


def record(what: str, folder: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(sys.executable, "-I", SCRIPT, folder, what, cwd=Path("/")).stdout)
    return answer


@pytest.mark.parametrize("what", ["RDONLY", "WRONLY", "RDWR"])
def test_each_combination_of_open_flags_does_what_it_does_on_tmpfs(what: str, bucket_mount: BucketMount, tmpfs: Path) -> None:
    expected = record(what, tmpfs)
    # Were everything refused, or nothing, the comparison would show little.
    assert {row.get("open") for row in expected.values()} >= {None, "EEXIST", "EISDIR", "ELOOP", "ENOENT"}
    found = record(what, bucket_mount.path)
    assert {case: row for case, row in found.items() if row != expected[case]} == {}
    assert sorted(os.listdir(bucket_mount.path)) == sorted(os.listdir(tmpfs))
    assert_published(bucket_mount)


def test_several_descriptors_of_a_file_see_of_each_other_what_they_see_on_tmpfs(bucket_mount: BucketMount, tmpfs: Path) -> None:
    expected = record("sequences", tmpfs)
    found = record("sequences", bucket_mount.path)
    for name, row in expected.items():
        assert found[name] == row, name
    assert_published(bucket_mount)
