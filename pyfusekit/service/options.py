"""One declared dataclass becomes flags, -o words and environment variables; every value keeps its origin.

A filesystem declares its options with core.options.option(); CommonOptions here are those of every mount. Their order of
precedence, first wins: command line, -o, PYFUSEKIT_<FS>_<OPTION>, PYFUSEKIT_<OPTION> (common ones), the option's own
environment variable, the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, NamedTuple, get_args, get_type_hints

from pyfusekit.core.options import Duration, Mode, Secret, Size, Url, option

from .exits import ACCESS, USAGE, Failure
from .values import (
    parse_duration,
    parse_flag,
    parse_float,
    parse_int,
    parse_mode,
    parse_size,
    parse_url,
    redacted_source,
)
from .words import did_you_mean, duration_text, size_text

OPPOSITES = {"ro": "rw", "nosuid": "suid", "nodev": "dev", "noexec": "exec", "noatime": "atime", "sync": "async"}
"""What mount(8) calls the other side of its own words; every other flag's opposite is no-FLAG."""

_IGNORED_WORDS = """
    _netdev nofail user users nouser owner group auto noauto defaults relatime norelatime strictatime nostrictatime
    lazytime nolazytime diratime nodiratime mand nomand iversion noiversion silent loud
"""
"""mount(8)'s and fstab's words that mean nothing to a FUSE mount; they are accepted so that fstab lines work."""

_IGNORED = frozenset(_IGNORED_WORDS.split())
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")


@dataclass(frozen=True)
class CommonOptions:
    """The options of every mount, whatever the filesystem."""

    ro: bool = option(False, help="Mount read-only.", group="Mount")
    allow_other: bool = option(False, help="Let other users in; they are checked by modes and owners.", group="Mount")
    default_permissions: bool | None = option(
        None, help="Let the kernel check permissions; the filesystem decides when not given.", group="Mount"
    )
    nosuid: bool = option(True, help="Ignore set-user-id and set-group-id bits.", group="Mount")
    nodev: bool = option(True, help="Device nodes open nothing.", group="Mount")
    noexec: bool = option(False, help="Nothing can be executed.", group="Mount")
    noatime: bool = option(False, help="The kernel keeps no access times; a filesystem may all the same.", group="Mount")
    sync: bool = option(False, help="Every write is synchronous.", group="Mount")
    dirsync: bool = option(False, help="Every change of a directory is synchronous.", group="Mount")
    nonempty: bool = option(False, help="Mount over a directory that is not empty.", group="Mount")
    fsname: str = option("", help="What mountinfo and df show as the source.", group="Mount")
    max_read: Size = option(Size(0), help="Most bytes of one read request; 0 leaves it to the kernel.", group="Kernel")
    max_background: int | None = option(None, help="Readahead and write-back requests in flight at a time.", group="Kernel")
    attr_timeout: Duration | None = option(None, help="How long the kernel may believe attributes.", group="Kernel")
    entry_timeout: Duration | None = option(None, help="How long the kernel may believe names.", group="Kernel")
    negative_timeout: Duration | None = option(
        None, help="How long the kernel may believe that a name does not exist.", group="Kernel"
    )
    log: str = option("", help="Where the log goes: a file, syslog or stderr.", group="Logging", metavar="TARGET")
    log_level: str = option(
        "info", help="What is worth a line in the log.", group="Logging", choices=("debug", "info", "warning", "error")
    )


class Kind(NamedTuple):
    """How values of one type are written and shown."""

    metavar: str
    parse: Callable[[str], Any]
    """Raises ValueError with what is wrong, in a person's words."""
    show: Callable[[Any], str]


class Spec(NamedTuple):
    """One option, as declared."""

    name: str
    kind: Kind
    default: Any
    help: str
    group: str
    env: str
    choices: tuple[str, ...]
    is_flag: bool
    is_secret: bool
    common: bool
    taken: tuple[str, ...] = ()
    """Of a common flag: the filesystem's own options, one of which may have the name of its opposite."""

    @property
    def kebab(self) -> str:
        """The name as the command line spells it."""
        return self.name.replace("_", "-")

    @property
    def opposite(self) -> str:
        """The word that switches a flag off: mount(8)'s, unless that is an option of the filesystem (http's rw)."""
        word = OPPOSITES.get(self.name, "")
        return word if word and word not in self.taken else f"no-{self.kebab}"

    def parse(self, text: str) -> Any:
        """Return *text* as a value; ValueError says what is wrong with it."""
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}{did_you_mean(text, self.choices)}")
        return self.kind.parse(text)

    def show(self, value: Any) -> str:
        """Return *value* as it would be written; a secret is never shown."""
        if value is None:
            return ""
        if self.is_secret:
            return "***" if value else ""
        return self.kind.show(value)


