"""An S3 store on this machine, for trying things out: SeaweedFS, or moto where that does not run.

``with LocalStore(folder, environment) as store:`` has ``store.url``, and takes requests signed with ACCESS. Everything it keeps
lies in *folder*; it listens on 127.0.0.1 only, and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

ACCESS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret", "AWS_REGION": "us-east-1"}
START_S = 30.0
_ROLES = ("s3", "filer", "volume", "master")
_GRPC = 10_000
"""Each port of SeaweedFS has a second one, this much higher."""
_IDENTITY = {
    "name": "demo",
    "credentials": [{"accessKey": ACCESS["AWS_ACCESS_KEY_ID"], "secretKey": ACCESS["AWS_SECRET_ACCESS_KEY"]}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


class LocalStore:
    """Starts and ends the store."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.name = ""
        """Which store it is."""
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalStore:
        try:
            # A port that somebody takes between our look and the server's ends SeaweedFS without a word: once again.
            if not (self._start_seaweed() or self._start_seaweed() or self._start_moto()):
                raise OSError(f"no S3 store can be started; their logs are in {self.folder}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()

    def _start_seaweed(self) -> bool:
        program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if program is None:
            return False
        ports = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
        data, config = self.folder / "seaweed", self.folder / "seaweed.json"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        config.write_text(json.dumps({"identities": [_IDENTITY]}))
        command = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        command += [f"-{role}.port={port}" for role, port in ports.items()]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}", "-volume.max=100"]
        command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
        self.name, self.url = "SeaweedFS", f"http://127.0.0.1:{ports['s3']}"
        # TMPDIR: its sockets; VOLUME_GROWTH: a bucket's first object does not wait for seven volumes to be made.
        more = {"TMPDIR": str(self.folder), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        master = f"http://127.0.0.1:{ports['master']}"
        return self._start(command, more, lambda _log: _answers(self.url) and _has_volumes(master))

    def _start_moto(self) -> bool:
        print(f"SeaweedFS does not run here (its log: {self.folder}/SeaweedFS.log); moto instead", flush=True)
        self.name = "moto"

        def is_ready(log: str) -> bool:
            found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log)
            self.url = found[1] if found else ""
            return bool(found)

        return self._start([sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], {}, is_ready)

    def _start(self, command: list[str], more: Mapping[str, str], is_ready: Callable[[str], bool]) -> bool:
        """Start a server and say whether it answers; one that does not is ended."""
        log_path = self.folder / f"{self.name}.log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={**self.environment, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        limit = time.monotonic() + START_S
        while time.monotonic() < limit and self._process.poll() is None:
            if is_ready(log_path.read_text(errors="replace")):
                return True
            time.sleep(0.05)
        self._end()
        return False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait(5)


def _end_with_parent() -> None:
    """PR_SET_PDEATHSIG of prctl(2): the store is killed when this process is."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _answers(url: str) -> bool:
    """Say whether an S3 server answers; it refuses who does not sign."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 403
    except OSError:
        return False


def _has_volumes(master: str) -> bool:
    """Say whether the master knows of a place for data; until then a write waits for seconds."""
    try:
        with urllib.request.urlopen(f"{master}/dir/status", timeout=5) as answer:
            return bool(json.load(answer)["Topology"].get("Max"))
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    """Return ports that are free, as are their higher neighbours, below those the system hands out by itself."""
    found: list[int] = []
    for port in random.sample(range(10_000, 22_000), 2_000):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + _GRPC))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")
