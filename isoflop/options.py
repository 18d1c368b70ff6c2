"""What a field of a configuration may hold: default, help and bounds in one place, all mistakes in one message.

    @dataclass(frozen=True)
    class SampleConfig:
        ckpt: str | None = option(None, "folder that train.py wrote", group="model")
        top_p: float = option(1.0, "draw from the tokens with this total probability", group="sampling", above=0, max=1)
        seed: int = option(0, "seed of the first sample", min=0)  # in the group "sampling", too

        def __post_init__(self):
            check(self)

    SampleConfig(top_p=2, seed=-1)  # UserError: --top_p 2 must be above 0 and at most 1; --seed -1 must be at least 0

cli.py turns the fields into flags.
"""

import dataclasses
import decimal
import errno
import math
import numbers
import re
import sys

MOST_SHOWN = 60  # characters of a value in a message
MOST_DIGITS = 30  # of a typed integer: more is a slip, and 1e999999999 would fill the memory
INT64 = 2**63
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a system says that has no room
WAYS_OUT = {
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its symbolic links lead to each other: name another path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of the path is a file: name another path",
    errno.EACCES: "name another path, or change its permissions",
    errno.EPERM: "name another path, or change its permissions",
    errno.EROFS: "name a path that can be written",
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) and run the same command again",
    errno.EIO: "the disk or network drive fails: name a path on another",
}


class UserError(ValueError):
    """A mistake in what was asked for. The message is one line: the flag, its value and a way out."""


def explain(problem) -> str:
    """An exception, or a text, as one sentence for the user: of an OSError path, reason and a way out."""
    if isinstance(problem, ModuleNotFoundError) and problem.name:
        package = problem.name.partition(".")[0]
        return f"the package {package} is missing; install it: pip install {package}"
    if not isinstance(problem, OSError) or not problem.strerror:
        return str(problem) or type(problem).__name__
    text = problem.strerror
    if problem.filename is not None:
        text = f"{problem.filename2 or problem.filename}: {text}"  # of two, as in a copy, the one that is written
    if problem.errno in WAYS_OUT:
        text += f"; {WAYS_OUT[problem.errno]}"
    return text


# ----- fields -----


def option(
    default, help, *, choices=None, min=None, max=None, above=None, below=None, hint=None, group=None, aliases=(),
    const=None, flag=True, hidden=False, rare=False, repeat=False, metavar=None,
):  # fmt: skip
    """A dataclass field that is also a flag.

    choices : the values that are allowed.
    min, max, above, below : bounds of a number, the last two exclusive. Floats must be finite in any case.
    hint : the way out, for a value that is out of bounds: "leave it out for no limit".
    group : title in --help of this field and of those below it, up to the next group.
    aliases : other names of the flag, not shown.
    const : value of the flag when it is given without one.
    flag : False for a field that is checked but is no flag.
    hidden : True for a flag that --help does not show.
    rare : True for a key of `--model key=value ...`; its own flag still works and is not shown.
    repeat : True for a flag that may be given several times, for a tuple field.
    """
    metadata = dict(locals())  # every argument by its name
    del metadata["default"]
    return dataclasses.field(default=default, metadata=metadata)


def options_of(config) -> list[dataclasses.Field]:
    """The fields of a dataclass, or of an instance, that were made by option()."""
    return [f for f in dataclasses.fields(config) if "help" in f.metadata]


def type_of(f) -> type:
    """bool, int, float or str: the first of them in the annotation."""
    found = re.search(r"\b(bool|int|float|str)\b", str(f.type))
    return {"bool": bool, "int": int, "float": float}.get(found and found[0], str)


def is_many(f) -> bool:
    return "tuple" in str(f.type)


def default_text(f) -> str:
    """A field's default as a person types it; empty for None and for an empty tuple."""
    if f.default is None:
        return ""
    if isinstance(f.default, bool):
        return str(f.default).lower()
    if isinstance(f.default, tuple):
        return " ".join(_shown(x) for x in f.default)
    return _shown(f.default)


# ----- numbers -----


def integer(text: str) -> int:
    """'5000', '5_000' or '5e3' as an int; UserError for '1.5', 'nan', 'inf' and '5k'."""
    try:
        value = decimal.Decimal(text)
    except decimal.InvalidOperation:
        value = decimal.Decimal("nan")
    if not value.is_finite() or value.adjusted() >= MOST_DIGITS or value != value.to_integral_value():
        raise UserError(f"{_shown(text)} must be a whole number, as 5000, 5_000 or 5e3")
    return int(value)


