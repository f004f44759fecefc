from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyfusekit.core.options import Duration, Mode, Secret, Size, Url, option
from pyfusekit.service import options
from pyfusekit.service import values as values_
from pyfusekit.service.exits import ACCESS, USAGE, Failure
from pyfusekit.service.options import CommonOptions, Value


@dataclass(frozen=True)
class Everything:
    part_size: Size = option(Size(8 << 20), help="A size.", group="Upload")
    write_back: bool = option(False, help="A flag.")
    region: str = option("", help="A text.", env="AWS_REGION")
    storage_class: str = option("STANDARD", help="A choice.", choices=("STANDARD", "GLACIER"))
    secret_key: Secret | None = option(None, help="A secret.", env="AWS_SECRET_ACCESS_KEY")
    ttl: Duration = option(Duration(1.0), help="A duration.")
    file_mode: Mode = option(Mode(0o644), help="A mode.")
    endpoint: Url | None = option(None, help="A URL.")
    workers: int = option(4, help="A number.")
    ratio: float = option(0.5, help="A fraction.")

    def __post_init__(self) -> None:
        if self.workers == 0:
            raise ValueError("workers must be 1 or more")


SPECS = options.all_specs(Everything)


def resolve(flags: dict[str, object] | None = None, words: tuple[str, ...] = (), **environ: str) -> dict[str, Value]:
    return options.resolve(SPECS, "s3", flags or {}, words, environ)


def refused(flags: dict[str, object] | None = None, words: tuple[str, ...] = (), **environ: str) -> Failure:
    with pytest.raises(Failure) as caught:
        resolve(flags, words, **environ)
    assert caught.value.remedy
    assert "\n" not in caught.value.cause
    return caught.value


# --- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("512", 512),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("8MiB", 8 << 20),
        ("8mib", 8 << 20),
        ("8MB", 8 << 20),
        ("100B", 100),
        ("1G", 1 << 30),
        ("1.5G", 3 << 29),
        (" 2T ", 2 << 40),
        ("7E", 7 << 60),
    ],
)
def test_a_size_is_written_with_units_of_1024(text: str, expected: int) -> None:
    assert values_.parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "3x", "-1", "K", "1.5", "8E", "1e3", "0x10", "1_000", "nan", "inf", "1 K B", "²", "8MiBB", "9" * 5000]
)
def test_what_is_no_size_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write 8MiB, 512K, 1G") as caught:
        values_.parse_size(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30.0), ("1.5s", 1.5), ("200ms", 0.2), ("5m", 300.0), ("2h", 7200.0), ("1d", 86400.0), ("off", float("inf"))],
)
def test_a_duration_is_written_with_its_unit(text: str, expected: float) -> None:
    assert values_.parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "s", "-1s", "3x", "inf", "nan", "1_0", "5 minutes", "9" * 400])
def test_what_is_no_duration_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write 30s"):
        values_.parse_duration(text)


def test_a_mode_is_octal() -> None:
    assert values_.parse_mode("0755") == 0o755
    assert values_.parse_mode("0o1777") == 0o1777
    for text in ("", "755x", "888", "10000", "-1", "²"):
        with pytest.raises(ValueError, match="is not a mode; write it in octal"):
            values_.parse_mode(text)


@pytest.mark.parametrize("text", ["", "localhost:9000", "http://", "http:///x", "://h", "http://a b/", "1://h", "http://u@/"])
def test_a_url_needs_scheme_and_host(text: str) -> None:
    assert values_.parse_url("http://127.0.0.1:9000/x") == "http://127.0.0.1:9000/x"
    with pytest.raises(ValueError, match="is not a URL"):
        values_.parse_url(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "x", ""])
