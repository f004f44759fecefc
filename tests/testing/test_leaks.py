"""tests/conftest.py: what is left behind fails the run, and whether mounts are tested is never an accident."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyfusekit.core.mountinfo import read_mountinfo

TESTS = Path(__file__).parent.parent

CLEAN = """
def test_nothing():
    pass
"""
LEAKS_A_PROCESS = """
import subprocess

def test_that_forgets_a_process():
    subprocess.Popen(["sleep", "600"], start_new_session=True).returncode = 0
"""
LEAKS_A_MOUNT = """
import pytest
from pyfusekit.testing.mounted import MountedServer
from pyfusekit.testing.recipe import Recipe

@pytest.mark.mounted
def test_that_forgets_a_mount():
    server = MountedServer(Recipe("pyfusekit.fs.memfs:MemFS")).__enter__()
    server.process.kill()
    server.process.wait()
    server.process.stdout.close()
    server._watchdog.communicate(b"q")
    print("MOUNTPOINT", server.mountpoint)
"""
NEEDS_A_MOUNT = """
import pytest

@pytest.mark.mounted
def test_with_a_mount():
    print("IT RAN")
"""
NO_DEVICE = """
import pyfusekit.testing.mounted
pyfusekit.testing.mounted.DEVICE = "/dev/nothing"
"""


def run(directory: Path, test: str, *, conftest: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one test file beside a copy of our conftest."""
    (directory / "conftest.py").write_text((TESTS / "conftest.py").read_text() + conftest)
    shutil.copy(TESTS.parent / "pyproject.toml", directory)
    (directory / "test_it.py").write_text(test)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYFUSEKIT_")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-s",
            "--rootdir",
            str(directory),
            str(directory / "test_it.py"),
        ],
        cwd=directory,
        env={**clean, "PYTHONPATH": str(TESTS.parent), **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    ended = run(tmp_path, CLEAN)
    assert ended.returncode == 0, ended.stdout
    assert "LEFT BEHIND" not in ended.stdout


def test_process_left_behind_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    ended = run(tmp_path, LEAKS_A_PROCESS)
    assert ended.returncode == 1, ended.stdout
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("LEFT BEHIND")]
    assert line.endswith("sleep 600")
    assert not os.path.exists(f"/proc/{line.split()[3].rstrip(':')}/fd/0")


@pytest.mark.mounted
def test_mount_left_behind_fails_the_run_and_is_removed(tmp_path: Path) -> None:
    ended = run(tmp_path, LEAKS_A_MOUNT)
    assert ended.returncode == 1, ended.stdout
    (mountpoint,) = [line.split()[-1] for line in ended.stdout.splitlines() if "MOUNTPOINT" in line]
    assert f"LEFT BEHIND: mount {mountpoint}" in ended.stdout
    assert not [info for info in read_mountinfo() if info.mountpoint == mountpoint]
    shutil.rmtree(os.path.dirname(mountpoint))


def test_mounts_are_skipped_only_when_that_is_said(tmp_path: Path) -> None:
    ended = run(tmp_path, NEEDS_A_MOUNT, PYFUSEKIT_NO_MOUNT="1")
    assert ended.returncode == 0
    assert "IT RAN" not in ended.stdout
    assert "PYFUSEKIT_NO_MOUNT=1" in ended.stdout


def test_machine_that_cannot_mount_fails_loudly(tmp_path: Path) -> None:
    ended = run(tmp_path, NEEDS_A_MOUNT, conftest=NO_DEVICE)
    assert ended.returncode == 1, ended.stdout
    assert "IT RAN" not in ended.stdout
    assert "there is no /dev/nothing" in ended.stdout + ended.stderr


def test_machine_that_cannot_mount_runs_what_needs_none(tmp_path: Path) -> None:
    assert run(tmp_path, CLEAN, conftest=NO_DEVICE).returncode == 0
