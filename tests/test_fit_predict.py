"""Predictions: both intervals, how far errors grow with distance, target losses, flatness, and misses."""

import numpy as np
import pytest
from helpers import isoflop_runs, needs_reference, reference_table, simulated_table

from isoflop import laws
from isoflop.fit.backtest import pseudo_budgets
from isoflop.fit.isoflop import fit_isoflop
from isoflop.fit.parametric import fit_parametric
from isoflop.fit.power_law import fit_power_law
from isoflop.fit.predict import (
    HEAD_START,
    RATE_LOSS,
    RATE_N,
    STUDENT_T,
    Skill,
    flatness,
    missed_budget,
    percentiles,
    predict,
    skill_of,
)
from isoflop.fit.predictors import LawPredictor, isoflop_variants, line_predictor, parametric_predictor

LAW = laws.PUBLISHED["besiroglu"]
SKILL = Skill(sigma=0.003, sigma_n=0.05, rate=0.006, rate_n=0.1, t=2.5, n_tests=4, c_max=1e20)


@pytest.fixture(scope="module")
def predictors():
    """Both methods fitted to a sound sweep up to 1e20 FLOPs, with 400 resamples, and a published law."""
    table = simulated_table(LAW, 10 ** np.linspace(17, 20, 7), 9, 30.0, 0.003, 2)
    parametric = fit_parametric(table.n, table.d, table.loss, resamples=400)
    isoflop = fit_isoflop(table.n, table.d, table.c, table.loss, resamples=400)
    at, least = [b.flops for b in isoflop.budgets], [b.loss for b in isoflop.budgets]
    power = fit_power_law(at, least, isoflop.draws["loss"])
    ours = [parametric_predictor(parametric, laws.SIX_ND), line_predictor("isoflop", isoflop, power)]
    return [*ours, LawPredictor("published:besiroglu", LAW)]


# ----- intervals -----


def test_intervals_are_nested_and_widen_with_distance(predictors):
    rows, refusals = predict(predictors, (1e20, 1e21, 1e22), skill=SKILL)
    assert len(rows["flops"]) == 9 and refusals == [] and rows["runs"] == []
    ours = [row for row in rows["flops"] if row["method"] in ("parametric", "isoflop")]
    for row in ours:
        for key in ("n_opt", "d_opt", "tokens_per_param", "loss"):
            q = row[key]
            assert q["pi95"][0] <= q["ci95"][0] <= q["point"] <= q["ci95"][1] <= q["pi95"][1]
    widths = [np.log(row["loss"]["pi95"][1] / row["loss"]["pi95"][0]) for row in ours if row["method"] == "parametric"]
    assert widths[0] < widths[1] < widths[2]


def test_published_laws_have_points_only(predictors):
    rows, _ = predict(predictors[2:], (1e20,), (1e9,), (2.5,), skill=SKILL)
    assert rows["flops"][0]["n_opt"] == {"point": LAW.optimum(1e20)[0], "ci95": None, "pi95": None}
    assert rows["params"][0]["d_opt"]["point"] == LAW.tokens_for(1e9)
    assert rows["target_loss"][0]["flops"]["point"] == pytest.approx(float(LAW.compute_for(2.5)))


def test_sizes_and_target_losses_hold_the_truth(predictors):
    rows, _ = predict(predictors, (), (1e9,), (2.5,), skill=SKILL)
    by_size = next(row for row in rows["params"] if row["method"] == "parametric")
    assert by_size["d_opt"]["ci95"][0] < LAW.tokens_for(1e9) < by_size["d_opt"]["ci95"][1]
    for row in rows["target_loss"][:2]:
        flops = row["flops"]
        assert flops["ci95"][0] < LAW.compute_for(2.5) < flops["ci95"][1]
        assert flops["pi95"][0] <= flops["ci95"][0] and flops["pi95"][1] >= flops["ci95"][1]
        n, _ = LAW.optimum(LAW.compute_for(2.5))
        assert row["n_opt"]["ci95"][0] < n < row["n_opt"]["ci95"][1]


