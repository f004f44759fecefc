"""Programs people use, on a mounted bucket: each does what it does in any folder, and the store has what it wrote."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3mount import BucketMount, assert_published, plain_environment, run, tree

pytestmark = pytest.mark.mounted

VIM = "vim" if shutil.which("vim") else "vim.tiny"
IDENTITY = {
    f"GIT_{who}_{what}": text
    for who in ("AUTHOR", "COMMITTER")
    for what, text in (("NAME", "Test"), ("EMAIL", "t@example.org"))
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what a person has: sizes from nothing to more than a part, modes, times, links, odd names."""
    top = tmp_path / "source"
    for name in ("docs/deep/er", "empty", "bin"):
        (top / name).mkdir(parents=True)
    generator = random.Random(7)
    sizes = {"docs/a.txt": 11, "docs/deep/er/b.bin": 70_001, "docs/no bytes": 0, "bin/tool.sh": 300, "large.bin": 9 << 20}
    for number, (name, size) in enumerate({**sizes, **{f"docs/deep/{n:02}": n * 10 for n in range(20)}}.items()):
        path = top / name
        path.write_bytes(generator.randbytes(size))
        path.chmod(0o755 if name.startswith("bin") else 0o600 if number % 2 else 0o644)
        os.utime(path, ns=(1_500_000_000_000_000_000, 1_600_000_000_123_456_789 + number * 1_000_000_007))
    (top / "docs/deep/\u65e5\u672c '\"$x.txt").write_text("names")
    for link, target in (("link", "docs/a.txt"), ("docs/dangling", "../nowhere")):
        (top / link).symlink_to(target)
        # rsync leaves a link's time alone when it is of the same second.
        os.utime(top / link, ns=(10**18, 10**18 + 5), follow_symlinks=False)
    return top


@pytest.mark.parametrize("way", ["backupcopy=yes backup", "backupcopy=no backup", "nobackup nowritebackup noswapfile"])
def test_vim_writes_a_file_and_leaves_its_mode_and_nothing_else(way: str, bucket_mount: BucketMount) -> None:
    top = bucket_mount.path
    (top / "f.txt").write_text("one\ntwo\nthree\n")
    (top / "f.txt").chmod(0o640)
    commands = (
        "set directory=. backupdir=. backupskip=",
        f"set {way}",
        "2s/two/changed/",
        "$put ='appended'" if VIM == "vim" else "$t.",
        "wq",
    )
    run(VIM, "-Nu", "NONE", "-es", *(word for command in commands for word in ("-c", command)), "f.txt", cwd=top)
    written = (top / "f.txt").read_text()
    assert written in ("one\nchanged\nthree\nappended\n", "one\nchanged\nthree\nthree\n")
    assert (top / "f.txt").stat().st_mode & 0o7777 == 0o640
    backup = {"f.txt~": b"one\ntwo\nthree\n"} if " backup" in way else {}
    assert sorted(os.listdir(top)) == sorted(["f.txt", *backup])
    assert bucket_mount.stored() == {"f.txt": written.encode(), **backup}


def test_git_commits_branches_packs_and_clones(bucket_mount: BucketMount, tmp_path: Path) -> None:
    work = bucket_mount.path / "work"

    def git(*words: str, cwd: Path = work) -> str:
        return run("git", "-c", "gc.auto=0", *words, cwd=cwd, **IDENTITY).stdout

    git("init", "-q", "-b", "main", str(work), cwd=bucket_mount.path)
    for number in range(12):
        (work / f"d{number % 3}").mkdir(exist_ok=True)
        (work / f"d{number % 3}" / f"f{number}").write_text(f"{number}\n" * 50)
    git("add", ".")
    git("commit", "-qm", "first")
    git("checkout", "-qb", "other")
    (work / "d0/f0").write_text("other\n")
    git("mv", "d1/f1", "d2/moved")
    git("commit", "-qam", "second")
    git("checkout", "-q", "main")
    (work / "d0/f3").write_text("main\n")
    git("commit", "-qam", "third")
    git("merge", "-q", "--no-edit", "other")
    assert git("status", "--porcelain") == ""
    assert git("log", "--format=%s").splitlines()[1:] == ["third", "second", "first"]
    git("gc", "-q", "--prune=now")
    git("fsck", "--strict", "--full")
    for place in (bucket_mount.path / "clone", tmp_path / "clone"):
        git("clone", "-q", "--no-hardlinks", str(work), str(place), cwd=tmp_path)
        assert git("status", "--porcelain", cwd=place) == ""
        assert git("rev-parse", "HEAD", cwd=place) == git("rev-parse", "HEAD")
    expected = {name: row for name, row in tree(tmp_path / "clone").items() if not name.startswith(".git")}
    assert {name: row for name, row in tree(work).items() if not name.startswith(".git")} == expected
    assert_published(bucket_mount)


