"""
Scaling-law fits: arrays in, frozen dataclasses out; nothing is printed or written.

    >>> from isoflop.fit import fit_parametric
    >>> fit = fit_parametric(n, d, loss)
    >>> fit.law.optimum(1e21), fit.ci("alpha")

docs/notebook.md has an example of each.
"""

from isoflop.fit.envelope import EnvelopeFit, fit_envelope
from isoflop.fit.huber import Refusal
from isoflop.fit.isoflop import Budget, IsoflopFit, fit_isoflop
from isoflop.fit.parametric import ParametricFit, fit_parametric
from isoflop.fit.power_law import PowerLaw, fit_kaplan, fit_power_law

__all__ = [
    "Budget",
    "EnvelopeFit",
    "IsoflopFit",
    "ParametricFit",
    "PowerLaw",
    "Refusal",
    "fit_envelope",
    "fit_isoflop",
    "fit_kaplan",
    "fit_parametric",
    "fit_power_law",
]
