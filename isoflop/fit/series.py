"""
Several series of runs (optimizers, data mixes, architectures): a law each, and what they differ by at equal loss.

    >>> base, other = Series("adamw", ...), Series("muon", ...)
    >>> compare([base, other], "adamw", [1e20])[0].multiplier   # Estimate(1.31, (1.24, 1.39))

The compute multiplier of a series at C: so many times C the base needs for the loss that the series reaches with C.
Each series has a coupled law of its own (coupled.py), nothing is shared; the interval is of both laws' draws, paired
at random.
"""

import re
import textwrap
from dataclasses import asdict, dataclass

import numpy as np

from isoflop.display import fixed, flops, interval, markdown_table, percent, sig, text_table
from isoflop.files import atomic, write_json, write_text
from isoflop.fit.axes import C_AXIS, RC, figure, flops_tick, legend, log_axis, loss_axis, span
from isoflop.fit.coupled import CoupledFit
from isoflop.fit.findings import size
from isoflop.fit.huber import PERCENTILES
from isoflop.laws import Cost
from isoflop.options import UserError

MOST_SERIES = 12
REACH = 3.0  # factor of compute beyond the base's runs from which a multiplier is marked
WIDTH = 100  # of the terminal's tables
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")  # Okabe and Ito's


@dataclass(frozen=True)
class Series:
    """The runs of one label and their law; fit.law is None where the runs determine none."""

    label: str
    c: np.ndarray  # FLOPs and loss of the runs
    loss: np.ndarray
    fit: CoupledFit
    cost: Cost
    folder: str = ""  # of its own pages


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval, None without resamples; an end is None where it is infinite."""

    point: float | None
    ci95: tuple | None


@dataclass(frozen=True)
class Difference:
    """One series against the base at `flops`."""

    label: str
    base: str
    flops: float
    multiplier: Estimate  # of compute, at equal loss
    loss: Estimate  # loss / base's loss - 1, at equal compute
    beyond: bool  # the multiplier asks the base's law for compute more than REACH times its runs'


def split(table, by):
    """
    The table of each series: {label: Table}, in the order of the file.

    Raises
    ------
    UserError
        One label, or more than MOST_SERIES.
    """
    names = np.array([str(name) for name in table.label], object)
    first = {}
    for i in np.lexsort((table.row,)):
        first.setdefault(names[i], i)
    if len(first) < 2:
        raise UserError(f"--by {by}: every run has {next(iter(first))!r} there; name another column or leave --by out")
    if len(first) > MOST_SERIES:
        raise UserError(f"--by {by}: {len(first)} values, more than {MOST_SERIES}; --where selects some")
    out = {}
    for label in first:
        part = table.select(names == label)
        part.info = table.info | {"rows_used": len(part.n), "series": {"by": by, "label": label}}
        part.info["notes"] = [f"{by}: {label or '(empty)'}", *table.info["notes"]]
        part.info["warnings"] = list(table.info["warnings"])
        out[label] = part
    return out


def folders(labels):
    """A name of a folder for each label, no two the same."""
    out = {}
    for label in labels:
        name = re.sub(r"[^\w.+-]+", "_", label).strip("_.")[:60] or "empty"
        while name in out.values():
            name += "_"
        out[label] = name
    return out


def choose_base(labels, wanted, by):
    """The label that the others are compared with: the one asked for, else the first of the file."""
    if wanted is None:
        return labels[0]
    if wanted not in labels:
        raise UserError(f"--base {wanted}: no such value in {by}; it has {', '.join(labels)}")
    return wanted


# ----- differences -----


def common_budgets(series):
    """Compute that all series with a law have runs around: (its middle, its end), the middle of logs; or nothing."""
    fitted = [one for one in series if one.fit.law is not None]
    if not fitted:
        return ()
    low, high = max(one.c.min() for one in fitted), min(one.c.max() for one in fitted)
    if low >= high:
        return (float(high),)
    return float(np.sqrt(low * high)), float(high)


def compare(series, base, at, seed=0):
    """
    Every series against the base at every compute.

    Parameters
    ----------
    series : list of Series
    base : str
        A label.
    at : sequence of float
        FLOPs.
    seed : int
        Of the pairing of draws.

    Returns
    -------
    list of Difference
        Without series that have no law; empty where the base has none.
    """
    by_label = {one.label: one for one in series}
    reference, rng, out = by_label[base], np.random.default_rng(seed), []
    if reference.fit.law is None:
        return out
    for one in series:
        if one.label == base or one.fit.law is None:
            continue
        drawn = _paired(one.fit.draws, reference.fit.draws, rng)
        for c in at:
            point = _between(one.fit.law, reference.fit.law, c, one.cost, reference.cost)
            spread = (None, None)
            if drawn is not None:
                spread = tuple(map(_ends, _between(*drawn, c, one.cost, reference.cost)))
            multiplier = Estimate(_finite(point[0]), spread[0])
            loss = Estimate(float(point[1]), spread[1])
            beyond = point[0] * c > REACH * reference.c.max()
            out.append(Difference(one.label, base, float(c), multiplier, loss, bool(beyond)))
    return out


def _paired(ours, theirs, rng):
    """Draws of both laws, as many of each, in random order: they are independent."""
    if ours is None or theirs is None:
        return None
    few = min(len(ours.E), len(theirs.E))
    orders = rng.permutation(len(ours.E))[:few], rng.permutation(len(theirs.E))[:few]
    return [law.each(lambda v, order=order: v[order]) for law, order in zip((ours, theirs), orders, strict=True)]


def _between(law, reference, c, cost, reference_cost):
    """(compute multiplier, loss / reference's - 1) at compute c."""
    loss = law.frontier_loss(c, cost)
    return reference.compute_for(loss, reference_cost) / c, loss / reference.frontier_loss(c, reference_cost) - 1


def _ends(values):
    low, high = np.percentile(values, PERCENTILES, method="nearest")
    return _finite(low), _finite(high)


def _finite(value):
    return float(value) if np.isfinite(value) else None


# ----- what is written -----


def to_json(series, by, base, differences, loss_unit):
    """series.json: plain Python. `optimum` of each series is at the largest compute that all of them have."""
    at, rows = common_budgets(series), []
    for one in series:
        row = {"label": one.label, "folder": one.folder, "n_runs": len(one.c)}
        row |= {"flops_min": float(one.c.min()), "flops_max": float(one.c.max()), "law": None}
        if one.fit.law is None:
            row["why"] = one.fit.refusals[0].message
        else:
            row["law"] = {name: {"point": float(v), "ci95": one.fit.ci(name)} for name, v in one.fit.law.params.items()}
            n, d = one.fit.law.optimum(at[-1], one.cost)
            row["optimum"] = {"flops": at[-1], "n": float(n), "d": float(d), "loss": float(one.fit.law.loss(n, d))}
        rows.append(row)
    compared = [asdict(difference) for difference in differences]
    return {"by": by, "base": base, "loss_unit": loss_unit, "series": rows, "differences": compared}


def _name(label):
    return label or "(empty)"


def _tables(result):
    """(header, rows) of the series at their common compute, and of their differences."""
    at = [row["optimum"]["flops"] for row in result["series"] if row["law"]]
    head = ["series", "runs", "C of the runs", *([f"least loss at {flops(at[0], 3)}", "N*", "D/N"] if at else [])]
    rows = []
    for row in result["series"]:
        cells = [_name(row["label"]), row["n_runs"], f"{flops(row['flops_min'], 3)} to {flops(row['flops_max'], 3)}"]
        best = row.get("optimum")
        if best:
            cells += [fixed(best["loss"]), size(best["n"]), sig(best["d"] / best["n"], 3)]
        rows.append(cells + [None] * (len(head) - len(cells)))
    compared = []
    for row in result["differences"]:
        multiplier, loss = row["multiplier"], row["loss"]
        cells = [_name(row["label"]), flops(row["flops"], 3)]
        cells += [sig(multiplier["point"], 3), interval(multiplier["ci95"], lambda v: sig(v, 3))]
        cells += [percent(loss["point"], 2, sign=True), interval(loss["ci95"], lambda v: percent(v, 2, sign=True))]
        compared.append(cells)
    header = [f"against {_name(result['base'])}", "at C", "compute multiplier", "ci95", "loss at equal C", "ci95"]
    return (head, rows), (header, compared)


def _remarks(result):
    """Sentences on series without a law, and on what a multiplier is."""
    said = [f"{_name(row['label'])} has no law: {row['why']}" for row in result["series"] if not row["law"]]
    if result["differences"]:
        said.append(
            f"compute multiplier: so many times C {_name(result['base'])} needs for the loss that the series reaches "
            "with C; above 1 the series saves compute"
        )
    far = [f"{_name(row['label'])} at {flops(row['flops'], 3)}" for row in result["differences"] if row["beyond"]]
    if far:
        said.append(f"beyond the runs of {_name(result['base'])}, by its law alone: the multiplier of {', '.join(far)}")
    return said


def summary(result):
    """The terminal's lines."""
    (head, rows), (header, compared) = _tables(result)
    lines = [f"{len(rows)} series by {result['by']}, a law each", "", text_table(head, rows, width=WIDTH), ""]
    if compared:
        lines += [text_table(header, compared, width=WIDTH), ""]
    for text in _remarks(result):
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def write(result, series, folder, plots=True, format="png"):
    """Write series.json, series.md and the picture of all series into a folder that is there."""
    (head, rows), (header, compared) = _tables(result)
    lines = [f"# A law for each {result['by']}", "", markdown_table(head, rows), ""]
    if compared:
        lines += ["## Differences", "", markdown_table(header, compared), ""]
    lines += [f"- {text}" for text in _remarks(result)]
    if plots:
        name = f"series.{format}"
        _save(series, result, folder / name, format)
        lines += ["", f"![Runs and least loss against compute, a colour for each {result['by']}]({name})"]
    pages = ", ".join(f"[{_name(row['label'])}]({row['folder']}/prediction.md)" for row in result["series"])
    write_text(folder / "series.md", "\n".join([*lines, "", f"Every series on its own page: {pages}."]) + "\n")
    write_json(folder / "series.json", result, indent=1, allow_nan=False)


def _save(series, result, path, format):
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(RC):
        fig = draw(series, result["by"], result["loss_unit"])
        with atomic(path, "wb") as f:
            fig.savefig(f, format=format)
        matplotlib.pyplot.close(fig)


def draw(series, by, loss_unit):
    """All runs and the least loss at each C, a colour for each series, ci95 as a band: a matplotlib figure."""
    fig, ax = figure()
    for i, one in enumerate(series):
        colour, dash = PALETTE[i % len(PALETTE)], ("-", "--")[i // len(PALETTE)]
        ax.scatter(one.c, one.loss, s=18, color=colour, alpha=0.35, linewidths=0)
        label = one.label or "(empty)"
        if one.fit.law is None:
            ax.plot([], [], "o", color=colour, alpha=0.35, label=f"{label}: no law")
            continue
        grid = np.geomspace(one.c.min(), one.c.max(), 60)
        ax.plot(grid, one.fit.law.frontier_loss(grid, one.cost), dash, color=colour, lw=2, label=label)
        if one.fit.draws is not None:
            drawn = one.fit.draws.each(lambda v: v[:, None]).frontier_loss(grid, one.cost)
            low, high = np.percentile(drawn, PERCENTILES, axis=0)
            ax.fill_between(grid, low, high, color=colour, alpha=0.15, lw=0)
    log_axis(ax.xaxis, flops_tick, *span(*(one.c for one in series)))
    label = loss_axis({"input": {"loss_unit": loss_unit}})
    ax.set(xlabel=C_AXIS, ylabel=label, title=f"Least loss against compute, by {by}")
    legend(fig, ax, columns=3)
    return fig
