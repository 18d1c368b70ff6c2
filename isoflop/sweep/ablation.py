"""One mistake at a time: the same small grid counted, scheduled or batched wrongly, and what that does to the exponent.

    python sweep.py --study porian --data_dir data/gut1024 --other_vocab data/gut512 --flop_budgets 1e11 3e11 1e12 3e12
    python -m isoflop.sweep.ablation sweep_results   # the table and the picture again, from its study.csv

The mistakes are those between Kaplan et al. 2020 (a = 0.73) and Hoffmann et al. 2022 (a = 0.5), as Porian et al. 2024
(arXiv:2406.19146) took them apart: the head left out of N, a warm-up and a batch made for the largest run, rates that
don't follow the size, a decay that ends after the run does. cells() plans them, report() compares them.
"""

import argparse
import csv
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.fit import figures
from isoflop.fit.isoflop import fit_isoflop

COLUMNS = (
    "variant run_id seed n d c flop_budget loss bits_per_byte n_embd n_layer vocab_size steps tokens_per_step lr "
    "warmup_steps schedule_steps commit"
).split()  # of study.csv; n and c as the variant counts them, loss in nats per token


@dataclass(frozen=True)
class Variant:
    """One way of doing the grid. The last fields say what it changes; everything else is as in `base`."""

    title: str  # in tables and pictures
    what: str
    no_head: bool = False  # N and the budget count neither the head's weights nor its FLOPs
    one_rate: bool = False
    long_warmup: bool = False
    one_batch: bool = False
    long_schedule: bool = False
    other_vocab: bool = False


VARIANTS = {
    "base": Variant("as it should be", "each run by its own rule"),
    "no_head": Variant("head not counted", "C = 6 N D with N without the head, as Kaplan counted", no_head=True),
    "one_rate": Variant(
        "one learning rate", "that of the middle size and budget, for all", one_rate=True
    ),
    "long_warmup": Variant(
        "one warm-up", "as many tokens as the middle size takes at the largest budget, for all", long_warmup=True
    ),
    "one_batch": Variant(
        "one batch", "the middle size's at the largest budget, for all; rates as in base", one_batch=True
    ),
    "long_schedule": Variant(
        "one decay", "made for the largest budget's run of each size; the others stop within it", long_schedule=True
    ),
    "other_vocab": Variant("other vocabulary", "the same text in other tokens", other_vocab=True),
    "all": Variant(
        "all five at once", "head, rate, warm-up, batch and decay", *5 * (True,)
    ),
}  # fmt: skip


# ----- which cells (for sweep.py) -----


def stages(sc, planner, other):
    """One list of cells per variant, for sweep.Sweep. `other` plans with the other vocabulary, or is None."""
    for name in VARIANTS:
        if name != "other_vocab" or other:
            yield list({c.run_id: c for c in cells(name, sc, planner, other).values()}.values())


