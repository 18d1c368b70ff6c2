"""
Anyone's table of training runs -> arrays of N, D, C and loss.

CSV (comma, semicolon or tab; quoted, CRLF, BOM), a JSON list of objects, or JSON lines. Columns are found by their
usual names; two of N, D, C suffice. Rows that cannot be used are dropped, counted and listed with the reason; several
rows of one run_id are a training curve, whose last row is the run.

    >>> table = read(["runs.csv"])
    >>> table.n, table.d, table.c, table.loss     # one entry per run, sorted, float64
"""

import csv
import io
import json
import operator
import os
import re
from dataclasses import dataclass, field

import numpy as np

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
LISTED = 1000  # dropped rows listed in full; beyond this only counted by reason
CHUNK = 100_000  # rows converted at a time: a million-row file stays well under a gigabyte
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
    budget: np.ndarray | None = None  # what was asked for (flop_budget), where the file says
    loss_se: np.ndarray | None = None
    c_exact: np.ndarray | None = None  # FLOPs with attention (flops_exact), where the file says
    lr_on_edge: np.ndarray | None = None  # 1 where the best rate tried was the first or the last, where the file says
    conventions: dict = field(default_factory=dict)  # name -> N in that convention
    curve: dict = field(default_factory=dict)  # run, n, d, c, loss of every row where runs have several
    info: dict = field(default_factory=dict)  # rows_read, rows_used, dropped, columns, notes

    def select(self, keep):
        """The runs where `keep` (mask or index), with their curves."""
        cut = {k: getattr(self, k) for k in FIELDS}
        cut = {k: None if v is None else v[keep] for k, v in cut.items()}
        curve = self.curve
        if curve:
            new = np.full(len(self.n), -1)
            new[keep] = np.arange(len(cut["n"]))
            rows = new[curve["run"]] >= 0
            curve = {k: (new[v[rows]] if k == "run" else v[rows]) for k, v in curve.items()}
        conventions = {k: v[keep] for k, v in self.conventions.items()}
        return Table(**cut, conventions=conventions, curve=curve, info=self.info)


def _key(name):
    return re.sub(r"[^a-z0-9]+", "_", str(name).strip().lower()).strip("_")