def test_a_number_is_finite(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        values_.parse_float(text)


def test_values_are_shown_as_they_are_written() -> None:
    shown = {spec.name: spec.show(spec.default) for spec in SPECS}
    assert shown["part_size"] == "8M"
    assert shown["ttl"] == "1s"
    assert shown["file_mode"] == "0644"
    assert shown["write_back"] == "no"
    assert shown["endpoint"] == ""
    assert shown["ratio"] == "0.5"


# --- -o -----------------------------------------------------------------------------------------------------------------


def test_words_are_split_at_commas_that_are_not_escaped() -> None:
    assert options.split_words(r"a,b=c\,d,,e=\\,f=\x,g\\"[:-1]) == ["a", "b=c,d", "e=\\", r"f=\x", "g\\"]


def test_words_take_dashes_and_underscores_alike() -> None:
    for word in ("part-size=16MiB", "part_size=16MiB"):
        assert resolve(words=(word,))["part_size"] == Value(16 << 20, "-o")


def test_a_flag_is_switched_on_and_off_by_words() -> None:
    assert resolve(words=("write_back",))["write_back"].value is True
    assert resolve(words=("write-back=yes",))["write_back"].value is True
    assert resolve(words=("write-back", "no-write-back"))["write_back"].value is False
    assert resolve(words=("write_back=off",))["write_back"].value is False
    assert resolve(words=("ro",))["ro"].value is True
    assert resolve(words=("ro,rw",))["ro"].value is False
    assert resolve(words=("dev,suid,exec,async,atime",))["nodev"].value is False


def test_the_last_of_equal_words_counts() -> None:
    assert resolve(words=("workers=1,workers=2", "workers=3"))["workers"].value == 3


def test_words_of_mount_8_and_fstab_are_accepted_in_silence() -> None:
    fstab = "_netdev,nofail,user,users,noauto,auto,x-systemd.automount,x-gvfs-show,comment=a,defaults,nouser,relatime,user=anna"
    before = resolve()
    assert resolve(words=(fstab, "strictatime,exec,async,atime,rw")) == {
        name: Value(value.value, "-o") if name in ("noexec", "sync", "noatime", "ro") else value
        for name, value in before.items()
    }


def test_an_unknown_word_is_refused_with_the_closest_known_one() -> None:
    failure = refused(words=("part-siz=1",))
    assert failure.cause == "-o part-siz: no such option; did you mean part_size?"
    assert failure.code == USAGE
    assert "part_size" in failure.remedy
    assert refused(words=("nosuchopt=3",)).cause.startswith("-o nosuchopt: no such option")
    assert "allow_other" in refused(words=("allow_othr",)).cause


def test_a_word_without_the_value_it_needs_is_refused() -> None:
    assert refused(words=("part-size",)).cause == "-o part-size: a value is missing"
    assert refused(words=("rw=1",)).cause == "-o rw: it takes no value"
    assert "neither yes nor no" in refused(words=("ro=maybe",)).cause


def test_a_secret_is_refused_as_a_word() -> None:
    failure = refused(words=("secret_key=x",))
    assert "a secret cannot be given here; /etc/fstab and the process list are readable by everyone" in failure.cause
    assert failure.remedy == "use secret-key-file=PATH"
    assert refused(words=("secret-key",)).code == USAGE


# --- origins ------------------------------------------------------------------------------------------------------------


def test_the_command_line_is_stronger_than_words_and_those_than_the_environment() -> None:
    environ = {"PYFUSEKIT_S3_REGION": "mine", "AWS_REGION": "amazon"}
    assert resolve({"region": "flag"}, ("region=word",), **environ)["region"] == Value("flag", "command line")
    assert resolve({}, ("region=word",), **environ)["region"] == Value("word", "-o")
    assert resolve(**environ)["region"] == Value("mine", "$PYFUSEKIT_S3_REGION")
    assert resolve(AWS_REGION="amazon")["region"] == Value("amazon", "$AWS_REGION")
    assert resolve()["region"] == Value("", "default")


def test_a_flag_of_the_command_line_can_be_no() -> None:
    assert resolve({"write_back": False}, ("write_back",))["write_back"] == Value(False, "command line")


def test_common_options_have_a_variable_for_all_filesystems_and_one_for_each() -> None:
    assert resolve(PYFUSEKIT_ALLOW_OTHER="yes")["allow_other"] == Value(True, "$PYFUSEKIT_ALLOW_OTHER")
    both = resolve(PYFUSEKIT_ALLOW_OTHER="yes", PYFUSEKIT_S3_ALLOW_OTHER="no")
    assert both["allow_other"] == Value(False, "$PYFUSEKIT_S3_ALLOW_OTHER")
    assert resolve(PYFUSEKIT_REGION="x")["region"].origin == "default"


def test_a_bad_value_names_where_it_was_given() -> None:
    assert refused({"part_size": "3x"}).cause == "--part-size: '3x' is not a size; write 8MiB, 512K, 1G ..."
    assert refused(words=("part-size=3x",)).cause == "-o part-size: '3x' is not a size; write 8MiB, 512K, 1G ..."
    assert refused(PYFUSEKIT_S3_PART_SIZE="3x").cause.startswith("$PYFUSEKIT_S3_PART_SIZE: '3x'")
    assert "pyfusekit mount s3 --help" in refused({"part_size": "3x"}).remedy


def test_a_value_that_is_no_choice_gets_the_closest_one() -> None:
    assert refused({"storage_class": "GLACIAR"}).cause.endswith(
        "'GLACIAR' is not one of STANDARD, GLACIER; did you mean GLACIER?"
    )


def test_the_filesystems_own_check_is_the_persons_mistake() -> None:
    with pytest.raises(Failure, match="workers must be 1 or more") as caught:
        options.build(Everything, "s3", resolve({"workers": "0"}))
    assert caught.value.code == USAGE


def test_values_become_the_declared_dataclass() -> None:
    built = options.build(Everything, "s3", resolve({"part_size": "1K", "ttl": "off", "file_mode": "600", "ratio": "0.25"}))
    assert built == Everything(part_size=Size(1024), ttl=Duration(float("inf")), file_mode=Mode(0o600), ratio=0.25)
    assert options.build(CommonOptions, "s3", resolve()) == CommonOptions()


# --- secrets ------------------------------------------------------------------------------------------------------------


def test_a_secret_comes_from_a_file_without_the_line_end(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hunter2 \n")
    for value in (
        resolve({"secret_key": str(file)}),
        resolve(words=(f"secret-key-file={file}",)),
        resolve(PYFUSEKIT_S3_SECRET_KEY_FILE=str(file)),
    ):
        assert value["secret_key"].value == "hunter2 "
        assert isinstance(value["secret_key"].value, Secret)
        assert str(file) in value["secret_key"].origin
    assert resolve(AWS_SECRET_ACCESS_KEY="hunter2")["secret_key"].value == "hunter2"


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    values = resolve(AWS_SECRET_ACCESS_KEY="hunter2")
    described = options.described(SPECS, values)
    assert described["secret_key"] == {"value": "***", "origin": "$AWS_SECRET_ACCESS_KEY"}
    assert "hunter2" not in repr(values["secret_key"])
    assert "hunter2" not in repr(options.build(Everything, "s3", values))
    assert options.described(SPECS, resolve())["secret_key"]["value"] == ""


def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    failure = refused({"secret_key": str(tmp_path / "none")})
    assert failure.code == ACCESS
    assert failure.cause == f"--secret-key-file: cannot read {tmp_path}/none: No such file or directory"
    (tmp_path / "binary").write_bytes(b"\xff")
    assert "it is not text" in refused({"secret_key": str(tmp_path / "binary")}).cause


def test_passwords_in_urls_are_not_shown() -> None:
    assert values_.redacted_source("s3://bucket/a@b") == "s3://bucket/a@b"
    assert values_.redacted_source("https://anna:pw@host:1/x") == "https://host:1/x"
    assert values_.redacted_source("bucket/x@y") == "bucket/x@y"
    values = resolve({"endpoint": "https://anna:pw@host/"})
    assert options.described(SPECS, values)["endpoint"]["value"] == "https://host/"


# --- declarations -------------------------------------------------------------------------------------------------------


def test_what_is_declared_wrongly_is_its_authors_bug() -> None:
    @dataclass
    class Bare:
        size: int = 3

    @dataclass
    class Listed:
        names: list[str] = field(default_factory=list, metadata={"help": "x"})

    @dataclass
    class Unknown:
        where: complex = option(1j, help="x")

    @dataclass
    class Clash:
        ro: bool = option(False, help="x")

    for wrong in (Bare, Listed):
        with pytest.raises(TypeError, match="not made with option"):
            options.specs(wrong)
    with pytest.raises(TypeError, match="a type that options cannot have"):
        options.specs(Unknown)
    with pytest.raises(TypeError, match="declares ro"):
        options.all_specs(Clash)


def test_a_filesystem_without_options_has_the_common_ones() -> None:
    class NoOptions:
        pass

    assert options.all_specs(NoOptions) == options.COMMON
    assert isinstance(options.build(NoOptions, "x", {}), NoOptions)


def test_a_filesystems_own_rw_is_not_the_opposite_of_ro() -> None:
    @dataclass
    class Writes:
        rw: bool = option(False, help="x")

    declared = options.all_specs(Writes)
    words = {spec.name: (spec.kebab, spec.opposite) for spec in declared if spec.name in ("ro", "rw", "noexec")}
    assert words == {"ro": ("ro", "no-ro"), "rw": ("rw", "no-rw"), "noexec": ("noexec", "exec")}
    assert options.parse_words(declared, ["rw"]) == {"rw": Value(True, "-o")}
    assert options.parse_words(options.COMMON, ["rw"]) == {"ro": Value(False, "-o")}
