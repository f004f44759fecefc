"""The man pages say what the program does: every command, option, word, variable and exit code, and none that there is not.

The program's side is the tree of click commands, with the options of every filesystem, as a person meets it.
"""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from pyfusekit import cli
from pyfusekit.cache import inventory
from pyfusekit.core import Problem
from pyfusekit.core.mountinfo import MountInfo
from pyfusekit.fs.httpfs.client import words as http_words
from pyfusekit.fs.s3fs.remote import errors as s3_errors
from pyfusekit.service import caches, commands, ending, exits, mounts, options, registry, unmounting, warming

REPOSITORY = Path(__file__).resolve().parents[1]
MAN = REPOSITORY / "man"
COMMON_PAGE = "pyfusekit-mount.1"
SECTIONS = ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO")

_FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")
_WORDS = re.compile(r"(?<![\w-])-o ([a-z][a-z_-]*(?:=[^\s,)]*)?(?:,[a-z][a-z_-]*(?:=[^\s,)]*)?)*)")
_VARIABLE = re.compile(r"\bPYFUSEKIT_[A-Z0-9_]+\b")


class Documented(NamedTuple):
    """One option as the page of its command has to have it."""

    page: str
    flags: tuple[str, ...]
    words: tuple[str, ...]
    """As they stand behind -o; none for what is about the command and not the mount."""
    variables: tuple[str, ...]
    shown: tuple[str, ...]
    """What else must be said of it: its default, its choices, another program's variable."""


@cache
def rendered(page: str) -> str:
    """Return the text of a page, in lines that are not wrapped."""
    if shutil.which("mandoc") is None:
        pytest.fail("mandoc is not installed: apt install mandoc")
    done = subprocess.run(["mandoc", "-Tascii", "-O", "width=1000", MAN / page], capture_output=True, text=True, timeout=20)
    return re.sub(".\b", "", done.stdout)


