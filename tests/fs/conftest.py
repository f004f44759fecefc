"""What the tests of the filesystems share: one SeaweedFS for all of a run, a bucket of it for each test, and mounts of that."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3mount import BucketMount
from seaweed import SeaweedServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from commandline import Commandline, commandline


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    with SeaweedServer() as server:
        yield server


@pytest.fixture
def seaweed_bucket(seaweed: SeaweedServer) -> Iterator[str]:
    """The name of an empty bucket, which is removed with all that is in it."""
    name = seaweed.bucket()
    yield name
    seaweed.client().delete_bucket(Bucket=name)


@pytest.fixture
def command() -> Iterator[Commandline]:
    """The command and a place to mount in; all mounts there are aborted when a test takes too long."""
    with commandline() as made:
        yield made


@pytest.fixture
def bucket_mount(command: Commandline, seaweed: SeaweedServer, seaweed_bucket: str) -> Iterator[BucketMount]:
    """An empty bucket, mounted; at the end it is unmounted, and nothing may be left."""
    mount = BucketMount(command, seaweed, seaweed_bucket)
    mount.mount()
    yield mount
    mount.unmount()
