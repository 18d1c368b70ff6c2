"""
Which runs to train next, for what they tell about a target.

    >>> candidates = Candidates(n, d, cost)                        # what could be trained, and its FLOPs
    >>> target = Target(flops=1e21)                                # or Target(n=..., d=...): given runs
    >>> choice = choose(Runs(done_n, done_d, done_loss), candidates, target, count=4, budget=3e19)
    >>> for decision in choice.decisions: decision.index, decision.cost, decision.why
    >>> expected_widths(Runs.none(), candidates, target, spends=[1e19, 3e19])

A run is worth what it takes off the variance of the forecast's error (knowledge.ForecastError): of the forecast that
the coupled fit (coupled.py) will make, about the law fitted now (the public prior's mean where fewer than three runs
are known). No law is believed to the end: losses miss it by what all runs of a region share, by what runs of like size
and length share and by what runs of one size share, and the fit knows nothing of that. So a run near the target is
worth more than the law says, a second one beside it less, and one that the fit would overrate nothing. Where runs do
not decide whether the law has a floor E, the step to the other law is one more unknown, and a run on which the two
differ is worth more. The widths are those of draws of the law (families by their evidence).

How a choice is made
- Target: variance of ln L in units of LOSS_UNIT and of ln N* in units of SIZE_UNIT, at the compute-optimal point of
  `flops`; of given rows the mean variance of ln L.
- Noise of a run's ln L: that of the forecast's weights, so more for cheap runs and runs far above the frontier.
- Plan: the whole of the budget is planned: again and again the most informative run that can still be paid, and of
  those within TIE of its gain the one that costs least. The first `count` runs are the choice. The next call plans
  again with what has been learnt. (Gain per FLOP, in full or by its root, was worse in bench/bench_design.py: it
  believes the law where runs are cheap.)
- Marginal cost: `candidates.marginal` tells what every candidate costs once some are taken (shared trunks).
- Of equal cost the lower replicate goes first, then the lower index. A replicate is told from its first by its
  noise alone, so it is chosen where no other run tells more.
- End of the budget: what costs more than what is left is out; `note` says why a choice is short or empty: nothing can
  be paid, or no run takes away more than LEAST_GAIN of the variance.
- First round: below FIRST_RUNS runs (known or running), that many cheap runs for FIRST_SHARE of the budget or what the
  cheapest cost, none for more than FIRST_MOST of it, of FIRST_KINDS sizes and lengths where there are so many.
- Running cells (`pending`) count as known in the variance, not in the fit.

The same arguments give the same choice; nothing depends on time or on the machine's random state.

References
----------
Chaloner and Verdinelli 1995, "Bayesian experimental design: a review" (V- and c-optimality); Sviridenko 2004 (greedy
choice under a budget); Potter 1963 (the square-root update).
"""

from dataclasses import dataclass

import numpy as np

from isoflop.fit.coupled import NOISE, PUBLIC
from isoflop.fit.forecast import Z95, line_forecast
from isoflop.fit.knowledge import (
    DRAWS,
    Candidates,
    ForecastError,
    Knowledge,
    Runs,
    State,
    Target,
    Width,
    largest_of,
    width_of,
)
from isoflop.options import UserError

TIE = 0.02  # of the largest gain
LEAST_GAIN = 1e-3  # of the target's variance
FIRST_RUNS, FIRST_SHARE = 5, 0.05
FIRST_KINDS, FIRST_MOST = 3, 0.4  # sizes and lengths in the first round, share of it that one run may cost
MOST_PLANNED = 40  # runs in one plan


@dataclass(frozen=True)
class Decision:
    """One chosen run: index of the candidate, marginal cost, share of variance it takes away, why, and Width then."""

    index: int
    n: float
    d: float
    cost: float
    replicate: int
    gain: float
    why: str
    after: Width


@dataclass(frozen=True)
class Choice:
    """
    The next runs.

    Parameters
    ----------
    decisions : tuple of Decision
        At most `count`, in the order of their worth.
    plan : tuple of int
        Indices for the whole budget; decisions are its first.
    scores : (J,) array
        Share of the target's variance that each candidate would take away as the next run; NaN where it can't be paid.
    before, after, planned : Width
        Now (pending runs counted), after the decisions, after the whole plan.
    note : str
        Why there are fewer than `count`, "" where there are not.
    """

    decisions: tuple
    plan: tuple
    scores: np.ndarray
    before: Width
    after: Width
    planned: Width
    note: str = ""


