"""Numbers for people, and tables of them: text for a terminal, or Markdown. What is not known is a dash.

    si(1_545_000_000), flops(5.76e23), seconds(9000), gb(3.2e9), money(1234.5)
    # '1.545B', '5.76e23', '2.5 h', '3.2 GB', '$1,234'
    print(text_table(["model", "N", "loss"], [["A", si(12e6), fixed(2.5)]]))

Every function of a number takes None, and returns "-" for it, for nan and for infinity.
"""

import math

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
TIMES = ((2 * 365.25 * 86400, 365.25 * 86400, "y"), (1.5 * 86400, 86400, "d"), (3600, 3600, "h"), (60, 60, "min"))


def _unknown(x) -> bool:
    return x is None or not math.isfinite(x)


# ----- numbers -----


def sig(x, digits: int = 4) -> str:
    """So many significant digits, without an exponent where it reads well without: 477.8, 0.3470, 1.2e-5."""
    if _unknown(x):
        return "-"
    if x != 0 and not 1e-4 <= abs(x) < 1e6:
        return flops(x, digits)
    text = f"{x:#.{digits}g}"
    return f"{x:.0f}" if "e" in text else text.rstrip(".")


def flops(x, digits: int = 4) -> str:
    """A compute, or any number with an exponent: 1e24, 5.76e23."""
    if _unknown(x):
        return "-"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def si(x, digits: int = 4, zeros: bool = False) -> str:
    """A count of parameters or tokens at a glance: 12.3k, 4.5M, 1.545B; from 1e15 on with an exponent.

    zeros : keep zeros at the end, which say how exact an estimate is: 4.500M.
    """
    if _unknown(x):
        return "-"
    x = float(f"{x:.{digits - 1}e}")  # rounded first: 999.96M is 1B
    if abs(x) >= 1e15:
        return flops(x, digits)
    scale, unit = 1.0, ""
    for size, letter in UNITS:
        if abs(x) >= size:
            scale, unit = size, letter
            break
    text = sig(x / scale, digits)
    if "." in text and "e" not in text and not zeros:
        text = text.rstrip("0").rstrip(".")
    return text + unit


def count(x) -> str:
    """A whole number, to the last one: 1,234,567."""
    return "-" if _unknown(x) else f"{x:,.0f}"


def fixed(x, digits: int = 4) -> str:
    """A loss or score with so many decimals: 2.5312."""
    return "-" if _unknown(x) else f"{x:.{digits}f}"


def percent(x, digits: int = 1, sign: bool = False) -> str:
    """A share as a percentage: 0.123 is 12.3%, with sign +12.3%."""
    if _unknown(x):
        return "-"
    return f"{x:+.{digits}%}" if sign else f"{x:.{digits}%}"


def seconds(x) -> str:
    """A duration: 12.0 s, 2.5 h, 10.5 d; infinity is never."""
    if x is None or math.isnan(x):
        return "-"
    if math.isinf(x):
        return "never"
    for least, size, unit in TIMES:
        if x >= least:
            return f"{x / size:,.1f} {unit}"
    return f"{x:.1f} s"


def gb(x) -> str:
    """Bytes in GB of 1e9, below that in MB, with three digits."""
    if _unknown(x):
        return "-"
    return f"{x / 1e9:.3g} GB" if x >= 1e9 else f"{x / 1e6:.3g} MB"


def money(x) -> str:
    """Dollars: $1.79, $1,234."""
    if _unknown(x):
        return "-"
    return f"${x:,.0f}" if x >= 100 else f"${x:,.2f}"


def interval(ends, form=sig) -> str:
    """(low, high) as [low, high], an unbounded end (None) as an ellipsis; empty without an interval."""
    if ends is None or (ends[0] is None and ends[1] is None):
        return ""
    shown = ["..." if end is None else form(end) for end in ends]
    return f"[{shown[0]}, {shown[1]}]"


def estimate(x, ends=None, form=sig) -> str:
    """A value and its interval: 0.5143 [0.4802, 0.5551]."""
    return "-" if x is None else f"{form(x)} {interval(ends, form)}".rstrip()


# ----- tables -----


def _cells(row) -> list[str]:
    return ["-" if cell is None else str(cell) for cell in row]


def _lines(header, rows) -> list[list[str]]:
    """Header, where there is one, and rows, as texts; all must have as many cells."""
    lines = [_cells(row) for row in rows]
    if header is not None:
        lines = [_cells(header), *lines]
    for line in lines:
        assert len(line) == len(lines[0]), f"{len(line)} cells in a table of {len(lines[0])} columns: {line}"
    return lines


def _letters(align: str, columns: int) -> str:
    """One letter per column: the last one of `align` holds for all that follow."""
    return align[:columns] + align[-1] * (columns - len(align))


def text_table(header, rows, align: str = "lr", gap: int = 2, indent: int = 0, width: int | None = None) -> str:
    """Rows of cells in columns, as lines; cells are anything that str() takes, None is a dash.

    Parameters
    ----------
    header : cells, or None for none.
    align : l or r per column, the last for all that follow: "lr" is a label, then numbers.
    gap, indent : spaces between columns, and before the first.
    width : a table that is wider is cut into several, one below the other, each with the first column.
    """
    lines = _lines(header, rows)
    if not lines:
        return ""
    columns = len(lines[0])
    letters = _letters(align, columns)
    widths = [max(len(line[i]) for line in lines) for i in range(columns)]
    out = []
    for group in _groups(widths, gap, indent, width):
        if out and header is not None:
            out.append("")
        for line in lines:
            cells = []
            for i in group:
                cells.append(line[i].ljust(widths[i]) if letters[i] == "l" else line[i].rjust(widths[i]))
            out.append((" " * indent + (" " * gap).join(cells)).rstrip())
    return "\n".join(out)


def _groups(widths, gap: int, indent: int, width: int | None) -> list[list[int]]:
    """Numbers of the columns that stand side by side."""
    groups = [[0]]
    used = indent + widths[0]
    for i in range(1, len(widths)):
        if width is not None and len(groups[-1]) > 1 and used + gap + widths[i] > width:
            groups.append([0])
            used = indent + widths[0]
        groups[-1].append(i)
        used += gap + widths[i]
    return groups


def markdown_table(header, rows, align: str = "lr") -> str:
    """The same as a table of Markdown; without a header its cells are empty. "" where there are no rows."""
    rows = list(rows)
    if not rows:
        return ""
    if header is None:
        header = [""] * len(rows[0])
    head, *lines = _lines(header, rows)
    rules = ["---" if letter == "l" else "--:" for letter in _letters(align, len(head))]
    out = []
    for cells in (head, rules, *lines):
        plain = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
        out.append("| " + " | ".join(plain) + " |")
    return "\n".join(out)