def section(page: str, name: str) -> str:
    """Return the text of one section, or nothing."""
    parts = re.split(r"^([A-Z][A-Z ]+)$", rendered(page), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(name, "")


def items(page: str) -> Iterator[tuple[str, str]]:
    """Yield the tags of the options in a page, each with what is said of it."""
    lines = section(page, "OPTIONS").splitlines()
    for number, line in enumerate(lines):
        if re.match(r" {5}-", line):
            body = []
            for below in lines[number + 1 :]:
                if below and not below.startswith(" " * 8):
                    break
                body.append(below.strip())
            tag, _, beside = line.strip().partition("  ")
            yield tag, " ".join([beside, *body])


def filesystems() -> dict[str, cli.FilesystemCommand]:
    """Return the commands of all filesystems of the table, loaded."""
    group = cli.root.commands["mount"]
    assert isinstance(group, cli.MountGroup)
    context = click.Context(group)
    found = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert isinstance(command, cli.FilesystemCommand)
        found[name] = command
    return found


def flags_of(param: click.Parameter) -> tuple[str, ...]:
    return (*param.opts, *param.secondary_opts)


def _documented_spec(spec: options.Spec, flags: tuple[str, ...], page: str, fs: str) -> Documented:
    name = f"{spec.name}_file" if spec.is_secret else spec.name
    words = (name, spec.opposite.replace("-", "_")) if spec.is_flag else (f"{name}=",)
    variable = f"PYFUSEKIT_{spec.name.upper()}" if spec.common else f"PYFUSEKIT_{fs.upper()}_{spec.name.upper()}"
    default = (spec.kebab if spec.default else "") if spec.is_flag else spec.show(spec.default)
    return Documented(page, flags, words, (variable,), tuple(filter(None, (default, *spec.choices, spec.env))))


def commands_with_pages() -> Iterator[tuple[str, click.Command, str]]:
    """Yield every command with its name and its page; those of a group are in the group's."""
    yield "", cli.root, "pyfusekit.1"
    for name, command in cli.root.commands.items():
        yield name, command, f"pyfusekit-{name}.1"
        if isinstance(command, click.Group):
            for inner, below in command.commands.items():
                yield f"{name} {inner}", below, f"pyfusekit-{name}.1"


def documented() -> list[Documented]:
    """Return every option of every command with the page it belongs to."""
    found = []
    for name, command, page in commands_with_pages():
        specs = {spec.name: spec for spec in options.COMMON} if name == "mount" else {}
        for param in command.get_params(click.Context(command, **command.context_settings)):
            if param.name in specs:
                found.append(_documented_spec(specs[param.name], flags_of(param), page, ""))
            elif isinstance(param, click.Option):
                default = "30s" if param.name == "timeout" else ""
                found.append(Documented(page, flags_of(param), (), (), (default,) if default else ()))
    for name, command in filesystems().items():
        flags = {param.name: flags_of(param) for param in command.get_params(click.Context(command))}
        for spec in command.declared:
            if not spec.common:
                found.append(_documented_spec(spec, flags[spec.name], f"pyfusekit-{name}.7", name))
    return found


OPTIONS = documented()
PAGES = sorted(path.name for path in MAN.iterdir())


def known_to(page: str) -> set[str]:
    """Return the flags a page may speak of: its own, those of every mount beside a filesystem's, and in the overview all."""
    pages = {page, COMMON_PAGE} if page.endswith(".7") else {page}
    return {flag for option in OPTIONS if page == "pyfusekit.1" or option.page in pages for flag in option.flags}


def unknown_flags(text: str, known: set[str]) -> set[str]:
    return set(_FLAG.findall(text)) - known


# --- the pages themselves -----------------------------------------------------------------------------------------------


def test_every_command_and_filesystem_has_its_page_and_no_page_is_of_nothing() -> None:
    commands = {f"pyfusekit-{name}.1" for name in cli.root.commands}
    assert set(PAGES) == {"pyfusekit.1"} | commands | {f"pyfusekit-{name}.7" for name in filesystems()}


def test_mandoc_finds_nothing_to_complain_about() -> None:
    if shutil.which("mandoc") is None:
        pytest.fail("mandoc is not installed: apt install mandoc")
    argv = ["mandoc", "-Tlint", "-Wstyle", *PAGES]
    done = subprocess.run(argv, cwd=MAN, capture_output=True, text=True, timeout=30)
    # Whether other programs' pages are installed is not ours; our own references are looked at below.
    complaints = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert complaints == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_sections_that_people_look_for(page: str) -> None:
    missing = [name for name in SECTIONS if not section(page, name).strip()]
    assert missing == []
    if page.endswith(".7"):
        assert section(page, "CONSISTENCY").strip()


@pytest.mark.parametrize("page", PAGES)
def test_references_to_our_own_pages_lead_somewhere(page: str) -> None:
    found = re.findall(r"^\.Xr (pyfusekit\S*) (\d)", (MAN / page).read_text(), flags=re.M)
    assert found
    assert {f"{name}.{number}" for name, number in found} <= set(PAGES)


def test_the_wheel_brings_every_page() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {name: place for name, place in shared.items() if name.startswith("man/")} == {
        f"man/{page}": f"share/man/man{page[-1]}/{page}" for page in PAGES
    }


# --- what there is, is in the pages -------------------------------------------------------------------------------------


def test_the_overview_names_every_command_and_filesystem() -> None:
    overview = section("pyfusekit.1", "DESCRIPTION")
    for name in (*cli.root.commands, *filesystems()):
        assert re.search(rf"^ {{5}}{name}\b", overview, flags=re.M), name


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.page} {option.flags[0]}")
def test_every_option_is_in_its_page_with_its_word_and_its_default(option: Documented) -> None:
    found = [(tag, body) for tag, body in items(option.page) if option.flags[0] in _FLAG.findall(re.sub(r", -o \w.*", "", tag))]
    assert len(found) == 1, f"{option.flags[0]} has {len(found)} entries"
    tag, body = found[0]
    assert set(option.flags) <= set(_FLAG.findall(tag))
    for word in option.words:
        end = "" if word.endswith("=") else r"(?![\w=])"
        assert re.search(rf"-o {word}{end}", tag), f"-o {word} is missing"
    for text in option.shown:
        assert re.search(rf"(?<![\w.]){re.escape(text)}(?!\w)", body), f"{text} is not said"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.page} {option.flags[0]}")
