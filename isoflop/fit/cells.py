"""
The cells of one file -> usable rows as arrays, and what became of the others.

    >>> rows = read_rows("runs.csv", Request(), Seen())
    >>> rows["n"], rows["loss"], rows["run"]

Numbers come out in parameters, tokens and FLOPs, whatever unit the header, the cells or --units name. Columns that play
no role are kept as codes ("@lr"), which tell rows.py the settings in which runs differ.
"""

import os
from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.columns import QUANTITIES, add_sums, find_columns, find_sums, index_of, selections
from isoflop.fit.names import LOGS, key_of, loss_unit, unit_in
from isoflop.fit.panels import Panel
from isoflop.fit.reading import chunks, open_table
from isoflop.fit.rows import Codes, distinct, name_runs
from isoflop.fit.units import NATS, loss_in
from isoflop.fit.values import decimal_of, floats, has_word, with_errors
from isoflop.laws import highest_loss
from isoflop.options import UserError

FINISHED = ["ok", "", "finished", "done", "success", "completed"]  # statuses of runs that count
TEXTS = ("run_id", "status", "name", "label")  # roles whose cells are words
SAMPLE = 1000  # rows that decide how a column writes its numbers
BLANK = ("nan", "none", "null", "na", "n/a", "-", "--", "–", "—")


@dataclass
class Request:
    """What is asked of the files: see table.read(), whose parameters have these names."""

    columns: dict = field(default_factory=dict)
    where: list = field(default_factory=list)
    need_loss: bool = True
    status: tuple = ()
    units: dict = field(default_factory=dict)
    run_cols: tuple = ()
    rows_are_runs: bool = False
    by: str | None = None
    panel: Panel = field(default_factory=Panel)  # losses that a W&B panel export gives to rows


# ----- from cells to usable rows -----


@dataclass
class Seen:
    """What became of the rows of all files."""

    rows_read: int = 0
    dropped: list = field(default_factory=list)  # {run_id, row, reason}
    notes: list = field(default_factory=list)
    warnings: list = field(default_factory=list)  # {code, message}
    columns: dict = field(default_factory=dict)  # role -> column name, of the first file
    unreadable: str = ""  # the first cell that is no number, with its place
    loss_unit: str = ""
    codes: Codes = field(default_factory=Codes)

    def note(self, text):
        if text and text not in self.notes:
            self.notes.append(text)

    def warn(self, code, text):
        self.warnings.append({"code": code, "message": text})

    def drop(self, names, rows, reasons):
        for name, row, reason in zip(names, rows, reasons, strict=True):
            self.dropped.append({"run_id": name, "row": int(row), "reason": reason})

    def counts(self):
        """{reason: number of rows}."""
        out = {}
        for item in self.dropped:
            out[item["reason"]] = out.get(item["reason"], 0) + 1
        return out

    def said_of_status(self):
        """How to keep the rows that were left out by their status, "" where none was."""
        words = {item["reason"][7:] for item in self.dropped if item["reason"].startswith("status ")}
        if not words:
            return ""
        return f"runs left out by their status are kept by --status {' '.join(sorted(words)[:4])}, or --status any"

    def reasons(self):
        return ", ".join(f"{count} {reason}" for reason, count in self.counts().items())


