"""
Anyone's table of training runs -> arrays of N, D, C and loss.

CSV (comma, semicolon or tab; quoted, CRLF, BOM), a JSON list of objects, or JSON lines. Columns are found by their
usual names; two of N, D, C suffice. Rows that cannot be used are dropped, counted and listed with the reason; several
rows of one run_id are a training curve, whose last row is the run.

    >>> table = read(["runs.csv"])
    >>> table.n, table.d, table.c, table.loss     # one entry per run, sorted, float64
"""

import os
from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.cells import CONVENTIONS, NAMES, chunks, find_columns, floats, key_of, open_table, selections
from isoflop.options import UserError

FINISHED = ["ok", "", "finished", "done", "success", "completed"]  # statuses of runs that count
LISTED = 1000  # dropped rows listed in full; beyond this only counted by reason
FIELDS = ("run_id", "n", "d", "c", "loss", "row", "budget", "loss_se", "c_exact", "lr_on_edge")  # of every run
SIX_ND_TOL = 0.01  # |C / 6ND - 1| below which C is called 6ND


@dataclass
class Table:
    """Runs as parallel float64 arrays (one entry per run), the curves they came from, and what was left out."""

    run_id: np.ndarray
    n: np.ndarray
    d: np.ndarray
    c: np.ndarray
    loss: np.ndarray
    row: np.ndarray  # 1-based row in its file, the header not counted
    budget: np.ndarray | None = None  # requested FLOPs (flop_budget), where the file says
    loss_se: np.ndarray | None = None
    c_exact: np.ndarray | None = None  # FLOPs with attention (flops_exact), where the file says
    lr_on_edge: np.ndarray | None = None  # 1 where the best rate tried was the first or the last, where the file says
    conventions: dict = field(default_factory=dict)  # name -> N in that convention
    curve: dict = field(default_factory=dict)  # run, n, d, c, loss of every row where runs have several
    info: dict = field(default_factory=dict)  # rows_read, rows_used, dropped, columns, notes

    def select(self, keep):
        """The runs where `keep` (mask or index), with their curves."""
        cut = {}
        for name in FIELDS:
            values = getattr(self, name)
            cut[name] = None if values is None else values[keep]
        curve = self.curve
        if curve:
            new = np.full(len(self.n), -1)
            new[keep] = np.arange(len(cut["n"]))
            rows = new[curve["run"]] >= 0
            curve = {k: v[rows] for k, v in curve.items()}
            curve["run"] = new[curve["run"]]
        conventions = {k: v[keep] for k, v in self.conventions.items()}
        return Table(**cut, conventions=conventions, curve=curve, info=self.info)


# ----- from cells to usable rows -----


@dataclass
class _Seen:
    """What became of the rows of all files."""

    rows_read: int = 0
    dropped: list = field(default_factory=list)  # {run_id, row, reason}
    notes: list = field(default_factory=list)
    columns: dict = field(default_factory=dict)  # role -> column name, of the first file

    def drop(self, names, rows, reasons):
        for name, row, reason in zip(names, rows, reasons, strict=True):
            self.dropped.append({"run_id": name, "row": int(row), "reason": reason})

    def counts(self):
        """{reason: number of rows}."""
        out = {}
        for item in self.dropped:
            out[item["reason"]] = out.get(item["reason"], 0) + 1
        return out

    def reasons(self):
        return ", ".join(f"{count} {reason}" for reason, count in self.counts().items())


