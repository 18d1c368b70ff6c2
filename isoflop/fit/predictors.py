"""
One interface to every fitted method, and to the published laws: optimum, least loss, and their inverses.

    >>> predictor = parametric_predictor(fit_parametric(n, d, loss), cost)
    >>> predictor.optimum(1e21), predictor.optimum(np.array([1e21]), draws=True)
"""

from dataclasses import dataclass

import numpy as np

from isoflop.fit.envelope import EnvelopeFit
from isoflop.fit.isoflop import IsoflopFit
from isoflop.fit.power_law import PowerLaw
from isoflop.laws import SIX_ND, Cost, KaplanLaw, Law


@dataclass(frozen=True)
class LawPredictor:
    """
    The predictions of a law L(N, D).

    Parameters
    ----------
    name : str
        The method, or "published:" and the law's name.
    law : Law or KaplanLaw
    drawn : Law of (B, 1) arrays, optional
        Bootstrap draws. With draws=True every method answers for all of them, (B, ...), or None where there are none.
    cost : Cost
        What a run of N and D costs.
    """

    name: str
    law: Law | KaplanLaw
    drawn: Law | None = None
    cost: Cost = SIX_ND
    has_loss = True  # of any N and D
    has_least_loss = True  # least loss at a compute, and its inverse

    def _ask(self, draws, quantity, *x):
        law = self.drawn if draws else self.law
        return None if law is None else getattr(law, quantity)(*x, self.cost)

    def optimum(self, c, draws=False):
        """(N*, D*) at compute c."""
        return self._ask(draws, "optimum", c)

    def least_loss(self, c, draws=False):
        """Least loss at compute c."""
        return self._ask(draws, "frontier_loss", c)

    def compute_for(self, loss, draws=False):
        """Compute whose least loss is `loss`; inf where none is."""
        return self._ask(draws, "compute_for", loss)

    def tokens_for(self, n, draws=False):
        """D for which n parameters are the optimum."""
        return self._ask(draws, "tokens_for", n)

    def loss_at(self, n, d, draws=False):
        """Loss of n parameters on d tokens."""
        law = self.drawn if draws else self.law
        return None if law is None else law.loss(n, d)


@dataclass(frozen=True)
class LinePredictor:
    """
    The predictions of power laws N* ~ C^a, D* ~ C^b; methods as in LawPredictor.

    Parameters
    ----------
    name : str
    fit : IsoflopFit or EnvelopeFit
        Not refused.
    power : PowerLaw, optional
        Least loss against compute, with E; without it there is no loss and no compute_for().
    """

    name: str
    fit: IsoflopFit | EnvelopeFit
    power: PowerLaw | None = None
    has_loss = False

    @property
    def has_least_loss(self):
        return self.power is not None and self.power.g is not None

    def _lines(self, draws):
        """a, ln_k_n, b, ln_k_d: arrays (1,), or (B, 1) of the draws; None where there are none."""
        names = ("a", "ln_k_n", "b", "ln_k_d")
        if not draws:
            return [np.array([getattr(self.fit, name)]) for name in names]
        return [self.fit.draws[name][:, None] for name in names] if self.fit.draws else None

    def _powers(self, draws):
        """The compute law, or its draws as one of (B, 1) arrays; None where there are none."""
        if not draws:
            return self.power
        drawn = self.power.draws
        return PowerLaw(drawn["E"][:, None], drawn["k"][:, None], drawn["g"][:, None]) if drawn else None

    def optimum(self, c, draws=False):
        lines = self._lines(draws)
        if lines is None:
            return None
        a, ln_k_n, b, ln_k_d = lines
        x = np.log(np.atleast_1d(c))
        n, d = np.exp(ln_k_n + a * x), np.exp(ln_k_d + b * x)
        if draws:
            return n, d
        return n.reshape(np.shape(c)), d.reshape(np.shape(c))

    def tokens_for(self, n, draws=False):
        lines = self._lines(draws)
        if lines is None:
            return None
        a, ln_k_n, b, ln_k_d = lines
        x = (np.log(np.atleast_1d(n)) - ln_k_n) / a
        d = np.exp(ln_k_d + b * x)
        return d if draws else d.reshape(np.shape(n))

    def least_loss(self, c, draws=False):
        power = self._powers(draws)
        return None if power is None else power(c)

    def compute_for(self, loss, draws=False):
        power = self._powers(draws)
        return None if power is None else power.inverse(loss)


def parametric_predictor(fit, cost):
    """A predictor of a ParametricFit, None where that is refused."""
    if fit.law is None:
        return None
    drawn = None
    if fit.draws is not None:
        drawn = Law(**{name: np.asarray(values)[:, None] for name, values in fit.draws.params.items()})
    return LawPredictor("parametric", fit.law, drawn, cost)


def line_predictor(name, fit, power=None):
    """A predictor of an IsoflopFit or EnvelopeFit with its compute law, None where the fit is refused."""
    if fit.a is None:
        return None
    return LinePredictor(name, fit, power)


def isoflop_variants(isoflop):
    """Predictors of the simpler forms of an isoFLOP fit: a parabola through all sizes, and the lowest runs."""
    predictors = []
    if isoflop.a is not None:
        for name, line in (("parabola", isoflop.all_points), ("lowest_runs", isoflop.lowest_runs)):
            if line:
                fit = IsoflopFit(a=line["a"], ln_k_n=line["ln_k_n"], b=line["b"], ln_k_d=line["ln_k_d"])
                predictors.append(line_predictor(f"isoflop:{name}", fit))
    return predictors
