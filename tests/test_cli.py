from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from commandline import REPOSITORY, Commandline, commandline, needs_mounts

from pyfusekit import __version__, cli
from pyfusekit.fs.memfs import MemFS
from pyfusekit.service import registry


@pytest.fixture
def command() -> Iterator[Commandline]:
    with commandline() as made:
        yield made


NAMES = ", ".join(entry.name for entry in registry.BUNDLED)
SCHEMES = ", ".join(registry.url_schemes())


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code and what it wrote."""
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


# --- what is imported ---------------------------------------------------------------------------------------------------

HEAVY = (
    "asyncio",
    "ssl",
    "sqlite3",
    "importlib.metadata",
    "tomllib",
    "dataclasses",
    "logging",
    "subprocess",
    "socket",
    "difflib",
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["umount", "--help"],
        ["list", "--help"],
        ["errors", "--help"],
        ["refresh", "--help"],
        ["cache", "warm", "--help"],
    ],
)
def test_help_imports_nothing_heavy_and_no_filesystem(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom pyfusekit.cli import main\nassert main(sys.argv[1:]) == 0\n"
        f"print(sorted(name for name in sys.modules if name in {HEAVY} or name.startswith(('pyfusekit.core', 'pyfusekit.fs'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("entry", registry.BUNDLED, ids=lambda entry: entry.name)
def test_the_help_of_a_filesystem_imports_that_one_only(entry: registry.Entry) -> None:
    script = (
        "import sys\nfrom pyfusekit.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "print(sorted({name.split('.')[2] for name in sys.modules if name.startswith('pyfusekit.fs.')}),\n"
        "      sorted({'aiobotocore', 'botocore', 'aiohttp', 'sqlite3', 'importlib.metadata'} & set(sys.modules)))"
    )
    argv = [sys.executable, "-c", script, "mount", entry.name, "--help"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    room = entry.target.removeprefix("pyfusekit.fs.").partition(":")[0]
    assert done.stdout.splitlines()[-1] == f"['{room}'] []", done.stderr


# --- help ---------------------------------------------------------------------------------------------------------------


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"]):
        code, out, err = said(capsys, *arguments)
        assert (code, err) == (0, "")
        for name in ("mount", "umount", "list", "errors", "refresh", "cache"):
            assert f"\n  {name} " in out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--version")
    assert code == 0
    assert out.startswith(f"pyfusekit {__version__} (Python 3.")


def test_the_help_of_mount_lists_the_filesystems_and_the_plugins(command: Commandline) -> None:
    done = command.run("mount", "--help")
    assert done.returncode == 0
    for entry in registry.BUNDLED:
        assert f"  {entry.name} " in done.stdout
        assert entry.summary in " ".join(done.stdout.split())
    assert "from pyfusekit-odd" in done.stdout
    assert done.stderr == "pyfusekit: filesystem 'mem' of pyfusekit-odd is not used: pyfusekit has that name\n"


def test_the_help_of_a_filesystem_shows_its_options_and_the_common_ones(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "mount", "s3", "--help")
    assert code == 0
    for word in (
        "[SOURCE] MOUNTPOINT",
        "--endpoint-url URL",
        "$AWS_ENDPOINT_URL_S3",
        "--ro / --rw",
        "[default: 0644]",
        "--foreground",
    ):
        assert word in out
    assert "PYFUSEKIT_S3_OPTION" in out
    assert said(capsys, "mount", "mem", "--help")[1].count("--size SIZE") == 1


def test_the_entry_point_runs_the_command_line() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["pyfusekit"].partition(":")
    script = f"import sys\nfrom {module} import {name}\nsys.argv = ['pyfusekit', *sys.argv[1:]]\n{name}()"
    for words, code, said in ((["--version"], 0, "pyfusekit"), (["list", "--nonsense"], 2, "")):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=30)
        assert (done.returncode, said in done.stdout) == (code, True)


def test_the_package_can_be_run() -> None:
    argv = [sys.executable, "-m", "pyfusekit", "--version"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("pyfusekit ")


# --- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "cause", "remedy"),
    [
        (
            "lst",
            "lst: no such command; did you mean list?",
            "there are: mount, umount, list, errors, refresh, cache (pyfusekit --help)",
        ),
        ("", "missing command", "pyfusekit --help"),
        ("mount", "the filesystem or URL is missing", "pyfusekit mount --help"),
        ("mount men /x", "men: no such filesystem; did you mean mem?", f"there are: {NAMES} (pyfusekit mount --help)"),
        (
            "mount mam://b /x",
            "mam: no filesystem has such URLs; did you mean mem?",
            f"a URL begins with: {SCHEMES} (pyfusekit mount --help)",
        ),
        ("mount s3://b", "the mountpoint is missing", "pyfusekit mount s3://b [OPTIONS] MOUNTPOINT"),
        ("mount s3 s3://b", "the mountpoint is missing", "pyfusekit mount s3 [OPTIONS] [SOURCE] MOUNTPOINT"),
        ("mount s3://me:pw@b /x y", "y: one word too many", "pyfusekit mount s3://b [OPTIONS] MOUNTPOINT"),
        ("mount s3://b /x --regon=1", "--regon: no such option; did you mean --region?", "pyfusekit mount s3://b --help"),
        ("mount mem", "the mountpoint is missing", "pyfusekit mount mem [OPTIONS] [SOURCE] MOUNTPOINT"),
        ("mount mem a b c", "c: one word too many", "pyfusekit mount mem [OPTIONS] [SOURCE] MOUNTPOINT"),
        (
            "mount --regon=1 s3 b /x",
            "--regon: no such option; did you mean --foreground?",
            "an option of one filesystem stands behind its name; pyfusekit mount --help",
        ),
        ("mount s3 --regon=1 b /x", "--regon: no such option; did you mean --region?", "pyfusekit mount s3 --help"),
        ("mount s3 b /x --region", "option '--region' requires an argument", "pyfusekit --help"),
        (
            "mount s3 b /x --addressing=pth",
            "--addressing: 'pth' is not one of auto, path, virtual; did you mean path?",
            "pyfusekit mount s3 --help says what each option takes",
        ),
        (
            "mount --max-read=3x s3 b /x",
            "--max-read: '3x' is not a size; write 8MiB, 512K, 1G ...",
            "pyfusekit mount s3 --help says what each option takes",
        ),
        ("mount s3 b /x -o region", "-o region: a value is missing", "write -o region=TEXT"),
        ("umount", "missing argument 'MOUNTPOINT...'", "pyfusekit umount --help"),
        ("umount --lzy /x", "--lzy: no such option; did you mean --lazy?", "pyfusekit umount --help"),
        (
            "umount --timeout=soon /x",
            "invalid value for '--timeout': 'soon' is not a duration; write 30s, 1.5s, 5m, 2h or off",
            "pyfusekit umount --help",
        ),
        ("refresh", "missing argument 'PATH...'", "pyfusekit refresh --help"),
        ("cache", "missing command", "pyfusekit cache --help"),
        ("cache worm", "worm: no such command; did you mean warm?", "there are: show, clear, warm (pyfusekit cache --help)"),
        ("cache warm", "missing argument 'PATH...'", "pyfusekit cache warm --help"),
        (
            "cache clear",
            "what is to be cleared is missing",
            "write a SOURCE as pyfusekit cache show lists it, --all, or --older-than TIME",
        ),
        ("cache clear x --all", "x and --all: one of them is meant", "pyfusekit cache clear --help"),
        ("errors a b", "got unexpected extra argument (b)", "pyfusekit errors --help"),
        ("list extra", "got unexpected extra argument (extra)", "pyfusekit list --help"),
    ],
)
def test_a_mistake_is_a_cause_and_a_remedy(capsys: pytest.CaptureFixture[str], line: str, cause: str, remedy: str) -> None:
    code, out, err = said(capsys, *line.split())
    assert (code, out) == (2, "")
    assert err == f"pyfusekit: {cause}\n  {remedy}\n"


@pytest.mark.parametrize("line", ["mount mem /x", "mount mem - /x"])
def test_a_source_that_is_needed_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(MemFS, "source_use", "required")
    code, _, err = said(capsys, *line.split())
    assert (code, err) == (2, "pyfusekit: mem needs a source\n  pyfusekit mount mem [OPTIONS] SOURCE MOUNTPOINT\n")


@needs_mounts
@pytest.mark.parametrize(
    ("url", "shown"), [("mem://scratch", "mem://scratch"), ("odd://ok", "odd://ok"), ("MEM://me:pw@x", "MEM://x")]
)
def test_a_url_names_its_filesystem(command: Commandline, url: str, shown: str) -> None:
    place = command.folder()
    done = command.run("mount", "--ro", url, place, "-o", "noexec", "--timeout", "30s")
    assert done.stdout.startswith(f"Mounted {shown} on {place} (read-only"), done.stderr
    (row,) = [row for row in json.loads(command.run("list", "--json").stdout) if row["mountpoint"] == str(place)]
    assert (row["fs"], row["source"]) == (url.partition(":")[0].lower(), shown)
    assert command.run("umount", place).returncode == 0


def test_the_help_of_a_url_is_that_of_its_filesystem(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "mount", "s3://b/x", "--help")
    assert code == 0
    assert out.startswith("Usage: pyfusekit mount s3://b/x [OPTIONS] MOUNTPOINT\n")
    assert "--endpoint-url URL" in out
    code, out, _ = said(capsys, "mount", "--help")
    assert "\n       pyfusekit mount [OPTIONS] URL MOUNTPOINT [OPTIONS]\n" in out
    for scheme in registry.url_schemes():
        assert f"{scheme}://" in out


def test_a_source_that_means_nothing_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemFS, "source_use", "none")
    code, _, err = said(capsys, "mount", "mem", "a", "/x")
    assert code == 2
    assert err == "pyfusekit: mem takes no source, so a means nothing\n  pyfusekit mount mem [OPTIONS] MOUNTPOINT\n"


def test_what_a_name_holds_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = said(capsys, "mount", "\x1b[31m\n\udcff", "/x")
    assert err.startswith("pyfusekit: \\x1b[31m\n\\udcff: no such filesystem")


def test_a_broken_plugin_hurts_only_those_who_ask_for_it(command: Commandline) -> None:
    for arguments in (("--help",), ("list",), ("mount", "--help")):
        done = command.run(*arguments)
        assert done.returncode == 0
        assert "Traceback" not in done.stderr
    done = command.run("mount", "broken", "/x")
    assert done.returncode == 2
    assert done.stderr == (
        "pyfusekit: filesystem 'broken' (from pyfusekit-odd) cannot be loaded: RuntimeError: odd is broken\n"
        "  pip install --upgrade pyfusekit-odd\n"
    )
    assert command.processes() == {}


def test_a_bug_is_a_traceback_and_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyfusekit.service import mounts

    def broken() -> object:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr(mounts, "survey", broken)
    code, _, err = said(capsys, "list")
    assert code == 70
    assert "Traceback" in err
    assert err.endswith("pyfusekit: bug: ZeroDivisionError: oh no\n  please report it with the lines above\n")


def test_an_interrupt_ends_without_a_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfusekit.service import mounts

    def interrupted() -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(mounts, "survey", interrupted)
    code, out, err = said(capsys, "list")
    assert (code, out, err.strip()) == (128 + signal.SIGINT, "", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "pyfusekit", "--help"]
    done = subprocess.run(argv, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, timeout=30)
    os.close(writer)
    assert done.stderr == b""


# --- completion ---------------------------------------------------------------------------------------------------------


def test_filesystems_are_completed_without_loading_them() -> None:
    environment = {**os.environ, "_PYFUSEKIT_COMPLETE": "bash_complete", "COMP_WORDS": "pyfusekit mount m", "COMP_CWORD": "2"}
    script = (
        "import atexit, sys\natexit.register(lambda: print([n for n in sys.modules if n.startswith('pyfusekit.fs')]))\n"
        "from pyfusekit.cli import main\nsys.exit(main())"
    )
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n")[:2] == ["plain,mem", "[]"], done.stderr
