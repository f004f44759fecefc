"""Values as a person writes them: sizes, times, modes, URLs. What is wrong with one is a ValueError, in a person's words."""

from __future__ import annotations

from pyfusekit.core.options import Duration, Mode, Size, Url

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_SIZE_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> Size:
    """Return bytes: 512, 64K, 8MiB, 1.5G; all units are powers of 1024."""
    number, unit = text.strip().upper(), ""
    for suffix in ("IB", "B"):
        if number.endswith(suffix):
            number = number[: -len(suffix)]
            break
    if number[-1:] in _SIZE_UNITS:
        number, unit = number[:-1], number[-1:]
    size = -1
    if 0 < len(number) < 30 and not number.strip("0123456789.") and number.count(".") < 2 and number[0] != ".":
        # Whole numbers stay whole: a float has 53 bits.
        exact = float(number) * (1 << _SIZE_UNITS[unit]) if "." in number else int(number) << _SIZE_UNITS[unit]
        size = int(exact) if unit or exact == int(exact) else -1
    if not 0 <= size < 1 << 63:
        raise ValueError(f"{text!r} is not a size; write 8MiB, 512K, 1G ...")
    return Size(size)


def parse_duration(text: str) -> Duration:
    """Return seconds: 30, 1.5s, 200ms, 5m, 2h, 1d; off is without end."""
    number = text.strip().lower()
    if number == "off":
        return Duration(float("inf"))
    factor = 1.0
    for unit in ("ms", "s", "m", "h", "d"):
        if number.endswith(unit):
            number, factor = number[: -len(unit)], _DURATION_UNITS[unit]
            break
    try:
        seconds = float(number) * factor
        valid = number[:1].isdecimal() and "_" not in number and seconds < float("inf")
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{text!r} is not a duration; write 30s, 1.5s, 5m, 2h or off")
    return Duration(seconds)


def parse_mode(text: str) -> Mode:
    """Return permission bits, written in octal."""
    digits = text.strip().removeprefix("0o")
    if not digits or any(digit not in "01234567" for digit in digits) or int(digits, 8) > 0o7777:
        raise ValueError(f"{text!r} is not a mode; write it in octal, 0755")
    return Mode(int(digits, 8))


def parse_url(text: str) -> Url:
    """Return an absolute URL; scheme and host must be there."""
    scheme, separator, rest = text.partition("://")
    host = rest.split("/", 1)[0].rpartition("@")[2]
    if not separator or not scheme.isascii() or not scheme[:1].isalpha() or not host or any(c.isspace() for c in text):
        raise ValueError(f"{text!r} is not a URL; write http://host:port/ or https://host/")
    return Url(text)


def parse_flag(text: str) -> bool:
    """Return yes or no."""
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError(f"{text!r} is neither yes nor no; write yes or no")


def parse_int(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number; write 64") from None


def parse_float(text: str) -> float:
    """Return a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{text!r} is not a number; write 1.5")
    return number


def redacted_source(source: str) -> str:
    """Return a source without the user and password its URL may carry: mountinfo and ps show it to everyone."""
    scheme, separator, rest = source.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else source