def _read_file(path, columns, where, need_loss, seen):
    """Usable rows of one file as a dict of arrays; `seen` takes down the others."""
    header, reader, comma = open_table(path)
    found = find_columns(header, columns, path, need_loss)
    tests = selections(where, header, path)
    parts, read_before = [], seen.rows_read
    for chunk in chunks(reader, len(header), path):
        row = seen.rows_read - read_before + np.arange(1, len(chunk) + 1)
        data = _columns(chunk, row, found, comma)
        why = _reasons(chunk, data, header, found, tests, need_loss)
        bad = why != ""
        seen.drop(data["run"][bad], row[bad], why[bad])
        seen.rows_read += len(chunk)
        parts.append({k: v[~bad] for k, v in data.items() if k != "status"})
    if not parts:
        raise UserError(f"{path} has a header and no rows")
    rows = _concatenate(parts)
    if "loss" not in found:
        rows["loss"] = np.full(len(rows["row"]), np.nan)
    note = _third_quantity(rows, found)
    if note and note not in seen.notes:
        seen.notes.append(note)
    names = {role: None for role in ("n", "d", "c", "loss", "run_id", "status")}
    names |= {role: header[found[role]] for role in names if role in found}
    seen.columns = seen.columns or names
    return rows


def _columns(chunk, row, found, comma):
    """Arrays of the columns in use, and of the rows' names, numbers and hashes."""
    data = {"run": np.array([f"row {i}" for i in row], dtype=object), "row": row}
    for role, i in found.items():
        cells = [r[i] for r in chunk]
        if role in ("run_id", "status"):
            words = np.array(["" if cell is None else str(cell).strip() for cell in cells], dtype=object)
            if role == "status":
                data["status"] = words
            else:
                data["run"] = np.where(words == "", data["run"], words)
        else:
            data[role] = floats(cells, comma)
    data["hash"] = np.array([hash(tuple(map(str, r))) for r in chunk], dtype=np.int64)
    return data


def _reasons(chunk, data, header, found, tests, need_loss):
    """Why each row cannot be used, "" where it can."""
    why = np.full(len(chunk), "", dtype=object)
    if "status" in data:
        bad = ~np.isin(np.char.lower(data["status"].astype(str)), FINISHED)
        why[bad] = [f"status {status}" for status in data["status"][bad]]
    for role in ("n", "d", "c", "loss"):
        if role not in found or (role == "loss" and not need_loss):
            continue
        values, name = data[role], header[found[role]]
        problems = {"empty, nan or unparsable": np.isnan(values), "inf": np.isinf(values), "not positive": values <= 0}
        for problem, mask in problems.items():
            why[mask & (why == "")] = f"{name} {problem}"
    for text, i, test in tests:
        outside = ~test([r[i] for r in chunk])
        why[outside & (why == "")] = f"outside --where {text}"
    return why


def _third_quantity(rows, found):
    """Add the one of N, D and C that has no column, from C = 6ND; returns a note of it, "" where all are there."""
    with np.errstate(over="ignore"):
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


def _concatenate(parts):
    """Dicts of arrays, one below the other; columns that not all of them have are left out."""
    common = set(parts[0]).intersection(*parts[1:])
    return {k: np.concatenate([part[k] for part in parts]) for k in parts[0] if k in common}


# ----- from rows to runs -----


def read(paths, columns=None, where=(), exclude_flops_above=None, drop_top_loss=0, need_loss=True):
    """
    Read runs from files.

    Parameters
    ----------
    paths : list of str
        Tables of runs. Beside one, a file with a `step` column (log.jsonl of train.py) adds training curves by run_id.
    columns : dict, optional
        Column names for the roles n, d, c, loss, run_id, loss_se, where the usual names do not apply.
    where : str, or list of str
        Selections 'column op value'; rows outside are left out and listed.
    exclude_flops_above : float, optional
        Leave out runs that cost more FLOPs than this.
    drop_top_loss : int
        Leave out this many runs with the highest loss.
    need_loss : bool
        False reads rows to predict: every row stands for itself and its loss may be missing (NaN).

    Returns
    -------
    Table
        Sorted by (C, N, D, loss), so that the order of rows in the file changes nothing.

    Raises
    ------
    UserError
        Nothing readable, columns missing, or no row left: one line that says what was found.
    """
    columns = {role: name for role, name in (columns or {}).items() if name}
    if isinstance(where, str):
        where = [where]
    logs = _logs(paths)
    seen, parts = _Seen(), []
    for path in paths:
        if path not in logs:
            parts.append(_read_file(path, columns, where, need_loss, seen))
    rows = _concatenate(parts)
    if any(len(part) > len(rows) for part in parts):
        seen.notes.append("the files have different columns; only the common ones are used")
    if not len(rows["n"]):
        why = seen.reasons() or "no rows"
        raise UserError(f"{', '.join(paths)}: none of {seen.rows_read} rows can be used ({why})")

    if need_loss:
        rows = _deduplicate(rows, seen)
    else:
        rows["run"] = _distinct(rows["run"])
    table = _runs(rows)
    if logs:
        seen.notes.append(_join_logs(table, list(logs.values())))
    if exclude_flops_above is not None:
        mask = table.c > exclude_flops_above * (1 + 1e-9)
        table = _leave_out(table, mask, "above --exclude_flops_above", seen)
    if drop_top_loss:
        order = np.argsort(-table.loss, kind="stable")[:drop_top_loss]
        mask = np.isin(np.arange(len(table.n)), order)
        table = _leave_out(table, mask, f"one of --drop_top_loss {drop_top_loss}", seen)
    if not len(table.n):
        raise UserError(f"{', '.join(paths)}: every run was left out ({seen.reasons()})")
    table.info = _info(table, paths, seen)
    return table


