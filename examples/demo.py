"""The demonstration behind ``make demo``: a bucket and a filesystem in memory, mounted, used and unmounted.

It starts an S3-compatible server on this machine (moto), fills a bucket, and then types what a person would type. Every
command and what comes back is shown. It ends with status 0 only if every byte was right and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BUCKET = "demo-bucket"
STEP_S = 20.0
"""No command may take longer; most take a fraction of a second."""
MARK = "PYFUSEKIT_DEMO"
"""In the environment of everything that is started here, so that what is left behind can be found."""

SIZES = {
    "README.txt": 2_000,
    "data/2025/measurements.csv": 350_000,
    "data/2026/measurements.csv": 1_200_000,
    "data/2026/notes.md": 700,
    "data/empty.dat": 0,
    "logs/app.log": 48_213,
    "logs/app.log.1": 65_536,
    "models/weights.bin": 9 * 1024 * 1024 + 77,
    "photos/a picture with spaces.jpg": 2 * 1024 * 1024,
    "photos/Grüße aus 京都.jpg": 3 * 1024 * 1024 + 1,
    "photos/thumbnails/1.jpg": 4_096,
    "photos/thumbnails/2.jpg": 4_097,
}

MEMORY_STEPS = (
    "echo 'written into memory' > greeting.txt",
    "mkdir -p notes/drafts",
    "mv greeting.txt notes/drafts/hello.txt",
    "echo 'and appended' >> notes/drafts/hello.txt",
    "ln -s notes/drafts/hello.txt latest",
    "head -c 4194304 /dev/urandom > big.bin",
    "cp big.bin copy.bin",
)


class DemoError(Exception):
    """The demonstration went wrong; the message says where."""


def say(text: str) -> None:
    """Tell the person what comes next."""
    print(f"\n== {text}", flush=True)


class Demo:
    """Runs commands, shows them, and knows what to clean up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        keys = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo", "AWS_REGION": "us-east-1"}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYFUSEKIT_"))}
        self.env = {**others, **keys, MARK: self.mark, "LC_ALL": "C.UTF-8", "AWS_EC2_METADATA_DISABLED": "true"}

    def run(self, *words: str, cwd: Path | None = None, show: bool = True, shown: str = "") -> str:
        """Run a command and return what it printed; DemoError when it fails or takes too long.

        Its output goes to a file: a daemon that inherits a pipe would keep us waiting for its end.
        """
        if show:
            print(f"$ {shown or ' '.join(words)}", flush=True)
        command = [sys.executable, "-m", "pyfusekit", *words[1:]] if words[0] == "pyfusekit" else list(words)
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command, cwd=cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                status = process.wait(STEP_S)
            except BaseException as exc:
                # What hangs in a mount dies only when the mount does.
                self.kill_all()
                process.kill()
                process.wait(5)
                if isinstance(exc, subprocess.TimeoutExpired):
                    raise DemoError(f"{' '.join(words)}: not done within {STEP_S:.0f} s") from None
                raise
            output.seek(0)
            text = output.read().decode(errors="replace")
        if show and text:
            print(text.rstrip("\n"), flush=True)
        if status:
            raise DemoError(f"{' '.join(words)}: ended with status {status}" + ("" if show else f":\n{text}"))
        return text

    def left(self) -> list[int]:
        """Return the processes started from here that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def mounts(self) -> list[str]:
        """Return the mountpoints in our folder, from the mount table: a mount that hangs is not touched."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
        return [point for point in points if point.startswith(f"{self.folder}/")]

    def kill_all(self) -> None:
        """End the hard way what is still there: a mount whose server is gone answers everybody with an error."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in self.mounts():
            for command in (["umount", "-l", point], ["fusermount3", "-u", "-z", point]):
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(command, timeout=5, check=False, capture_output=True)

    @contextlib.contextmanager
    def server(self) -> Iterator[str]:
        """Start the S3 server on a port the system chooses, and give its URL."""
        log_path = self.folder / "s3-server.log"
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield self.wait_for(lambda: _url_in(log_path) if process.poll() is None else None, "the S3 server to start")
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait(5)

    @staticmethod
    def wait_for(check: Callable[[], Any], what: str) -> Any:
        """Return what *check* returns as soon as it is true; DemoError when that takes too long."""
        limit = time.monotonic() + STEP_S
        while time.monotonic() < limit:
            found = check()
            if found:
                return found
            time.sleep(0.05)
        raise DemoError(f"waited {STEP_S:.0f} s for {what}")


def _url_in(log_path: Path) -> str:
    found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log_path.read_text(errors="replace"))
    return found[1] if found else ""


def fill_bucket(url: str) -> dict[str, str]:
    """Make the bucket and its objects, of random bytes; return their checksums."""
    import boto3  # type: ignore[import-untyped]

    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="demo", aws_secret_access_key="demo"
    )
    client.create_bucket(Bucket=BUCKET)
    sums = {}
    for key, size in SIZES.items():
        body = random.randbytes(size)
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
        sums[key] = hashlib.sha256(body).hexdigest()
    return sums


def compare(demo: Demo, mountpoint: Path, sums: dict[str, str]) -> None:
    """Checksum every object through the mount; DemoError when one differs from what was put into the bucket."""
    print(f"$ cd {mountpoint} && sha256sum ...", flush=True)
    output = demo.run("sha256sum", "--zero", "--", *sums, cwd=mountpoint, show=False)
    through = {line.partition("  ")[2]: line.partition("  ")[0] for line in output.split("\0") if line}
    wrong = [key for key in sums if through.get(key) != sums[key]]
    for key in sums:
        print(f"  {'WRONG' if key in wrong else 'OK'}  {SIZES[key]:>9} bytes  {key}", flush=True)
    if wrong:
        raise DemoError(f"{len(wrong)} of {len(sums)} objects read through the mount differ from the originals")
    print(f"All {len(sums)} objects are the same through the mount.", flush=True)


def use_memory(demo: Demo, mountpoint: Path) -> None:
    """Write, rename, append and link in the memory filesystem, and look whether it kept everything."""
    for step in MEMORY_STEPS:
        demo.run("sh", "-c", step, cwd=mountpoint, shown=step)
    text = demo.run("cat", "latest", cwd=mountpoint)
    if text != "written into memory\nand appended\n":
        raise DemoError(f"notes/drafts/hello.txt holds {text!r}")
    demo.run("cmp", "big.bin", "copy.bin", cwd=mountpoint)
    demo.run("ls", "-lR", ".", cwd=mountpoint)
    demo.run("df", "-h", ".", cwd=mountpoint)
    print("The memory filesystem kept everything.", flush=True)


def show(demo: Demo) -> None:
    """Do the whole demonstration."""
    bucket_at, memory_at = demo.folder / "bucket", demo.folder / "memory"
    bucket_at.mkdir()
    memory_at.mkdir()
    say("an S3-compatible server on this machine, with a bucket of random files")
    with demo.server() as url:
        sums = fill_bucket(url)
        print(f"{url} has s3://{BUCKET} with {len(sums)} objects, {sum(SIZES.values()) / 2**20:.1f} MiB")
        say("mount the bucket in the background, and look into it")
        demo.run("pyfusekit", "mount", "s3", BUCKET, str(bucket_at), "--endpoint-url", url)
        demo.run("pyfusekit", "list")
        listing = demo.run("ls", "-lR", str(bucket_at))
        missing = [key for key in sums if key.rpartition("/")[2] not in listing]
        if missing:
            raise DemoError(f"ls does not show {', '.join(missing)}")
        say("read every object through the mount, and compare it with the original")
        compare(demo, bucket_at, sums)
        say("mount a filesystem in memory beside it, and use it")
        demo.run("pyfusekit", "mount", "mem", str(memory_at))
        use_memory(demo, memory_at)
        demo.run("pyfusekit", "list")
        say("unmount both")
        demo.run("pyfusekit", "umount", str(memory_at))
        demo.run("pyfusekit", "umount", str(bucket_at))
        demo.run("pyfusekit", "list")
    if demo.mounts():
        raise DemoError(f"still mounted: {', '.join(demo.mounts())}")
    demo.wait_for(lambda: not demo.left(), f"processes {demo.left()} to end")
    say("done: every byte was right, and no mount and no process is left")


def main() -> int:
    """Run the demonstration; 0 if everything was right, 1 if not."""
    folder = Path(tempfile.mkdtemp(prefix="pyfusekit-demo-"))
    demo = Demo(folder)
    # However it ends, what it mounted goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        show(demo)
    except (DemoError, OSError, subprocess.SubprocessError) as exc:
        print(f"\ndemo: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    finally:
        demo.kill_all()
        # Never into a mount that could not be taken away: that would remove what is in it.
        if not demo.mounts():
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
