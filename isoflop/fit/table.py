"""
Anyone's table of training runs -> arrays of N, D, C and loss.

reading.py opens the file, columns.py and names.py find the columns, values.py and units.py read the numbers, rows.py
decides which rows are runs. Two of N, D, C suffice. Rows that cannot be used are dropped, counted and listed with the
reason.

    >>> table = read(["runs.csv"])
    >>> table.n, table.d, table.c, table.loss     # one entry per run, sorted, float64
"""

import os
from dataclasses import dataclass, field

import numpy as np

from isoflop.display import count
from isoflop.fit.cells import Request, Seen, concatenate, names_of, read_rows
from isoflop.fit.columns import CONVENTIONS
from isoflop.fit.logs import find_logs, join_logs
from isoflop.fit.rows import cells_of, groups, numbers_of, share_nd
from isoflop.fit.units import NATS, parse_units, questions
from isoflop.options import UserError

LISTED = 1000  # dropped rows listed in full; beyond this only counted by reason
FIELDS = (
    "run_id", "n", "d", "c", "loss", "row", "budget", "loss_se", "c_exact", "lr_on_edge", "label", "epochs"
)  # fmt: skip
SIX_ND_TOL = 0.01  # |C / 6ND - 1| below which C is called 6ND
MOST_EPOCHS = 4.0  # up to which repeated tokens are worth nearly as much as new ones: Muennighoff et al. 2023
OUR_N = "n_params_matmul"  # the column of our own CSVs, whose units are known: a small model is no odd number there


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
    label: np.ndarray | None = None  # the series of each run, where `by` names their column
    epochs: np.ndarray | None = None  # how often a run saw its data, where the file says
    conventions: dict = field(default_factory=dict)  # name -> N in that convention
    settings: dict = field(default_factory=dict)  # of names.SETTINGS, those that were asked for and are there
    curve: dict = field(default_factory=dict)  # run, n, d, c, loss of every row where runs have several
    info: dict = field(default_factory=dict)  # rows_read, rows_used, dropped, columns, notes, warnings, loss_unit

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
        settings = {k: v[keep] for k, v in self.settings.items()}
        return Table(**cut, conventions=conventions, settings=settings, curve=curve, info=self.info)


# ----- from rows to runs -----


