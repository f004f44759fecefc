"""docs/semantics.md promises nothing without a test: each paragraph names some, and they exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pyfusekit.service.registry import BUNDLED

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "semantics.md"
CONTRACT = REPOSITORY / "pyfusekit" / "testing" / "contract"
HEADINGS = (
    "Consistency", "Durability", "POSIX kept", "POSIX refused", "After a crash", "Concurrent writers", "Limits", "Locks",
)  # fmt: skip
_REFERENCE = re.compile(r"`((?:tests/[\w/]+\.py)?(?:::\w+)+)`")


@cache
def classes_and_tests(path: Path) -> tuple[dict[str, ast.ClassDef], set[str]]:
    """Return the classes of a module, and its test functions."""
    body = ast.parse(path.read_text()).body
    tests = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}, tests


def methods(found: ast.ClassDef) -> Iterator[str]:
    """Yield the names of a class's methods, those it inherits from its module's classes and from the contract's too."""
    for node in found.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
    for base in found.bases:
        name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        for path in sorted(CONTRACT.glob("*.py")):
            inherited = classes_and_tests(path)[0].get(name)
            if inherited is not None:
                yield from methods(inherited)


def exists(test: str) -> bool:
    """Say whether ``file::test`` or ``file::Class::test`` is there."""
    file, *way, name = test.split("::")
    if not name.startswith("test_") or not (REPOSITORY / file).is_file():
        return False
    classes, functions = classes_and_tests(REPOSITORY / file)
    if not way:
        return name in functions
    return len(way) == 1 and way[0].startswith("Test") and way[0] in classes and name in methods(classes[way[0]])


def named(paragraph: str) -> list[str]:
    """Return the tests a paragraph names, each in full."""
    found: list[str] = []
    for reference in _REFERENCE.findall(paragraph):
        if reference.startswith("::"):
            reference = found[-1].rpartition("::")[0] + reference
        found.append(reference)
    return found


def sections(mark: str, text: str) -> dict[str, str]:
    """Return heading -> text of the sections of one level."""
    _, *parts = re.split(rf"^{mark} (.+)\n", text, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def promises() -> list[tuple[str, str]]:
    """Return (where, paragraph) of every promise."""
    found = []
    for heading, text in sections("##", PAGE.read_text()).items():
        paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip() and not part.strip().startswith("###")]
        found += [(f"{heading}: {part.strip()[:50]}", part) for part in paragraphs]
    return found


@pytest.mark.parametrize(("where", "paragraph"), promises(), ids=[where for where, _ in promises()])
def test_every_promise_names_tests_that_exist(where: str, paragraph: str) -> None:
    tests = named(paragraph)
    assert tests, "no test holds this"
    assert [test for test in tests if not exists(test)] == []
    # Nothing that looks like a test is passed over because it is written in another way.
    assert paragraph.count("::test_") == len(tests)


def test_a_test_that_is_not_there_would_be_seen() -> None:
    here = "tests/test_semantics.py"
    assert exists(f"{here}::test_a_test_that_is_not_there_would_be_seen")
    contract = "tests/fs/test_memfs_contract.py"
    assert exists(f"{contract}::TestMemfsRead::test_whole_file_is_read")
    for absent in (
        f"{here}::test_no_such_test",
        f"{here}::promises",
        "tests/test_nothing.py::test_x",
        f"{contract}::TestMemfsRead::test_what_was_written_is_read",
        f"{contract}::TestNothing::test_whole_file_is_read",
        f"{contract}::test_whole_file_is_read",
    ):
        assert not exists(absent), absent


def test_every_filesystem_has_its_section_with_every_heading() -> None:
    chapters = sections("##", PAGE.read_text())
    assert list(chapters) == ["The core", *(entry.name for entry in BUNDLED)]
    for entry in BUNDLED:
        parts = sections("###", chapters[entry.name])
        assert tuple(parts) == HEADINGS, entry.name
        assert all(text.strip() for text in parts.values())