def _info(table, paths, seen):
    """What fit.json says of the input."""
    ratio = table.c / (6.0 * table.n * table.d)
    six = bool(np.all(np.abs(ratio - 1) < SIX_ND_TOL))
    if not six:
        seen.notes.append(f"flops is not 6ND: C / 6ND from {ratio.min():.3g} to {ratio.max():.3g}; C is taken as given")
    info = {
        "files": [os.fspath(path) for path in paths],
        "rows_read": seen.rows_read,
        "rows_used": len(table.n),
        "dropped": seen.dropped[:LISTED],
        "dropped_counts": seen.counts(),
        "columns": seen.columns,
        "n_convention": seen.columns["n"] or "C / 6D",
        "flops_over_6nd": {"min": ratio.min(), "median": np.median(ratio), "max": ratio.max(), "is_6nd": six},
        "notes": seen.notes,
    }
    if table.curve:
        info["curves"] = {"runs": len(np.unique(table.curve["run"])), "rows": len(table.curve["run"])}
    return info


def _deduplicate(rows, seen):
    """Every distinct row once: all cells equal, told by a 64-bit hash and confirmed on N, D, C and loss."""
    order = np.lexsort((rows["row"], rows["hash"]))
    same = np.full(len(order), True)
    for key in ("hash", "n", "d", "c", "loss"):
        values = rows[key][order]
        same &= np.r_[False, values[1:] == values[:-1]]
    twice = np.zeros(len(order), bool)
    twice[order] = same
    seen.drop(rows["run"][twice], rows["row"][twice], ["exact duplicate"] * int(twice.sum()))
    return {k: v[~twice] for k, v in rows.items() if k != "hash"}


def _distinct(names):
    """Names of rows, each of its own: a second "a" in row 3 (from 0) is "a (3)"."""
    out, taken = [], set()
    for i, name in enumerate(names):
        out.append(name)
        if name in taken:
            out[-1] = f"{name} ({i})"
        taken.add(name)
    return np.array(out, object)