class _File:
    """One open file: its columns, and how they write numbers."""

    def __init__(self, path, request, seen):
        self.path, self.request = path, request
        self.header, reader, decimal = open_table(path)
        named = dict(request.columns)
        if request.panel:
            self.header, reader = request.panel.join(self.header, reader, path, seen.notes)
            named.setdefault("loss", request.panel.column())
        self.sums = find_sums(self.header, named, path)
        self.stream = chunks(reader, len(self.header), path)
        self.first = next(self.stream, None)
        if self.first is None:
            raise UserError(f"{path} has a header and no rows")
        self.width = len(self.header)
        sample = self.first[:SAMPLE]
        told = {decimal_of([row[i] for row in sample]) for i in range(self.width)} - {""}
        self.decimal = told.pop() if len(told) == 1 else decimal
        self.add_sums(self.first)
        self.header += [name for name, _ in self.sums]
        self.found = find_columns(self.header, named, path, request.need_loss, sample, seen.notes)
        self.by_file = request.by == "file" and "file" not in self.header
        self.run_cols = [index_of(self.header, name, "--run_cols", path) for name in request.run_cols]
        if request.by is not None and not self.by_file:
            self.found["label"] = index_of(self.header, request.by, "--by", path)
        self.tests = selections(request.where, self.header, path)
        self.decimals, self.scales = {}, {}
        for role, i in self.found.items():
            cells = [row[i] for row in sample]
            self.decimals[role] = self._decimal(role, cells)
            self.scales[role] = self._scale(role, self.header[i], cells)
        self.loss_unit = request.units.get("loss")
        if self.loss_unit is None and "loss" in self.found:
            self.loss_unit = loss_unit(self.header[self.found["loss"]])

    def _decimal(self, role, cells):
        """The decimal sign of a column: its own, else the file's; 3,655 as a loss can be no 3655."""
        if role in ("loss", "loss_se"):
            cells, _ = with_errors(cells)
            if any(isinstance(cell, str) and cell.strip()[1:2] == "," for cell in cells):
                return ","
        return decimal_of(cells) or self.decimal

    def _scale(self, role, name, cells):
        """The factor of a column's unit; cells with their own unit (125M) need none from the header."""
        if role in self.request.units:
            return self.request.units[role]
        if role not in ("n", "d", "c") or has_word(cells):
            return 1.0
        return unit_in(name, role)

    def add_sums(self, chunk):
        if self.sums:
            add_sums(chunk, self.sums, self.decimal)

    def chunks(self):
        """All rows in lists, with the sums of columns."""
        yield self.first
        for chunk in self.stream:
            self.add_sums(chunk)
            yield chunk


def names_of(paths):
    """{path: a short name}, no two the same: the file's own without its ending, its folder's, both, or the path."""
    full = [os.path.abspath(path) for path in paths]
    stems = [os.path.basename(path).partition(".")[0] for path in full]
    folders = [os.path.basename(os.path.dirname(path)) for path in full]
    choices = (stems, folders, [f"{a}/{b}" for a, b in zip(folders, stems, strict=True)], paths)
    for names in choices:
        if len(set(names)) == len(names) and all(names):
            break
    return dict(zip(paths, names, strict=True))


def read_rows(path, request, seen, name=""):
    """Usable rows of one file as a dict of arrays; `seen` takes down the others. `name` is the file's among several."""
    file = _File(path, request, seen)
    file.label = name or names_of([path])[path]
    prefix = f"{name} " if name else ""
    parts, read_before = [], seen.rows_read
    for chunk in file.chunks():
        row = seen.rows_read - read_before + np.arange(1, len(chunk) + 1)
        data = _columns(chunk, row, file, prefix, seen)
        why = _reasons(chunk, data, file, seen)
        bad = why != ""
        seen.drop(data["run"][bad], row[bad], why[bad])
        seen.rows_read += len(chunk)
        parts.append({k: v[~bad] for k, v in data.items() if k != "status"})
    rows = concatenate(parts)
    _say_units(file, seen)
    if "loss" not in file.found:
        rows["loss"] = np.full(len(rows["row"]), np.nan)
    seen.note(_third_quantity(rows, file.found))
    names = {role: None for role in ("n", "d", "c", "loss", "run_id", "status")}
    for role in (*names, "epochs", "unique"):
        if role in file.found:
            names[role] = file.header[file.found[role]]
    if not seen.columns and "loss_se" in rows and "loss_se" not in file.found:
        name = names["loss"]
        seen.note(f"what follows ± in {name} is its standard error; --loss_se_col {name} weighs by it")
    seen.columns = seen.columns or names
    return _rows_of_runs(rows, file, request, seen)