def test_rsync_copies_everything_once_and_finds_nothing_to_do_afterwards(
    bucket_mount: BucketMount, folder: Path, tmp_path: Path
) -> None:
    top = bucket_mount.path
    run("rsync", "-a", f"{folder}/", "copy/", cwd=top)
    assert tree(top / "copy", times=True) == tree(folder, times=True)
    assert run("rsync", "-ai", f"{folder}/", "copy/", cwd=top).stdout == ""
    # Modes, times and links are the store's, not the mount's memory; those of directories are lost by SeaweedFS, which keeps
    # no metadata of "dir/".
    bucket_mount.remount()
    assert run("rsync", "-ai", "--omit-dir-times", f"{folder}/", "copy/", cwd=top).stdout == ""
    (folder / "docs/a.txt").write_text("another text")
    (folder / "bin/tool.sh").unlink()
    with open(folder / "large.bin", "r+b") as file:
        file.seek(4_000_000)
        file.write(b"changed")
    run("rsync", "-a", "--inplace", "--no-whole-file", "--delete", f"{folder}/", "copy/", cwd=top)
    run("rsync", "-a", "copy/", tmp_path / "back", cwd=top)
    assert tree(tmp_path / "back", times=True) == tree(folder, times=True)
    assert_published(bucket_mount)


def test_tar_unpacks_packs_and_appends(bucket_mount: BucketMount, folder: Path, tmp_path: Path) -> None:
    top = bucket_mount.path
    run("tar", "--format=posix", "-C", folder, "-cf", tmp_path / "all.tar", ".", cwd=tmp_path)
    (top / "out").mkdir()
    run("tar", "-C", "out", "-xpf", tmp_path / "all.tar", cwd=top)
    assert run("tar", "-C", "out", "--compare", "-f", tmp_path / "all.tar", cwd=top).stdout == ""
    run("tar", "--format=posix", "-C", "out", "-czf", "again.tar.gz", ".", cwd=top)
    run("tar", "--format=posix", "-C", folder, "-cf", "growing.tar", "docs", cwd=top)
    run("tar", "--format=posix", "-C", folder, "-rf", "growing.tar", "bin", cwd=top)
    for archive, names in (("again.tar.gz", ("docs", "bin", "large.bin")), ("growing.tar", ("docs", "bin"))):
        back = tmp_path / archive
        back.mkdir()
        run("tar", "-C", back, "-xpf", archive, cwd=top)
        kept = {name: row for name, row in tree(folder, times=True).items() if name.split("/")[0] in names}
        assert {name: row for name, row in tree(back, times=True).items() if name.split("/")[0] in names} == kept
    assert_published(bucket_mount)


COUNT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=40, isolation_level=None)
connection.execute("PRAGMA busy_timeout = 40000")
for _ in range(int(sys.argv[2])):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE counter SET n = n + 1")
    connection.execute("COMMIT")
connection.close()
"""
DIE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN")
connection.execute("UPDATE rows SET text = 'lost'")
assert os.path.getsize(sys.argv[1] + "-journal") > 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sqlite_keeps_its_promises_with_a_rollback_journal(bucket_mount: BucketMount) -> None:
    top = bucket_mount.path

    def sql(text: str) -> str:
        return run("sqlite3", "-batch", "base.db", cwd=top, input=text).stdout.strip()

    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
    rows = f"{numbers} SELECT i, printf('row %d', i) AS text FROM n"
    assert sql(f"PRAGMA journal_mode=DELETE; CREATE TABLE rows AS {rows}; SELECT count(*) FROM rows;") == "delete\n2000"
    sql("CREATE TABLE counter(n); INSERT INTO counter VALUES (0); CREATE INDEX text ON rows(text);")
    # Two processes at once: the locks hold them apart.
    counting = [subprocess.Popen([sys.executable, "-c", COUNT, "base.db", "10"], cwd=top) for _ in range(2)]
    assert [process.wait(45) for process in counting] == [0, 0]
    assert sql("SELECT n FROM counter;") == "20"
    # One that dies in a transaction leaves a journal; whoever comes next takes it back.
    assert run(sys.executable, "-c", DIE, "base.db", cwd=top, check=False).returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert "base.db-journal" in os.listdir(top)
    bucket_mount.remount()
    assert sql("SELECT count(*) FROM rows WHERE text = 'lost'; PRAGMA integrity_check;") == "0\nok"
    sql("DELETE FROM rows WHERE i % 2; VACUUM;")
    assert sql("SELECT count(*), sum(i) FROM rows; PRAGMA integrity_check;") == "1000|1001000\nok"
    assert os.listdir(top) == ["base.db"]
    assert_published(bucket_mount)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with two modules, data and a script."""
    files = {
        "hello/__init__.py": b"def greet():\n    return 'hello from a bucket'\n",
        "hello/data/table.bin": random.Random(3).randbytes(200_000),
        "hello_other.py": b"from hello import greet\n",
        "hello-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n",
        "hello-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "hello-1.0.dist-info/entry_points.txt": b"[console_scripts]\nhello = hello:greet\n",
    }
    record = "".join(f"{name},{digest_of(data)},{len(data)}\n" for name, data in files.items())
    path = tmp_path / "hello-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("hello-1.0.dist-info/RECORD", record + "hello-1.0.dist-info/RECORD,,\n")
    return path