# ----- the choice -----


def choose(
    runs: Runs, candidates: Candidates, target: Target, count: int, budget: float,
    pending: Runs | None = None, prior=PUBLIC, seed=0, max_share=1.0, most=MOST_PLANNED, draws=None,
) -> Choice:  # fmt: skip
    """
    The next runs to train.

    Parameters
    ----------
    runs : Runs
        Known ones; Runs.none() plans the first round.
    candidates : Candidates
        What can be trained, each at most once.
    target : Target
    count : int
        How many runs now.
    budget : float
        What may still be spent, in the unit of the candidates' cost (pending runs already taken off).
    pending : Runs, optional
        Runs that are being trained.
    prior : Prior
    seed : int
        Of the draws.
    max_share : float
        Largest part of the budget that one run may cost.
    most : int
        Runs that the whole budget may be spent on.
    draws : int, optional
        Of the law (default: DRAWS), on which the widths rest; the choice does not.

    Returns
    -------
    Choice

    Raises
    ------
    UserError
        No candidates, or one that is not positive.
    """
    _check(candidates)
    if pending is None:
        pending = Runs.none()
    knowledge = Knowledge(runs, candidates, prior, draws or DRAWS, seed)
    cost = candidates.cost_after(())
    payable = cost <= min(budget, max_share * budget) * (1 + 1e-9)
    c_ref = largest_of(runs, pending, candidates.flops[payable])
    state = ForecastError(knowledge, candidates, target, pending, c_ref)
    law_alone = State(knowledge, candidates, target, pending, c_ref)
    before, scores = width_of(law_alone, target, largest_of(runs, pending)), state.gains() / state.variance
    scores = np.where(payable, scores, np.nan)
    first = len(runs) + len(pending) < FIRST_RUNS
    if first:
        plan = _first_round(state, candidates, budget, max_share, runs, pending)
    else:
        plan, _ = _plan(state, candidates, budget, max_share, most)
    taken = plan[:count]
    decisions = _decisions(state, law_alone, candidates, taken, first, largest_of(runs, pending))
    after = decisions[-1].after if decisions else before
    planned = width_of(_after(law_alone, plan), target, largest_of(runs, pending, candidates.flops[plan]))
    return Choice(decisions, tuple(plan), scores, before, after, planned, _note(plan, count, payable, budget, cost))


def _check(candidates):
    for name in ("n", "d", "cost"):
        values = np.asarray(getattr(candidates, name), float)
        if not len(values):
            raise UserError("there are no candidates to choose from")
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise UserError(f"candidate {int(np.argmax(bad))}: {name} = {values[bad][0]:g} must be positive and finite")


def _after(state, taken):
    state = state.copy()
    for j in taken:
        state.observe(j)
    return state


def _plan(state, candidates, budget, max_share, most):
    """(indices, what they cost) of the runs that spend the budget, each the most informative after those before it."""
    state, chosen, spent = state.copy(), [], 0.0
    least = LEAST_GAIN * state.variance
    free = np.ones(len(candidates), bool)
    while len(chosen) < most:
        cost = candidates.cost_after(chosen)
        free &= cost <= min(budget - spent, max_share * budget) * (1 + 1e-9)
        gain = np.where(free, state.gains(), 0.0)
        if gain.max() < least:
            break
        j = _best(gain, cost, candidates.replicate)
        chosen.append(j)
        spent += cost[j]
        free[j] = False
        state.observe(j)
    return chosen, spent


def _best(gain, cost, replicate):
    """Index of the cheapest of those within TIE of the largest gain; of equal cost by replicate, then by index."""
    tied = np.flatnonzero(gain >= gain.max() * (1 - TIE))
    order = np.zeros(len(tied)) if replicate is None else np.asarray(replicate)[tied]
    return int(tied[np.lexsort((tied, order, cost[tied]))[0]])


def _first_round(state, candidates, budget, max_share, runs, pending):
    """Few cheap runs of several sizes and lengths: what any law needs. Those known or running count."""
    cost = candidates.cost_after(())
    share = min(max(FIRST_SHARE * budget, np.sort(cost)[:FIRST_RUNS].sum()), budget)
    count = FIRST_RUNS - len(runs) - len(pending)
    chosen, spent = _plan(state, candidates, share, min(max_share, FIRST_MOST), count)
    # a law needs several sizes and lengths: the cheapest run of a new one, until there are enough
    for name in ("n", "d"):
        values = np.round(np.log(np.asarray(getattr(candidates, name), float)), 2)
        known = np.round(np.log(np.r_[getattr(runs, name), getattr(pending, name)]), 2)
        for j in np.argsort(cost, kind="stable"):
            kinds = np.union1d(known, values[chosen])
            if len(kinds) >= FIRST_KINDS:
                break
            if values[j] not in kinds and spent + cost[j] <= budget:
                chosen.append(int(j))
                spent += cost[j]
    return chosen


