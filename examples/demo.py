"""The demonstration behind ``make demo``: a bucket of an S3 store, mounted, read, edited and renamed in, and unmounted.

It starts a store on this machine, fills a bucket, and then types what a person would type. Every command and what comes back is
shown. What the store holds afterwards is compared, byte for byte, with what the same edits would have made of the originals. It
ends with status 0 only if all of it was right and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localstore import ACCESS, LocalStore

BUCKET = "demo-bucket"
STEP_S = 40.0
"""No command may take longer; most take a fraction of a second."""
MARK = "PYFUSEKIT_DEMO"
"""In the environment of everything that is started here, so that what is left behind can be found."""

Objects = dict[str, bytes]
"""The contents of a bucket."""
MARKED = "a draft of the plan\n" + "nothing is decided yet\n" * 40
SIZES = {
    "data/2025/measurements.csv": 350_000,
    "data/2026/measurements.csv": 1_200_000,
    "data/empty.dat": 0,
    "logs/app.log": 48_213,
    "logs/app.log.1": 65_536,
    "models/weights.bin": 9 * 1024 * 1024 + 77,
    "photos/a picture with spaces.jpg": 2 * 1024 * 1024,
    "photos/Grüße aus 京都.jpg": 3 * 1024 * 1024 + 1,
    "photos/thumbnails/1.jpg": 4_096,
    "photos/thumbnails/2.jpg": 4_097,
}


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
        # Nothing of this machine's settings counts, and nothing is written outside of the folder.
        own = {"XDG_STATE_HOME": f"{folder}/state", "XDG_CACHE_HOME": f"{folder}/cache", "AWS_CONFIG_FILE": os.devnull}
        own |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true", "LC_ALL": "C.UTF-8"}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYFUSEKIT_"))}
        self.env = {**others, **own, **ACCESS, MARK: self.mark}

    def run(self, *words: str, cwd: Path | None = None, shown: str = "") -> str:
        """Show and run a command, and return what it printed; DemoError when it fails or takes too long.

        Its output goes to a file: a daemon that inherits a pipe would keep us waiting for its end.
        """
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
                    raise DemoError(f"{shown or ' '.join(words)}: not done within {STEP_S:.0f} s") from None
                raise
            output.seek(0)
            text = output.read().decode(errors="replace")
        if text:
            print(text.rstrip("\n"), flush=True)
        if status:
            raise DemoError(f"{shown or ' '.join(words)}: ended with status {status}")
        return text

    def shell(self, line: str, cwd: Path) -> str:
        """Run a line of shell in a directory."""
        return self.run("sh", "-c", line, cwd=cwd, shown=line)

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

    def last_lines(self) -> str:
        """Return the end of what the mounts logged, for who looks for the cause."""
        logs = sorted((self.folder / "state" / "pyfusekit").glob("*.log"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return "".join(f"\n  {line}" for line in ["the log of the mount:", *lines[-30:]]) if lines else ""

    def kill_all(self) -> None:
        """End the hard way what is still there: a mount whose server is gone answers everybody with an error."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in self.mounts():
            for command in (["umount", "-l", point], ["fusermount3", "-u", "-z", point]):
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(command, timeout=5, check=False, capture_output=True)


def wait_for(check: Callable[[], Any], what: str) -> None:
    """Wait until *check* returns something true; DemoError when that takes too long."""
    limit = time.monotonic() + STEP_S
    while not check():
        if time.monotonic() > limit:
            raise DemoError(f"waited {STEP_S:.0f} s for {what}")
        time.sleep(0.05)


class Bucket:
    """The bucket as the store has it, asked past the mount."""

    def __init__(self, url: str) -> None:
        import boto3  # type: ignore[import-untyped]

        keys = {name.lower(): value for name, value in ACCESS.items() if name != "AWS_REGION"}
        self.client = boto3.client("s3", endpoint_url=url, region_name=ACCESS["AWS_REGION"], **keys)

    def fill(self) -> Objects:
        """Make the bucket and its objects, and return them."""
        self.client.create_bucket(Bucket=BUCKET)
        objects = {"plan.txt": MARKED.encode(), **{key: random.randbytes(size) for key, size in SIZES.items()}}
        for key, body in objects.items():
            self.client.put_object(Bucket=BUCKET, Key=key, Body=body)
        return objects

    def objects(self) -> Objects:
        """Return what is in the bucket; a key that ends in a slash only says that there is a directory."""
        found = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for row in page.get("Contents", ()):
                if not row["Key"].endswith("/"):
                    found[row["Key"]] = self.client.get_object(Bucket=BUCKET, Key=row["Key"])["Body"].read()
        return found

    def compare(self, expected: Objects) -> None:
        """Show what the store holds; DemoError where that is not what is expected."""
        found = self.objects()
        wrong = []
        for key in sorted(expected.keys() | found.keys()):
            word = "OK" if found.get(key) == expected.get(key) else "LEFT" if key not in expected else "MISSING"
            word = "WRONG" if word == "MISSING" and key in found else word
            print(f"  {word:<7} {len(found.get(key, b'')):>9} bytes  {key}", flush=True)
            wrong += [key] if word != "OK" else []
        if wrong:
            raise DemoError(f"{len(wrong)} of {len(expected)} objects on the store are not as they should be")
        print(f"All {len(expected)} objects on the store are as they should be.", flush=True)


