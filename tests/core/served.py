"""Mounts served by another process, for tests that touch them; whatever hangs is aborted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pyfusekit.core import mount
from pyfusekit.core.mountinfo import read_mountinfo

LIMIT_S = 40.0

needs_root = pytest.mark.skipif(
    os.environ.get("PYFUSEKIT_NO_MOUNT") == "1" or os.geteuid() != 0,
    reason="mounts for real: needs root, and no PYFUSEKIT_NO_MOUNT=1",
)
_Test = TypeVar("_Test", bound=Callable[..., None])


def mounted(test: _Test) -> _Test:
    """Mark a test that mounts for real, and needs root to."""
    marked: _Test = needs_root(pytest.mark.mounted(test))
    return marked


def abort_below(top: Path) -> None:
    """Abort every connection mounted below *top*: whoever waits for one goes on with an error."""
    for info in read_mountinfo():
        if info.mountpoint.startswith(f"{top}/") and info.is_fuse:
            with contextlib.suppress(OSError):
                mount.abort(info.minor)


@contextlib.contextmanager
def served(script: str, *arguments: str) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Run ``python script mountpoint arguments``, which prints "ready" when it has mounted; unmount and check how it ended.

    At the end the script must exit with 0, with nothing on its stderr, when its mount is taken away.
    """
    top = Path(tempfile.mkdtemp(prefix="pyfusekit-served-"))
    mountpoint = top / "mnt"
    mountpoint.mkdir()
    errors = (top / "stderr").open("w+")
    command = [sys.executable, "-W", "error", script, str(mountpoint), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    watchdog = threading.Timer(LIMIT_S, abort_below, (top,))
    watchdog.daemon = True
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (top / "stderr").read_text()
        yield mountpoint, process
        subprocess.run(["umount", str(mountpoint)], check=True, timeout=LIMIT_S)
        assert process.wait(LIMIT_S) == 0, (top / "stderr").read_text()
        assert (top / "stderr").read_text() == ""
    finally:
        watchdog.cancel()
        abort_below(top)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout, errors):
            if stream is not None:
                stream.close()
        if any(info.mountpoint == str(mountpoint) for info in read_mountinfo()):
            subprocess.run(["umount", "-l", str(mountpoint)], check=True, timeout=LIMIT_S)
        shutil.rmtree(top)
