"""
Which column of a table is what: N, D, C, the loss, the run's name; selections, sums of columns, and units.

    >>> find_columns(["Params (M)", "tokens", "val_loss"], {}, "runs.csv")["loss"]
"""

import operator
import re

import numpy as np

from isoflop.fit.names import NAMES, SUMS, candidates, column, key_of, keys_of
from isoflop.fit.panels import is_panel
from isoflop.fit.values import floats, number
from isoflop.options import UserError

CONVENTIONS = ("n_params", "n_params_non_embedding", "n_params_matmul")
OPS = {"==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
QUANTITIES = ("n", "d", "c", "loss")
LENGTHS = "seq_len seq_length seqlen sequence_length block_size context_length max_seq_len n_ctx ctx_len".split()
SHOWN = 20  # columns in a message


def shown(header):
    """The names of the columns for a message."""
    names = ", ".join(map(str, header[:SHOWN]))
    return names + " ..." if len(header) > SHOWN else names


def index_of(header, name, flag, path):
    """Index of a column that was named by a flag; UserError where there is none."""
    i = column(header, name)
    if i is None:
        raise UserError(f"{flag} {name}: no such column in {path}; it has {shown(header)}")
    return i


# ----- roles -----


def find_columns(header, named, path, need_loss=True, sample=(), notes=None):
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
    sample : list of rows
        Of several columns with usual names one that holds numbers here goes first.
    notes : list, optional
        Takes sentences on columns that were passed over.

    Returns
    -------
    dict: role -> index. Further columns of use have roles "=" + key.

    Raises
    ------
    UserError
        A named column is not there, or loss or two of N, D, C are missing.
    """
    notes = [] if notes is None else notes
    found = {}
    for role in NAMES:
        given = named.get(role)
        if given is not None:
            found[role] = index_of(header, given, f"--{role}_col", path)
            continue
        possible = [i for i in candidates(role, header) if role not in QUANTITIES or i not in found.values()]
        if role in QUANTITIES:
            possible = _with_numbers(possible, header, sample, role, notes)
        if possible and (role != "ratio" or len(found.keys() & set("ndc")) == 1 and "c" not in found):
            found[role] = possible[0]
    _refuse_missing(found, header, path, need_loss)
    keys = [key_of(name) for name in header]
    for extra in ("flop_budget", "flops_exact", "lr_on_edge", *CONVENTIONS):
        if extra in keys:
            found["=" + extra] = keys.index(extra)
    return found


def _with_numbers(possible, header, sample, role, notes):
    """The columns that hold numbers before the others; a note where that changes the choice."""
    if len(possible) < 2 or not sample:
        return possible
    good = [i for i in possible if _holds_numbers([row[i] for row in sample[:1000]])]
    if good and good[0] != possible[0]:
        name = {"n": "N", "d": "D", "c": "C"}.get(role, role)
        notes.append(f"{header[possible[0]]} holds no numbers: {name} is taken from {header[good[0]]}")
    return good + [i for i in possible if i not in good]


def _holds_numbers(cells):
    filled = [cell for cell in cells if cell is not None and str(cell).strip()]
    numbers = np.isfinite(floats([str(cell).split("±")[0] for cell in filled]))
    return len(filled) > 0 and numbers.mean() > 0.5


def _refuse_missing(found, header, path, need_loss):
    missing = []
    if need_loss and "loss" not in found:
        missing.append("a loss (val_loss, final_loss, loss, L)")
    if len(found.keys() & {"n", "d", "c", "ratio"}) < 2:
        missing.append("two of N (n_params, params, N), D (tokens, D) and C (flops, compute_budget, C)")
    if not missing:
        return
    if is_panel(header):
        raise UserError(
            f"{path} is a W&B panel export: a column of losses for each run, without its N and D; give a second file "
            "with columns run_name, N and D beside it, or export the table of runs instead (runs page, download, CSV)"
        )
    if header and all(np.isfinite(number(name)) for name in header):
        raise UserError(f"{path} has no header line: write the names of the columns above, as n_params,tokens,val_loss")
    raise UserError(
        f"{path}: needs columns for {' and '.join(missing)}; its columns are {shown(header)}; {_way_out(header, found)}"
    )


def _way_out(header, found):
    """What to do where columns are missing."""
    numbers = [name for name in header if np.isfinite(number(name))]
    if len(numbers) > 1:
        return (
            f"columns named by numbers ({', '.join(numbers[:2])}, ..): write a row for each run, with N, D or C, loss"
        )
    steps, batch, of_tokens = (candidates(role, header)[:1] for role in ("steps", "batch", "batch_tokens"))
    lengths = [i for i, name in enumerate(header) if key_of(name) in LENGTHS][:1]
    factors = steps + (of_tokens or batch + lengths)
    if "d" not in found and steps and len(factors) >= 3 - len(of_tokens):
        return f'tokens from other columns: --d_col "{" * ".join(header[i] for i in factors)}"'
    return "name them with --n_col, --d_col, --c_col, --loss_col"


# ----- sums of columns -----


def find_sums(header, named, path):
    """
    Columns made of others: [(name, ((index, +1, -1 or "*"), ..))], "*" for all terms of a product.

    `--n_col "transformer + lm_head"` and `--d_col "steps * batch_size * seq_len"` ask for one; of nanochat's counts the
    one that its own scaling laws use is made, where no usual name is there.
    """
    sums = []
    for role, name in named.items():
        if name is None or name in header or not re.search(r"\s[+*-]\s", name):
            continue
        factors = re.split(r"\s\*\s", name)
        if len(factors) > 1:
            of_them = [index_of(header, part.strip(), f"--{role}_col", path) for part in factors]
            sums.append((name, tuple((i, "*") for i in of_them)))
            continue
        parts = re.split(r"\s([+-])\s", name)
        terms = [(index_of(header, parts[0].strip(), f"--{role}_col", path), 1)]
        for sign, part in zip(parts[1::2], parts[2::2], strict=True):
            terms.append((index_of(header, part.strip(), f"--{role}_col", path), 1 if sign == "+" else -1))
        sums.append((name, tuple(terms)))
    for names, role in SUMS.items():
        if named.get(role) is None and all(name in header for name in names):
            first = candidates(role, header)
            if not first or keys_of(header[first[0]])[0] in ("params_total", "total_params"):
                named[role] = " + ".join(names)
                sums.append((named[role], tuple((header.index(name), 1) for name in names)))
    return sums


def add_sums(chunk, sums, decimal):
    """The rows with a cell more for each sum."""
    for _, terms in sums:
        values = [floats([row[i] for row in chunk], decimal) for i, _ in terms]
        if terms[0][1] == "*":
            total = np.prod(values, axis=0)
        else:
            total = sum(sign * value for (_, sign), value in zip(terms, values, strict=True))
        for row, value in zip(chunk, total, strict=True):
            row.append(value)
    return chunk


# ----- selections -----


def parse_where(text):
    """'column op value' -> (column, function of a list of cells that returns a mask)."""
    match = re.search("==|!=|<=|>=|<|>|=", text or "")
    if not match or not text[: match.start()].strip():
        raise UserError(f"--where {text!r}: expected 'column op value' with op one of == != < <= > >=")
    name, sign, value = text[: match.start()].strip(), match[0], text[match.end() :].strip().strip("'\"")
    compare = OPS["==" if sign == "=" else sign]
    limit = number(value)
    if np.isnan(limit) and value.lower() != "nan":
        if compare not in (operator.eq, operator.ne):
            raise UserError(f"--where {text!r}: {value!r} is not a number; only == and != compare text") from None
        return name, lambda cells: np.array([compare(str(cell).strip(), value) for cell in cells], bool)
    return name, lambda cells: _compared(cells, compare, limit, value)


def _compared(cells, compare, limit, value):
    """Numbers by their values, and the same text as equal: 'size == 125M' holds of 125M and of 1.25e8."""
    mask = compare(floats(cells), limit)
    if compare in (operator.eq, operator.ne):
        same = np.array([str(cell).strip() == value for cell in cells], bool)
        mask = mask | same if compare is operator.eq else mask & ~same
    return mask


def selections(where, header, path):
    """[(text, function of a list of rows that returns a mask)] of the --where expressions; a / b is a ratio."""
    out = []
    for text in where:
        name, test = parse_where(text)
        i = column(header, name)
        parts = [name] if i is not None else name.split(" / ")
        indices = [column(header, part.strip()) for part in parts]
        if None in indices or len(indices) > 2:
            raise UserError(f"--where {text!r}: no column {name!r} in {path}; it has {', '.join(map(str, header))}")
        out.append((text, _selection(indices, test)))
    return out


def _selection(indices, test):
    """A test of cells as a test of rows."""
    if len(indices) == 1:
        return lambda rows: test([row[indices[0]] for row in rows])
    upper, lower = indices

    def ratio(rows):
        with np.errstate(divide="ignore", invalid="ignore"):
            return test(floats([row[upper] for row in rows]) / floats([row[lower] for row in rows]))

    return ratio