def _decisions(state, law_alone, candidates, taken, first, largest):
    """A Decision for each index, with what it takes away after those before it; largest: FLOPs of the runs so far."""
    state, law_alone, out = state.copy(), law_alone.copy(), []
    for i, j in enumerate(taken):
        share = float(state.gains()[j] / max(state.variance, 1e-300))
        cost = float(candidates.cost_after(taken[:i])[j])
        replicate = 0 if candidates.replicate is None else int(candidates.replicate[j])
        spread = float(np.sqrt((law_alone.root[:, j] ** 2).sum()))
        why = f"draws differ by {100 * spread:.2g}% on its loss; takes {100 * share:.2g}% off the target's variance"
        if first:
            why = f"first round: {why}"
        if replicate:
            why = f"replicate {replicate}: {why}"
        state.observe(j)
        law_alone.observe(j)
        largest = largest_of(largest, candidates.flops[j])
        after = width_of(law_alone, law_alone.target, largest)
        out.append(Decision(int(j), float(candidates.n[j]), float(candidates.d[j]), cost, replicate, share, why, after))
    return tuple(out)


def _note(plan, count, payable, budget, cost):
    if len(plan) >= count:
        return ""
    if not payable.any():
        return f"no candidate can be paid: {budget:.3g} are left, the cheapest costs {cost.min():.3g}"
    return f"no further run takes more than {LEAST_GAIN:.1%} off the target's variance, or can be paid"


# ----- widths -----


def expected_widths(runs, candidates, target, spends, pending=None, prior=PUBLIC, seed=0, max_share=1.0):
    """
    What money buys: the Width expected after each of `spends`, chosen adaptively.

    Parameters
    ----------
    runs, candidates, target, pending, prior, seed, max_share
        As for choose().
    spends : sequence of float
        In the unit of the candidates' cost, each on top of what was spent.

    Returns
    -------
    list of (number of runs, Width)
        The widths are those of a plan made now: losses that are not known yet move it.
    """
    _check(candidates)
    if pending is None:
        pending = Runs.none()
    knowledge = Knowledge(runs, candidates, prior, DRAWS, seed)
    cost, out = candidates.cost_after(()), []
    for spend in spends:
        payable = cost <= max_share * spend * (1 + 1e-9)
        c_ref = largest_of(runs, pending, candidates.flops[payable])
        state, law_alone = (kind(knowledge, candidates, target, pending, c_ref) for kind in (ForecastError, State))
        plan, _ = _plan(state, candidates, spend, max_share, 2 * MOST_PLANNED)
        largest = largest_of(runs, pending, candidates.flops[plan])
        out.append((len(plan), width_of(_after(law_alone, plan), target, largest)))
    return out


def expected_grid_widths(law, target, spends, budgets=5, sizes=7, step=2.0, noise=NOISE):
    """
    The Width expected of isoFLOP grids that cost each of `spends`: `budgets` of them, `step` apart, `sizes` each.

    Parameters
    ----------
    law : Law
        What is believed now (Knowledge.law).
    target : Target
        Of FLOPs; UserError for rows, for which a grid has no forecast of its own.

    Returns
    -------
    list of (number of runs, Width): pi95 by the line through the minima (forecast.py)
    """
    if target.flops is None:
        raise UserError("an isoFLOP grid forecasts the optimum at given FLOPs, not rows")
    out = []
    for spend in spends:
        shares = step ** np.arange(budgets)
        flops = spend / sizes * shares / shares.sum()
        n, d = law.optimum(flops, target.law_cost)
        loss = law.loss(n, d)
        se = noise / np.sqrt(3.0)  # of a minimum among several sizes
        (row,) = line_forecast(flops, loss, n, d, [target.flops], flops.max(), noise, se)
        ends = [np.log(v[1] / v[0]) / 2 for v in (row.loss.pi95, row.n_opt.pi95, row.loss.ci95, row.n_opt.ci95)]
        out.append((budgets * sizes, Width(float(ends[2] / Z95), float(ends[3] / Z95), float(ends[0]), float(ends[1]))))
    return out
