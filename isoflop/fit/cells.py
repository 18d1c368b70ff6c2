"""
Files of any origin -> rows of cells, and which column is what.

CSV (comma, semicolon or tab; quoted, CRLF, BOM), a JSON list of objects, or JSON lines. Columns are found by their
usual names. table.py makes runs of them.

    >>> header, rows, decimal_comma = open_table("runs.csv")
    >>> find_columns(header, {}, "runs.csv")["loss"]
"""

import csv
import io
import operator
import os
import re

import numpy as np

from isoflop.files import parse_json, regular
from isoflop.options import UserError, explain

# First name present wins. Compared in lower case with every run of other characters as one underscore.
NAMES = {
    "n": "n_params_matmul n_params params parameters n num_params n_parameters model_size non_embedding_params "
    "n_params_non_embedding model_params",
    "d": "tokens d n_tokens num_tokens training_tokens train_tokens tokens_seen total_tokens",
    "c": "flops compute_budget c flop compute training_flop training_flops train_flops total_flops budget flop_budget",
    "loss": "val_loss final_loss loss l validation_loss valid_loss eval_loss test_loss train_loss training_loss",
    "run_id": "run_id run run_name id",
    "status": "status state",
    "loss_se": "val_loss_se loss_se",
}
CONVENTIONS = ("n_params", "n_params_non_embedding", "n_params_matmul")
OPS = {"==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
MOST_BYTES = 2**32  # of a file
CHUNK = 100_000  # rows converted at a time: a million-row file stays well under a gigabyte


def key_of(name):
    return re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower()).strip("_")


# ----- from a file to cells -----


def _text(path):
    """The text of a file; UserError where it has none."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory; name the CSV or JSON file in it")
    try:
        raw = regular(path, MOST_BYTES).read_bytes()
    except OSError as error:
        raise UserError(explain(error)) from None
    if not raw.strip():
        raise UserError(f"{path} is empty; expected a header line and one row per run")
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


def _json_objects(text, path):
    """The objects of a JSON list, of JSON lines, or one alone."""
    try:
        data = parse_json(text)
    except (ValueError, RecursionError):
        try:
            data = [parse_json(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} starts like JSON but cannot be parsed: {error}") from None
    if isinstance(data, dict):
        data = [data]
    if not data or not all(isinstance(one, dict) for one in data):
        raise UserError(f"{path}: expected a JSON list of objects, one per run")
    return data


def open_table(path):
    """(header, iterator of rows as lists of cells, decimal comma?) of a CSV, JSON or JSON-lines file."""
    text = _text(path)
    if text.lstrip()[:1] in "[{":
        data = _json_objects(text, path)
        header = list(dict.fromkeys(key for one in data for key in one))
        return header, ([one.get(key) for key in header] for one in data), False
    first = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        header = next(row for row in reader if "".join(row).strip())
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    return [name.strip() for name in header], reader, separator == ";"


def chunks(reader, width, path):
    """Lists of at most CHUNK rows of `width` cells; blank rows are left out, short ones filled up."""
    chunk, count = [], 0
    try:
        for row in reader:
            if len(row) != width:
                if not any(str(cell or "").strip() for cell in row):
                    continue
                row = list(row[:width]) + [""] * (width - len(row))
            chunk.append(row)
            count += 1
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    except csv.Error as error:
        raise UserError(f"{path}: row {count + 1} cannot be read as CSV ({error})") from None
    if chunk:
        yield chunk


def floats(cells, comma=False):
    """Cells (str, number or None) -> float64, NaN where unparsable."""
    try:
        return np.array(cells, dtype=float)
    except (ValueError, TypeError, OverflowError):
        out = np.full(len(cells), np.nan)
        for i, cell in enumerate(cells):
            if comma:
                cell = str(cell).replace(",", ".")
            try:
                out[i] = float(cell)
            except (ValueError, TypeError, OverflowError):
                pass
        return out


# ----- columns and selections -----


def find_columns(header, named, path, need_loss=True):
    """
    Which column plays which role.

    Parameters
    ----------
    header : list of str
    named : dict
        Column names that were given for roles (n, d, c, loss, ...); the others are found by their usual names.
    path : str
        For messages.
    need_loss : bool

    Returns
    -------
    dict: role -> index. Further columns of use have roles "=" + key.

    Raises
    ------
    UserError
        A named column is not there, or loss or two of N, D, C are missing.
    """
    keys = {}
    for i, name in enumerate(header):
        keys.setdefault(key_of(name), i)
    found = {}
    for role, names in NAMES.items():
        given = named.get(role)
        if given is not None:
            if given not in header:
                raise UserError(f"--{role}_col {given}: no such column in {path}; it has {', '.join(map(str, header))}")
            found[role] = header.index(given)
            continue
        usual = next((key for key in names.split() if key in keys), None)
        if usual is not None:
            found[role] = keys[usual]
    missing = []
    if need_loss and "loss" not in found:
        missing.append("a loss (val_loss, final_loss, loss, L)")
    if len(found.keys() & set("ndc")) < 2:
        missing.append("two of N (n_params, params, N), D (tokens, D) and C (flops, compute_budget, C)")
    if missing:
        shown = ", ".join(map(str, header[:20]))
        if len(header) > 20:
            shown += " ..."
        raise UserError(
            f"{path}: needs columns for {' and '.join(missing)}; its columns are {shown}; "
            "name them with --n_col, --d_col, --c_col, --loss_col"
        )
    for extra in ("flop_budget", "flops_exact", "lr_on_edge", *CONVENTIONS):
        if extra in keys:
            found["=" + extra] = keys[extra]
    return found


def parse_where(text):
    """'column op value' -> (column, function of a list of cells that returns a mask)."""
    match = re.search("==|!=|<=|>=|<|>|=", text or "")
    if not match or not text[: match.start()].strip():
        raise UserError(f"--where {text!r}: expected 'column op value' with op one of == != < <= > >=")
    column, sign, value = text[: match.start()].strip(), match[0], text[match.end() :].strip().strip("'\"")
    compare = OPS["==" if sign == "=" else sign]
    try:
        number = float(value)
    except ValueError:
        if compare not in (operator.eq, operator.ne):
            raise UserError(f"--where {text!r}: {value!r} is not a number; only == and != compare text") from None
        return column, lambda cells: np.array([compare(str(cell).strip(), value) for cell in cells], bool)
    return column, lambda cells: compare(floats(cells), number)


def selections(where, header, path):
    """[(text, column index, test)] of the --where expressions."""
    out = []
    for text in where:
        column, test = parse_where(text)
        if column not in header:
            raise UserError(f"--where {text!r}: no column {column!r} in {path}; it has {', '.join(map(str, header))}")
        out.append((text, header.index(column), test))
    return out