class Value(NamedTuple):
    """A value and where it came from."""

    value: Any
    origin: str
    """"command line", "-o", "$VARIABLE" or "default"; a secret's file is named too."""


_KINDS: tuple[tuple[Any, Kind], ...] = (
    (bool, Kind("", parse_flag, lambda value: "yes" if value else "no")),
    (Size, Kind("SIZE", parse_size, size_text)),
    (Duration, Kind("TIME", parse_duration, duration_text)),
    (Mode, Kind("MODE", parse_mode, lambda value: f"{value:04o}")),
    (Url, Kind("URL", parse_url, lambda value: redacted_source(str(value)))),
    (Secret, Kind("PATH", Secret, lambda value: "***")),
    (int, Kind("NUMBER", parse_int, str)),
    (float, Kind("NUMBER", parse_float, lambda value: f"{value:g}")),
    (str, Kind("TEXT", str, str)),
)


def specs(options: type[Any], *, common: bool = False) -> tuple[Spec, ...]:
    """Return the options a dataclass declares, in its order; a class that is no dataclass has none.

    TypeError says what a declaration lacks: that is its author's bug.
    """
    if not is_dataclass(options):
        return ()
    hints = get_type_hints(options)
    found = []
    for field in fields(options):
        if "help" not in field.metadata or field.default is MISSING:
            raise TypeError(f"{options.__name__}.{field.name} is not made with option()")
        found.append(_spec(options, field.name, hints[field.name], field.default, field.metadata, common))
    return tuple(found)


def _spec(owner: type[Any], name: str, hint: Any, default: Any, meta: Mapping[str, Any], common: bool) -> Spec:
    bare = [kind for kind in get_args(hint) if kind is not type(None)]
    declared = bare[0] if len(bare) == 1 else hint
    kind = next((kind for of, kind in _KINDS if of is declared), None)
    if kind is None:
        raise TypeError(f"{owner.__name__}.{name} has a type that options cannot have: {declared!r}")
    metavar = meta["metavar"] or ("|".join(meta["choices"]) if meta["choices"] else kind.metavar)
    return Spec(
        name,
        kind._replace(metavar=metavar),
        default,
        meta["help"],
        meta["group"],
        meta["env"],
        meta["choices"],
        declared is bool,
        declared is Secret,
        common,
    )


COMMON = specs(CommonOptions, common=True)


def all_specs(options: type[Any]) -> tuple[Spec, ...]:
    """Return the filesystem's options and the common ones; one name must not mean two things."""
    own = specs(options)
    clash = {spec.name for spec in own} & {spec.name for spec in COMMON}
    if clash:
        raise TypeError(f"{options.__name__} declares {', '.join(sorted(clash))}, which every mount has")
    names = tuple(spec.name for spec in own)
    return own + tuple(spec._replace(taken=names) if OPPOSITES.get(spec.name) in names else spec for spec in COMMON)


def split_words(text: str) -> list[str]:
    r"""Return the words of one -o argument; "\," is a comma inside a word, "\\" a backslash."""
    words, word, escaped = [], "", False
    for char in text:
        if escaped:
            word += char if char in ",\\" else "\\" + char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == ",":
            words.append(word)
            word = ""
        else:
            word += char
    words.append(word + "\\" if escaped else word)
    return [word for word in words if word]


def parse_words(declared: Sequence[Spec], arguments: Iterable[str]) -> dict[str, Value]:
    """Return what -o arguments set: raw text, or a bool for a flag. mount(8)'s own words are passed over in silence."""
    by_name = {spec.name: spec for spec in declared}
    by_opposite = {spec.opposite.replace("-", "_"): spec for spec in declared if spec.is_flag}
    found: dict[str, Value] = {}
    for argument in arguments:
        for word in split_words(argument):
            key, has_value, text = word.partition("=")
            name = key.strip().replace("-", "_")
            spec = by_name.get(name)
            off = by_opposite.get(name)
            if spec is not None:
                found[spec.name] = _word(spec, key, text if has_value else None)
            elif off is not None:
                if has_value:
                    raise _bad(f"-o {key}: it takes no value", declared)
                found[off.name] = Value(False, "-o")
            elif name.endswith("_file") and (secret := by_name.get(name.removesuffix("_file"))) and secret.is_secret:
                found[secret.name] = Value(read_secret(text, f"-o {key}"), f"-o, file {text}")
            elif not (word in _IGNORED or key in _IGNORED or word.startswith(_IGNORED_PREFIXES)):
                known = [spec.name for spec in declared if not spec.is_secret] + list(by_opposite)
                raise _bad(f"-o {key}: no such option{did_you_mean(name, known)}", declared)
    return found


