"""An S3-compatible server (moto) on a free loopback port, in a process of its own."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
"""Environment for whoever uses the server: it takes any key."""


class S3Server:
    """``with S3Server() as server:`` has ``server.url``. *seed* (bucket, n) makes a bucket with n objects k0000, k0001...
    of 0 to 6 bytes inside the server, which takes a hundredth of the time of n requests."""

    def __init__(self, seed: tuple[str, int] | None = None) -> None:
        self.seed = seed
        self.url = ""
        self._log: Any = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        # A file, not a pipe: the server writes a line a request, and nobody would drain a pipe.
        self._log = tempfile.NamedTemporaryFile(prefix="moto-", suffix=".log")
        command = [sys.executable, "-W", "ignore", __file__, *(str(part) for part in self.seed or ())]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self.url = self._wait_for_url()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _wait_for_url(self) -> str:
        assert self._process is not None
        limit = time.monotonic() + 30
        while time.monotonic() < limit and self._process.poll() is None:
            found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", self.log())
            if found:
                return found[1]
            time.sleep(0.05)
        raise RuntimeError(f"moto_server did not start:\n{self.log()}")

    def log(self) -> str:
        """Return what the server printed: a line a request."""
        return Path(self._log.name).read_text(errors="replace")

    def requests(self, word: str) -> int:
        """Return how many requests have *word* in their line."""
        return sum(word in line for line in self.log().splitlines())

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()

    def client(self) -> Any:
        """Return a boto3 client of the server, to put things there and look at them."""
        import boto3  # type: ignore[import-untyped]
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(max_pool_connections=32, request_checksum_calculation="when_required"),
        )


def main() -> None:
    """Serve, on a port the system chooses; moto prints it."""
    from moto.server import main as serve

    # A test run that is ended by force does not stop its servers: they end with it (PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if len(sys.argv) == 3:
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        bucket, count = sys.argv[1], int(sys.argv[2])
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        backend.create_bucket(bucket, "us-east-1")
        for number in range(count):
            backend.put_object(bucket, f"k{number:04}", b"x" * (number % 7))
    serve(["-H", "127.0.0.1", "-p", "0"])


if __name__ == "__main__":
    main()