def test_losses_below_the_floor_are_refused(predictors):
    rows, refusals = predict(predictors, targets=(1.0,), skill=SKILL)
    assert rows["target_loss"] == [] and {refusal.code for refusal in refusals} == {"below_floor"}
    assert [refusal.method.split(".")[0] for refusal in refusals] == ["parametric", "isoflop", "published:besiroglu"]


def test_runs_are_predicted_and_checked_against_what_is_known(predictors):
    table = simulated_table(LAW, (1e22,), 3, 4.0, 0.0)
    table.loss[0] = np.nan
    rows, _ = predict(predictors, runs=table, skill=SKILL)
    ours = [row for row in rows["runs"] if row["method"] == "parametric"]
    assert len(ours) == 3 and ours[0]["actual"] is None and "in_pi95" not in ours[0]
    for row in ours[1:]:
        assert row["in_ci95"] and row["in_pi95"]
        assert row["error_nats"] == row["actual"] - row["loss"]["point"]


def test_without_skill_there_is_no_pi95(predictors):
    rows, _ = predict(predictors, (1e21,), (1e9,), (2.5,))
    row = rows["flops"][0]
    assert row["loss"]["pi95"] is None and row["loss"]["ci95"] is not None and row["log_distance"] is None
    assert rows["target_loss"][0]["flops"]["ci95"] is None


def test_variants_are_asked_for_the_optimum_only():
    n, d, c, loss = isoflop_runs(LAW, 0.0)
    fit = fit_isoflop(n, d, c, loss, resamples=0)
    rows, _ = predict([], (1e21,), (1e9,), (2.5,), variants=isoflop_variants(fit))
    assert [row["method"] for row in rows["flops"]] == ["isoflop:parabola", "isoflop:lowest_runs"]
    assert rows["flops"][0]["n_opt"]["point"] == pytest.approx(np.exp(
        fit.all_points["ln_k_n"] + fit.all_points["a"] * np.log(1e21)
    ))  # fmt: skip
    assert rows["params"] == rows["target_loss"] == []
    assert isoflop_variants(fit_isoflop(n[:3], d[:3], c[:3], loss[:3], resamples=0)) == []


def test_percentiles_have_open_ends():
    assert percentiles(None) is None and percentiles(np.arange(19.0)) is None
    assert percentiles(np.r_[np.arange(99.0), [np.inf] * 10]) == (2.0, None)


# ----- how wrong to expect to be -----


def test_skill_starts_from_the_prior_and_follows_the_back_tests():
    table = simulated_table(LAW)
    parametric = fit_parametric(table.n, table.d, table.loss, resamples=0)
    isoflop = fit_isoflop(table.n, table.d, table.c, table.loss, resamples=200)
    prior = skill_of([], parametric, isoflop, table)
    assert (prior.rate, prior.rate_n) == pytest.approx((RATE_LOSS, RATE_N))
    assert prior.t == STUDENT_T[4] and prior.sigma == parametric.sigma and prior.c_max == table.c.max()
    row = {"method": "parametric", "error_ln": 0.05, "se_ln": 0.001, "log_distance": 1.0, "n_opt_actual": None}
    bad = skill_of([{**row, "n_opt": 1.0}] * 6, parametric, isoflop, table)
    assert bad.rate > 2 * prior.rate and bad.t == STUDENT_T[7] and bad.n_tests == 6
    noisy = skill_of([{**row, "n_opt": 1.0, "se_ln": 0.06}] * 6, parametric, isoflop, table)
    assert noisy.rate < prior.rate  # statistics explain it all


def test_distance_counts_from_half_an_e_fold_inside():
    assert SKILL.distance(1e20) == HEAD_START and SKILL.distance(1e19) == 0.0
    assert SKILL.distance(1e21) == pytest.approx(HEAD_START + np.log(10))


