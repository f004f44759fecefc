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
    names = ", ".join(entry.name for entry in registry.BUNDLED)
    assert caught.value.remedy.startswith(f"there are: {names}")
    assert caught.value.code == USAGE
    with pytest.raises(Failure, match=r"no such filesystem$"):
        registry.find("zzzzzz")


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("url", "name"),
    [("s3://bucket/x", "s3"), ("S3://bucket", "s3"), ("mem://", "mem"), ("odd://x", "odd"), ("broken://", "broken")],
)
def test_a_url_means_the_filesystem_of_its_scheme(url: str, name: str) -> None:
    assert registry.is_url(url)
    assert registry.of_url(url).name == name


def test_a_url_of_a_bundled_filesystem_is_found_without_scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "plugins", lambda: pytest.fail("scanned"))
    assert registry.of_url("s3://b").name == "s3"


def test_no_scheme_is_two_filesystems() -> None:
    schemes = registry.url_schemes()
    assert len(schemes) == len(set(schemes))
    assert all(entry.name not in schemes or entry.name in entry.schemes for entry in registry.BUNDLED)


@pytest.mark.usefixtures("odd")
def test_an_unknown_scheme_is_answered_with_the_closest() -> None:
    with pytest.raises(Failure) as caught:
        registry.of_url("od://x")
    assert caught.value.cause == "od: no filesystem has such URLs; did you mean odd?"
    assert caught.value.remedy.startswith(f"a URL begins with: {', '.join(registry.url_schemes())}, ")
    assert caught.value.code == USAGE


@pytest.mark.parametrize("word", ["mem", "/a://b", "a:b", "./s3://x", "://x", "", "@work"])
def test_what_is_no_url_is_a_name(word: str) -> None:
    assert not registry.is_url(word)