def test_every_variable_is_in_its_page(option: Documented) -> None:
    assert set(option.variables) <= set(_VARIABLE.findall(section(option.page, "ENVIRONMENT")))


def test_the_words_of_fstab_that_mean_nothing_are_named() -> None:
    (body,) = [body for tag, body in items(COMMON_PAGE) if tag.startswith("-o ")]
    said = set(body.replace(",", " ").split())
    assert said >= options._IGNORED
    assert set(options._IGNORED_PREFIXES) <= {word.rstrip(".") for word in said}


# --- what is in the pages, is there -------------------------------------------------------------------------------------


def test_an_option_that_does_not_exist_would_be_seen() -> None:
    assert unknown_flags("mount --size 1G --sise 2G -f (-x)", {"--size", "-f"}) == {"--sise", "-x"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_option_that_does_not_exist(page: str) -> None:
    examples = section(page, "EXAMPLES")
    assert unknown_flags(rendered(page).replace(examples, ""), known_to(page)) == set()
    assert unknown_flags(examples, known_to("pyfusekit.1")) == set()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_word_or_variable_that_does_not_exist(page: str) -> None:
    words = {word.rstrip("=") for option in OPTIONS for word in option.words} | {"word"}
    named = {word.partition("=")[0] for found in _WORDS.findall(rendered(page)) for word in found.split(",")}
    assert {word.replace("-", "_") for word in named} - words == set()
    variables = {variable for option in OPTIONS for variable in option.variables}
    for name in filesystems():
        variables |= {f"PYFUSEKIT_{name.upper()}_{spec.name.upper()}" for spec in options.COMMON}
    patterns = {"PYFUSEKIT_OPTION", "PYFUSEKIT_FS_OPTION"}
    assert set(_VARIABLE.findall(rendered(page))) - variables - patterns == set()


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_examples_are_ours(page: str) -> None:
    commands = re.findall(r"^\s+[$#] (?:[A-Z_]+=\S+ )*pyfusekit (\S+)(?: (\S+))?", section(page, "EXAMPLES"), flags=re.M)
    for command, argument in commands:
        assert command in cli.root.commands
        if command == "mount" and registry.is_url(argument):
            assert registry.of_url(argument)
        elif command == "mount" and not argument.startswith("-"):
            assert argument in filesystems()
        elif command == "cache":
            assert argument in cli.cache.commands
    assert commands


# --- exit codes ---------------------------------------------------------------------------------------------------------

_MOUNT = {exits.DONE, exits.USAGE, exits.TIMED_OUT, exits.SOURCE, exits.ACCESS, exits.MOUNTPOINT, exits.FUSE, exits.BUG}
_UMOUNT = {
    exits.DONE, exits.USAGE, exits.NOT_MOUNTED, exits.BUSY, exits.TIMED_OUT, exits.ACCESS, exits.FUSE, exits.BUG,
}  # fmt: skip
_ASKING = {exits.DONE, exits.USAGE, exits.NOT_MOUNTED, exits.TIMED_OUT, exits.ACCESS, exits.BUG}
_CODES = {
    "pyfusekit.1": {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    - {exits.SIGNALLED},
    "pyfusekit-mount.1": _MOUNT,
    "pyfusekit-umount.1": _UMOUNT,
    "pyfusekit-list.1": {exits.DONE, exits.USAGE, exits.BUG},
    "pyfusekit-errors.1": _ASKING,
    "pyfusekit-refresh.1": _ASKING | {exits.SOURCE},
    "pyfusekit-cache.1": _ASKING | {exits.BUSY, exits.SOURCE},
}


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".1")])
def test_every_exit_code_is_told(page: str) -> None:
    told = re.findall(r"^ {5}(\d+)(\+n)?\s", section(page, "EXIT STATUS"), flags=re.M)
    assert {int(code) for code, signalled in told if not signalled} == _CODES[page]
    assert {int(code) for code, signalled in told if signalled} == {exits.SIGNALLED}


def test_the_codes_of_the_pages_are_those_of_the_failures() -> None:
    assert set(exits._CODE_OF_KIND.values()) <= _CODES["pyfusekit-mount.1"] | _CODES["pyfusekit-umount.1"]


