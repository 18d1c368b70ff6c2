"""
Files of any origin -> a header and rows of cells.

CSV (comma, semicolon or tab; quoted, CRLF, BOM, comment lines, sep=), Markdown and aligned text, JSON by row or column,
nested or wrapped, JSON lines, .gz, and through pandas .xlsx and .parquet.

    >>> header, rows, decimal = open_table("runs.csv")
"""

import csv
import gzip
import io
import os
import re
import zipfile
import zlib

from isoflop.files import regular
from isoflop.fit.names import is_known
from isoflop.fit.objects import json_rows, unpack
from isoflop.fit.values import number
from isoflop.options import UserError, explain

MOST_BYTES = 2**32  # of a file, also of what a compressed one holds
CHUNK = 100_000  # rows converted at a time: a million-row file stays well under a gigabyte
RULE = re.compile(r"[\s|+:=_-]*[-=]{2,}[\s|+:=_-]*")  # |---|:---:|, +----+, ==== ====
CORNERS = "┼╪╋┬┴├┤┌┐└┘╞╡╭╮╰╯┏┓┗┛┡┩┳┻┠┨┯┷┿"
BOXES = str.maketrans("│┃┆║─━═" + CORNERS, "||||---" + "+" * len(CORNERS))
UNIT = re.compile(r"|[(\[].*[)\]]|[kKMBTG]|[mb]illions?|[PEZ]FLOPs?|PF-days|nats.*|bits.*")  # or nothing
COMMENTS = ("#", "%", "//")
READERS = {".xlsx": ("read_excel", "openpyxl"), ".parquet": ("read_parquet", "pyarrow")}  # pandas's, and its engine


def open_table(path):
    """
    The cells of a file.

    Returns
    -------
    (list of str, iterator of lists of cells, str)
        Header, rows, and the decimal sign to assume where numbers prove none: "," in files separated by semicolons.

    Raises
    ------
    UserError
        No file, no table, or a package that is missing: one line with the way out.
    """
    raw = _raw(path)
    kind = _binary_kind(raw, path)
    if kind is not None:
        header, rows = _through_pandas(raw, path, *READERS[kind])
        return header, rows, "."
    text = _decode(raw, path)
    if text.lstrip()[:1] in "[{":
        data = json_rows(text, path)
        header = list(dict.fromkeys(key for one in data for key in one))
        return header, ([one.get(key) for key in header] for one in data), "."
    if re.match(r"\s*<(!doctype|html|table|\?xml)", text, re.I):
        raise UserError(f"{path} is an HTML or XML page; save the table in it as CSV")
    reader, decimal = _text_rows(text, path)
    header, rows = unpack(*headed(reader, path))
    return header, rows, decimal


# ----- bytes -----


def _raw(path):
    """The bytes of a file, decompressed."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; name the CSV or JSON file in it")
    try:
        raw = regular(path, MOST_BYTES).read_bytes()
    except OSError as error:
        raise UserError(explain(error)) from None
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(raw)) as f:
                raw = f.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be decompressed ({error}); copy it again, or gunzip it") from None
        if len(raw) > MOST_BYTES:
            raise UserError(f"{path}: decompressed it has more than {MOST_BYTES:,} bytes; give a part of it")
    if not raw.strip():
        raise UserError(f"{path} is empty; expected a header line and one row per run")
    return raw


def _binary_kind(raw, path):
    """.xlsx, .parquet, or None for text; UserError for an archive that is neither."""
    if raw[:4] == b"PAR1":
        return ".parquet"
    if raw[:4] != b"PK\x03\x04":
        return None
    try:
        names = zipfile.ZipFile(io.BytesIO(raw)).namelist()
    except zipfile.BadZipFile:
        names = []
    if "xl/workbook.xml" in names:
        return ".xlsx"
    raise UserError(
        f"{path} is a zip archive of {', '.join(names[:3]) or 'nothing readable'}; unzip it and name a file"
    )


def _through_pandas(raw, path, function, engine):
    """(header, rows) by pandas, which is imported here only."""
    try:
        import pandas

        __import__(engine)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: the package {error.name} is missing; pip install pandas {engine}, or save the table as CSV"
        ) from None
    options = {"header": None, "sheet_name": None} if function == "read_excel" else {}
    try:
        frame = getattr(pandas, function)(io.BytesIO(raw), engine=engine, **options)
    except Exception as error:  # of a damaged file pandas's engines raise what they like
        raise UserError(f"{path}: pandas.{function} cannot read it ({error}); save the table as CSV") from None
    if function == "read_excel":
        return _sheet({name: _cells_of(one) for name, one in frame.items()}, path)
    return unpack([str(name) for name in frame.columns], iter(_cells_of(frame)))


def _cells_of(frame):
    return frame.astype(object).where(frame.notna(), None).values.tolist()


def _sheet(sheets, path):
    """(header, rows) of the first sheet that has two usual names in its header, else of the first that has rows."""
    found = []
    for rows in sheets.values():
        if len(rows) > 1:
            header, below = headed(iter(rows), path)
            if sum(map(is_known, header)) > 1:
                return header, below
            found.append((header, below))
    if not found:
        raise UserError(f"{path} has no sheet with a header and rows")
    return found[0]


def _decode(raw, path):
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in raw:
        raise UserError(f"{path} is a binary file, not CSV or JSON text")
    else:
        encoding = "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        if sum(b < 32 and b not in b"\t\r\n" for b in raw[:4096]) > 8:
            raise UserError(f"{path} is a binary file, not CSV or JSON text") from None
        return raw.decode("latin-1")


# ----- text -----


def _text_rows(text, path):
    """(iterator of rows, header first; decimal sign to assume) of CSV, Markdown or aligned text."""
    first = text.lstrip()[:200]
    told = re.match(r"sep=(.)\s*?\n", first, re.I)
    if told:
        text = text.lstrip().split("\n", 1)[1]
    if "\n" not in text:  # lines as on a Mac of before
        text = text.replace("\r", "\n")
    text = _without_comments(text)
    lines = (line for line in io.StringIO(text) if line.strip())
    head = [line for line, _ in zip(lines, range(20), strict=False)]
    if not head:
        raise UserError(f"{path} has comment lines only; expected a header line and one row per run")
    separator = told[1] if told else max(",;\t|&", key=head[0].count)
    if separator == "&":  # LaTeX
        text = re.sub(r"\\\\[^\n]*|\\[a-z]+rule\b.*|\\hline", "", text).replace("&", "|")
    drawn = separator in "|&" or any(mark in head[0] for mark in "│┃┆║┌╭┏")
    if drawn or any(RULE.fullmatch(line.strip()) for line in head):
        return _ruled(text.translate(BOXES)), "."
    below = max(",;\t", key=head[-1].count)
    if separator not in head[0] and below in head[-1]:  # a title above the header
        separator = below
        text = "".join(_from_first_with(separator, text))
    elif separator not in head[0] and len(head[0].split()) > 1:
        return _aligned(text), "."
    return csv.reader(io.StringIO(text), delimiter=separator), "," if separator == ";" else "."


def _without_comments(text):
    """The text without lines that start with #, % or //; a header behind such a mark stays, as numpy.savetxt has it."""
    if not re.search(r"^[ \t]*(#|%|//)", text, re.M):
        return text
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    comment = [line.lstrip().startswith(COMMENTS) for line in lines]
    kept = [line for line, left_out in zip(lines, comment, strict=True) if not left_out]
    if kept:
        first = comment.index(False)
        above = lines[first - 1].lstrip("#%/ \t") if first else ""
        if above and _is_header(above, kept[0]):
            kept.insert(0, above)
    return "".join(kept)


