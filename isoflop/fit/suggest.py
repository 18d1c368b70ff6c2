"""
What to run next, for people whose runs are elsewhere: fit.py --suggest.

    >>> section = suggest(table, count=8, target_flops=1e21, spend=3e20)
    >>> header, rows, said = answer({"suggestions": section})

Candidates are the rows of a pool, or else a ladder of sizes about the best size of every compute that can be paid, and
repeats of known runs. design.py chooses; here are its input and its words.
"""

import csv
import io

import numpy as np

from isoflop.display import flops, markdown_table, percent, si, sig
from isoflop.files import write_text
from isoflop.fit.design import Candidates, Runs, Target, choose
from isoflop.fit.knowledge import Knowledge
from isoflop.fit.reading import open_table
from isoflop.fit.rows import distinct
from isoflop.fit.table import Table
from isoflop.laws import SIX_ND, cost_of
from isoflop.options import UserError

FIRST_SPEND = 0.01  # of the target's FLOPs, where there are no runs and --spend is not given
OCTAVES = 12  # computes of the candidates, halved from the largest that can be paid
LADDER = 1.25  # ratio of neighbouring sizes
AROUND = 10  # steps of the ladder on either side of the best size
RATIO = (1.0, 2000.0)  # tokens per parameter
CHINCHILLA = 20.0  # tokens per parameter of the best size, while fewer than three runs are known
MAX_SHARE = 0.5  # of the money that one run may cost
MOST_CANDIDATES = 5_000
MOST_KNOWN = 2_000  # runs that the law is fitted to; of more every so many
COLUMNS = ("rank", "run_id", "params", "tokens", "flops", "replicate", "gain", "pi95_loss", "pi95_n_opt", "why")


def is_empty(paths) -> bool:
    """Whether every file has a header and no rows. Files that cannot be read raise UserError."""
    for path in paths:
        _, rows, _ = open_table(path)
        if next(iter(rows), None) is not None:
            return False
    return True


