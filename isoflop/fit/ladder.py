"""
What L(C) = E + k C^-g says of a ladder, runs of several sizes at one ratio D/N: what more compute buys, and what a
lower loss costs. fit.json has it as compute_law.returns, where all runs lie on one line.

    >>> returns(PowerLaw(0.485, 73.12, 0.122), c_max=4e18, lowest=0.78, targets=(0.75,))["targets"][0]["flops"]
    1.0e20

The excess is the loss above E (0 where no floor can be seen yet). Each doubling of C multiplies it by 2^-g; to halve it
takes 2^(1/g) times the compute, whatever the scale.
"""

import numpy as np

from isoflop.display import estimate, fixed, flops, interval, sig
from isoflop.fit.power_law import PowerLaw
from isoflop.fit.predict import percentiles

FACTORS = (2.0, 10.0)  # of compute, and of the excess
SHARES = (0.9, 0.75, 0.5, 0.25)  # of the lowest run's excess, where no losses are asked for
LARGEST = 1e60  # compute beyond which a loss is not reached


def returns(law: PowerLaw, c_max: float, lowest: float, targets=()) -> dict:
    """
    The tables of a ladder's law.

    Parameters
    ----------
    law : PowerLaw
        L against C, with draws of k and g (and E) for the intervals.
    c_max, lowest : float
        Largest compute and least loss of the runs.
    targets : floats
        Losses to reach; by default SHARES of the lowest run's excess, rounded.

    Returns
    -------
    dict
        compute: rows {factor, excess (of it as a factor)}; excess: rows {factor, compute}; targets: rows {loss, flops,
        times (the largest run's)}; quantities are {point, ci95}. A loss at or below E has None.
    """
    g, out = law.draws.get("g"), {"compute": [], "excess": [], "targets": []}
    with np.errstate(over="ignore"):
        for factor in FACTORS:
            row = {"point": factor**-law.g, "ci95": None if g is None else percentiles(factor**-g)}
            out["compute"].append({"factor": factor, "excess": row})
            row = {"point": factor ** (1 / law.g), "ci95": None if g is None else percentiles(factor ** (1 / g))}
            out["excess"].append({"factor": factor, "compute": row})
    if not targets:
        targets = [float(f"{law.E + share * (lowest - law.E):.3g}") for share in SHARES]
    for loss in targets:
        point, ends = float(law.inverse(loss)), None
        if g is not None:
            ends = percentiles(inverse_draws(law, loss))
        if not point < LARGEST:
            point, ends = None, None
        at = {"point": point, "ci95": ends}
        out["targets"].append({"loss": loss, "flops": at, "times": None if point is None else point / c_max})
    return out


def inverse_draws(law: PowerLaw, loss: float) -> np.ndarray:
    """C at which each draw of the law reaches a loss; inf where it never does."""
    gap = loss - law.draws["E"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        c = (law.draws["k"] / np.where(gap > 0, gap, np.nan)) ** (1 / law.draws["g"])
    return np.where(gap > 0, c, np.inf)


# ----- for people -----


def tables(result) -> list[tuple]:
    """[(header, rows)] of a fit.json: the doubling and halving table, and the inverse; [] where it is no ladder."""
    found = (result.get("compute_law") or {}).get("returns")
    if not found:
        return []
    rows = []
    for row in found["compute"]:
        words = f"{row['factor']:g} times the compute"
        rows.append([words, f"{_text(row['excess'])} of the excess"])
    for row in found["excess"]:
        words = {2.0: "half the excess", 10.0: "a tenth of the excess"}[row["factor"]]
        rows.append([words, f"{_text(row['compute'])} times the compute"])
    law = ["what more compute buys, by L(C)", "[ci95]"]
    inverse = []
    for row in found["targets"]:
        if row["flops"]["point"] is None:
            inverse.append([fixed(row["loss"]), "not reached: at or below E", "", ""])
            continue
        ends = interval(row["flops"]["ci95"], lambda c: flops(c, 3))
        inverse.append([fixed(row["loss"]), flops(row["flops"]["point"], 3), ends, sig(row["times"], 3)])
    return [(law, rows), (["loss wanted", "C = (k/(L - E))^(1/g)", "ci95", "times the largest run"], inverse)]


def _text(quantity) -> str:
    return estimate(quantity["point"], quantity["ci95"], lambda value: sig(value, 3))