def _text(path):
    """The text of a file a person could have meant; one-line errors for what they could not."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a directory; name the CSV or JSON file in it")
    try:
        with open(path, "rb") as f:
            raw = f.read()
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror or e}") from None
    if not raw.strip():
        raise ValueError(f"{path} is empty; expected a header line and one row per run")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in raw:
        raise ValueError(f"{path} is a binary file, not CSV or JSON text")
    else:
        encoding = "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        if sum(b < 32 and b not in b"\t\r\n" for b in raw[:4096]) > 8:
            raise ValueError(f"{path} is a binary file, not CSV or JSON text") from None
        return raw.decode("latin-1")


def _rows(path):
    """(header, iterator of rows as lists of str, decimal comma?) of a CSV, JSON or JSON-lines file."""
    text = _text(path)
    if text.lstrip()[:1] in "[{":
        try:
            data = json.loads(text)
        except ValueError:
            try:
                data = [json.loads(line) for line in text.splitlines() if line.strip()]
            except ValueError as e:
                raise ValueError(f"{path} starts like JSON but cannot be parsed: {e}") from None
        if isinstance(data, dict):
            data = [data]
        if not data or not all(isinstance(r, dict) for r in data):
            raise ValueError(f"{path}: expected a JSON list of objects, one per run")
        header = list(dict.fromkeys(k for r in data for k in r))
        return header, ([r.get(k) for k in header] for r in data), False
    first = text.lstrip("\r\n").split("\n", 1)[0]
    counts = {s: first.count(s) for s in ",;\t"}
    sep = max(counts, key=counts.get)
    reader = csv.reader(io.StringIO(text), delimiter=sep)
    try:
        header = next(r for r in reader if any(c.strip() for c in r))
    except (csv.Error, StopIteration) as e:
        raise ValueError(f"{path}: not a CSV file ({e})") from None
    return [h.strip() for h in header], reader, sep == ";"


def _floats(cells, comma=False):
    """Cells (str, number or None) -> float64, NaN where unparsable."""
    try:
        return np.array(cells, dtype=float)
    except (ValueError, TypeError):
        out = np.full(len(cells), np.nan)
        for i, cell in enumerate(cells):
            try:
                out[i] = float(str(cell).replace(",", ".") if comma else cell)
            except (ValueError, TypeError):
                pass
        return out


def find_columns(header, named, path, need_loss=True):
    """
    {role: index in header} for n, d, c, loss and the optional run_id, status, loss_se, flop_budget, conventions.

    Raises ValueError naming the columns that were found when loss or two of N, D, C are missing.
    """
    keys = {}
    for i, h in enumerate(header):
        keys.setdefault(_key(h), i)
    found = {}
    for role, names in NAMES.items():
        given = named.get(role)
        if given is not None:
            if given not in header:
                raise ValueError(
                    f"--{role}_col {given}: no such column in {path}; it has {', '.join(map(str, header))}"
                )
            found[role] = header.index(given)
        else:
            hit = next((k for k in names.split() if k in keys), None)
            if hit is not None:
                found[role] = keys[hit]
    missing = [] if "loss" in found or not need_loss else ["a loss (val_loss, final_loss, loss, L)"]
    if sum(k in found for k in "ndc") < 2:
        missing.append("two of N (n_params, params, N), D (tokens, D) and C (flops, compute_budget, C)")
    if missing:
        raise ValueError(
            f"{path}: needs {' and '.join(missing)}; found {', '.join(map(str, header[:20]))}"
            f"{' ...' if len(header) > 20 else ''}; name them with --n_col, --d_col, --c_col, --loss_col"
        )
    for extra in ("flop_budget", "flops_exact", "lr_on_edge", *CONVENTIONS):
        if extra in keys:
            found["=" + extra] = keys[extra]
    return found


def parse_where(text):
    """'column op value' -> (column, function of a cell list returning a mask)."""
    m = re.match(r"^\s*(.+?)\s*(==|!=|<=|>=|<|>|=)\s*(.*?)\s*$", text or "")
    if not m:
        raise ValueError(f"--where {text!r}: expected 'column op value' with op one of == != < <= > >=")
    column, op, value = m[1], OPS[m[2] if m[2] != "=" else "=="], m[3].strip("'\"")
    try:
        number = float(value)
    except ValueError:
        if op not in (operator.eq, operator.ne):
            raise ValueError(f"--where {text!r}: {value!r} is not a number; only == and != compare text") from None
        return column, lambda cells: np.array([op(str(c).strip(), value) for c in cells], bool)
    return column, lambda cells: op(_floats(cells), number)


def read(paths, columns=None, where=(), exclude_flops_above=None, drop_top_loss=0, need_loss=True):
    """
    Read runs from files.

    Parameters
    ----------
    paths : list of str
    columns : dict, optional
        Column names for the roles n, d, c, loss, run_id, loss_se, where the usual names do not apply.
    where : list of str
        Selections 'column op value'; rows outside are left out and listed.
    exclude_flops_above : float, optional
        Leave out runs that cost more FLOPs than this.
    drop_top_loss : int
        Leave out this many runs with the highest loss.
    need_loss : bool
        False reads rows to predict: every row stands for itself and its loss may be missing (NaN).

    Beside a table of runs, a file with a `step` column (log.jsonl of train.py) adds their training curves by run_id.

    Returns
    -------
    Table
        Sorted by (C, N, D, loss), so that the order of rows in the file changes nothing.

    Raises
    ------
    ValueError
        Nothing readable, columns missing, or no row left: one line that says what was found.
    """
    columns = {k: v for k, v in (columns or {}).items() if v}
    parts, dropped, used, notes, rows_read = [], [], {}, [], 0
    logs = {path: log for path in paths if (log := _read_log(path))} if len(paths) > 1 else {}
    if len(logs) == len(paths):
        logs = {}  # nothing but curves: then they are the runs
    for path in paths:
        if path in logs:
            continue
        part, info = _read_one(path, columns, where, need_loss)
        parts.append(part)
        dropped += info["dropped"]
        rows_read += info["rows_read"]
        used = used or info["columns"]
        notes += [s for s in info["notes"] if s not in notes]
    keys = [k for k in parts[0] if all(k in p for p in parts)]
    if any(set(p) != set(keys) for p in parts):
        notes.append("the files have different columns; only the common ones are used")
    rows = {k: np.concatenate([p[k] for p in parts]) for k in keys}
    if not len(rows["n"]):
        raise ValueError(f"{', '.join(paths)}: none of {rows_read} rows can be used ({_reasons(dropped) or 'no rows'})")

    if need_loss:
        rows, more = _deduplicate(rows)
        dropped += more
    else:
        rows["run"] = np.array([f"{r} ({i})" if r in rows["run"][:i] else r for i, r in enumerate(rows["run"])], object)
    table = _runs(rows)
    notes += _join_logs(table, list(logs.values()))
    if exclude_flops_above is not None:
        table, more = _leave_out(table, table.c > exclude_flops_above * (1 + 1e-9), "above --exclude_flops_above")
        dropped += more
    if drop_top_loss:
        order = np.argsort(-table.loss, kind="stable")[:drop_top_loss]
        mask = np.isin(np.arange(len(table.n)), order)
        table, more = _leave_out(table, mask, f"one of --drop_top_loss {drop_top_loss}")
        dropped += more
    if not len(table.n):
        raise ValueError(f"{', '.join(paths)}: every run was left out ({_reasons(dropped)})")
    ratio = table.c / (6.0 * table.n * table.d)
    six = bool(np.all(np.abs(ratio - 1) < SIX_ND_TOL))
    if not six:
        notes.append(f"flops is not 6ND: C / 6ND from {ratio.min():.3g} to {ratio.max():.3g}; C is taken as given")
    counts = {}
    for item in dropped:
        counts[item["reason"]] = counts.get(item["reason"], 0) + 1
    table.info = {
        "files": [os.fspath(p) for p in paths],
        "rows_read": rows_read,
        "rows_used": len(table.n),
        "dropped": dropped[:LISTED],
        "dropped_counts": counts,
        "columns": used,
        "n_convention": used["n"] if used["n"] else "C / 6D",
        "flops_over_6nd": {"min": ratio.min(), "median": np.median(ratio), "max": ratio.max(), "is_6nd": six},
        "notes": notes,
    }
    if table.curve:
        table.info["curves"] = {"runs": len(np.unique(table.curve["run"])), "rows": len(table.curve["run"])}
    return table


def scores(paths):
    """{task: {run_id: (score, standard error or NaN)}} of columns score_TASK and score_TASK_se."""
    found = {}
    for path in paths:
        header, reader, comma = _rows(path)
        ids = [i for i, name in enumerate(header) if name == "run_id"]
        at = {h: i for i, h in enumerate(header) if h.startswith("score_") and not h.endswith("_se")}
        if not ids or not at:
            continue
        rows = [r for r in reader if len(r) == len(header)]
        for name, i in at.items():
            error = [r[header.index(f"{name}_se")] for r in rows] if f"{name}_se" in header else [None] * len(rows)
            pairs = zip(_floats([r[i] for r in rows], comma), _floats(error, comma), strict=True)
            held = found.setdefault(name.removeprefix("score_"), {})
            held |= {str(r[ids[0]]): pair for r, pair in zip(rows, pairs, strict=True) if np.isfinite(pair[0])}
    return found


def _reasons(dropped):
    counts = {}
    for item in dropped:
        counts[item["reason"]] = counts.get(item["reason"], 0) + 1
    return ", ".join(f"{v} {k}" for k, v in counts.items())


def _read_one(path, columns, where, need_loss=True):
    """One file -> dict of arrays of its usable rows, and what was dropped."""
    header, reader, comma = _rows(path)
    found = find_columns(header, columns, path, need_loss)
    tests = [(text, *parse_where(text)) for text in where]
    for text, column, _ in tests:
        if column not in header:
            raise ValueError(f"--where {text!r}: no column {column!r} in {path}; it has {', '.join(map(str, header))}")
    out, dropped, rows_read, width = [], [], 0, len(header)

    def take(chunk, start):
        row = start + np.arange(1, len(chunk) + 1)
        cells = {k: [r[i] for r in chunk] for k, i in found.items()}
        data = {k: _floats(v, comma) for k, v in cells.items() if k not in ("run_id", "status")}
        if "run_id" in found:
            run = np.array([str(v if v is not None else "").strip() for v in cells["run_id"]], dtype=object)
            run[run == ""] = np.array([f"row {i}" for i in row], dtype=object)[run == ""]
        else:
            run = np.array([f"row {i}" for i in row], dtype=object)
        why = np.full(len(chunk), "", dtype=object)
        if "status" in found:
            status = np.array([str(v or "").strip() for v in cells["status"]], dtype=object)
            bad = ~np.isin(np.char.lower(status.astype(str)), ["ok", "", "finished", "done", "success", "completed"])
            why[bad] = [f"status {s}" for s in status[bad]]
        for role in ("n", "d", "c", "loss"):
            if role not in found or (role == "loss" and not need_loss):
                continue
            v, name = data[role], header[found[role]]
            for mask, text in (
                (np.isnan(v), "empty, nan or unparsable"),
                (np.isinf(v), "inf"),
                (v <= 0, "not positive"),
            ):
                why[mask & (why == "")] = f"{name} {text}"
        for text, column, test in tests:
            i = header.index(column)
            why[(why == "") & ~test([r[i] for r in chunk])] = f"outside --where {text}"
        for i in np.flatnonzero(why != ""):
            dropped.append({"run_id": run[i], "row": int(row[i]), "reason": why[i]})
        good = why == ""
        data["hash"] = np.array([hash(tuple(map(str, r))) for r in chunk], dtype=np.int64)
        data |= {"run": run, "row": row}
        out.append({k: v[good] for k, v in data.items()})

    chunk = []
    try:
        for r in reader:
            if len(r) != width:
                if not r or not any(str(c or "").strip() for c in r):
                    continue
                r = list(r[:width]) + [""] * (width - len(r))
            chunk.append(r)
            if len(chunk) == CHUNK:
                take(chunk, rows_read)
                rows_read += len(chunk)
                chunk = []
    except csv.Error as e:
        raise ValueError(f"{path}: row {rows_read + len(chunk) + 1} cannot be read as CSV ({e})") from None
    if chunk or not out:
        take(chunk, rows_read)
        rows_read += len(chunk)
    if not rows_read:
        raise ValueError(f"{path} has a header and no rows")
    rows = {k: np.concatenate([o[k] for o in out]) for k in out[0]}
    notes = []
    if "loss" not in found:
        rows["loss"] = np.full(len(rows["row"]), np.nan)
    with np.errstate(over="ignore"):
        if "c" not in found:
            rows["c"] = 6.0 * rows["n"] * rows["d"]
            notes.append("no flops column: C = 6ND")
        elif "d" not in found:
            rows["d"] = rows["c"] / (6.0 * rows["n"])
            notes.append("no tokens column: D = C / 6N")
        elif "n" not in found:
            rows["n"] = rows["c"] / (6.0 * rows["d"])
            notes.append("no parameters column: N = C / 6D")
    names = {k: (header[found[k]] if k in found else None) for k in ("n", "d", "c", "loss", "run_id", "status")}
    return rows, {"dropped": dropped, "rows_read": rows_read, "columns": names, "notes": notes}


def _deduplicate(rows):
    """Every distinct row once: all cells equal, told by a 64-bit hash and confirmed on N, D, C and loss."""
    order = np.lexsort((rows["row"], rows["hash"]))
    h = rows["hash"][order]
    same = np.r_[False, h[1:] == h[:-1]]
    for k in ("n", "d", "c", "loss"):
        v = rows[k][order]
        same &= np.r_[False, v[1:] == v[:-1]]
    twice = np.zeros(len(h), bool)
    twice[order] = same
    more = [
        {"run_id": rows["run"][i], "row": int(rows["row"][i]), "reason": "exact duplicate"}
        for i in np.flatnonzero(twice)
    ]
    return {k: v[~twice] for k, v in rows.items() if k != "hash"}, more


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
    table = Table(
        rows["run"][keep],
        *(rows[k][keep] for k in ("n", "d", "c", "loss", "row")),
        budget=rows["=flop_budget"][keep] if "=flop_budget" in rows else None,
        c_exact=rows["=flops_exact"][keep] if "=flops_exact" in rows else None,
        lr_on_edge=rows["=lr_on_edge"][keep] if "=lr_on_edge" in rows else None,
        loss_se=rows["loss_se"][keep] if "loss_se" in rows else None,
        conventions={k: rows["=" + k][keep] for k in CONVENTIONS if "=" + k in rows},
        curve=curve,
    )
    return table


def _read_log(path):
    """(run_id, tokens, loss) arrays of a training log (it has a `step` and a run_id), or None for another table."""
    header, rows, comma = _rows(path)
    keys = [_key(h) for h in header]
    at = {
        role: next((keys.index(k) for k in NAMES[role].split() if k in keys), None) for role in ("loss", "d", "run_id")
    }
    if "step" not in keys or None in at.values():
        return None
    rows = [r for r in rows if len(r) == len(header)]
    run = np.array([str(r[at["run_id"]]) for r in rows], object)
    d, loss = (_floats([r[at[k]] for r in rows], comma) for k in ("d", "loss"))
    good = np.isfinite(d) & np.isfinite(loss) & (d > 0) & (loss > 0)
    return run[good], d[good], loss[good]


def _join_logs(table, logs):
    """Training logs become the curves of the runs they name; N and C per token are the run's own."""
    if not logs:
        return []
    index = {str(r): i for i, r in enumerate(table.run_id)}
    run, d, loss = (np.concatenate(v) for v in zip(*logs, strict=True))
    at = np.array([index.get(str(r), -1) for r in run])
    known = at >= 0
    at, d, loss = at[known], d[known], loss[known]
    order = np.lexsort((d, at))
    at, d, loss = at[order], d[order], loss[order]
    table.curve = {"run": at, "n": table.n[at], "d": d, "c": table.c[at] / table.d[at] * d, "loss": loss}
    return [
        f"{len(np.unique(at))} training curves from {len(logs)} logs; {int((~known).sum())} log rows name no run here"
    ]


def _leave_out(table, mask, reason):
    gone = [{"run_id": table.run_id[i], "row": int(table.row[i]), "reason": reason} for i in np.flatnonzero(mask)]
    return table.select(~mask), gone