def suggest(
    table: Table | None, count: int, target_flops: float | None = None, target_runs: Table | None = None,
    pool: Table | None = None, spend: float | None = None,
) -> dict:  # fmt: skip
    """
    The next runs, as fit.json's `suggestions`.

    Parameters
    ----------
    table : Table or None
        Known runs; None plans the first round.
    count : int
        Runs to propose.
    target_flops, target_runs
        One of them: the optimum at these FLOPs, or the losses of given rows.
    pool : Table, optional
        What can be run; rows named like a known run are left out.
    spend : float, optional
        FLOPs that may be spent; by default what the known runs cost, or FIRST_SPEND of the target's.

    Raises
    ------
    UserError
        Nothing to choose from.
    """
    runs, cost, names = Runs.none(), SIX_ND, []
    if table is not None:
        some = slice(None, None, -(-len(table.n) // MOST_KNOWN))
        n, d, c, names = table.n[some], table.d[some], table.c[some], table.run_id
        runs, cost = Runs(n, d, table.loss[some], c), cost_of(n, d, c)
    if target_flops is not None:
        target, aimed = Target(flops=target_flops, law_cost=cost), target_flops
    else:
        target, aimed = Target(n=target_runs.n, d=target_runs.d), float(target_runs.c.sum())
    if spend is None:
        spend = float(table.c.sum()) if table is not None else FIRST_SPEND * aimed
    notes = []
    if pool is not None:
        candidates, labels = _of_pool(pool, names, notes)
        share = 1.0
    else:
        candidates, labels = _ladder(runs, names[some] if len(runs) else [], cost, spend)
        share = min(MAX_SHARE, 3.0 / count)
    choice = choose(runs, candidates, target, count, spend, max_share=share, most=count)
    if not np.isfinite(choice.scores).any():
        raise UserError(f"--spend {spend:.4g}: {choice.note}; raise --spend, or name cheaper rows by --pool")
    if choice.note:
        notes.append(choice.note)
    rows = []
    for rank, decision in enumerate(choice.decisions, 1):
        row = {"rank": rank, "run_id": labels[decision.index], "params": decision.n, "tokens": decision.d}
        row |= {"flops": decision.cost, "replicate": decision.replicate, "gain": decision.gain}
        row |= {"pi95_loss": decision.after.pi95_loss, "pi95_n_opt": decision.after.pi95_n, "why": decision.why}
        rows.append(row)
    asked = {"flops": target_flops} if target_flops is not None else {"runs": len(target_runs.n)}
    out = {"target": asked, "spend": spend, "cost": float(sum(row["flops"] for row in rows)), "rows": rows}
    out |= {"candidates": len(candidates), "known": len(runs), "notes": notes}
    for name in ("before", "after"):
        width = getattr(choice, name)
        out[name] = {"pi95_loss": width.pi95_loss, "pi95_n_opt": width.pi95_n}
    return out


# ----- candidates -----


def _of_pool(pool, known, notes):
    """(Candidates, their run_ids) of the pool's rows that are not among the known runs."""
    keep = np.flatnonzero(~np.isin(pool.run_id.astype(str), np.asarray(known, str)))
    if len(keep) < len(pool.n):
        notes.append(f"{len(pool.n) - len(keep)} rows of the pool are known runs by their run_id, and left out")
    if not len(keep):
        raise UserError("--pool: every row is a known run by its run_id; name runs that are not in the table yet")
    if len(keep) > MOST_CANDIDATES:
        notes.append(f"of {len(keep):,} rows of the pool every {-(-len(keep) // MOST_CANDIDATES)}th is a candidate")
        keep = keep[:: -(-len(keep) // MOST_CANDIDATES)]
    n, d, c = pool.n[keep], pool.d[keep], pool.c[keep]
    order = np.lexsort((keep, d, n))
    seen, replicate = {}, np.zeros(len(keep), int)
    for j in order:  # rows of one (N, D) are repeats of the first
        replicate[j] = seen.get((n[j], d[j]), 0)
        seen[n[j], d[j]] = replicate[j] + 1
    return Candidates(n, d, c, c, replicate), distinct(pool.run_id[keep])


def _ladder(runs, names, cost, spend):
    """(Candidates, their labels): sizes about the best of every compute that can be paid, and repeats of known runs."""
    computes = MAX_SHARE * spend / 2.0 ** np.arange(OCTAVES)
    best = np.sqrt(computes / (6.0 * CHINCHILLA))
    if len(runs) >= 3:
        draws = Knowledge(runs, Candidates(runs.n, runs.d, runs.flops)).draws
        best = np.array([np.median(draws.optimum(c, cost)[0]) for c in computes])
    best = np.clip(best, np.sqrt(computes / (6.0 * RATIO[1])), np.sqrt(computes / (6.0 * RATIO[0])))
    steps = np.round(np.log(best) / np.log(LADDER))[:, None] + np.arange(-AROUND, AROUND + 1)
    n = _digits(LADDER**steps).ravel()
    d = _digits(cost.tokens(n, np.repeat(computes, 2 * AROUND + 1)))
    keep = (d / n >= RATIO[0]) & (d / n <= RATIO[1])
    n, d = n[keep], d[keep]
    labels, replicate = [""] * len(n), np.zeros(len(n), int)
    known_c = runs.flops
    again = np.flatnonzero(known_c <= MAX_SHARE * spend)[:MOST_CANDIDATES]
    labels += [f"repeat of {names[i]}" for i in again]
    n, d = np.r_[n, runs.n[again]], np.r_[d, runs.d[again]]
    c = np.r_[cost.flops(n[: len(replicate)], d[: len(replicate)]), known_c[again]]
    return Candidates(n, d, c, c, np.r_[replicate, np.ones(len(again), int)]), labels


def _digits(values):
    """To three significant digits."""
    scale = 10.0 ** (np.floor(np.log10(values)) - 2)
    return np.round(values / scale) * scale


# ----- words -----


def answer(result):
    """(header, rows, sentences) of a result's suggestions; no rows where none was asked for."""
    found = result.get("suggestions")
    if not found:
        return [], [], []
    aim = f"{found['target'].get('runs')} given runs"
    if "flops" in found["target"]:
        aim = f"the optimum at {flops(found['target']['flops'])} FLOPs"
    rows = []
    for row in found["rows"]:
        name = row["run_id"] or str(row["rank"])
        cells = [name[:28], si(row["params"], 3), si(row["tokens"], 3), sig(row["tokens"] / row["params"], 3)]
        cells += [flops(row["flops"], 3), percent(row["gain"], 0), f"±{percent(np.expm1(row['pi95_loss']))}"]
        if row["pi95_n_opt"] is not None:
            cells.append(f"x/÷ {sig(np.exp(row['pi95_n_opt']), 3)}")
        rows.append(cells)
    header = ["run next", "N", "D", "D/N", "FLOPs", "takes off", "pi95 of loss", "pi95 of N*"]
    if "runs" in found["target"]:
        header = header[:-1]
    said = (
        f"for {aim}: {len(rows)} runs for {flops(found['cost'], 3)} of {flops(found['spend'], 3)} FLOPs; pi95 of the "
    )
    said += f"loss {_half(found['after'])} after them"
    if found["known"]:  # without runs there is no "before"
        said += f", {_half(found['before'])} now"
    return header, rows, [said, *found["notes"]]


def _half(width):
    return f"±{percent(np.expm1(width['pi95_loss']))}"


def page(result):
    """Lines of Markdown for prediction.md."""
    header, rows, said = answer(result)
    lines = [markdown_table(header, rows, align="l"), ""] if rows else []
    return lines + [f"- {text}" for text in said]


def write_csv(path, section):
    """suggested.csv: the rows of a section, in its own columns; usable as --pool or as a list of runs to start."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in section["rows"]:
        writer.writerow({key: "" if row[key] is None else row[key] for key in COLUMNS})
    write_text(path, text.getvalue())
