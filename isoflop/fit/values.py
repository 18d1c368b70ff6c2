"""
Cells as people write numbers -> float64: 125M, 1,234.5 or 1.234,5, 1.00x10^18, 3.65 ± .003.

    >>> floats(["125M", "1.3 billion", "1.00x10^18"])
    >>> decimal_of(["25.845.713", "1,00E+18"])  # ","
    >>> with_errors(["3.65 ± .003"])  # (["3.65"], array([0.003]))

A comma or dot is read as the column's own cells decide, else as the file's; what stays ambiguous is not guessed at.
"""

import re

import numpy as np

from isoflop.laws import PF_DAY

SCALES = {
    1e3: "k thousand thousands",
    1e4: "万",
    1e6: "m mm mn mio mil mega million millions millionen millones 百万",
    1e8: "亿",
    1e9: "b bn g giga bil billion billions mrd milliard milliards milliarden 十亿",
    1e12: "t tn tera trillion trillions 万亿",
    1e15: "p peta",
    1e18: "e exa",
    1e21: "z zetta",
    1e24: "y yotta",
}
SCALE = {word: scale for scale, words in SCALES.items() for word in words.split()}
UNIT_WORDS = re.compile(r"(params?|parameters?|tokens?|toks?|flops?|flop|nats?|weights?)$")
PF_DAYS = re.compile(r"(p|peta) ?f(lops?)? ?[-_/ ]?(s[-_/ ]?)?d(ays?)?")
TIDY = {0xA0: " ", 0x202F: " ", 0x2009: " ", 0x2212: "-", ord("×"): "x", ord("·"): "x", ord("’"): "'"}
SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
FORM = re.compile(
    r"(?P<sign>[+-]?)(?P<digits>\d[\d.,' ]*|[.,]\d+)?"
    r"(?:e(?P<e>[+-]?\d+)|\s*(?:[x*]|\\times)?\s*10\s*(?:\^|\*\*)\s*[({]?(?P<power>[+-]?\d+)[)}]?)?"
    r"\s*(?P<word>[a-z][a-z/_ -]*)?",
    re.I,
)
ERROR = re.compile(r"(?P<value>.+?)\s*(?:(?:±|\+/-|\+-|\\pm)\s*(?P<a>.+)|\((?P<b>\d*[.,]\d+)\))")


def scale_of(word):
    """The factor that a unit word stands for, M or "billion tokens" or PF-days or 1e18; None for another word."""
    word = str(word or "").strip().lower().strip(".").replace(" of ", " ")
    if re.fullmatch(r"x?(1e\d+|10\^\d+)", word):
        return float(word.lstrip("x").replace("10^", "1e"))
    if PF_DAYS.fullmatch(word):
        return PF_DAY
    bare = UNIT_WORDS.sub("", word).strip(" _-")
    if not bare:
        return 1.0
    return SCALE.get(bare)


# ----- the decimal sign -----


def _sign_told(digits, has_exponent):
    """The decimal sign that a number's own digits prove, "" where they prove none."""
    dots, commas = digits.count("."), digits.count(",")
    if dots and commas:
        last = max(digits.rfind("."), digits.rfind(","))
        return digits[last]
    if dots + commas == 0:
        return ""
    sign, other = (".", ",") if dots else (",", ".")
    if dots + commas > 1:
        return other
    before, after = digits.split(sign)
    if has_exponent or len(after) != 3 or before in ("", "0") or len(before) > 3:
        return sign
    return ""


def decimal_of(cells):
    """The decimal sign that cells prove: "." or ",", "" where they prove none or contradict each other."""
    told = set()
    for cell in cells:
        if not isinstance(cell, str) or not ("," in cell or "." in cell):
            continue
        match = FORM.fullmatch(cell.strip().translate(TIDY))
        if match and match["digits"]:
            told.add(_sign_told(match["digits"].strip(), bool(match["e"] or match["power"])))
    told.discard("")
    return told.pop() if len(told) == 1 else ""


def _plain(digits, decimal, has_exponent):
    """Digits with signs -> a text that float() reads; None where groups of thousands are malformed or in conflict."""
    digits = digits.strip().replace("'", " ")
    told = _sign_told(digits.replace(" ", ""), has_exponent) or decimal
    group = "," if told == "." else "."
    whole, sign, rest = digits.replace(" ", group).partition(told)
    parts = whole.split(group)
    if told in rest or group in rest:
        return None
    if len(parts) > 1 and not (1 <= len(parts[0]) <= 3 and all(len(part) == 3 for part in parts[1:])):
        return None
    return "".join(parts) + sign.replace(",", ".") + rest


# ----- numbers -----


def number(cell, decimal=".", words=True):
    """
    One cell as a float, NaN where it is no number.

    Parameters
    ----------
    cell : str, number or None
    decimal : str
        "." or ",": the reading of 1,234 and 1.234, which prove nothing themselves.
    words : bool
        Whether M, billion, PF-days and the like are allowed behind the number.
    """
    if decimal == "." or not isinstance(cell, str):
        try:
            return float(cell)
        except (ValueError, TypeError, OverflowError):
            pass
    text = str(cell).strip().translate(TIDY).strip("*`$~≈ ")
    text = re.sub("[⁺⁻⁰¹²³⁴-⁹]+", lambda match: "^" + match[0].translate(SUPERSCRIPTS), text)
    match = FORM.fullmatch(re.sub(r"(?<=[\d.])d(?=[+-]\d)", "e", text, flags=re.I))  # Fortran's 1.3D+09
    if not match:
        return float("nan")
    digits, power, word = match["digits"], match["e"] or match["power"], match["word"]
    if digits is None and match["power"] is None:
        return float("nan")
    scale = 1.0
    if word:
        scale = scale_of(word) if words else {"nats": 1.0, "nats/token": 1.0}.get(word.strip().lower())
        if scale is None:
            return float("nan")
    plain = "1" if digits is None else _plain(digits, decimal, power is not None)
    if plain is None or len(power or "") > 4:
        return float("nan")
    return float(f"{match['sign']}{plain}e{power or 0}") * scale


def floats(cells, decimal=".", words=True):
    """Cells -> float64, NaN where unparsable; see number()."""
    if decimal == ".":
        try:
            return np.array(cells, dtype=float)
        except (ValueError, TypeError, OverflowError):
            pass
    return np.array([number(cell, decimal, words) for cell in cells], dtype=float)


def has_word(cells):
    """Whether cells carry their own unit: 125M."""
    return any(isinstance(cell, str) and re.search(r"\d\s*[kmbgt]\w*\s*$", cell, re.I) for cell in cells)


def with_errors(cells, decimal="."):
    """(cells without what follows ±, the errors after it as float64 or None where no cell has one)."""
    values, errors = list(cells), np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if isinstance(cell, str):
            match = ERROR.fullmatch(cell.strip())
            if match:
                values[i] = match["value"]
                errors[i] = number(match["a"] or match["b"], decimal, words=False)
    return values, errors if np.isfinite(errors).any() else None
