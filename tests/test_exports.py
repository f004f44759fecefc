"""The public face: what is exported is there, sorted, and loaded only when it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pyfusekit
from pyfusekit import core


def test_every_exported_name_is_there_and_the_list_is_sorted() -> None:
    assert core.__all__ == sorted(core.__all__, key=lambda name: (not name.isupper(), name))
    for name in core.__all__:
        assert getattr(core, name) is getattr(pyfusekit, name)


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    tree = ast.parse(Path(core.__file__).read_text())
    seen: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is not None:
            seen.update({alias.name: node.module for alias in node.names})
    assert seen == core._HOME
    assert sorted(seen) == sorted(core.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    for module in (core, pyfusekit):
        assert not hasattr(module, "nonsense")


def test_the_face_loads_nothing_that_is_not_used() -> None:
    code = "import sys, pyfusekit, pyfusekit.core; pyfusekit.Attr; print('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