def _is_header(words, numbers):
    """Whether a commented line names the columns of a line that has numbers only."""
    for separator in (",", ";", "\t", None):
        cells, names = numbers.split(separator), words.split(separator)
        if len(cells) > 1 and len(cells) == len(names) and all(number(cell) == number(cell) for cell in cells):
            return True
    return False


def _from_first_with(separator, text):
    """The lines of a text from the first one on that has the separator."""
    begun = False
    for line in io.StringIO(text):
        begun = begun or separator in line
        if begun:
            yield line


def _ruled(text):
    """Rows of a table with rules: of Markdown, psql, tabulate or polars; prose around it is left out."""
    lines = [line.strip() for line in text.splitlines()]
    piped = [line for line in lines if "|" in line and not RULE.fullmatch(line)]
    if not piped:
        yield from _aligned("\n".join(line for line in lines if not RULE.fullmatch(line)))
        return
    for line in piped:
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        yield [cell.strip().strip("*`").replace("\\|", "|") for cell in cells]


def _aligned(text):
    """Rows of columns set apart by two spaces or more, or else by any; an unnamed first column is "index"."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for separator in (r"\s{2,}|\t", r"\s+"):
        rows = [re.split(separator, line) for line in lines]
        widths = {len(row) for row in rows[1:]}
        if len(rows[0]) > 1 and len(widths) == 1 and widths.pop() - len(rows[0]) in (0, 1):
            break
    if len(rows) > 1 and len(rows[1]) == len(rows[0]) + 1:
        rows[0] = ["index", *rows[0]]
    yield from rows


# ----- header -----


def headed(rows, path):
    """(header, iterator of the rows below it); two header lines become one."""
    rows = (row for row in rows if any(_word(cell) for cell in row))
    try:
        header = [_word(cell) for cell in next(rows)]
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    ahead = _take(rows, 2)
    if len(ahead) == 2 and not _numbers(header) and not _numbers(ahead[0]) and _numbers(ahead[1]):
        second = [_word(cell) for cell in ahead[0]]
        units = all(UNIT.fullmatch(word) for word in second)
        if len(second) == len(header) and (units or all(second)):
            header = [_joined(*pair, units) for pair in zip(header, second, strict=True)]
            del ahead[0]

    def below():
        yield from ahead
        yield from rows

    return header, below()


def _take(rows, count):
    """The next rows, fewer where the file ends or is malformed (that is said when the rows are read)."""
    out = []
    try:
        for row in rows:
            out.append(row)
            if len(out) == count:
                break
    except csv.Error:
        pass
    return out


def _word(cell):
    return "" if cell is None else str(cell).strip()


def _numbers(row):
    """Whether any cell is a number."""
    return any(_word(cell) and number(cell) == number(cell) for cell in row)


def _joined(upper, lower, units):
    """One name of two header lines: "model.params", or "params (M)" where the lower one holds units."""
    if not lower:
        return upper
    if units:
        return f"{upper} ({lower.strip('()[]')})"
    if not upper or re.match(r"Unnamed", upper):
        return lower
    return f"{upper}.{lower}"


def chunks(reader, width, path):
    """Lists of at most CHUNK rows of `width` cells or more; blank rows are left out, short ones filled up."""
    chunk, count = [], 0
    try:
        for row in reader:
            if len(row) != width:
                if not any(_word(cell) for cell in row):
                    continue
                row = list(row)
                while len(row) > width and not _word(row[-1]):
                    row.pop()
                row += [""] * (width - len(row))
            chunk.append(row)
            count += 1
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    except csv.Error as error:
        raise UserError(f"{path}: row {count + 1} cannot be read as CSV ({error})") from None
    if chunk:
        yield chunk