def real(text: str) -> float:
    """'0.5', '5e3' or '1_000' as a float; UserError for 'nan', 'inf', '1e999' and '5k'."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{_shown(text)} must be a finite number, as 0.5 or 1e18")
    return value


def parse_value(f, text: str, may_be_none: bool = False):
    """The value of a field that a word spells; UserError says what the word must be.

    may_be_none : whether "none" is None, where the field may be None.
    """
    kind = type_of(f)
    if may_be_none and text.lower() == "none" and "None" in str(f.type):
        return None
    if kind is int:
        value = integer(text)
    elif kind is float:
        try:
            value = real(text)
        except UserError:
            what = expected(f)
            must_be = what if "number" in what else f"a number {what}"
            raise UserError(f"{_shown(text)} must be {must_be}") from None
    elif kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    else:
        value = text
        if not text.isascii() and text.encode("utf-8", "replace").decode("utf-8") != text:
            way_out = "rename it"
            if not sys.getfilesystemencoding().startswith("utf"):  # an ASCII locale, in which Python does not read it
                way_out = "set PYTHONUTF8=1, or rename it"
            raise UserError(f"{ascii(text)} must be text in UTF-8; {way_out}")
    if (f.metadata["choices"] or kind is bool) and mistake_in(f, value):
        raise UserError(f"{_shown(text)} must be {expected(f)}")
    return value


# ----- checks -----


def _shown(value) -> str:
    """A value as a person types it: -1 for -1.0; of a long one the beginning."""
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    if len(text) > MOST_SHOWN:
        text = f"{text[:MOST_SHOWN]}... ({len(text):,} characters)"
    return text


def _bound(value) -> str:
    """A bound; a large power of two as 2^63."""
    if isinstance(value, int) and value >= 2**20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return _shown(value)


def expected(f) -> str:
    """What a value must be, to be read behind "must be"."""
    m, kind = f.metadata, type_of(f)
    if m["choices"]:
        return "one of " + ", ".join(map(str, m["choices"]))
    if kind is bool:
        return "true or false"
    bounded = m["max"] is not None or m["below"] is not None
    if m["above"] == 0 and not bounded:
        return {int: "a positive number", float: "a positive finite number"}[kind]
    words = {"min": "at least", "above": "above", "max": "at most", "below": "below"}
    parts = [f"{word} {_bound(m[key])}" for key, word in words.items() if m[key] is not None]
    if not parts:
        return {int: "a whole number", float: "a finite number"}[kind]
    if kind is float and not bounded:
        parts.append("finite")
    return " and ".join(parts)


def _in_bounds(m, value) -> bool:
    return (
        (m["min"] is None or value >= m["min"])
        and (m["above"] is None or value > m["above"])
        and (m["max"] is None or value <= m["max"])
        and (m["below"] is None or value < m["below"])
    )


def mistake_in(f, value) -> str | None:
    """What one value must be and is not, or None."""
    m, kind = f.metadata, type_of(f)
    if m["choices"]:
        wrong = value not in m["choices"]
    elif kind is bool:
        wrong = not isinstance(value, bool)
    elif kind is str:
        return None
    elif not isinstance(value, numbers.Real) or isinstance(value, bool):
        wrong = True
    elif not isinstance(value, numbers.Integral) and not math.isfinite(value):
        wrong = True
    elif kind is int and value != int(value):
        return "a whole number"
    else:
        wrong = not _in_bounds(m, value)
        if kind is int and not wrong and abs(value) >= INT64:
            return "between -2^63 and 2^63"
    return expected(f) if wrong else None


def problems(config) -> list[str]:
    """What is wrong with the fields of a configuration, "--NAME VALUE must be ...", one entry a field."""
    found = []
    for f in options_of(config):
        value = getattr(config, f.name)
        text = type_of(f) is str and not f.metadata["choices"]
        if value is None and ("None" in str(f.type) or text):
            continue
        values = (value,)
        if is_many(f) and isinstance(value, (tuple, list)):
            values = value
        for one in values:
            mistake = mistake_in(f, one)
            if mistake:
                way_out = f"; {f.metadata['hint']}" if f.metadata["hint"] else ""
                found.append(f"--{f.name} {_shown(one)} must be {mistake}{way_out}")
                break
    return found


def check(config, more=()):
    """UserError naming everything that is wrong: each field that breaks its own bounds, then the problems in `more`."""
    found = [*problems(config), *more]
    if found:
        raise UserError("; ".join(found))
