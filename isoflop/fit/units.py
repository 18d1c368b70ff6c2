"""
Units of N, D, C and the loss: those that headers and --units tell, and questions where numbers can't be what they seem.

    >>> parse_units(("n=M", "d=B", "loss=perplexity"))  # {"n": 1e6, "d": 1e9, "loss": "perplexity"}
    >>> questions(n, d, c, loss, "nats per token")      # [("units", "median N is 131 ...: --units n=M d=B")]
"""

import numpy as np

from isoflop.display import flops, sig
from isoflop.fit.names import LOGS, LOSS_UNITS, loss_unit
from isoflop.fit.values import scale_of
from isoflop.options import UserError

NATS = "nats per token"
MOST_NATS = 12.5  # ln of a vocabulary of 268,000: an untrained model; a median above it is no loss in nats
LEAST_N, LEAST_D = 1e3, 1e4  # parameters and tokens of the smallest runs that anybody fits
RATIOS = (1e-3, 1e7)  # D/N of real runs
C_OVER_6ND = (0.02, 200.0)
GUESSES = {
    "n=M d=B": 1e15,
    "n=M d=M": 1e12,
    "n=B d=B": 1e18,
    "d=B": 1e9,
    "n=M": 1e6,
    "d=M": 1e6,
    "n=B": 1e9,
    "n=B d=T": 1e21,
}
FARTHEST = 1e12  # factor of compute beyond which a prediction is asked about


def parse_units(words):
    """--units as {role: factor, or the name of the loss's unit}."""
    out = {}
    for word in words:
        role, sign, text = word.partition("=")
        role = role.strip().lower()
        if not sign or role not in ("n", "d", "c", "loss"):
            raise UserError(f"--units {word}: expected n=, d=, c= or loss= and a unit, as n=M d=B c=PF-days loss=ppl")
        if role == "loss":
            unit = loss_unit(text)
            if unit == NATS and "nat" not in text.lower():
                raise UserError(f"--units {word}: the loss's unit must be one of {', '.join(LOSS_UNITS)}")
            out[role] = unit
            continue
        factor = scale_of(text.strip())
        if text.strip().lower() in LOGS:
            factor = text.strip().lower()
        if factor is None:
            raise UserError(
                f"--units {word}: {text!r} must be K, M, B, T, PF-days, EFLOPs, log10, ln or a number as 1e9"
            )
        out[role] = factor
    return out


def loss_in(values, error, unit):
    """(values, standard errors, unit) of losses; perplexities become their logarithms, nats per token."""
    if unit != "perplexity":
        return values, error, unit
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(values), None if error is None else error / values, NATS


def questions(n, d, c, loss, unit):
    """
    What can't be: (code, sentence) pairs, each with a way out.

    Parameters
    ----------
    n, d, c, loss : (R,) arrays
    unit : str
        Of the loss.
    """
    out = []
    n_typical, d_typical = float(np.median(n)), float(np.median(d))
    ratio, over = float(np.median(d / n)), float(np.median(c / (6 * n * d)))
    wrong = []
    if n_typical < LEAST_N:
        wrong.append(f"N is {sig(n_typical, 3)} parameters in the median")
    if d_typical < LEAST_D:
        wrong.append(f"D is {sig(d_typical, 3)} tokens in the median")
    if not RATIOS[0] <= ratio <= RATIOS[1] and not wrong:
        wrong.append(f"D/N is {sig(ratio, 3)} in the median")
    if not C_OVER_6ND[0] <= over <= C_OVER_6ND[1]:
        wrong.append(f"C / 6ND is {sig(over, 3)} in the median")
    if wrong:
        guess = guess_units(n_typical, d_typical, over)
        out.append(("units", f"{' and '.join(wrong)}, which can't be: {guess}"))
    if unit == NATS and np.median(loss) > MOST_NATS:
        text = f"the loss is {sig(float(np.median(loss)), 3)} in the median, above the ln of any vocabulary"
        out.append(("loss_unit", f"{text}: if it is a perplexity, --units loss=perplexity; or name another --loss_col"))
    return out


def guess_units(n, d, over_6nd):
    """A hint that names the units with which N, D and C are of usual size, D/N nearest to 20."""
    possible = []
    for words, product in GUESSES.items():
        factor = {"n": 1.0, "d": 1.0} | parse_units(words.split())
        n_new, d_new = n * factor["n"], d * factor["d"]
        sane = 1e4 <= n_new <= 1e13 and 1e6 <= d_new <= 1e15 and 0.1 <= d_new / n_new <= 1e5
        if sane and (0.1 < over_6nd / product < 10 or abs(np.log(over_6nd)) < 0.1):
            possible.append((round(abs(np.log10(d_new / n_new / 20))), len(possible), words))
    for word in ("PF-days", "EFLOPs", "ZFLOPs", "PFLOPs", "TFLOPs", "GFLOPs"):
        sane = 1e4 <= n <= 1e13 and 1e5 <= d <= 1e15
        if sane and 0.2 < over_6nd * scale_of(word) < 5:
            return f"C in {word}? then --units c={word}"
    if not possible:
        return "name the units with --units, as n=M d=B c=PF-days, or other columns with --n_col, --d_col, --c_col"
    words = min(possible)[2]
    names = {"M": "millions", "B": "billions", "T": "trillions"}
    told = [f"{part[0].upper()} in {names[part[2:]]}" for part in words.split()]
    return f"{' and '.join(told)}? then --units {words}"


def far_targets(asked, c_max, flag):
    """A sentence on predictions that lie absurdly far beyond the data, "" where none does."""
    beyond = [value for value in asked if value / c_max > FARTHEST]
    if not beyond:
        return ""
    farthest = flops(max(beyond))
    times = flops(max(beyond) / c_max, 2)
    return f"{flag} {farthest} is {times} times the largest C of the runs, {flops(c_max)}: check the units of both"