def _rows_of_runs(rows, file, request, seen):
    """The rows with the names of their runs, without checkpoints of runs that nothing names."""
    if request.rows_are_runs or not request.need_loss:
        rows["run"] = distinct(rows["run"])
    elif "run_id" not in file.found and not request.run_cols:
        stays, reason = name_runs(rows, file.found, file.header, seen)
        seen.drop(rows["run"][~stays], rows["row"][~stays], [reason] * int((~stays).sum()))
        rows = {k: v[stays] for k, v in rows.items()}
    if "unique" in rows and "epochs" not in rows:
        rows["epochs"] = rows["d"] / rows["unique"]
    for role in ("name", "step", "total_steps", "portion", "unique"):
        rows.pop(role, None)
    return rows


def _columns(chunk, row, file, prefix, seen):
    """Arrays of the columns in use, and of the rows' names, numbers and hashes; codes of the others."""
    data = {"run": np.array([f"{prefix}row {i}" for i in row], dtype=object), "row": row}
    found = file.found
    for role, i in found.items():
        cells = [r[i] for r in chunk]
        if role in TEXTS:
            words = np.array(["" if cell is None else str(cell).strip() for cell in cells], dtype=object)
            if role == "run_id":
                data["run"] = np.where(words == "", data["run"], words)
            elif role == "name":
                data["name"] = np.where(words == "", data["run"], words)
            else:
                data[role] = words
        else:
            _numbers(data, role, cells, file)
    if file.run_cols:
        names = [" ".join(str(r[i]) for i in file.run_cols) for r in chunk]
        data["run"] = np.array(names, dtype=object)
    roles = {found[role] for role in found if role in (*QUANTITIES, *TEXTS, "loss_se", "step", "portion")}
    if file.request.need_loss:
        for i, name in enumerate(file.header):
            if i not in roles and "=" + key_of(name) not in found:
                data["@" + str(name)] = seen.codes.encode(str(name), [r[i] for r in chunk])
    data["hash"] = np.array([hash(tuple(map(str, r))) for r in chunk], dtype=np.int64)
    if file.by_file:
        data["label"] = np.full(len(chunk), file.label, dtype=object)
        data["hash"] ^= hash(file.label)  # a row that two series share is no duplicate
    return data


def _numbers(data, role, cells, file):
    """Put a column's numbers into data, in parameters, tokens, FLOPs and the loss's unit."""
    decimal, error = file.decimals[role], None
    if role in ("loss", "loss_se"):
        values, error = with_errors(cells, decimal)
        if role == "loss":
            cells = values
        elif error is not None:  # --loss_se_col names the loss itself
            data["loss_se"] = error
            return
    values = floats(cells, decimal, words=role != "loss")
    scale = file.scales[role]
    if scale in LOGS:
        with np.errstate(over="ignore"):
            values = LOGS[scale] ** values
    elif scale != 1.0 and role != "loss":
        values = values * scale
    if role == "loss":
        values, error, _ = loss_in(values, error, file.loss_unit)
        if error is not None and "loss_se" not in file.found:
            data["loss_se"] = error
    data[role] = values


def _reasons(chunk, data, file, seen):
    """Why each row cannot be used, "" where it can."""
    why = np.full(len(chunk), "", dtype=object)
    width = len(file.header)
    for i, row in enumerate(chunk):
        if len(row) > width:
            why[i] = f"with {len(row)} cells under a header of {width}; quote cells that hold the separator"
    if "status" in data and "any" not in file.request.status:
        kept = FINISHED + [word.lower() for word in file.request.status]
        bad = ~np.isin(np.char.lower(data["status"].astype(str)), kept) & (why == "")
        why[bad] = [f"status {status}" for status in data["status"][bad]]
    for role in (*QUANTITIES, "ratio"):
        if role not in file.found or (role == "loss" and not file.request.need_loss):
            continue
        values, name = data[role], file.header[file.found[role]]
        problems = {"empty, nan or unparsable": np.isnan(values), "inf": np.isinf(values), "not positive": values <= 0}
        for problem, mask in problems.items():
            why[mask & (why == "")] = f"{name} {problem}"
        example = "3.1415" if role == "loss" else "1.3e9, 1.3B or 1,300,000,000"
        if not seen.unreadable:
            seen.unreadable = _first_unreadable(chunk, values, data["row"], file.found[role], name, example)
    blown_up = _blown_up(chunk, data, file) & (why == "")
    if blown_up.any():
        why[blown_up] = f"{file.header[file.found['loss']]} above ln V: blown up"
    for text, test in file.tests:
        outside = ~test(chunk)
        why[outside & (why == "")] = f"outside --where {text}"
    return why