def cells(name: str, sc, planner, other=None) -> dict[tuple, object]:
    """{(shape, budget, seed): Cell} of a variant: the cells that grid.Planner makes with other flags.

    Every budget has the same sizes, --n_embds or else --sizes of the ladder about the geometric mean of the budgets.
    """
    v, budgets = VARIANTS[name], sorted(set(sc.flop_budgets))
    shapes = sorted(sc.shapes(planner), key=planner.n)
    middle, top = shapes[len(shapes) // 2], budgets[-1]
    mean = planner.cell(middle, math.exp(sum(map(math.log, budgets)) / len(budgets))).plan
    largest = planner.cell(middle, top).plan
    if mean is None or largest is None:
        raise ValueError(f"--study: {planner.cell(middle, top).refused or 'the middle size has no plan'}")
    out, by = {}, other if v.other_vocab else planner
    for seed in sc.seeds or [None]:
        for shape in shapes:
            for c in budgets:
                whole = planner.n(shape) / (planner.n(shape) - planner.head(shape)) if v.no_head else 1.0
                plan, more = by.cell(shape, c * whole, seed).plan, {}
                if plan is None or name == "base":
                    out[shape, c, seed] = by.cell(shape, c * whole, seed)
                    continue
                rate = mean.lr if v.one_rate else plan.lr
                if v.one_batch:
                    more = {"batch_size": None, "total_batch_size": largest.tokens_per_step, "lr": rate}
                    plan = by.cell(shape, c * whole, seed, more).plan or plan
                elif v.one_rate:
                    more["lr"] = planner.typed_rate(rate)
                if v.long_warmup:
                    steps = round(largest.warmup_steps * largest.tokens_per_step / plan.tokens_per_step)
                    more |= {"warmup_frac": None, "warmup_steps": max(1, min(plan.steps, steps))}
                if v.long_schedule:
                    more["schedule_steps"] = max(plan.steps, round(plan.steps * top / c))
                out[shape, c, seed] = by.cell(shape, c * whole, seed, more)
    return out


def collect(sc, planner, other, rows: list[dict]) -> list[dict]:
    """The rows of study.csv: every variant's cells that have a result. A run that two variants share is in both."""
    done, out = {r["run_id"]: r for r in rows if r["status"] == "ok"}, []
    for name, v in VARIANTS.items():
        if v.other_vocab and not other:
            continue
        for (_, budget, _), cell in cells(name, sc, planner, other).items():
            r = done.get(cell.run_id)
            if r:
                n = int(r["n_params_non_embedding" if v.no_head else "n_params_matmul"])
                about = {"variant": name, "n": n, "d": r["tokens"], "c": 6 * n * int(r["tokens"])}
                out.append({k: r.get(k) for k in COLUMNS} | about | {"flop_budget": budget, "loss": r["val_loss"]})
    return out


# ----- what came of them -----


def fits(rows: list[dict], resamples: int = 1000) -> dict:
    """{variant: IsoflopFit} of study.csv's rows; of bits per byte where every row has them, else of the loss."""
    key = "bits_per_byte" if all(r["bits_per_byte"] for r in rows) else "loss"
    out = {}
    for i, name in enumerate(VARIANTS):
        mine = [r for r in rows if r["variant"] == name]
        if mine:
            values = [np.array([float(r[k]) for r in mine]) for k in ("n", "d", "c", key, "flop_budget")]
            out[name] = fit_isoflop(*values, resamples=resamples, seed=i)
    return out


def interval(draws) -> tuple[float, float] | None:
    return None if draws is None or len(draws) < 20 else tuple(float(v) for v in np.percentile(draws, (2.5, 97.5)))


def compare(found: dict) -> list[dict]:
    """One row per variant: a with its interval, its distance from base's, N* and the loss at the largest budget.

    The interval of a distance takes the two grids' resamples as independent. They share seeds and text, so that it is
    rather too wide.
    """
    out, base = [], found.get("base")
    for name, fit in found.items():
        row = {"variant": name, "title": VARIANTS[name].title, "what": VARIANTS[name].what, "a": fit.a}
        row["inner"] = f"{sum(b.status == 'ok' for b in fit.budgets)} of {len(fit.budgets)}"
        row["why"] = "; ".join(r.message for r in fit.refusals if r.method == "isoflop")
        row["a_ci"], row["shift"], row["shift_ci"] = interval(fit.draws.get("a")), None, None
        if name != "base" and base and None not in (fit.a, base.a):
            row["shift"] = fit.a - base.a
            mine, theirs = fit.draws.get("a"), base.draws.get("a")
            if mine is not None and theirs is not None:
                m = min(len(mine), len(theirs))
                row["shift_ci"] = interval(mine[:m] - theirs[:m])
        last = fit.budgets[-1] if fit.budgets else None
        row |= {"n_opt": last and last.n_opt, "d_opt": last and last.d_opt, "loss": last and last.loss}
        out.append(row)
    return out


def markdown(table: list[dict], unit: str) -> str:
    """The comparison as a table of Markdown."""

    def show(value, ends=None):
        text = "-" if value is None else f"{value:.3f}"
        return text + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")

    head = ["variant", "a [95%]", "a less base's [95%]", "N* at the largest budget", "D*/N*", f"loss there ({unit})"]
    lines = ["| " + " | ".join([*head, "inner minima"]) + " |", "|---" * (len(head) + 1) + "|"]
    for r in table:
        n = figures.size(r["n_opt"]) if r["n_opt"] else "-"
        each = figures.sig(r["d_opt"] / r["n_opt"], 3) if r["n_opt"] else "-"
        row = [
            r["title"],
            show(r["a"], r["a_ci"]),
            show(r["shift"], r["shift_ci"]),
            n,
            each,
            show(r["loss"]),
            r["inner"],
        ]
        lines.append("| " + " | ".join(row) + " |")
    notes = [f"- {r['title']}: {r['what']}" + (f" (refused: {r['why']})" if r["why"] else "") for r in table]
    notes.append(
        "- N* ~ C^a by isoFLOP; N with the head but in the rows that leave it out; the interval of a resamples runs"
    )
    return "\n".join([*lines, "", *notes]) + "\n"


def draw(found: dict, table: list[dict], path: Path):
    """Left: N* against C for each variant. Right: its exponent, and the published ones."""
    import matplotlib

    with matplotlib.rc_context(figures.RC):
        import matplotlib.pyplot as plt

        fig, (left, right) = figures._figure(13, 6.2, 1, 2, width_ratios=(1.25, 1))
        shades = dict(zip(VARIANTS, plt.get_cmap("tab10").colors, strict=False))
        at_n, at_c = [], []
        for name, fit in found.items():
            ok = [b for b in fit.budgets if b.status == "ok"]
            c, n = np.array([b.flops for b in ok]), np.array([b.n_opt for b in ok])
            style = {"color": "black" if name == "base" else shades[name], "lw": 3 if name == "base" else 1.6}
            left.plot(c, n, "o", ms=6, **style | {"lw": 0}, label=VARIANTS[name].title)
            if fit.a is not None:
                left.plot(c, fit.optimum(c)[0], **style)
            at_n, at_c = [*at_n, *n], [*at_c, *c]
        if not at_n:
            raise figures.Skip("no variant has a budget with an inner minimum")
        figures._log_axis(left.xaxis, figures._flops_tick, *figures._span(at_c))
        figures._log_axis(left.yaxis, figures._size_tick, *figures._span(at_n))
        left.set(xlabel=figures.C_AXIS, ylabel="N*", title="N*, head counted except where it says not")
        left.legend(fontsize=11)
        shown = [r for r in table if r["a"] is not None]
        for y, r in enumerate(reversed(shown)):
            colour = "black" if r["variant"] == "base" else shades[r["variant"]]
            right.plot(r["a"], y, "o", color=colour, ms=8)
            if r["a_ci"]:
                right.plot(r["a_ci"], [y, y], color=colour, lw=2)
        for value, text in ((0.5, "Hoffmann .50"), (0.73, "Kaplan .73")):
            right.axvline(value, color="0.6", lw=1, ls="--")
            right.text(value, len(shown) - 0.4, text, ha="center", fontsize=11, color="0.35")
        right.set_yticks(range(len(shown)), [r["title"] for r in reversed(shown)])
        right.set(ylim=(-0.6, len(shown)), xlabel="a in N* ~ C^a, 95% by resampling runs", title="the exponent")
        part = path.with_suffix(".part")
        fig.savefig(part, format="png")
        os.replace(part, path)
        plt.close(fig)


def report(folder: str | Path, rows: list[dict]) -> str:
    """Writes study.csv, study.md and study.png in `folder`; returns the table."""
    folder = Path(folder)
    part = folder / "study.csv.part"
    with open(part, "w", newline="") as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    os.replace(part, folder / "study.csv")
    return show(folder, rows)


def show(folder: Path, rows: list[dict]) -> str:
    """study.md and study.png from the rows of study.csv; returns the table."""
    found = fits(rows)
    table = compare(found)
    unit = "bits/byte" if all(r["bits_per_byte"] for r in rows) else "nats/token"
    text = markdown(table, unit)
    try:
        draw(found, table, folder / "study.png")
    except figures.Skip as why:
        text += f"\nno picture: {why}\n"
    (folder / "study.md").write_text(text)
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(
        "study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", help="out_dir of a sweep with --study, or any folder with its study.csv")
    folder = Path(parser.parse_args(argv).folder)
    try:
        with open(folder / "study.csv", newline="") as f:
            rows = list(csv.DictReader(f))
        if not rows or set(COLUMNS) - set(rows[0]):
            raise ValueError(f"{folder / 'study.csv'} has not the columns of a study: {', '.join(COLUMNS[:8])}, ..")
        print(show(folder, rows), end="")
    except (OSError, ValueError) as error:
        what = f"{folder / 'study.csv'}: {error.strerror}" if isinstance(error, OSError) else error
        parser.exit(2, f"study.py: error: {what}; name the out_dir of python sweep.py --study porian\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