def read(
    paths, columns=None, where=(), exclude_flops_above=None, drop_top_loss=0, need_loss=True,
    *, status=(), units=(), run_cols=(), rows_are_runs=False, same_nd="auto", by=None,
    settings=(), numbers=None,
):  # fmt: skip
    """
    Read runs from files.

    Parameters
    ----------
    paths : list of str
        Tables of runs. Beside one, a file with a `step` column (log.jsonl of train.py) adds training curves by run_id,
        and a panel export of W&B the losses by the runs' names.
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
    status : sequence of str
        Statuses to keep besides FINISHED; "any" keeps all.
    units : sequence of str
        As n=M, d=B, c=PF-days, loss=perplexity, before what headers say.
    run_cols : sequence of str
        Columns that name a run together; its row of most tokens is the run, all of them its curve.
    rows_are_runs : bool
        Every row is a run of its own, whatever names it.
    same_nd : str
        Of rows.SAME_ND: what is taken of runs that share N and D and differ in a setting.
    by : str, optional
        Column with the series of each run, for Table.label; "file": the name of its file.
    settings : sequence of str
        Of names.SETTINGS: columns whose numbers Table.settings is to hold, where they are there.
    numbers : callable, optional
        (names of the columns without a role, name of the loss's) -> those whose numbers Table.settings is to hold, too.

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
    where = [where] if isinstance(where, str) else list(where)
    request = Request(columns, where, need_loss, tuple(status), parse_units(units), tuple(run_cols), rows_are_runs, by)
    (logs, exports, request.panel), seen = find_logs(paths), Seen()
    rows = _rows_of([path for path in paths if path not in logs and path not in exports], request, seen)
    if not len(rows["n"]):
        raise UserError(_nothing_usable(paths, seen))
    seen.note(seen.said_of_status())
    seen.note(seen.unreadable and f"cells that can't be read, the first: {seen.unreadable}")

    if need_loss:
        rows = _deduplicate(rows, seen)
    table, codes = _runs(rows)
    for role in settings:
        name, values = numbers_of(role, columns.get(role), codes, seen.codes)
        if name is not None:
            table.settings[role], seen.columns[role] = values, name
    if numbers is not None:
        for name in numbers(list(codes), seen.columns.get("loss")):
            table.settings[name] = cells_of(name, codes, seen.codes)
    if logs:
        seen.note(join_logs(table, list(logs.values())))
    if need_loss and not rows_are_runs:
        table = _one_of_each_pair(table, codes, same_nd, seen)
    table = _leave_out_asked(table, exclude_flops_above, drop_top_loss, seen)
    if not len(table.n):
        raise UserError(f"{', '.join(paths)}: every run was left out ({seen.reasons()})")
    if need_loss:
        _question(table, seen)
    table.info = _info(table, paths, seen)
    return table


def _rows_of(tables, request, seen):
    """The rows of all files in one dict of columns."""
    parts = []
    names = names_of(tables) if len(tables) > 1 else {}
    for path in tables:
        parts.append(read_rows(path, request, seen, names.get(path, "")))
    rows = concatenate(parts)
    if _columns_lost(parts, rows):
        seen.note("the files have different columns; only the common ones are used")
    return rows


def _leave_out_asked(table, exclude_flops_above, drop_top_loss, seen):
    """The table without the runs that two flags leave out."""
    if exclude_flops_above is not None:
        mask = table.c > exclude_flops_above * (1 + 1e-9)
        table = _leave_out(table, mask, "above --exclude_flops_above", seen)
    if drop_top_loss:
        order = np.argsort(-table.loss, kind="stable")[:drop_top_loss]
        mask = np.isin(np.arange(len(table.n)), order)
        table = _leave_out(table, mask, f"one of --drop_top_loss {drop_top_loss}", seen)
    return table


def _columns_lost(parts, rows):
    """Whether files have columns of use that others lack; those that only tell settings apart do not count."""
    used = {key for key in rows if not key.startswith("@")}
    return any(key not in used for part in parts for key in part if not key.startswith("@"))


def _nothing_usable(paths, seen):
    """The message where no row is left: reasons with their counts, one offending cell, the way out."""
    text = f"{', '.join(paths)}: none of {seen.rows_read} rows can be used ({seen.reasons() or 'no rows'})"
    if seen.said_of_status():
        text += f"; {seen.said_of_status()}"
    if seen.unreadable:
        text += f"; {seen.unreadable}"
    return text


def _one_of_each_pair(table, codes, mode, seen):
    """The table with one answer for each (N, D) whose rows differ in a setting."""
    keep, losses, notes, warnings = share_nd(table, codes, seen.codes, mode)
    for text in notes:
        seen.note(text)
    for code, text in warnings:
        seen.warn(code, text)
    if losses is not None:
        table.loss = losses
    if keep.all():
        return table
    reason = "another row is the mean of its (N, D)" if losses is not None else "not the lowest loss of its (N, D)"
    return _leave_out(table, ~keep, reason, seen)


def _question(table, seen):
    """Warnings on runs whose numbers can't be, and on those that repeat their data often."""
    for code, text in questions(table.n, table.d, table.c, table.loss, seen.loss_unit):
        if code != "units" or seen.columns.get("n") != OUR_N:
            seen.warn(code, text)
    if table.epochs is None or not (table.epochs > MOST_EPOCHS).any():
        return
    many, name = int((table.epochs > MOST_EPOCHS).sum()), seen.columns.get("epochs")
    if name is None:
        name = f"{seen.columns['d']} / {seen.columns['unique']}"
    seen.warn(
        "epochs",
        f"{many:,} of {len(table.n):,} runs saw their data more than {MOST_EPOCHS:g} times (up to "
        f"{count(np.nanmax(table.epochs))}); repeated tokens are worth less than new ones: leave these runs out with "
        f"--where '{name} <= 4'",
    )


def _info(table, paths, seen):
    """What fit.json says of the input."""
    ratio = table.c / (6.0 * table.n * table.d)
    six = bool(np.all(np.abs(ratio - 1) < SIX_ND_TOL))
    if not six:
        seen.note(f"flops is not 6ND: C / 6ND from {ratio.min():.3g} to {ratio.max():.3g}; C is taken as given")
    info = {
        "files": [os.fspath(path) for path in paths],
        "rows_read": seen.rows_read,
        "rows_used": len(table.n),
        "dropped": seen.dropped[:LISTED],
        "dropped_counts": seen.counts(),
        "columns": {role: name for role, name in seen.columns.items() if role not in ("epochs", "unique")},
        "n_convention": seen.columns["n"] or "C / 6D",
        "loss_unit": seen.loss_unit or NATS,
        "flops_over_6nd": {"min": ratio.min(), "median": np.median(ratio), "max": ratio.max(), "is_6nd": six},
        "notes": seen.notes,
        "warnings": seen.warnings,
    }
    if table.epochs is not None:
        info["epochs_column"] = seen.columns.get("epochs") or seen.columns.get("unique")
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


def _runs(rows):
    """Rows -> one entry per (run_id, N): the row with most tokens. All rows stay as curves if runs have several."""
    _, run = np.unique(rows["run"].astype(str), return_inverse=True)
    if "label" in rows:
        run = groups(run, np.unique(rows["label"].astype(str), return_inverse=True)[1])
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
    table = Table(
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
        label=kept.get("label"),
        epochs=kept.get("epochs"),
        conventions={k: kept["=" + k] for k in CONVENTIONS if "=" + k in kept},
        curve=curve,
    )
    return table, {k[1:]: v for k, v in kept.items() if k.startswith("@")}


def _leave_out(table, mask, reason, seen):
    seen.drop(table.run_id[mask], table.row[mask], [reason] * int(mask.sum()))
    return table.select(~mask)
