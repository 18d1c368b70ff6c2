"""
fit.py --law_of data: from runs that repeat their data to the best N and epochs, and to what more text is worth.

    >>> section, page, draw = fit(table, options, None)
"""

import numpy as np

from isoflop import laws
from isoflop.display import estimate, fixed, flops, markdown_table, percent, si, sig
from isoflop.files import read_json
from isoflop.fit.axes import COLOURS, colour_bar, figure, legend, log_axis, loss_axis, size_tick, span
from isoflop.fit.data_law import DRAWS, ONCE, fit_data_law, from_letters, same_texts
from isoflop.fit.huber import PERCENTILES
from isoflop.options import UserError

FORMULAS = {
    "once": "L = E + A/N^alpha + B/D^beta, whatever U",
    "exponent": "L = E + A/N^alpha + B/(D^beta U^gamma)",
    "floor": "L = E + A/N^alpha + B/D^beta + K/U^gamma",
    "effective": "L = E + A/N^alpha + B/D'^beta, D' = U + U R_D (1 - exp(-(D/U - 1)/R_D))",
    "effective_both": "the same, and N' = V + V R_N (1 - exp(-(N/V - 1)/R_N)), V the best size for U",
    "excess": "L = E + A/N^alpha + B/D^beta + K N^kappa/U^gamma (ln D/U)^3",
}
SIZES = np.linspace(-7.0, 7.0, 141)  # ln N about 20 tokens per parameter, where the best size is looked for
FACTORS = np.geomspace(1.0, 1000.0, 31)  # of compute, that more text may save
EPOCHS = np.geomspace(1.0, 1000.0, 301)
ANSWER_DRAWS = 100
MOST_NAMED = 3
MOST_CURVES = 6
MOST_LINES = 40  # rows of the answers' table


def fit(table, options, targets):
    """The law of a table: what fit.json holds of it, its page, and a function that draws the picture."""
    table = usable(table)
    unique = np.minimum(table.d, table.d / table.epochs)
    law = fit_data_law(table.n, table.d, unique, table.loss, resamples=min(options.bootstrap, DRAWS), seed=options.seed)
    cost = laws.cost_of(table.n, table.d, table.c)
    budgets = options.predict_flops or (table.c.max(), 10.0 * table.c.max())
    texts = options.unique_tokens or (unique[table.epochs > ONCE].max(),)
    size = only_size(table.n)
    answers = [answer(law, cost, c, u, size) for c in budgets for u in texts]
    letters = {name: {"point": value, "ci95": law.ci(name)} for name, value in law.letters.items()}
    section = {
        "form": law.form, "formula": FORMULAS[law.form], "letters": letters, "sigma": law.sigma, "r2": law.r2,
        "runs": law.n_rows, "backtests": law.backtests, "published": published(table, unique), "answers": answers,
        "largest_c": table.c.max(), "only_size": size,
    }  # fmt: skip
    said = []
    for row in table.info["warnings"]:  # repeats, and texts that differ, are what is fitted here
        if row["code"] != "epochs" and " differ in data:" not in row["message"]:
            said.append(row)
    table.info["warnings"] = said
    section["answer"] = [*lines(section), *(f"warning: {row['message']}" for row in said)]

    def draw():
        return picture(law, table, unique)

    return section, page(section), draw


def usable(table):
    """The runs with a number of epochs above 0; UserError where the file tells none, or more unique tokens than D."""
    if table.epochs is None:
        raise UserError(
            "--law_of data needs to know how many tokens were different, and the file has no column of them; "
            "add unique_tokens, or epochs"
        )
    known = np.isfinite(table.epochs) & (table.epochs > 0)
    if not known.any():
        raise UserError(f"--law_of data: no number above 0 in column {table.info['epochs_column']}; fill it in")
    column = table.info["epochs_column"]
    above = np.flatnonzero(known & (table.epochs < 1.0 / ONCE))
    if len(above) and "epoch" not in column.lower():
        named = [f"{table.run_id[i]} (row {table.row[i]})" for i in above[:MOST_NAMED]]
        more = f" and {len(above) - MOST_NAMED} more" if len(above) > MOST_NAMED else ""
        raise UserError(
            f"{column} is above the tokens trained on in {', '.join(named)}{more}; put in the tokens that these runs "
            f"saw, or leave them out: --where '{column} / {table.info['columns']['d']} <= 1'"
        )
    if not known.all():
        table.info["notes"].append(f"{(~known).sum()} runs without a number in {column} are left out")
    return table.select(known)


