"""
Files beside a table of runs: training logs, which become the runs' curves, and benchmark scores.

    >>> logs, exports, panel = find_logs(["runs.csv", "log.jsonl"])
    >>> scores(["runs_scores.csv"])  # {task: {run_id: (score, standard error)}}
"""

import numpy as np

from isoflop.fit.names import NAMES, key_of
from isoflop.fit.panels import Panel, is_panel
from isoflop.fit.reading import open_table
from isoflop.fit.values import floats


def find_logs(paths):
    """
    What among several files is no table of runs: ({path: (run_id, tokens, loss)} of training logs, {path} of W&B's
    panel exports, the Panel of these). Where nothing else is there the logs, or the exports, are the runs.
    """
    logs, exports, panel = {}, set(), Panel()
    if len(paths) > 1:
        for path in paths:
            header, rows, decimal = open_table(path)
            if is_panel(header):
                exports.add(path)
                panel.add(path, header, rows, decimal)
                continue
            log = _log_of(header, rows, decimal)
            if log:
                logs[path] = log
    if len(logs) == len(paths) or len(exports) == len(paths):
        return {}, set(), Panel()
    return logs, exports, panel


def _log_of(header, rows, decimal):
    """(run_id, tokens, loss) arrays of a training log (it has a `step` and a run_id), or None for another table."""
    keys = [key_of(name) for name in header]
    at = {}
    for role in ("run_id", "d", "loss"):
        at[role] = next((keys.index(key) for key in NAMES[role].split() if key in keys), None)
    if "step" not in keys or None in at.values():
        return None
    rows = [r for r in rows if len(r) == len(header)]
    run = np.array([str(r[at["run_id"]]) for r in rows], object)
    d = floats([r[at["d"]] for r in rows], decimal)
    loss = floats([r[at["loss"]] for r in rows], decimal)
    good = np.isfinite(d) & np.isfinite(loss) & (d > 0) & (loss > 0)
    return run[good], d[good], loss[good]


def join_logs(table, logs):
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
        header, reader, decimal = open_table(path)
        if "run_id" not in header:
            continue
        rows = [r for r in reader if len(r) == len(header)]
        names = [str(r[header.index("run_id")]) for r in rows]
        for i, column in enumerate(header):
            if not column.startswith("score_") or column.endswith("_se"):
                continue
            score = floats([r[i] for r in rows], decimal)
            error = np.full(len(rows), np.nan)
            if f"{column}_se" in header:
                j = header.index(f"{column}_se")
                error = floats([r[j] for r in rows], decimal)
            task = found.setdefault(column.removeprefix("score_"), {})
            for name, one, se in zip(names, score, error, strict=True):
                if np.isfinite(one):
                    task[name] = (one, se)
    return found
