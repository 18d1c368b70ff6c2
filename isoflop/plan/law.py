"""The law that a plan rests on, with the N that it counts and the range of the runs that it was fitted to."""

import math
from dataclasses import dataclass
from pathlib import Path

from isoflop import laws
from isoflop.display import count, flops, sig
from isoflop.files import read_json
from isoflop.options import UserError

# What the constants of a law may be: outside, its optimum or its loss is no finite number.
BOUNDS = {"E": (0, 1e3), "A": (1e-100, 1e100), "B": (1e-100, 1e100), "alpha": (1e-3, 10), "beta": (1e-3, 10)}
CONVENTIONS = ("matmul", "non_embedding")  # keys of count_params(), looked for in what a law says of its N


@dataclass(frozen=True)
class RangedLaw:
    """A law, and what must be known to use it.

    name : what messages and tables call it.
    law : a laws.Law or laws.KaplanLaw.
    count : the N that it was fitted with, a key of flops.count_params(): total, non_embedding or matmul.
    ranges : of "N", "D" and "C", as far as they are known: the least and the most of its runs, None for unknown.
    """

    name: str
    law: laws.Law | laws.KaplanLaw
    count: str
    ranges: dict[str, tuple]

    def outside(self, **point) -> list[str]:
        """outside(N=.., D=.., C=..) -> one line for each quantity beyond the law's runs, with the factor."""
        lines = []
        for quantity, value in point.items():
            low, high = self.ranges.get(quantity, (None, None))
            if low and low / value > 1.005:
                factor, where, bound = low / value, "below its smallest", low
            elif high and value / high > 1.005:
                factor, where, bound = value / high, "above its largest", high
            else:
                continue
            times = f"{factor:.3g}" if factor < 100 else count(factor)
            lines.append(f"{self.name}: {quantity} = {flops(value)} is {times}x {where} run ({flops(bound)})")
        return lines

    def loss(self, n: float, tokens: float, vocab_size: int) -> tuple[float | None, list[str]]:
        """(nats per token, warnings); None where the law says more than the ln V of a uniform guess.

        A loss above ln V is no prediction: a law's terms grow without limit as N and D shrink, a model's loss does not.
        """
        loss = float(self.law.loss(n, tokens))
        if loss <= math.log(vocab_size):
            return loss, []
        return None, [
            f"{self.name} does not reach N = {flops(n)}, D = {flops(tokens)}: its {sig(loss, 3)} nats are above "
            f"ln V = {math.log(vocab_size):.2f}, the loss of a uniform guess among {vocab_size:,} tokens"
        ]


def load_law(law) -> RangedLaw:
    """A law by name, by constants, from a file or from a fit.

    Parameters
    ----------
    law : a name of laws.PUBLISHED ("hoffmann"), "E=1.7,A=400,B=1200,alpha=0.34,beta=0.3", the path of a fit.json of
        fit.py, a laws.Law (as the `law` of isoflop.fit.fit_parametric()), or a RangedLaw, which is returned.

    Raises
    ------
    UserError : what is wrong with the name, the constants or the file.
    """
    if isinstance(law, RangedLaw):
        return law
    if isinstance(law, (laws.Law, laws.KaplanLaw)):
        return RangedLaw(law.source or "law", law, count_of(law.convention), {})
    if str(law).endswith(".json"):
        return read_fit(law)
    law = laws.published_name(law)
    parsed = laws.parse_law(law)
    if isinstance(parsed, laws.Law):
        _check_constants(f"--law {law}", parsed.params)
    return RangedLaw(law, parsed, count_of(parsed.convention), laws.RANGES.get(law, {}))


def count_of(convention: str) -> str:
    """The key of count_params() that the text names; total where it names none."""
    text = convention.replace("-", "_")
    for key in CONVENTIONS:
        if key in text:
            return key
    return "total"


# ----- fit.json -----


def read_fit(path) -> RangedLaw:
    """The parametric fit in a fit.json of fit.py; UserError, in one line, where it holds none that can be used."""
    flag = f"--law {path}"
    try:
        fit = read_json(path)
    except OSError as error:
        raise UserError(f"{flag} can't be read ({error.strerror}); fit.py writes fit.json to its --out_dir") from None
    except UserError as error:
        raise UserError(f"--law {error}; fit.py writes a fit.json to its --out_dir") from None
    source = _member(fit, "input", dict, flag)
    parametric = _member(fit, "parametric", dict, flag)
    if "E" not in parametric:
        reason = parametric.get("message") or parametric.get("reason") or parametric.get("status") or "no reason given"
        raise UserError(f"{flag} holds no parametric fit ({reason}); fit.py says what the runs lack")
    values = {}
    for key in BOUNDS:
        constant = _member(parametric, key, dict, flag)
        values[key] = _member(constant, "point", (int, float), flag, "the number of " + key)
    _check_constants(flag, values)
    convention = _member(source, "n_convention", str, flag)
    law = laws.Law(**values, convention=convention, source=str(path))
    return RangedLaw("/".join(Path(path).parts[-2:]), law, count_of(convention), _fitted_range(fit, flag))


def _fitted_range(fit: dict, flag: str) -> dict:
    """{"C": (least, most)} of the isoFLOP budgets that a fit is made of; empty where it has none."""
    isoflop = fit.get("isoflop")
    if not isinstance(isoflop, dict) or not isoflop.get("budgets"):
        return {}
    budgets = []
    for budget in _member(isoflop, "budgets", list, flag):
        flops_ = _member(budget, "flops", (int, float), flag)
        if not 0 < flops_ < 1e60:
            raise UserError(f"{flag} is not a fit.json of fit.py: a budget of {str(flops_)[:20]} FLOPs")
        budgets.append(flops_)
    return {"C": (min(budgets), max(budgets))}


def _member(value, key: str, kind, flag: str, what: str = "") -> object:
    """value[key] of the wanted kind; UserError where value is no dict, lacks the key, or holds something else."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise UserError(f"{flag} is not a fit.json of fit.py: {what or key} is missing or of the wrong type")
    return found


def _check_constants(flag: str, values: dict):
    for key, (least, most) in BOUNDS.items():
        if not least <= values[key] <= most:  # nan is neither
            shown = str(values[key])[:20]
            raise UserError(
                f"{flag}: {key} = {shown} must be between {least:g} and {most:g}; check the fit or the flag"
            )