def published(table, unique):
    """Muennighoff et al.'s own constants on these runs: mean absolute error of ln L and R2."""
    loss = laws.repeated_loss(table.n, table.d, unique)
    off = table.loss - loss
    spread = ((table.loss - table.loss.mean()) ** 2).sum()
    error = np.abs(np.log(table.loss / loss)).mean()
    return {"error": float(error), "r2": float(1.0 - (off**2).sum() / spread), "R_D": laws.R_D, "R_N": laws.R_N}


def load(path):
    """The law in a fit.json of --law_of data and how its N is counted; UserError where the file holds none."""
    flag = f"--data_law {path}"
    try:
        result = read_json(path)
        section = result["data"]
        letters = {name: float(value["point"]) for name, value in section["letters"].items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            law = from_letters(section["form"], letters)
        if not np.isfinite(law.theta).all():
            raise ValueError("a letter is no number")
        return law, str(result["input"]["n_convention"])
    except OSError as error:
        raise UserError(
            f"{flag} can't be read ({error.strerror}); fit.py --law_of data writes it to fit/data/"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{flag} holds no law of repeated data; name the fit.json of fit.py --law_of data") from None


# ----- answers -----


def only_size(n):
    """N where all runs have one, to within a percent; None where they differ, so that a best N can be told."""
    return float(np.exp(np.log(n).mean())) if n.max() < 1.01 * n.min() else None


def best_runs(law, theta, cost, c, u, only=None):
    """The best ln N (B, K), or that of the only size, and its loss for each c (K,) on u tokens, under theta (B, P)."""
    sizes, losses = [], []
    for one in np.atleast_1d(c):
        if only is not None:
            sizes.append(np.full(len(theta), np.log(only)))
            losses.append(law.losses(theta, only, cost.tokens(only, one), u))
            continue
        ln_n = 0.5 * np.log(one / 120.0) + SIZES
        n = np.exp(ln_n)
        loss = law.losses(theta, n, cost.tokens(n, one), u)
        at = np.clip(loss.argmin(1), 1, len(n) - 2)
        # the parabola through the lowest point and its neighbours
        left, middle, right = (np.take_along_axis(loss, at[:, None] + k, 1)[:, 0] for k in (-1, 0, 1))
        bend = left - 2.0 * middle + right
        shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
        shift = np.clip(shift, -1.0, 1.0)
        sizes.append(ln_n[at] + shift * (SIZES[1] - SIZES[0]))
        losses.append(middle - 0.25 * (left - right) * shift)
    return np.stack(sizes, 1), np.stack(losses, 1)


def worth_of_twice(law, theta, cost, c, u, only=None):
    """
    How many times c a run on u unique tokens would cost that is as good as the best of c on 2 u: (B,).

    Infinity where 1000 times is not enough.
    """
    target = best_runs(law, theta, cost, c, 2.0 * u, only)[1][:, 0]
    reached = np.minimum.accumulate(best_runs(law, theta, cost, c * FACTORS, u, only)[1], axis=1)
    out = np.full(len(theta), np.inf)
    for i, (goal, row) in enumerate(zip(target, reached, strict=True)):
        if row[-1] <= goal:
            out[i] = np.exp(np.interp(-goal, -row, np.log(FACTORS)))
    return out


def worth_of_epochs(law, theta, n, u):
    """
    For n parameters on u unique tokens, two numbers of epochs under each theta (B, P); infinity beyond 1000.

    Returns
    -------
    half : (B,)
        From where on a repeated token is worth less than half of a new one.
    turn : (B,)
        From where on the loss rises.
    """
    half, turn = np.full(len(theta), np.inf), np.full(len(theta), np.inf)
    d = u * EPOCHS
    for i, one in enumerate(theta):
        repeated = law.losses(one[None], n[i], d, u)[0]
        new = law.losses(one[None], n[i], d, d)[0]
        worth = np.interp(-repeated, -new, d)  # in new tokens
        low = np.flatnonzero(np.diff(worth) < 0.5 * np.diff(d) * (1.0 - 1e-6))
        if len(low):
            half[i] = EPOCHS[low[0]]
        if repeated[-1] > repeated.min() * (1.0 + 1e-6):  # and not flat to the last digits
            turn[i] = EPOCHS[repeated.argmin()]
    return half, turn


def answer(law, cost, c, u, only=None):
    """Best N (or the only size), D, epochs and loss for c FLOPs and u unique tokens, what repetition is worth there."""
    theta = np.vstack([law.theta[None], law.draws[:ANSWER_DRAWS]])
    ln_n, loss = (found[:, 0] for found in best_runs(law, theta, cost, c, u, only))
    n = np.exp(ln_n)
    d = cost.tokens(n, c)
    half, turn = worth_of_epochs(law, theta, n, u)
    values = {
        "n": n, "tokens": d, "epochs": d / u, "loss": loss, "half_worth_epochs": half, "turning_epochs": turn,
        "compute_worth_of_twice_the_text": worth_of_twice(law, theta, cost, c, u, only),
    }  # fmt: skip
    out = {"flops": float(c), "unique_tokens": float(u)}
    for name, value in values.items():
        ends = None
        if len(value) > 1 and (only is None or name not in ("n", "tokens", "epochs")):
            ends = [float(end) for end in np.quantile(value[1:], np.divide(PERCENTILES, 100), method="nearest")]
        out[name] = {"point": float(value[0]), "ci95": ends}
    for name in ("half_worth_epochs", "turning_epochs", "compute_worth_of_twice_the_text"):
        out[name] = finite(out[name])
    return out


def finite(value):
    """Infinity, that is beyond 1000, as None."""
    ends = value["ci95"]
    if ends is not None:
        ends = [end if np.isfinite(end) else None for end in ends]
    return {"point": value["point"] if np.isfinite(value["point"]) else None, "ci95": ends}


# ----- the page -----


def beyond(value, form=sig):
    """A value and its interval, above 1000 where it is None."""
    point = "over 1000" if value["point"] is None else form(value["point"])
    if value["ci95"] is None:
        return point
    low, high = ("over 1000" if end is None else form(end) for end in value["ci95"])
    return f"{point} [{low}, {high}]"


def lines(section):
    """The answer, in lines for a terminal."""
    used = next(row for row in section["backtests"] if row["form"] == section["form"])
    out = [
        f"{section['formula']}",
        "; ".join(f"{name} {estimate(v['point'], v['ci95'])}" for name, v in section["letters"].items()),
        f"{section['runs']} runs, R2 {section['r2']:.3f}, mean error {percent(used['inside'])}, of runs held out "
        f"{percent(used['error'])}; Muennighoff et al.'s published constants {percent(section['published']['error'])}",
    ]
    if section["only_size"] is not None:
        out.append(f"all runs have N {si(section['only_size'])}: no best N; A and alpha are what is believed of others")
    for row in section["answers"][:MOST_LINES]:
        out += ["", *sentences(row, section["largest_c"])]
    return out


def sentences(row, largest):
    """What is best for one C and U, in four lines."""
    far = f" ({sig(row['flops'] / largest, 2)} times the largest run)" if row["flops"] > 1.01 * largest else ""
    shown = {name: estimate(row[name]["point"], row[name]["ci95"], form)
             for name, form in (("n", si), ("tokens", si), ("epochs", sig), ("loss", fixed))}  # fmt: skip
    return [
        f"C {flops(row['flops'], 3)}{far} on {si(row['unique_tokens'])} unique tokens: N {shown['n']}, "
        f"D {shown['tokens']}",
        f"  epochs {shown['epochs']}, loss {shown['loss']}",
        f"  at this N a repeated token is worth under half of a new one from epoch {beyond(row['half_worth_epochs'])} "
        f"on, and the loss rises from epoch {beyond(row['turning_epochs'])} on",
        "  twice as many unique tokens save as much as "
        f"{beyond(row['compute_worth_of_twice_the_text'])} times the compute would",
    ]


def page(section):
    """data.md."""
    letters = [(name, sig(v["point"]), v["ci95"] and f"{sig(v['ci95'][0])} to {sig(v['ci95'][1])}")
               for name, v in section["letters"].items()]  # fmt: skip
    tests = []
    for row in sorted(section["backtests"], key=lambda row: row["error"]):
        errors = [percent(row[key], 2) if row.get(key) is not None else None
                  for key in ("error", "unseen_runs", "unseen_u", "more_epochs", "inside")]  # fmt: skip
        tests.append((row["form"], row["free"], *errors, FORMULAS[row["form"]].replace("|", "\\|")))
    head = ("form", "letters", "held out", "unseen runs", "unseen U", "more epochs", "fitted", "law")
    theirs = section["published"]
    return "\n\n".join([
        "# Repeated data",
        "\n".join(["```", *section["answer"], "```"]),
        "In brackets: 95% intervals, if the form holds. What lies far beyond the runs in N, D/U or C is a belief.",
        "## Constants",
        markdown_table(("letter", "value", "ci95"), letters),
        f"Muennighoff et al. 2023 publish R_D {sig(theirs['R_D'])} and R_N {sig(theirs['R_N'])}; with all of their "
        f"constants the mean error on these runs is {percent(theirs['error'])}, R2 {theirs['r2']:.3f}.",
        "## The choice of a form",
        "Mean absolute error of ln L. Held out is the mean of three tests: a quarter of the runs by chance, all runs "
        "of some texts, the quarter of repeated runs with the most epochs.",
        markdown_table(head, tests, "lrrrrrrl"),
    ]) + "\n"  # fmt: skip


# ----- the picture -----


def picture(law, table, unique):
    """Loss against epochs for the (N, U) with most runs, and what the law leaves unexplained."""
    fig, (ax, rest) = figure(15, 6.6, columns=2)
    text = same_texts(unique)
    keys, member = np.unique(np.stack([np.round(np.log(table.n), 2), text], 1), axis=0, return_inverse=True)
    member = member.ravel()
    counts = np.bincount(member, weights=table.epochs > ONCE)
    shown = [i for i in np.argsort(-counts, kind="stable")[:MOST_CURVES] if counts[i] > 0]
    colours = list(COLOURS.values()) + ["0.35"]
    seen = []
    for i, colour in zip(sorted(shown), colours, strict=False):
        rows = member == i
        n, u = np.exp(np.log(table.n[rows]).mean()), unique[rows].mean()
        epochs = np.maximum(table.epochs[rows], 1.0)  # a run of less than one has seen all of its own text once
        at = np.geomspace(1.0, epochs.max() * 1.3, 100)
        curve = law.loss(n, u * at, u)
        ax.plot(at, curve, color=colour, lw=2)
        ax.scatter(epochs, table.loss[rows], color=colour, edgecolors="black", lw=0.5, s=40, zorder=3,
                   label=f"N {si(n, 3)}, U {si(u, 3)}")  # fmt: skip
        seen += [epochs, at]
    log_axis(ax.xaxis, size_tick, *span(*seen, pad=1.1))
    ax.set(xlabel="Epochs D/U", ylabel=loss_axis({"input": table.info}), title=f"Form: {law.form}")
    off = 100.0 * np.log(table.loss / law.loss(table.n, table.d, unique))
    paint = colour_bar(fig, rest, table.n, "Parameters N", size_tick)
    rest.scatter(np.maximum(table.epochs, 1.0), off, color=paint(table.n), s=30)
    rest.axhline(0.0, color="0.4", lw=1)
    log_axis(rest.xaxis, size_tick, *span(np.maximum(table.epochs, 1.0), pad=1.3))
    rest.set(xlabel="Epochs D/U", ylabel="Measured loss over the law, %", title="What the law leaves")
    legend(fig, ax)
    return fig
