"""What README and docs/ say is tried: every code block runs, every command and every file they name is there."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Commandline, commandline

from pyfusekit import Filesystem, cli
from pyfusekit.service.registry import BUNDLED
from pyfusekit.testing.contract import SEED

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDE = REPOSITORY / "docs" / "writing-a-filesystem.md"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def block_with(text: str) -> str:
    """Return the one block of the guide that has *text* in it."""
    (found,) = [block for block in blocks(GUIDE, "python") if text in block]
    return found


# --- the guide's code ---------------------------------------------------------------------------------------------------


def test_the_guide_shows_the_hello_that_is_tested() -> None:
    assert block_with("run(Hello()") == (REPOSITORY / "examples" / "hello.py").read_text()


def test_every_block_of_the_guide_is_run_by_a_test_here() -> None:
    used = [
        block_with(text)
        for text in ("run(Hello()", "class Zip(", "class Cached", "HelloOptions:", "class Later", "test_hello()", "TestZipRead")
    ]
    assert sorted(used) == sorted(blocks(GUIDE, "python"))
    assert len(blocks(GUIDE, "toml")) == 1
    assert GUIDE.read_text().count("```") == 2 * (len(used) + 1)


def test_the_guides_cache_answers_a_hit_without_waiting() -> None:
    asked = []

    async def ask_backend(*what: int) -> bytes:
        asked.append(what)
        return b"block"

    names: dict[str, Any] = {"Filesystem": Filesystem, "ask_backend": ask_backend}
    exec(block_with("class Cached"), names)
    cached = names["Cached"]()
    assert asyncio.run(cached.read(None, 2, None, 0, 4096)) == b"block"
    assert cached.read(None, 2, None, 0, 4096) == b"block"
    assert asked == [(2, 0, 4096)]


def test_the_guides_queue_is_written_back_and_says_what_goes_wrong() -> None:
    sent = {}

    async def send(path: bytes, data: bytes) -> None:
        if path == b"refused":
            raise PermissionError(errno.EACCES, "not yours")
        sent[path] = data

    names: dict[str, Any] = {}
    exec(block_with("class Later"), names)
    later = names["Later"](send)
    asyncio.run(later.init())
    assert len(later.notes) == 1
    later.queue = {b"refused": b"12345", b"a/b": b"678"}
    later.cache = {b"a": 1, b"a/b": 2, b"ab": 3}
    assert later.waiting() == (2, 8)
    asyncio.run(later.drain(float("inf")))
    assert sent == {b"a/b": b"678"}
    assert later.waiting() == (1, 5)
    assert later.details() == {"queued": 1}
    assert [(problem.path, problem.errno_name) for problem in later.problems] == [("refused", "EACCES")]
    asyncio.run(later.drain(0.0))
    assert later.waiting() == (1, 5)
    assert asyncio.run(later.refresh(b"a")) == 2
    assert asyncio.run(later.refresh(b"")) == 1


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The guide's modules and tests as files, with the archive they speak of."""
    (tmp_path / "hello_command.py").write_text(block_with("HelloOptions:"))
    (tmp_path / "zipfs.py").write_text(block_with("class Zip("))
    (tmp_path / "test_hello.py").write_text(block_with("test_hello()"))
    (tmp_path / "test_zip.py").write_text(block_with("TestZipRead").replace("seed.zip", str(tmp_path / "seed.zip")))
    with zipfile.ZipFile(tmp_path / "seed.zip", "w") as archive:
        for name, data in SEED.items():
            archive.writestr(name, data)
    return tmp_path


def run_tests(package: Path, *arguments: str) -> str:
    """Run pytest in *package* and return its last line."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", *arguments]
    done = subprocess.run(
        argv,
        cwd=package,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{package}"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.strip().splitlines()[-1]


def test_the_guides_tests_pass_on_the_guides_filesystems(package: Path) -> None:
    assert "1 passed" in run_tests(package, "test_hello.py")
    assert re.match(r"\d\d passed", run_tests(package, "test_zip.py", "-k", "not mounted"))


@pytest.mark.mounted
def test_the_guides_contract_passes_through_a_mount(package: Path) -> None:
    assert re.match(r"\d\d passed", run_tests(package, "test_zip.py", "-k", "mounted"))


@pytest.fixture
def installed(package: Path) -> Iterator[Commandline]:
    """A command that finds the guide's filesystems by the guide's entry points."""
    (toml,) = blocks(GUIDE, "toml")
    points = tomllib.loads(toml)["project"]["entry-points"]
    info = package / "guide-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guide\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in rows.items()) for group, rows in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    with commandline() as command:
        command.environment["PYTHONPATH"] += f":{package}"
        yield command


def test_the_guides_filesystems_are_commands(installed: Commandline) -> None:
    listed = installed.run("mount", "--help").stdout
    for name in ("hello", "zip"):
        assert re.search(rf"^  {name} ", listed, flags=re.M)
    done = installed.run("mount", "hello", "--help")
    assert "One file that says hello." in done.stdout
    assert re.search(r"--greeting TEXT +What the file says\.  \[default: Hello\]", done.stdout)
    assert installed.run("mount", "hello", "source", installed.folder()).returncode == 2
    assert installed.run("mount", "zip", installed.folder("b")).returncode == 2


@pytest.mark.mounted
@pytest.mark.parametrize(
    ("more", "environment", "text"),
    [
        ((), {}, "Hello, world!\n"),
        (("--greeting", "Hi"), {}, "Hi, world!\n"),
        (("-o", "greeting=Hi"), {}, "Hi, world!\n"),
        ((), {"PYFUSEKIT_HELLO_GREETING": "Hi"}, "Hi, world!\n"),
    ],
)
def test_the_guides_hello_is_mounted(installed: Commandline, more: Any, environment: Any, text: str) -> None:
    place = installed.folder()
    done = installed.run("mount", "hello", place, *more, **environment)
    assert "(read-only, " in done.stdout, done.stderr
    read = subprocess.run(["timeout", "-s", "KILL", "10", "cat", place / "hello"], capture_output=True, text=True, timeout=20)
    assert read.stdout == text
    assert installed.run("umount", place).returncode == 0


@pytest.mark.mounted
def test_the_guides_archive_is_mounted_and_a_bad_one_is_told(installed: Commandline, package: Path) -> None:
    place = installed.folder()
    done = installed.run("mount", "zip", package / "nothing.zip", place)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"pyfusekit: {package}/nothing.zip: No such file or directory\n")
    assert installed.run("mount", "zip", package / "seed.zip", place).returncode == 0
    read = subprocess.run(["timeout", "-s", "KILL", "10", "cat", place / "dir/deep/er/leaf"], capture_output=True, timeout=20)
    assert read.stdout == SEED["dir/deep/er/leaf"]
    assert installed.run("umount", place).returncode == 0


# --- what the pages name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:tests|pyfusekit|examples|docs|man|benchmarks)/[\w./-]+)`", text)
    named += re.findall(r"\./(man/[\w.-]+\.\d)", text)
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_the_readmes_commands_are_there() -> None:
    text = (REPOSITORY / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    wanted = set(re.findall(r"`?make ([a-z-]+)", text))
    assert {"demo", "test"} <= wanted <= targets
    commands = re.findall(r"^ +\$ pyfusekit (\S+)(?: (\S+))?", text, flags=re.M)
    assert {command for command, _ in commands} == set(cli.root.commands)
    assert {name for command, name in commands if command == "mount"} == {entry.name for entry in BUNDLED}


def test_the_readmes_table_has_every_filesystem() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "README.md").read_text(), flags=re.M)
    assert sorted(rows) == sorted(entry.name for entry in BUNDLED)