def edit(demo: Demo, place: Path, objects: Objects) -> None:
    """Edit files where they are, and the originals in the same way."""
    demo.shell("sed -i 's/draft/final version/' plan.txt", place)
    demo.shell("echo 'and a line more' >> plan.txt", place)
    objects["plan.txt"] = MARKED.replace("draft", "final version").encode() + b"and a line more\n"
    demo.shell("printf 'changed here' | dd of=models/weights.bin bs=1 seek=5000000 conv=notrunc status=none", place)
    weights = objects["models/weights.bin"]
    objects["models/weights.bin"] = weights[:5_000_000] + b"changed here" + weights[5_000_012:]
    demo.shell("truncate -s 1000 data/2025/measurements.csv", place)
    objects["data/2025/measurements.csv"] = objects["data/2025/measurements.csv"][:1000]
    demo.shell("echo started >> logs/app.log && echo stopped >> logs/app.log && tail -n 2 logs/app.log", place)
    objects["logs/app.log"] += b"started\nstopped\n"
    demo.shell("head -n 1 plan.txt", place)


def rename(demo: Demo, place: Path, objects: Objects) -> None:
    """Rename, copy and remove files and directories, and do the same to the originals."""
    demo.shell("mv logs/app.log.1 logs/old.log", place)
    objects["logs/old.log"] = objects.pop("logs/app.log.1")
    demo.shell("mv photos pictures", place)
    for key in [key for key in objects if key.startswith("photos/")]:
        objects[f"pictures/{key.removeprefix('photos/')}"] = objects.pop(key)
    demo.shell("mkdir -p backup/models && cp models/weights.bin backup/models/", place)
    objects["backup/models/weights.bin"] = objects["models/weights.bin"]
    demo.shell("rm data/empty.dat", place)
    del objects["data/empty.dat"]
    demo.shell("chmod 600 plan.txt && ls -l plan.txt", place)
    demo.shell("find . -type f | sort", place)


def mount(demo: Demo, place: Path, url: str, *options: str) -> None:
    """Mount the bucket in the background."""
    demo.run("pyfusekit", "mount", "s3", BUCKET, str(place), "--endpoint-url", url, *options)


def write_back(demo: Demo, place: Path, url: str, bucket: Bucket, objects: Objects) -> None:
    """Mount the bucket again so that files are uploaded later, copy some, and unmount, which waits for them."""
    say("write-back: copies are done at once, uploaded later, and unmounting waits for them")
    print("$ cd /", flush=True)
    demo.run("pyfusekit", "umount", str(place))
    mount(demo, place, url, "--write-back", "--write-back-delay", "1h")
    demo.shell("cp -r pictures copies", place)
    objects |= {key.replace("pictures/", "copies/"): data for key, data in objects.items() if key.startswith("pictures/")}
    if "to be written back" not in demo.run("pyfusekit", "list"):
        raise DemoError("pyfusekit list does not show what is not written back yet")
    if any(key.startswith("copies/") for key in bucket.objects()):
        raise DemoError("the store has copies already")
    demo.run("pyfusekit", "umount", str(place))
    demo.run("pyfusekit", "list")


def show(demo: Demo) -> None:
    """Do the whole demonstration."""
    place = demo.folder / "bucket"
    place.mkdir()
    say("an S3 store on this machine, with a bucket of random files")
    with LocalStore(demo.folder, demo.env) as store:
        bucket = Bucket(store.url)
        objects = bucket.fill()
        size = sum(map(len, objects.values())) / 2**20
        print(f"{store.url} ({store.name}) has s3://{BUCKET} with {len(objects)} objects, {size:.1f} MiB", flush=True)

        say("mount the bucket in the background, and look into it")
        mount(demo, place, store.url)
        demo.run("pyfusekit", "list")
        print(f"$ cd {place}", flush=True)
        listing = demo.run("ls", "-lR", ".", cwd=place)
        missing = [key for key in objects if key.rpartition("/")[2] not in listing]
        if missing:
            raise DemoError(f"ls does not show {', '.join(missing)}")

        say("read every file through the mount")
        read(demo, place, objects)

        say("edit files where they are")
        edit(demo, place, objects)

        say("rename files and a directory, copy, remove")
        rename(demo, place, objects)

        say("what the store holds now, asked of the store and not of the mount")
        bucket.compare(objects)

        write_back(demo, place, store.url, bucket, objects)

        say("what the store holds at the end")
        bucket.compare(objects)
    if demo.mounts():
        raise DemoError(f"still mounted: {', '.join(demo.mounts())}")
    wait_for(lambda: not demo.left(), f"processes {demo.left()} to end")
    say("done: every byte was right, and no mount and no process is left")


def read(demo: Demo, place: Path, objects: Objects) -> None:
    """Checksum every file through the mount; DemoError when one differs from what was put into the bucket."""
    import hashlib

    output = demo.run("sh", "-c", "find . -type f -exec sha256sum {} +", cwd=place, shown="find . -type f -exec sha256sum {} +")
    through = {line[66:].removeprefix("./"): line[:64] for line in output.splitlines()}
    if through != {key: hashlib.sha256(body).hexdigest() for key, body in objects.items()}:
        raise DemoError("files read through the mount differ from the originals")
    print(f"All {len(objects)} files are the same through the mount.", flush=True)


def main() -> int:
    """Run the demonstration; 0 if everything was right, 1 if not."""
    folder = Path(tempfile.mkdtemp(prefix="pyfusekit-demo-"))
    demo = Demo(folder)
    # However it ends, what it mounted goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        show(demo)
    except (DemoError, OSError, subprocess.SubprocessError) as exc:
        print(f"\ndemo: {exc}{demo.last_lines()}", file=sys.stderr)
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