def _blown_up(chunk, data, file):
    """Mask of measured losses above highest_loss(), which older versions of train.py called ok.

    Of files with a vocab_size. A loss that was drawn from a law, or that a service gave, has another source than
    "trained", and its vocab_size may be a stand-in. --status any, or blown_up, keeps them.
    """
    header, asked = file.header, set(file.request.status)
    in_nats = file.loss_unit in (None, NATS)
    if "vocab_size" not in header or not file.request.need_loss or not in_nats or asked & {"any", "blown_up"}:
        return np.zeros(len(chunk), bool)
    at = header.index("vocab_size")
    with np.errstate(invalid="ignore", divide="ignore"):
        above = data["loss"] > highest_loss(floats([row[at] for row in chunk], file.decimal))
    if "source" in header:
        at = header.index("source")
        above &= np.array([str(row[at] or "trained").strip() == "trained" for row in chunk])
    return above


def _first_unreadable(chunk, values, rows, i, name, example):
    """The first cell that is neither empty nor a number, with its place and what to do; "" where there is none."""
    for j in np.flatnonzero(np.isnan(values)):
        cell = str(chunk[j][i] if chunk[j][i] is not None else "").strip()
        if cell and cell.lower() not in BLANK:
            return f"row {rows[j]}, {name}: {cell[:40]!r} is no number; write it as {example}, or leave it empty"
    return ""


def _say_units(file, seen):
    """Notes on units that were taken from headers or --units, and the loss's unit, one for all files."""
    for role in ("n", "d", "c"):
        scale = file.scales.get(role, 1.0)
        if scale in LOGS:
            seen.note(f"{file.header[file.found[role]]}: {scale} of {role.upper()}")
        elif scale != 1.0:
            seen.note(f"{file.header[file.found[role]]}: {role.upper()} times {scale:g}")
    unit = file.loss_unit or NATS
    if unit == "perplexity":
        seen.note(f"{file.header[file.found['loss']]} is a perplexity: its logarithm is the loss, {NATS}")
        unit = NATS
    if seen.loss_unit and unit != seen.loss_unit:
        raise UserError(
            f"{file.path}: its loss is in {unit}, that of the file before in {seen.loss_unit}; fit them apart, or name "
            "columns of one unit with --loss_col"
        )
    if unit != NATS:
        seen.note(f"losses are in {unit}")
    seen.loss_unit = unit


def _third_quantity(rows, found):
    """Add the one of N, D and C that has no column, from C = 6ND; returns a note of it, "" where all are there."""
    with np.errstate(over="ignore"):
        if "ratio" in found:
            first, second = ("n", "d") if "n" in found else ("d", "n")
            rows[second] = rows[first] * rows.pop("ratio") ** (1 if first == "n" else -1)
            rows["c"] = 6.0 * rows["n"] * rows["d"]
            return f"{second.upper()} from D/N; no flops column: C = 6ND"
        if "c" not in found:
            rows["c"] = 6.0 * rows["n"] * rows["d"]
            return "no flops column: C = 6ND"
        if "d" not in found:
            rows["d"] = rows["c"] / (6.0 * rows["n"])
            return "no tokens column: D = C / 6N"
        if "n" not in found:
            rows["n"] = rows["c"] / (6.0 * rows["d"])
            return "no parameters column: N = C / 6D"
    return ""


def concatenate(parts):
    """Dicts of arrays, one below the other; columns that not all of them have are left out."""
    common = set(parts[0]).intersection(*parts[1:])
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0] if k in common}