# --- what single pages promise ------------------------------------------------------------------------------------------


def test_the_list_page_has_every_key_and_every_state() -> None:
    info = MountInfo(1, 0, 0, 46, "/", "/mnt", "rw", "fuse.pyfusekit", "mem", "rw,user_id=0")
    keys = set()
    states = (mounts.OK, mounts.DEAD, mounts.SILENT, mounts.NO_SOCKET, mounts.UNKNOWN)
    for state in states:
        (row,) = mounts.as_json([mounts.Mounted(info, state, None, None, "mem", {}, "")])
        keys |= set(row)
        if row["state"] is not None:
            assert re.search(rf"(?<![\w-]){row['state']}(?![\w-])", section("pyfusekit-list.1", "OPTIONS")), row["state"]
        assert re.search(rf"^ {{5}}{re.escape(state)}(?!\S)", section("pyfusekit-list.1", "DESCRIPTION"), flags=re.M), state
    told = re.findall(r"^ {13}([a-z_]+)(?!\S)", section("pyfusekit-list.1", "OPTIONS"), flags=re.M)
    assert set(told) == keys


def test_the_errors_page_has_every_key() -> None:
    keys = {"mountpoint", "source", *commands.told_problem(Problem("x", "y", errno.EIO, "z"))}
    assert set(re.findall(r"^ {13}([a-z_]+)(?!\S)", section("pyfusekit-errors.1", "OPTIONS"), flags=re.M)) == keys


def test_the_cache_page_has_every_key_and_the_limits(tmp_path: Path) -> None:
    row = caches.row_of("/cache", [caches.User("/mnt", 1)], [inventory.Held(tmp_path, "s", "n", 1, 1, 1, 1.0, False)])
    keys = {*row, *row["mounts"][0], *row["sources"][0]}
    assert set(re.findall(r"^ {13,}([a-z_]+)(?!\S)", section("pyfusekit-cache.1", "OPTIONS"), flags=re.M)) == keys
    assert f"The first {warming.TOLD_FAILURES} are named" in section("pyfusekit-cache.1", "DESCRIPTION")
    assert inventory.DAMAGED in section("pyfusekit-cache.1", "DESCRIPTION")


def test_the_umount_page_has_the_limits() -> None:
    text = section("pyfusekit-umount.1", "DESCRIPTION")
    for seconds in (unmounting.DEFAULT_LIMIT_S, unmounting._LINE_EVERY_S, ending.DRAIN_LIMIT_S):
        assert f" {seconds:g} seconds" in text


def test_the_s3_page_has_every_errno_of_the_store_and_of_the_filesystem() -> None:
    said = set(re.findall(r"^ {5}(E[A-Z0-9]+)\b", section("pyfusekit-s3.7", "DIAGNOSTICS"), flags=re.M))
    rows = (*s3_errors.BY_CODE.values(), *s3_errors.BY_STATUS.values())
    names = {errno.errorcode[row.errno].replace("ENOTSUP", "EOPNOTSUPP") for row in rows}
    for path in Path(s3_errors.__file__).parent.parent.rglob("*.py"):
        names |= set(re.findall(r"Error\(\s*errno\.(E[A-Z0-9]+)", path.read_text()))
    # No program meets those: the kernel would have to err, or the server has ended.
    assert said == names - {"EBADF", "ENOTCONN", "ESHUTDOWN"}


def test_the_http_page_has_every_errno_of_the_server_and_of_the_filesystem() -> None:
    said = set(re.findall(r"^ {5}(E[A-Z0-9]+)\b", section("pyfusekit-http.7", "DIAGNOSTICS"), flags=re.M))
    names = {errno.errorcode[row.errno].replace("ENOTSUP", "EOPNOTSUPP") for row in http_words.BY_STATUS.values()}
    for path in Path(http_words.__file__).parent.parent.rglob("*.py"):
        names |= set(re.findall(r"Error\(\s*errno\.(E[A-Z0-9]+)", path.read_text()))
    # No program meets EBADF and ESHUTDOWN; the other two are set elsewhere.
    assert said - {"ECONNRESET", "EXDEV"} == names - {"EBADF", "ESHUTDOWN"}
