"""The choice of runs: what it promises holds in numbers, and the same arguments give the same choice."""

import numpy as np
import pytest

from bench import bench_design
from isoflop import laws
from isoflop.fit import design
from isoflop.fit.design import Candidates, Runs, Target, choose, expected_grid_widths, expected_widths
from isoflop.fit.knowledge import NEAR_SHARE, SIZE_SHARE, ForecastError, Knowledge, State
from isoflop.options import UserError

LAW = laws.PUBLISHED["besiroglu"]
TARGET = Target(flops=1e21)


def grid(sizes=8, lengths=8):
    """Candidates of 2e16 to 2e20 FLOPs about the law's optimum."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(2e7, 1e9, sizes), np.geomspace(2e8, 3e10, lengths)))
    return Candidates(n, d, 6 * n * d)


def known(candidates, indices, noise=0.003, seed=0):
    indices = list(indices)
    n, d = candidates.n[indices], candidates.d[indices]
    return Runs(n, d, laws.simulate(LAW, n, d, noise, seed))


# Of the first the law without E has alpha = -0.0002, of the second the fit itself beta = -0.003.
NO_OPTIMUM = [
    (
        [6.96e7, 4.155e7, 1.095e8, 6.96e7, 3.12e7, 1.095e8, 1.095e8, 6.96e7, 3.235e8],
        [3.306e9, 1.959e9, 2.973e9, 1.653e9, 7.379e9, 4.756e10, 2.378e10, 1.87e10, 7.115e8],
        [4.3693, 4.8402, 4.4268, 5.0222, 3.7975, 2.9715, 3.2180, 3.3108, 6.0347],
    ),
    (
        [3403776, 6041600, 4685824, 7913472, 9576448, 17612800, 6041600]
        + [22904832, 12910592, 22904832, 69632000, 234094592, 69632000, 41549824],
        [7.4714112e8, 4.20937728e8, 5.4275584e8, 9.0893312e8, 7.51128576e8, 8.1678336e8, 2.38118502e9]
        + [1.77643930e9, 6.30342861e9, 7.10590976e9, 2.33748275e9, 7.86620314e9, 2.64450335e10, 5.53978368e9],
        [5.19590742, 4.83294518, 4.99921728, 4.68441345, 4.58160546, 4.3065243, 4.81044369]
        + [4.20195793, 4.44470213, 4.18303834, 3.8288858, 3.67842264, 4.41042089, 4.85930299],
    ),
]


@pytest.mark.parametrize("columns", NO_OPTIMUM)
def test_runs_are_chosen_where_a_fitted_law_has_no_optimum(columns):
    """Scores were NaN, and choosing ended in an IndexError."""
    runs = Runs(*[np.array(column, float) for column in columns])
    knowledge = Knowledge(runs, grid(), draws=20)
    for law in (knowledge.law, knowledge.rival):
        assert law is None or min(law.alpha, law.beta) > 0
    choice = choose(runs, grid(4, 4), TARGET, 2, 1e21, draws=20)
    assert choice.decisions and np.isfinite(choice.planned.pi95_n)


def test_the_square_root_gives_the_variance_of_a_linear_problem():
    rng = np.random.default_rng(0)
    state = object.__new__(State)
    state.size, state.noise, state.loss_columns, state.n_columns = 4, np.array([0.5, 1.0, 2.0, 0.1]), [0, 1], []
    state.root = rng.standard_normal((7, 6))
    covariance = state.root.T @ state.root
    for j in range(4):
        after = state.copy()
        after.observe(j)
        column = covariance[:, j]
        expected = covariance - np.outer(column, column) / (covariance[j, j] + state.noise[j])
        assert np.allclose(after.root.T @ after.root, expected)


@pytest.mark.parametrize("target", [TARGET, Target(n=np.geomspace(2e9, 8e9, 9), d=np.geomspace(8e10, 1e10, 9))])
def test_the_forecast_error_is_that_of_weighted_least_squares(target):
    """The variance against one worked out with matrices of all runs; the gains against runs added one by one."""
    candidates = grid(4, 4)
    runs = known(candidates, [0, 3, 9, 5, 14])
    state = ForecastError(Knowledge(runs, candidates), candidates, target, Runs.none(), 1e20)
    gains = state.gains()
    for j in range(len(candidates)):
        after = state.copy()
        after.observe(j)
        assert gains[j] == pytest.approx(state.variance - after.variance, rel=1e-6, abs=1e-9 * state.variance)
    columns = [*range(len(candidates), len(candidates) + len(runs)), 2, 7]
    for j in columns[-2:]:
        state.observe(j)
    slopes, weight = state.slopes[:, columns], state.weight[columns]
    own = np.diag((1 - NEAR_SHARE - SIZE_SHARE) * state.noise[columns])  # and what the misfits share:
    truth = state._shared(np.array(columns))[columns] + own
    answer = np.linalg.inv(slopes * weight @ slopes.T + np.eye(len(slopes))) @ slopes * weight
    moved = state.wanted.T @ answer  # what the fit makes of each run at the target
    law = state.wanted.T @ (answer @ slopes.T - np.eye(len(slopes)))
    total = np.trace(law @ law.T + moved @ truth @ moved.T - 2 * moved @ state.with_target[columns]) + state.alone
    assert state.variance == pytest.approx(total)
    assert np.linalg.eigvalsh(truth).min() > 0 and np.allclose(truth, truth.T)


def test_a_law_without_a_floor_is_a_rival_until_runs_decide():
    candidates, bare = grid(), bench_design.SIMULATED_LAWS["E = 0"]
    n, d = candidates.n, candidates.d
    few = slice(None, None, 11)
    undecided = Knowledge(Runs(n[few], d[few], laws.simulate(bare, n[few], d[few], 0.003, 0)), candidates)
    assert undecided.rival is not None and (undecided.rival.E == 0) != (undecided.law.E == 0)
    for law in (bare, LAW):
        decided = Knowledge(Runs(n, d, laws.simulate(law, n, d, 0.003, 0)), candidates)
        assert decided.rival is None and (decided.law.E == 0) == (law.E == 0)


def test_first_round_is_cheap_and_spread():
    candidates, budget = grid(), 1e20
    choice = choose(Runs.none(), candidates, TARGET, 8, budget)
    picked = [decision.index for decision in choice.decisions]
    assert design.FIRST_RUNS <= len(picked) <= 8
    assert sum(decision.cost for decision in choice.decisions) <= 2 * design.FIRST_SHARE * budget
    assert len(set(candidates.n[picked])) >= 3 and len(set(candidates.d[picked])) >= 3
    again = choose(Runs.none(), candidates, TARGET, 8, budget)
    assert [decision.index for decision in again.decisions] == picked


def test_chosen_runs_tell_more_than_most_others_of_the_same_cost():
    candidates = grid()
    runs = known(candidates, [0, 3, 9, 18, 25])
    choice = choose(runs, candidates, TARGET, 40, 1e20)
    spent = sum(decision.cost for decision in choice.decisions)
    assert spent <= 1e20
    assert choice.planned.sd_loss < 0.5 * choice.before.sd_loss
    state = ForecastError(Knowledge(runs, candidates), candidates, TARGET, Runs.none(), 1e20)
    planned = design._after(state, choice.plan).variance
    rng, worse = np.random.default_rng(0), 0
    for _ in range(20):
        order, taken, left = rng.permutation(len(candidates)), [], spent
        for j in order:
            if candidates.cost[j] <= left:
                taken.append(j)
                left -= candidates.cost[j]
        worse += design._after(state, taken).variance > planned
    assert worse >= 15


def test_budget_and_share_are_kept_and_the_end_says_why():
    candidates = grid()
    runs = known(candidates, [0, 3, 9, 18, 25])
    choice = choose(runs, candidates, TARGET, 10, 3e18, max_share=0.5)
    assert choice.decisions and max(decision.cost for decision in choice.decisions) <= 1.5e18
    assert np.isnan(choice.scores[candidates.cost > 1.5e18]).all()
    nothing = choose(runs, candidates, TARGET, 1, 1e10)
    assert not nothing.decisions and "1e+10 are left, the cheapest costs 2.4e+16" in nothing.note


def test_nothing_known_and_nothing_that_can_be_paid():
    choice = choose(Runs.none(), grid(), TARGET, 5, 1.0)
    assert not choice.decisions and choice.before.pi95_loss > 0


def test_a_pending_run_is_not_chosen_for_what_it_will_tell():
    candidates = grid()
    runs = known(candidates, [0, 3, 9, 18, 25])
    first = choose(runs, candidates, TARGET, 1, 3e19).decisions[0]
    j = first.index
    pending = Runs(candidates.n[[j]], candidates.d[[j]], np.array([np.nan]))
    choice = choose(runs, candidates, TARGET, 1, 3e19, pending)
    alone = choose(runs, candidates, TARGET, 1, 3e19)
    assert choice.before.sd_loss < alone.before.sd_loss
    assert choice.scores[j] < 0.5 * alone.scores[j]


def test_marginal_costs_are_what_is_paid():
    candidates = grid(4, 4)

    def marginal(taken):
        """Once one is taken, the others cost a tenth."""
        return candidates.cost * 0.1 if taken else candidates.cost

    runs = known(candidates, [0, 1, 4, 5, 6])
    shared = Candidates(candidates.n, candidates.d, candidates.cost, marginal=marginal)
    choice = choose(runs, shared, TARGET, 16, 2e18)
    apart = choose(runs, candidates, TARGET, 16, 2e18)
    assert sum(decision.cost for decision in choice.decisions) <= 2e18
    assert any(decision.cost < 0.2 * candidates.cost[decision.index] for decision in choice.decisions)
    assert choice.planned.sd_loss < apart.planned.sd_loss


def test_replicates_where_no_other_run_can_be_had():
    n, d = np.full(3, 5e8), np.full(3, 1e10)
    candidates = Candidates(n, d, 6 * n * d, replicate=np.array([2, 0, 1]))
    runs = known(grid(), [0, 3, 9, 18, 25])
    choice = choose(runs, candidates, TARGET, 3, 1e21)
    assert [decision.replicate for decision in choice.decisions] == [0, 1, 2][: len(choice.decisions)]
    assert choice.decisions


def test_rows_as_target():
    candidates = grid()
    runs = known(candidates, [0, 3, 9, 18, 25])
    target = Target(n=np.array([5e9]), d=np.array([4e10]))
    choice = choose(runs, candidates, target, 3, 3e19)
    assert choice.decisions and choice.before.sd_n is None
    assert choice.after.sd_loss < choice.before.sd_loss


def test_widths_narrow_with_money():
    candidates = grid()
    spends = [1e17, 1e18, 1e19, 1e20]
    rows = expected_widths(Runs.none(), candidates, TARGET, spends)
    widths = [width.pi95_loss for _, width in rows]
    assert sorted(widths, reverse=True) == widths
    for field in ("pi95_loss", "pi95_n"):
        lattice = [getattr(width, field) for _, width in expected_grid_widths(LAW, TARGET, spends)]
        assert sorted(lattice, reverse=True) == lattice


@pytest.mark.parametrize(
    "candidates, what",
    [
        (Candidates(np.zeros(0), np.zeros(0), np.zeros(0)), "no candidates"),
        (Candidates(np.array([1e7, np.nan]), np.array([1e9, 1e9]), np.array([1e17, 1e17])), "candidate 1: n = nan"),
        (Candidates(np.array([1e7]), np.array([1e9]), np.array([0.0])), "cost = 0 must be positive"),
    ],
)
def test_refuses(candidates, what):
    with pytest.raises(UserError, match=what):
        choose(Runs.none(), candidates, TARGET, 1, 1e20)


def test_a_target_is_one_thing():
    with pytest.raises(UserError, match="either FLOPs or rows"):
        Target(flops=1e21, n=np.array([1e9]), d=np.array([1e10]))


@pytest.mark.slow
@pytest.mark.parametrize("name", bench_design.SIMULATED_LAWS)
def test_choosing_does_not_fool_the_interval(name):
    """pi95 of an adaptive sweep's forecast holds the truth, and is about as wide as promised after the first round."""
    rows = [bench_design.simulated_sweep(bench_design.SIMULATED_LAWS[name], seed) for seed in range(20)]
    assert np.mean([row["loss"] for row in rows]) >= 0.9
    assert np.mean([row["n_opt"] for row in rows]) >= 0.8
    assert 0.7 < np.median([row["half"] / row["promised"] for row in rows]) < 1.6
