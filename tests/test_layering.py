"""Who may import whom: DESIGN.md's rule as a table. Imports are read from the source, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyfusekit"

# Room -> the rooms of ours it may import. A room is the longest matching prefix of a module's name.
MAY_IMPORT: dict[str, set[str]] = {
    "pyfusekit": {"pyfusekit.core"},
    "pyfusekit.__main__": {"pyfusekit", "pyfusekit.cli", "pyfusekit.service"},
    "pyfusekit.cli": {"pyfusekit", "pyfusekit.service", "pyfusekit.service.caches", "pyfusekit.core"},
    "pyfusekit.service": {"pyfusekit", "pyfusekit.service", "pyfusekit.core"},
    # It tells what is on the disk and clears it, also when no mount is there to be asked.
    "pyfusekit.service.caches": {"pyfusekit", "pyfusekit.service", "pyfusekit.core", "pyfusekit.cache"},
    "pyfusekit.testing": {"pyfusekit", "pyfusekit.testing", "pyfusekit.core"},
    "pyfusekit.fs": set(),
    "pyfusekit.fs.memfs": {"pyfusekit.fs.memfs", "pyfusekit.core:face"},
    # A web directory from the bottom up: values, requests and pages of names; bytes, what is known, writing; the mount on top.
    "pyfusekit.fs.httpfs": {
        *("pyfusekit.fs.httpfs", "pyfusekit.fs.httpfs.options", "pyfusekit.fs.httpfs.values", "pyfusekit.core:face"),
        *(f"pyfusekit.fs.httpfs.{room}" for room in ("client", "contents", "naming", "webdav")),
        "pyfusekit.cache",
    },
    "pyfusekit.fs.httpfs.options": {"pyfusekit.core:face"},
    "pyfusekit.fs.httpfs.values": set(),
    "pyfusekit.fs.httpfs.listing": {"pyfusekit.fs.httpfs.listing", "pyfusekit.fs.httpfs.values"},
    "pyfusekit.fs.httpfs.client": {
        *("pyfusekit.fs.httpfs.client", "pyfusekit.fs.httpfs.options", "pyfusekit.fs.httpfs.values", "pyfusekit.core:face"),
        "pyfusekit.cache",
    },
    "pyfusekit.fs.httpfs.contents": {
        *(f"pyfusekit.fs.httpfs.{room}" for room in ("contents", "client", "options", "values")),
        *("pyfusekit.core:face", "pyfusekit.cache"),
    },
    "pyfusekit.fs.httpfs.naming": {
        *(f"pyfusekit.fs.httpfs.{room}" for room in ("naming", "client", "listing", "options", "values")),
        "pyfusekit.core:face",
    },
    "pyfusekit.fs.httpfs.webdav": {
        *(f"pyfusekit.fs.httpfs.{room}" for room in ("webdav", "contents", "client", "options", "values")),
        "pyfusekit.core:face",
    },
    # A bucket from the bottom up: requests, metadata, names, what is written, what outlives a server; the mount on top of all.
    "pyfusekit.fs.s3fs": {
        *("pyfusekit.fs.s3fs", "pyfusekit.fs.s3fs.options", "pyfusekit.core:face", "pyfusekit.cache"),
        *(f"pyfusekit.fs.s3fs.{room}" for room in ("remote", "metadata", "naming", "writing", "deferred")),
    },
    "pyfusekit.fs.s3fs.options": {"pyfusekit.core:face"},
    "pyfusekit.fs.s3fs.remote": {
        "pyfusekit.fs.s3fs.remote",
        "pyfusekit.fs.s3fs.options",
        "pyfusekit.core:face",
        "pyfusekit.cache",
    },
    "pyfusekit.fs.s3fs.metadata": {f"pyfusekit.fs.s3fs.{room}" for room in ("metadata", "remote")} | {"pyfusekit.core:face"},
    "pyfusekit.fs.s3fs.naming": {
        *("pyfusekit.fs.s3fs.naming", "pyfusekit.fs.s3fs.metadata", "pyfusekit.fs.s3fs.remote", "pyfusekit.core:face")
    },
    "pyfusekit.fs.s3fs.writing": {"pyfusekit.fs.s3fs.writing", "pyfusekit.fs.s3fs.remote", "pyfusekit.core:face"},
    "pyfusekit.fs.s3fs.deferred": {
        *("pyfusekit.fs.s3fs.deferred", "pyfusekit.fs.s3fs.writing", "pyfusekit.fs.s3fs.remote", "pyfusekit.core:face")
    },
    "pyfusekit.cache": {"pyfusekit.cache"},
    "pyfusekit.core": {"pyfusekit.core"},
}

# Inside the core: module -> the modules it may import. The four at the bottom see neither asyncio nor a descriptor.
CORE: dict[str, set[str]] = {
    "abi": set(),
    "types": set(),
    "errors": set(),
    "options": set(),
    "codec": {"abi", "errors", "types"},
    "calls": {"abi", "codec", "errors", "types"},
    "encoders": {"abi", "codec", "types"},
    "filesystem": {"types", "notify", "backing", "problems"},
    "problems": {"errors"},
    "inodes": {"abi"},
    "locks": {"filesystem", "types", "abi"},
    "pathops": {"types"},
    "pathtree": {"abi", "inodes", "types"},
    "paths": {"abi", "errors", "filesystem", "pathops", "pathtree", "types"},
    "notification": {"abi", "types"},
    "notify": {"abi", "codec", "errors", "notification", "types"},
    "backing": {"abi", "codec", "errors"},
    "capabilities": {"abi", "filesystem"},
    "killpriv": {"abi", "filesystem", "types"},
    "replies": {"abi", "codec", "encoders", "filesystem", "inodes", "types"},
    "table": {"abi", "calls", "capabilities", "codec", "filesystem", "inodes", "killpriv", "replies", "types"},
    "session": {
        "abi",
        "capabilities",
        "codec",
        "encoders",
        "errors",
        "filesystem",
        "inodes",
        "notification",
        "notify",
        "replies",
        "table",
        "types",
    },
    "asyncfd": set(),
    "mountinfo": set(),
    "mounterrors": {"errors"},
    "mountpoints": {"errors", "mounterrors", "mountinfo"},
    "fusermount": {"errors", "mounterrors", "mountinfo"},
    "mount": {"errors", "fusermount", "mounterrors", "mountinfo", "mountpoints"},
    "serving": {"abi", "asyncfd", "capabilities", "errors", "filesystem", "mount", "mountpoints", "notify", "session"},
}
WITHOUT_IO = {
    "abi",
    "calls",
    "codec",
    "encoders",
    "types",
    "errors",
    "capabilities",
    "replies",
    "filesystem",
    "inodes",
    "options",
    "problems",
}
NEVER_AT_IMPORT = {"aiobotocore", "botocore", "aiohttp", "aiosqlite", "sqlite3"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(name: str, path: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the modules that *path* imports, relative imports made absolute; those for type checkers too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([base] if base else [])])
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                found.add(deeper if _is_module(deeper) else base)
    return found


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room_of(name: str) -> str:
    candidates = [room for room in MAY_IMPORT if name == room or name.startswith(room + ".")]
    return max(candidates, key=len)


def violations(name: str, path: Path) -> list[str]:
    allowed = MAY_IMPORT[room_of(name)]
    found = []
    for imported in imports_of(name, path):
        if imported.split(".")[0] != "pyfusekit":
            continue
        if imported == "pyfusekit.core" and "pyfusekit.core:face" in allowed:
            continue
        if room_of(imported) not in allowed:
            found.append(f"{name} imports {imported}")
    return found


def test_rooms_import_only_downwards() -> None:
    wrong = [line for name, path in modules() for line in violations(name, path)]
    assert not wrong


def test_every_filesystem_has_its_row() -> None:
    rooms = {path.stem for path in (PACKAGE / "fs").iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert rooms == {room.split(".")[2] for room in MAY_IMPORT if room.startswith("pyfusekit.fs.")}


def test_core_rooms_keep_to_the_table() -> None:
    seen = set()
    for name, path in modules():
        if not name.startswith("pyfusekit.core."):
            continue
        module = name.removeprefix("pyfusekit.core.")
        seen.add(module)
        ours = {i.removeprefix("pyfusekit.core.") for i in imports_of(name, path) if i.startswith("pyfusekit.core.")}
        assert ours - CORE[module] == set(), module
    assert seen == set(CORE)


@pytest.mark.parametrize("module", sorted(WITHOUT_IO))
def test_protocol_rooms_see_no_loop_and_no_descriptor(module: str) -> None:
    found = imports_of(f"pyfusekit.core.{module}", PACKAGE / "core" / f"{module}.py")
    assert not found & {"asyncio", "os", "socket", "select"}


@pytest.mark.parametrize("module", ["fusermount", "mount", "mounterrors", "mountinfo", "mountpoints"])
def test_mounting_knows_no_loop(module: str) -> None:
    assert "asyncio" not in imports_of(f"pyfusekit.core.{module}", PACKAGE / "core" / f"{module}.py")


def test_asyncfd_knows_no_fuse() -> None:
    text = (PACKAGE / "core/asyncfd.py").read_text()
    assert "FUSE" not in text
    assert "fuse" not in text


def test_filesystems_never_see_click_and_load_backends_late() -> None:
    for name, path in modules():
        if name.startswith("pyfusekit.fs"):
            assert "click" not in imports_of(name, path), name
            top = {imported.split(".")[0] for imported in imports_of(name, path, top_level_only=True)}
            assert not top & NEVER_AT_IMPORT, name


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "bad.py"
    wrong.write_text("def f():\n    from pyfusekit.core.abi import OPS\n")
    assert violations("pyfusekit.fs.memfs.bad", wrong) == ["pyfusekit.fs.memfs.bad imports pyfusekit.core.abi"]