def digest_of(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def test_pip_installs_a_wheel_that_can_be_imported(bucket_mount: BucketMount, wheel: Path, tmp_path: Path) -> None:
    target = bucket_mount.path / "site"
    words = ("--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action", "ignore")
    run(sys.executable, "-m", "pip", "install", "-q", *words, "--target", target, wheel, cwd=tmp_path)
    with open(target / "hello-1.0.dist-info/RECORD", newline="") as file:
        recorded = [row for row in csv.reader(file) if row[1]]
    assert len(recorded) > 6
    for name, digest, size in recorded:
        # pip wrote scripts as ../../bin: with --target they are moved.
        path = target / name.removeprefix("../../")
        assert (digest_of(path.read_bytes()), str(path.stat().st_size)) == (digest, size), name
    program = "import hello_other; print(hello_other.greet())"
    assert run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(target)).stdout == "hello from a bucket\n"
    bucket_mount.remount()
    assert run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(target)).stdout == "hello from a bucket\n"
    assert os.access(target / "bin/hello", os.X_OK)
    assert_published(bucket_mount)


SCRIPT = r"""
set -e
mkdir -p a/b/c; echo one > a/one; cp -p a/one a/b/two; ln -s ../one a/b/link
for n in 1 2 3 4 5; do echo "line $n" >> a/log; done
sed -i 's/line 3/changed/' a/log
dd if=/dev/zero bs=1000 count=300 2>/dev/null | tr '\0' x > a/zeros
printf middle | dd of=a/zeros bs=1 seek=150000 conv=notrunc 2>/dev/null
truncate -s 200001 a/zeros; truncate -s +99 a/one
mv a/b a/moved; mv a/moved/two a/moved/three; mv -f a/log a/moved/three
touch -d '2020-02-02 02:02:02.123456789 UTC' a/one; chmod 4750 a/one; chmod 700 a/moved/c
sort -r a/moved/three -o a/moved/three; split -n 4 a/zeros a/part.; cat a/part.* > a/joined; cmp a/zeros a/joined
rm a/part.aa; rmdir a/moved/c; mkfifo a/pipe; install -m 640 a/one a/installed; cp -a a copy; rm -r a/moved
echo x | tee a/t1 a/t2 > /dev/null; gzip -n a/t1; tail -c 5 copy/zeros > tail; : > copy/t; echo over >| copy/t
! rmdir copy 2>/dev/null; ! mkdir a 2>/dev/null; ! cat none 2>/dev/null; find . -name 'part.*' -delete
"""


def test_shell_script_leaves_the_same_tree_as_anywhere_else(bucket_mount: BucketMount, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for place in (plain, bucket_mount.path):
        run("bash", "-c", SCRIPT, cwd=place)
    expected = tree(plain)
    assert tree(bucket_mount.path) == expected
    bucket_mount.remount()
    assert tree(bucket_mount.path) == expected
    assert (bucket_mount.path / "a/one").stat().st_mtime_ns == (plain / "a/one").stat().st_mtime_ns


def test_program_killed_while_it_writes_leaves_the_old_file_or_all_it_wrote(bucket_mount: BucketMount) -> None:
    top = bucket_mount.path
    (top / "f").write_bytes(b"old")
    program = "import sys; f = open('f', 'wb', 0); f.write(b'new' * 1000); print('written', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=top, env=plain_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    try:
        # Nobody else sees half of it: what is not closed is not published.
        assert bucket_mount.stored() == {"f": b"old"}
    finally:
        process.kill()
        process.communicate(timeout=20)
    # The kernel closes what the dead had open.
    assert (top / "f").read_bytes() == b"new" * 1000
    assert_published(bucket_mount)


@pytest.fixture(autouse=True)
def _settled(bucket_mount: BucketMount) -> Iterator[None]:
    """Leave the mount before it is unmounted."""
    yield
    os.chdir("/")
