from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from commandline import REPOSITORY, install_odd

from pyfusekit.core.filesystem import Filesystem
from pyfusekit.service import registry
from pyfusekit.service.exits import USAGE, Failure


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package odd is installed."""
    install_odd(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("odd", "odd_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_table_is_what_pyproject_registers() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {entry.name: entry.target for entry in registry.BUNDLED} == project["entry-points"][registry.GROUP]


@pytest.mark.parametrize("entry", registry.BUNDLED, ids=lambda entry: entry.name)
def test_the_table_says_of_a_filesystem_what_its_class_says(entry: registry.Entry) -> None:
    loaded = registry.load(entry)
    assert issubclass(loaded, Filesystem)
    assert loaded.summary == entry.summary


def test_a_bundled_name_is_found_without_scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan() -> object:
        raise AssertionError("scanned")

    monkeypatch.setattr(registry, "plugins", scan)
    assert registry.find("mem").target == "pyfusekit.fs.memfs:MemFS"


@pytest.mark.usefixtures("odd")
def test_a_plugin_is_found_by_its_entry_point() -> None:
    entry = registry.find("odd")
    assert entry.distribution == "pyfusekit-odd"
    assert registry.load(entry).summary == "Misbehaves as its source says."


@pytest.mark.usefixtures("odd")
def test_plugins_are_listed_without_importing_them() -> None:
    found, _ = registry.plugins()
    assert [(entry.name, entry.summary) for entry in found if entry.distribution == "pyfusekit-odd"] == [
        ("broken", "from pyfusekit-odd"),
        ("notfs", "from pyfusekit-odd"),
        ("odd", "from pyfusekit-odd"),
    ]
    assert "odd" not in sys.modules
    assert "odd_broken" not in sys.modules


@pytest.mark.usefixtures("odd")
def test_a_plugin_cannot_take_a_bundled_name() -> None:
    assert registry.find("mem").target == "pyfusekit.fs.memfs:MemFS"
    _, complaints = registry.plugins()
    assert complaints == ["filesystem 'mem' of pyfusekit-odd is not used: pyfusekit has that name"]


@pytest.mark.usefixtures("odd")
def test_a_broken_plugin_is_one_line_that_names_it() -> None:
    with pytest.raises(Failure) as caught:
        registry.load(registry.find("broken"))
    assert caught.value.cause == "filesystem 'broken' (from pyfusekit-odd) cannot be loaded: RuntimeError: odd is broken"
    assert caught.value.remedy == "pip install --upgrade pyfusekit-odd"
    with pytest.raises(Failure, match="is not a Filesystem"):
        registry.load(registry.find("notfs"))


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(Failure) as caught:
        registry.find("men")
    assert caught.value.cause == "men: no such filesystem; did you mean mem?"
    assert caught.value.remedy.startswith("there are: mem, s3")
    assert caught.value.code == USAGE
    with pytest.raises(Failure, match=r"no such filesystem$"):
        registry.find("zzzzzz")


def test_a_url_in_place_of_the_name_says_how_to_write_it() -> None:
    with pytest.raises(Failure) as caught:
        registry.find("s3://bucket/x")
    assert caught.value.remedy == "pyfusekit mount s3 s3://bucket/x MOUNTPOINT"