@needs_reference
@pytest.mark.slow
def test_the_rate_of_other_data_sets_covers_the_one_left_out():
    """The rate of extrapolation error of the other sets covers the one left out, and RATE_LOSS is no outlier."""
    families = {"chinchilla": ["chinchilla"], "kempner": ["kempner", "kempner_c4"], "gemstones": ["gemstones"]}
    forecasts = {name: extrapolations(name) for names in families.values() for name in names}
    rates = {}
    for name, errors in forecasts.items():
        error, _, distance = np.transpose(errors)
        rates[name] = np.sqrt(np.mean(error**2) / np.mean(distance**2))
    for left_out, names in families.items():
        others = []
        for family, members in families.items():
            if family != left_out:
                others.append(np.mean([rates[name] ** 2 for name in members]))
        rate = np.sqrt(np.mean(others))
        error, se, distance = np.transpose(np.concatenate([forecasts[name] for name in names]))
        half = STUDENT_T[4] * np.hypot(se, rate * distance)
        print(f"{left_out}: {len(error)} forecasts, rate of the others {rate:.2%} per e-fold")
        print(f"    covered {np.mean(np.abs(error) <= half):.1%}, median half-width {np.median(half):.1%}")
        assert np.mean(np.abs(error) <= half) >= 0.9
    assert all(0.3 * RATE_LOSS < rate < 2 * RATE_LOSS for rate in rates.values())


def extrapolations(name):
    """(error of ln L, its standard error, distance) of every higher group of budgets by every fit to the lower ones."""
    files = {"chinchilla": "chinchilla_epoch.csv", "gemstones": "gemstones_hot_477.csv"}
    columns = {"loss": "loss_c4_val"} if name == "kempner_c4" else {}
    drop = 5 if name == "chinchilla" else 0
    table = reference_table(files.get(name, "kempner_fineweb_edu.csv"), columns=columns, drop_top_loss=drop)
    n, d, c, loss = table.n, table.d, table.c, table.loss
    if name == "gemstones":  # constant learning rate: every checkpoint past warm-up is a run
        late = table.curve["d"] > 2e10
        n, d, c, loss = (table.curve[key][late] for key in ("n", "d", "c", "loss"))
    ln_c = np.log(c)
    groups = [group for group in pseudo_budgets(c, 0.1) if len(group) >= 8]
    if name.startswith("kempner"):
        groups.append(np.flatnonzero(c > 9e20))
    out = []
    for i in range(3, len(groups)):
        below = ln_c <= ln_c[groups[i - 1]].max()
        fit = fit_parametric(n[below], d[below], loss[below], resamples=0, n_grid=6)
        for group in groups[i:]:
            distance = ln_c[group].mean() - ln_c[below].max()
            if fit.law is None or distance <= 0:
                continue
            error = float(np.median(np.log(loss[group] / fit.law.loss(n[group], d[group]))))
            se = np.hypot(fit.ln_loss_se(n[group], d[group]), fit.sigma / np.sqrt(len(group)))
            out.append((error, se, distance + HEAD_START))
    return out


# ----- what a parametric fit says of the optimum -----


def test_flatness_is_the_range_within_the_noise():
    (row,) = flatness(LAW, (1e20,), laws.SIX_ND, 0.002)
    best = float(LAW.frontier_loss(1e20))
    for key in ("n_low", "n_high"):
        assert float(LAW.loss(row[key], laws.SIX_ND.tokens(row[key], 1e20))) == pytest.approx(best * 1.002, rel=1e-4)
    assert row["n_low"] < row["n_opt"] < row["n_high"] and row["tolerance_nats"] == 0.002 * best
    assert row["cost_4x"]["smaller"] > row["cost_2x"]["smaller"] > 0


def test_a_fit_that_misses_the_largest_budget_is_named():
    n, d, c, loss = isoflop_runs(LAW, 0.002, 1, 10 ** np.linspace(17, 20, 7), 9)
    bent = np.where(c > 5e19, 0.95 * loss, loss)
    for losses, missed in ((loss, False), (bent, True)):
        law = fit_parametric(n, d, losses, resamples=0).law
        isoflop = fit_isoflop(n, d, c, losses, resamples=200)
        said = missed_budget(law, isoflop.budgets)
        assert bool(said) == missed
    last = isoflop.budgets[-1]
    assert f"{abs(law.loss(last.n_opt, last.d_opt) / last.loss - 1):.1%} above" in said
    assert missed_budget(law, ()) == ""