def _runs(rows):
    """Rows -> one entry per (run_id, N): the row with most tokens. All rows stay as curves if runs have several."""
    _, run = np.unique(rows["run"].astype(str), return_inverse=True)
    order = np.lexsort((rows["loss"], rows["d"], rows["n"], run))
    r, n = run[order], rows["n"][order]
    last = np.r_[(r[1:] != r[:-1]) | (n[1:] != n[:-1]), True]
    final = order[last]
    member = np.empty(len(order), int)
    member[order] = np.r_[0, np.cumsum(last)[:-1]]  # index into `final` of every row
    rank = np.lexsort((rows["loss"][final], rows["d"][final], rows["n"][final], rows["c"][final]))
    place = np.empty(len(final), int)
    place[rank] = np.arange(len(final))
    keep = final[rank]
    curve = {}
    if len(final) < len(order):
        curve = {"run": place[member], **{k: rows[k] for k in ("n", "d", "c", "loss")}}
        by = np.lexsort((curve["d"], curve["run"]))
        curve = {k: v[by] for k, v in curve.items()}
    kept = {k: v[keep] for k, v in rows.items()}
    return Table(
        run_id=kept["run"],
        n=kept["n"],
        d=kept["d"],
        c=kept["c"],
        loss=kept["loss"],
        row=kept["row"],
        budget=kept.get("=flop_budget"),
        loss_se=kept.get("loss_se"),
        c_exact=kept.get("=flops_exact"),
        lr_on_edge=kept.get("=lr_on_edge"),
        conventions={k: kept["=" + k] for k in CONVENTIONS if "=" + k in kept},
        curve=curve,
    )


def _leave_out(table, mask, reason, seen):
    seen.drop(table.run_id[mask], table.row[mask], [reason] * int(mask.sum()))
    return table.select(~mask)


# ----- training logs, and scores -----


def _logs(paths):
    """{path: (run_id, tokens, loss)} of the training logs among several files; empty where all of them are logs."""
    logs = {}
    if len(paths) > 1:
        for path in paths:
            log = _read_log(path)
            if log:
                logs[path] = log
    if len(logs) == len(paths):
        return {}  # nothing but curves: then they are the runs
    return logs


def _read_log(path):
    """(run_id, tokens, loss) arrays of a training log (it has a `step` and a run_id), or None for another table."""
    header, rows, comma = open_table(path)
    keys = [key_of(name) for name in header]
    at = {}
    for role in ("run_id", "d", "loss"):
        at[role] = next((keys.index(key) for key in NAMES[role].split() if key in keys), None)
    if "step" not in keys or None in at.values():
        return None
    rows = [r for r in rows if len(r) == len(header)]
    run = np.array([str(r[at["run_id"]]) for r in rows], object)
    d = floats([r[at["d"]] for r in rows], comma)
    loss = floats([r[at["loss"]] for r in rows], comma)
    good = np.isfinite(d) & np.isfinite(loss) & (d > 0) & (loss > 0)
    return run[good], d[good], loss[good]


def _join_logs(table, logs):
    """Training logs become the curves of the runs they name; N and C per token are the run's own. Returns a note."""
    index = {str(name): i for i, name in enumerate(table.run_id)}
    run = np.concatenate([log[0] for log in logs])
    d = np.concatenate([log[1] for log in logs])
    loss = np.concatenate([log[2] for log in logs])
    at = np.array([index.get(str(name), -1) for name in run])
    known = at >= 0
    at, d, loss = at[known], d[known], loss[known]
    order = np.lexsort((d, at))
    at, d, loss = at[order], d[order], loss[order]
    table.curve = {"run": at, "n": table.n[at], "d": d, "c": table.c[at] / table.d[at] * d, "loss": loss}
    curves, unknown = len(np.unique(at)), int((~known).sum())
    return f"{curves} training curves from {len(logs)} logs; {unknown} log rows name no run here"


def scores(paths):
    """{task: {run_id: (score, standard error or NaN)}} of columns score_TASK and score_TASK_se."""
    found = {}
    for path in paths:
        header, reader, comma = open_table(path)
        if "run_id" not in header:
            continue
        rows = [r for r in reader if len(r) == len(header)]
        names = [str(r[header.index("run_id")]) for r in rows]
        for i, column in enumerate(header):
            if not column.startswith("score_") or column.endswith("_se"):
                continue
            score = floats([r[i] for r in rows], comma)
            error = np.full(len(rows), np.nan)
            if f"{column}_se" in header:
                j = header.index(f"{column}_se")
                error = floats([r[j] for r in rows], comma)
            task = found.setdefault(column.removeprefix("score_"), {})
            for name, one, se in zip(names, score, error, strict=True):
                if np.isfinite(one):
                    task[name] = (one, se)
    return found