def _word(spec: Spec, key: str, text: str | None) -> Value:
    """Return the value of one -o word; *text* is None when it has no "="."""
    if spec.is_secret:
        raise Failure(
            f"-o {key}: a secret cannot be given here; /etc/fstab and the process list are readable by everyone",
            f"use {spec.kebab}-file=PATH",
            code=USAGE,
        )
    if text is not None:
        return Value(text, "-o")
    if not spec.is_flag:
        raise Failure(f"-o {key}: a value is missing", f"write -o {key}={spec.kind.metavar}", code=USAGE)
    return Value(True, "-o")


def _bad(cause: str, declared: Sequence[Spec]) -> Failure:
    words = " ".join(spec.name for spec in declared if not spec.is_secret and not spec.common)
    return Failure(cause, f"this filesystem's own options: {words}" if words else "pyfusekit mount FS --help", code=USAGE)


def read_secret(path: str, where: str) -> Secret:
    """Return the secret kept in a file, without the line's end."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(1 << 16)
    except (OSError, UnicodeDecodeError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise Failure(f"{where}: cannot read {path}: {reason}", "name a file that holds the secret", code=ACCESS) from exc
    return Secret(text.rstrip("\r\n"))


def from_environment(spec: Spec, fs: str, environ: Mapping[str, str]) -> Value | None:
    """Return the value the environment gives *spec*, as raw text."""
    own = spec.name.upper()
    names = [f"PYFUSEKIT_{fs.upper().replace('-', '_')}_{own}"]
    if spec.common:
        names.append(f"PYFUSEKIT_{own}")
    for name in names:
        if name in environ:
            return Value(environ[name], f"${name}")
        if spec.is_secret and f"{name}_FILE" in environ:
            path = environ[f"{name}_FILE"]
            return Value(read_secret(path, f"${name}_FILE"), f"${name}_FILE, file {path}")
    if spec.env and environ.get(spec.env):
        return Value(environ[spec.env], f"${spec.env}")
    return None


def resolve(
    declared: Sequence[Spec], fs: str, flags: Mapping[str, Any], words: Iterable[str], environ: Mapping[str, str]
) -> dict[str, Value]:
    """Return every option's value with its origin; Failure names the first bad one.

    *flags* holds what the command line said: text, a bool for a flag, a path for a secret, None or nothing where it said
    nothing. *words* are the -o arguments.
    """
    from_words = parse_words(declared, words)
    resolved = {}
    for spec in declared:
        given = flags.get(spec.name)
        if given is not None and spec.is_secret:
            where = f"--{spec.kebab}-file"
            raw = Value(read_secret(given, where), f"command line, file {given}")
        elif given is not None:
            raw, where = Value(given, "command line"), f"--{spec.kebab}"
        elif spec.name in from_words:
            raw, where = from_words[spec.name], f"-o {spec.kebab}"
        elif (found := from_environment(spec, fs, environ)) is not None:
            raw, where = found, found.origin
        else:
            raw, where = Value(spec.default, "default"), ""
        resolved[spec.name] = _parsed(spec, raw, fs, where)
    return resolved


def _parsed(spec: Spec, raw: Value, fs: str, where: str) -> Value:
    if raw.origin == "default" or not isinstance(raw.value, str):
        return raw
    try:
        return Value(spec.parse(raw.value), raw.origin)
    except ValueError as exc:
        raise Failure(f"{where}: {exc}", f"pyfusekit mount {fs} --help says what each option takes", code=USAGE) from exc


def build(options: type[Any], fs: str, values: Mapping[str, Value]) -> Any:
    """Return an instance of *options*; a ValueError of its own checks is the person's mistake."""
    if not is_dataclass(options):
        return options()
    names = [field.name for field in fields(options)]
    try:
        return options(**{name: values[name].value for name in names})
    except ValueError as exc:
        raise Failure(str(exc), f"pyfusekit mount {fs} --help says what each option takes", code=USAGE) from exc


def described(declared: Sequence[Spec], values: Mapping[str, Value]) -> dict[str, dict[str, str]]:
    """Return the options as status shows them: each as it would be written, secrets redacted, with its origin."""
    return {spec.name: {"value": spec.show(values[spec.name].value), "origin": values[spec.name].origin} for spec in declared}
