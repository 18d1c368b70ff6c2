"""fit.py: files in, fit.json out; mistakes in one line, refusals by name, and what must not matter."""

import json
import os

import numpy as np
import pytest
from helpers import (
    REFERENCE,
    ROOT,
    isoflop_runs,
    needs_reference,
    run_python,
    simulated_table,
    write_runs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fit
from isoflop import laws
from isoflop.fit import fit_isoflop, fit_parametric
from isoflop.options import UserError

LAW = laws.PUBLISHED["besiroglu"]
BUDGETS = (1e18, 3e18, 1e19, 3e19)


def runs_file(folder, n, d, loss, **more):
    return write_runs(folder / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss, **more})


def quick(path, folder, **options):
    """What fit.run() returns, without pictures and with 200 resamples."""
    return fit.run(path, folder / "out", **{"bootstrap": 200, "plots": False, **options})


def codes(result):
    return {(refusal["method"], refusal["code"]) for refusal in result["refusals"]}


def no_numbers(section):
    """A refused section holds no estimate: nothing but counts, settings and text."""
    allowed = {"status", "warnings", "huber_delta", "n_rows", "budgets", "rule", "ends_dropped"}
    return set(section) <= allowed


def status_of(*argv):
    """Exit status of fit.py in this process."""
    try:
        return fit.main([str(word) for word in argv])
    except SystemExit as stop:
        return stop.code


# ----- files -----


def test_a_fit_leaves_its_files_beside_the_csv_and_prints_tables(tmp_path, capsys):
    n, d, _, loss = isoflop_runs(LAW, budgets=BUDGETS)
    assert (
        status_of(
            runs_file(tmp_path, n, d, loss), "--no-plots", "--draws", "--bootstrap", "200", "--target_loss", "1", "2.5"
        )
        == 0
    )
    said = capsys.readouterr()
    assert "28 runs from 28 rows" in said.out and "C = 3e20 FLOPs" in said.out and said.err == ""
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == [
        "draws.npz",
        "fit.json",
        "prediction.md",
        "predictions.csv",
        "predictions.tex",
    ]
    text = (tmp_path / "fit" / "fit.json").read_text()
    result = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in fit.json"))
    assert ("parametric.target_loss", "below_floor") in codes(result)


def test_training_curves_and_flops_beyond_6nd_have_their_pictures(tmp_path):
    rows = ["run_id,params,tokens,flops,loss"]
    for i, n in enumerate(np.geomspace(1e6, 1e8, 6)):
        for d in np.geomspace(1e8, 1e10, 12):
            rows.append(f"r{i},{n:.0f},{d:.0f},{6 * n * d * (1 + 1e3 / n**0.5):.6g},{LAW.loss(n, d):.6f}")
    (tmp_path / "runs.csv").write_text("\n".join(rows))
    result = fit.run(tmp_path / "runs.csv", bootstrap=100)
    assert result["envelope"]["status"] == "ok"
    names = {path.name for path in (tmp_path / "fit").iterdir()}
    assert {"loss_compute.png", "optimum.png", "flops_ratio.png"} <= names
    assert "envelope" in (tmp_path / "fit" / "prediction.md").read_text()


def test_standard_errors_weight_the_parametric_fit(tmp_path):
    n, d, _, loss = isoflop_runs(LAW, 0.0)
    se = np.full(len(n), 0.002)
    loss[::3] *= 1.05
    se[::3] = 1.0
    path = runs_file(tmp_path, n, d, loss, se=se)
    off = {}
    for column in (None, "se"):
        result = quick(path, tmp_path, bootstrap=0, loss_se_col=column)
        off[column] = abs(result["parametric"]["E"]["point"] - LAW.E)
    assert off["se"] < 0.3 * off[None]


def test_given_runs_are_predicted(tmp_path):
    n, d, _, loss = isoflop_runs(LAW, 0.003, 2, 10 ** np.linspace(17, 20, 7), 9)
    far = LAW.optimum(1e22)
    rows = {"run_id": ["big", "blind"], "n_params": [far[0], 1e9], "tokens": [far[1], 2e10]}
    targets = write_runs(tmp_path / "next.csv", {**rows, "val_loss": [LAW.loss(*far), ""]})
    result = quick(runs_file(tmp_path, n, d, loss), tmp_path, predict_runs=targets)
    ran = {row["run_id"]: row for row in result["predictions"]["runs"]}
    assert ran["big"]["in_ci95"] and ran["big"]["in_pi95"] and ran["blind"]["actual"] is None


def test_a_published_law_needs_no_csv(capsys):
    argv = ["--law", "hoffmann", "--predict_flops", "5.76e23", "--predict_params", "1e9", "--target_loss", "2.0"]
    assert status_of(*argv) == 0
    out = capsys.readouterr().out
    assert "32.19B" in out and "published:hoffmann" in out


# ----- mistakes -----


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{dir}"], "is a directory"),
        (["missing.csv"], "No such file"),
        (["{csv}", "--predict_runs", "missing.csv"], "missing.csv: No such file"),
        ([], "no file given"),
        (["{csv}", "--n_col", "width"], "no such column"),
        (["{csv}", "--where", "val_loss"], "expected 'column op value'"),
        (["{csv}", "--where", "depth > 3"], "no column 'depth'"),
        (["{csv}", "--budget_tol", "-1"], "--budget_tol -1 must be above 0 and at most 1"),
        (["{csv}", "--exclude_flops_above", "0"], "--exclude_flops_above 0 must be above 0 and below 1e+60"),
        (["{csv}", "--predict_flops", "nan"], "--predict_flops nan"),
        (["{csv}", "--predict_flops", "1e20", "-3"], "--predict_flops -3 must be above 0"),
        (["{csv}", "--predict_flops", "1e12x"], "--predict_flops 1e12x"),
        (["{csv}", "--bootstrap", "0", "--draws"], "--draws writes resamples, and --bootstrap 0 makes none"),
        (["{csv}", "--bootstrap", "7"], "--bootstrap 7 must be 0, or 100 or more"),
        (["{csv}", "--bootstrap", "1e12"], "--bootstrap 1000000000000 must be at least 0 and at most 100000"),
        (["{csv}", "--predict_flop", "1e20"], "the nearest is --predict_flops"),
        (["{csv}", "--drop_top_loss", "99999"], "every run was left out"),
        (["{csv}", "--simulate", "hoffmann"], "unrecognized arguments: --simulate"),
        (["--law", "hofmann", "--predict_flops", "1e20"], "hoffmann"),
        (["--law", "hoffmann"], "--law needs --predict_flops"),
        (["{csv}", "--law", "hoffmann", "--predict_flops", "1e20"], "--law predicts without runs; leave out"),
        (["--units", "n=M", "{csv}"], "as its last value; name the file before the flags"),
        (["{csv}", "--units", "n=apples"], "--units n=apples: 'apples' must be K, M, B"),
        (["{csv}", "--same_nd", "best"], "must be one of auto, lowest, mean, all"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, argv, says, capsys):
    n, d, _, loss = isoflop_runs(LAW, budgets=BUDGETS)
    path = runs_file(tmp_path, n, d, loss)
    argv = [word.format(dir=tmp_path, csv=path) for word in argv]
    assert status_of(*argv, "--no_plots", "--out_dir", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.err.startswith("fit.py: error: ") and said.err.count("\n") == 1 and says in said.err
    assert said.out == "" and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named_before_the_fit(tmp_path, capsys, monkeypatch):
    n, d, _, loss = isoflop_runs(LAW, budgets=BUDGETS)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(fit, "analyse", lambda *args: pytest.fail("fitted first"))
    argv = [runs_file(tmp_path, n, d, loss), "--out_dir", tmp_path / "file" / "x", "--no-plots"]
    assert status_of(*argv) == 2
    assert f"--out_dir {tmp_path / 'file' / 'x'} can't be written" in capsys.readouterr().err


def test_keywords_without_a_flag_are_checked():
    with pytest.raises(UserError, match="--huber_delta 0 must be above 0"):
        fit.Options(huber_delta=0)
    with pytest.raises(UserError, match="--isoflop_method best must be one of pooled, local, akima, parabola"):
        fit.Options(isoflop_method="best")


# ----- what a statistician would refuse -----


def test_a_fit_without_any_answer_says_so_with_status_2(tmp_path, capsys):
    path = runs_file(tmp_path, [1e6, 2e6], [1e8, 1e8], [4.0, 3.8])
    assert status_of(path, "--no-plots") == 2
    said = capsys.readouterr()
    assert said.err == "fit.py: error: all three methods were refused; the lines above say why and what helps\n"
    assert "refused: other methods [too_few_rows] 2 runs are too few" in said.out
    result = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert {("parametric", "too_few_rows"), ("isoflop", "no_budgets"), ("envelope", "no_curves")} <= codes(result)
    assert no_numbers(result["parametric"]) and no_numbers(result["isoflop"]) and no_numbers(result["envelope"])
    assert result["predictions"]["flops"] == [] and result["valley"] == []


SIZES = np.geomspace(1e7, 1e9, 10)
CENTRES = np.geomspace(1e18, 1e20, 5)


def grid(budgets, shift=1.0):
    n, _, c = laws.isoflop_grid(LAW, budgets, 7)
    return shift * n, c / 6 / (shift * n)


DESIGNS = {  # runs -> what the parametric and the isoFLOP fit are refused for, letters of the forecast that are prior's
    "two runs": (lambda: (SIZES[:2], 20 * SIZES[:2]), "too_few_rows", "no_budgets", None),
    "three runs": (lambda: [v[[3, 10, 17]] for v in grid(CENTRES[::2])], "too_few_rows", "no_budgets", "A B alpha"),
    "five runs": (
        lambda: (SIZES[::2], np.array([3e9, 1e9, 2e10, 5e9, 9e10])), "too_few_rows", "no_budgets", "",
    ),
    "one N": (lambda: (0 * SIZES + 1e8, 100 * SIZES), "one_size", "no_budgets", "E A alpha"),
    "one D": (lambda: (SIZES, 0 * SIZES + 1e10), "one_token_count", "no_budgets", "E B beta"),
    "fixed D/N": (lambda: (SIZES, 20 * SIZES), "constant_ratio", "no_budgets", "A B alpha"),
    "one budget": (lambda: grid([1e19]), "one_budget", "one_budget", "E alpha"),
    "two sizes": (lambda: (np.repeat([1e8, 3e8], 5), np.tile(100 * SIZES[::2], 2)), "too_few_sizes", "no_budgets", ""),
    "edge minima": (lambda: grid(CENTRES, 20.0), "", "no_interior_minimum", ""),
    "two budgets": (lambda: grid([1e18, 1e19]), "", "", ""),
    "one loss": (lambda: grid(CENTRES), "runaway_exponent", "no_interior_minimum", None),
}  # fmt: skip


@pytest.mark.parametrize("name", DESIGNS)
def test_designs_that_cannot_carry_a_law_are_refused_or_marked_as_the_priors(tmp_path, name):
    """The table of docs/fitting.md: what was refused for lack of data is refused, or answered with `prior` marks."""
    make, parametric, isoflop, marks = DESIGNS[name]
    n, d = make()
    loss = laws.simulate(LAW, n, d, 0.002, 1)
    if name == "one loss":
        loss = np.full(len(n), 3.0)
    result = quick(runs_file(tmp_path, n, d, loss), tmp_path)
    for method, code in (("parametric", parametric), ("isoflop", isoflop), ("envelope", "no_curves")):
        assert (result[method]["status"] == "refused") == bool(code)
        if code:
            assert (method, code) in codes(result) and no_numbers(result[method])
            assert all(row["method"] != method for row in result["predictions"]["flops"])
    if marks is None:
        assert result["forecast"] == [] and result["coupled"]["status"] == "refused"
        assert any(method in ("forecast", "coupled") for method, _ in codes(result))
        return
    found = set()
    for letter in ("E", "A", "B", "alpha", "beta", "p"):
        if (result["coupled"].get(letter) or {}).get("prior"):
            found.add(letter)
    assert set(marks.split()) <= found
    assert bool(found) == bool(parametric)  # what the classical fit answers, too, is not the prior's
    assert parametric == "" or result["coupled"]["status"] == "warned"
    for row in result["forecast"]:
        assert row["method"] == "coupled" and row["loss"]["pi95"][0] < row["loss"]["point"] < row["loss"]["pi95"][1]
        assert row["loss"]["pi95"][0] < LAW.frontier_loss(row["flops"]) < row["loss"]["pi95"][1]


def test_a_lab_of_three_runs_of_one_budget_gets_its_page(tmp_path):
    """Five letters with wide ci95, D for 1B, the exact minimum, both paragraphs, and one line of refusals."""
    n = np.array([5e6, 2.5e7, 1e8])
    path = runs_file(tmp_path, n, 1.35e17 / 6 / n, [4.65, 4.21, 4.35])
    flags = "--predict_params 1e9 --no-plots --bootstrap 300".split()
    assert status_of("--input", path, "--output", tmp_path / "lab" / "fit.json", *flags) == 0
    result = json.loads((tmp_path / "lab" / "fit.json").read_text())
    assert [result["coupled"][letter]["ci95"] is not None for letter in ("E", "A", "B", "alpha", "beta")] == [True] * 5
    assert any((result["coupled"][letter] or {}).get("prior") for letter in ("E", "A", "B", "alpha", "beta"))
    (budget,) = result["isoflop"]["budgets"]
    assert budget["status"] == "exact" and 2.5e7 < budget["n_opt"] < 1e8 and budget["ci95"] == {}
    (row,) = result["predictions"]["params"]
    low, high = row["d_opt"]["ci95"]
    assert row["method"] == "forecast" and low < 2e10 < high and high / low > 10
    page = " ".join((tmp_path / "lab" / "prediction.md").read_text().split())
    for said in ("A model of 1.000B parameters", "are mostly what public sweeps say", "Against Chinchilla's 20 tokens"):
        assert said in page
    assert page.partition("## Refused ")[2].partition("##")[0].count("- ") == 1


def test_edge_minima_are_named_and_left_out(tmp_path):
    n, d, c, _ = isoflop_runs(LAW, 0.0, budgets=BUDGETS)
    low = c < 2e18
    keep = ~low | (n > np.sort(n[low])[3])  # the smallest budget keeps only sizes above its optimum
    n = np.r_[n[keep], np.geomspace(1.2, 8, 5) * LAW.optimum(1e20)[0]]
    c = np.r_[c[keep], np.full(5, 1e20)]
    d = c / 6 / n
    result = quick(runs_file(tmp_path, n, d, LAW.loss(n, d)), tmp_path)
    edge = result["isoflop"]["budgets"][-1]
    assert edge["status"] == "edge" and edge["n_opt"] is None and edge["d_opt"] is None and edge["loss"] is None
    assert any("1e+20 (edge)" in warning["message"] for warning in result["isoflop"]["warnings"])
    assert abs(result["isoflop"]["a"]["point"] - LAW.exponents()[0]) < 0.01


def test_two_budgets_give_a_line_and_no_interval(tmp_path):
    n, d, _, loss = isoflop_runs(LAW, 0.001, budgets=(1e18, 1e19))
    result = quick(runs_file(tmp_path, n, d, loss), tmp_path)
    assert ("isoflop.interval", "two_budgets") in codes(result)
    assert result["isoflop"]["a"]["point"] is not None and result["isoflop"]["a"]["ci95"] is None


def test_budgets_met_roughly_are_grouped(tmp_path):
    n, d, _, _ = isoflop_runs(LAW, budgets=BUDGETS)
    d = d * np.exp(np.random.default_rng(3).uniform(-0.06, 0.06, len(d)))
    result = quick(runs_file(tmp_path, n, d, LAW.loss(n, d)), tmp_path)
    assert [budget["n_runs"] for budget in result["isoflop"]["budgets"]] == [7, 7, 7, 7]
    assert abs(result["isoflop"]["a"]["point"] - LAW.exponents()[0]) < 0.005


def test_noise_that_hides_the_law_is_refused(tmp_path):
    n, d, _, loss = isoflop_runs(LAW, 0.3, 5, BUDGETS)
    result = quick(runs_file(tmp_path, n, d, loss), tmp_path)
    assert result["parametric"]["status"] == "refused" and no_numbers(result["parametric"])


def test_where_no_irreducible_loss_can_be_seen_the_law_without_it_answers(tmp_path):
    n, d, _, _ = isoflop_runs(LAW, budgets=BUDGETS)
    result = quick(runs_file(tmp_path, n, d, 40 * n**-0.2 + 60 * d**-0.2), tmp_path)
    assert result["parametric"]["E"]["point"] == 0.0 and result["parametric"]["status"] == "warned"
    assert "no_floor" in [warning["code"] for warning in result["parametric"]["warnings"]]
    assert result["parametric"]["alpha"]["point"] == pytest.approx(0.2, rel=1e-6)


def test_a_fit_that_misses_the_largest_budget_is_warned_of(tmp_path):
    n, d, c, loss = isoflop_runs(LAW, 0.002, 1, 10 ** np.linspace(17, 20, 7), 9)
    result = quick(runs_file(tmp_path, n, d, np.where(c > 5e19, 0.95 * loss, loss)), tmp_path)
    assert "misses_the_valley" in [warning["code"] for warning in result["parametric"]["warnings"]]
    assert result["parametric"]["status"] == "warned"


# ----- truth -----


def test_costs_that_are_not_6nd_move_the_optimum_as_they_should():
    cost = laws.Cost(3.0, 0.06)
    c = np.repeat([1e18, 1e19, 1e20, 1e21], 8)
    n = LAW.optimum(c, cost)[0] * np.tile(np.geomspace(0.2, 5, 8), 4)
    table = simulated_table(LAW, (1e18, 1e19, 1e20, 1e21), 8)
    table.n, table.c, table.d = n, c, cost.tokens(n, c)
    table.loss = LAW.loss(table.n, table.d)
    analysis = fit.analyse(table, fit.Options(bootstrap=0, predict_flops=(1e23,)))
    row = next(row for row in analysis.predictions["flops"] if row["method"] == "parametric")
    assert np.isclose(row["n_opt"]["point"], LAW.optimum(1e23, cost)[0], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
@pytest.mark.parametrize("name", ["hoffmann", "besiroglu"])
def test_known_laws_are_recovered(name, noise):
    """Every estimate's 95% interval, half its width wider on both sides, holds the truth."""
    law = laws.PUBLISHED[name]
    table = simulated_table(law, 10.0 ** np.arange(17, 21.5, 0.5), 9, 30.0, noise, round(1000 * noise))
    analysis = fit.analyse(table, fit.Options(bootstrap=1000, predict_flops=(1e22,)))
    parametric, (n, d) = analysis.fits.parametric, law.optimum(1e22)
    checks = [(law.params[key], parametric.law.params[key], parametric.ci(key), 1e-6) for key in law.params]
    for row in analysis.predictions["flops"]:
        if ":" not in row["method"]:
            bias = 0.03 if row["method"] == "isoflop" else 1e-6  # a parabola has a small one by construction
            for truth, key in ((n, "n_opt"), (d, "d_opt")):
                checks.append((truth, row[key]["point"], row[key]["ci95"], bias))
    assert len(checks) == 9
    for truth, point, (low, high), bias in checks:
        slack = 0.5 * (high - low) + bias * truth
        assert low - slack <= truth <= high + slack, (truth, point, low, high)


@pytest.mark.slow
def test_bootstrap_coverage():
    """95% intervals of a and D* hold the truth in 93% to 99% of 200 simulated sweeps (400 resamples each)."""
    n, d, c = laws.isoflop_grid(LAW, 10.0 ** np.arange(18, 22, 0.5), 11, 30.0)
    (a, _), tokens, at = LAW.exponents(), LAW.optimum(1e22)[1], np.log(1e22)
    hits = {"a": [], "D*": [], "a isoflop": [], "D* isoflop": []}
    for seed in range(200):
        loss = laws.simulate(LAW, n, d, 0.005, 10_000 + seed)
        p = fit_parametric(n, d, loss, resamples=400, seed=seed, n_grid=4)
        i = fit_isoflop(n, d, c, loss, resamples=400, seed=seed)
        draws = {"a": (p.draws.exponents()[0], a), "D*": (p.draws.optimum(1e22)[1], tokens)}
        draws |= {"a isoflop": (i.draws["a"], a), "D* isoflop": (np.exp(i.draws["ln_k_d"] + i.draws["b"] * at), tokens)}
        for key, (values, truth) in draws.items():
            low, high = np.percentile(values, (2.5, 97.5))
            hits[key].append(low <= truth <= high)
    cover = {key: float(np.mean(values)) for key, values in hits.items()}
    print("coverage", cover)
    assert all(0.93 <= share <= 0.99 for share in cover.values()), cover


# ----- what must not matter -----

FACTORS = st.floats(0.01, 100.0)


def estimates(n, d, c, loss):
    return fit_parametric(n, d, loss, resamples=0).law, fit_isoflop(n, d, c, loss, resamples=0)


@settings(max_examples=12, deadline=None)
@given(n_factor=FACTORS, d_factor=FACTORS, seed=st.integers(0, 1000))
def test_units_of_n_and_d_move_only_a_and_b(n_factor, d_factor, seed):
    n, d, c, loss = isoflop_runs(LAW, 0.003, seed)
    c_factor = n_factor * d_factor
    law, isoflop = estimates(n, d, c, loss)
    other, isoflop_too = estimates(n * n_factor, d * d_factor, c * c_factor, loss)
    for key in ("E", "alpha", "beta"):
        assert np.isclose(getattr(law, key), getattr(other, key), rtol=1e-5)
    assert np.isclose(other.A, law.A * n_factor**law.alpha, rtol=1e-3)
    assert np.isclose(other.B, law.B * d_factor**law.beta, rtol=1e-3)
    assert np.isclose(isoflop.a, isoflop_too.a, rtol=1e-6)
    ours, theirs = isoflop.optimum(1e20)[0] * n_factor, isoflop_too.optimum(1e20 * c_factor)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(factor=FACTORS, seed=st.integers(0, 1000))
def test_units_of_loss_scale_e_a_and_b(factor, seed):
    n, d, c, loss = isoflop_runs(LAW, 0.003, seed)
    law, isoflop = estimates(n, d, c, loss)
    other, isoflop_too = estimates(n, d, c, loss * factor)
    for key in ("alpha", "beta"):
        assert np.isclose(getattr(law, key), getattr(other, key), rtol=1e-5)
    for key, rtol in (("E", 1e-5), ("A", 1e-3), ("B", 1e-3)):
        assert np.isclose(getattr(law, key) * factor, getattr(other, key), rtol=rtol)
    assert np.isclose(isoflop.a, isoflop_too.a, rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(order=st.randoms(use_true_random=False), copies=st.integers(0, 20))
def test_row_order_and_duplicates_change_nothing(tmp_path_factory, order, copies):
    n, d, c, loss = isoflop_runs(LAW, 0.003, 1)
    folder = tmp_path_factory.mktemp("order")
    path = write_runs(folder / "a.csv", {"n_params": n, "tokens": d, "flops": c, "val_loss": loss})
    header, *rows = (folder / "a.csv").read_text().splitlines()
    shuffled = rows + [order.choice(rows) for _ in range(copies)]
    order.shuffle(shuffled)
    (folder / "b.csv").write_text("\n".join([header, *shuffled]))
    a, b = quick(path, folder, bootstrap=100), quick(folder / "b.csv", folder, bootstrap=100)
    assert b["input"]["dropped_counts"] == ({"exact duplicate": copies} if copies else {})
    for key in ("parametric", "isoflop", "compute_law", "backtest", "predictions", "valley", "skill"):
        assert a[key] == b[key]


# ----- public data -----


@needs_reference
def test_the_held_out_kempner_run_lies_within_pi95_and_not_within_ci95(tmp_path):
    lines = (REFERENCE / "kempner_fineweb_edu.csv").read_text().splitlines()
    last = tmp_path / "last.csv"
    last.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.endswith(",1"))]))
    asked = {"where": ("is_extrapolation == 0",), "predict_runs": str(last), "bootstrap": 1000}
    result = quick(REFERENCE / "kempner_fineweb_edu.csv", tmp_path, **asked)
    (row,) = (row for row in result["predictions"]["runs"] if row["method"] == "parametric")
    assert row["in_pi95"] is True and row["in_ci95"] is False
    assert np.log(row["loss"]["pi95"][1] / row["loss"]["pi95"][0]) < 0.2  # and not by being useless


# ----- packages -----

ONLY = """
import sys
allowed = set(sys.argv[1].split(",")) | {"isoflop", "fit", "plan"}
installed = set(sys.argv[2].split(","))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in installed - allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=top)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[3:]
import fit
sys.exit(fit.main())
"""
OURS = "torch,datasets,tiktoken,tqdm,safetensors,tokenizers,transformers,huggingface_hub,numpy,scipy,matplotlib"


@pytest.mark.slow
def test_numpy_scipy_and_matplotlib_are_enough(tmp_path):
    argv = ["fit.py", ROOT / "results" / "cpu.csv", "--out_dir", tmp_path / "fit", "--bootstrap", "200"]
    run_python(ONLY, "numpy,scipy,matplotlib", OURS, *argv)
    assert {"fit.json", "prediction.md", "isoflop.png", "optimum.png"} <= set(os.listdir(tmp_path / "fit"))


def test_a_missing_package_is_named_with_its_command_before_the_fit(tmp_path):
    argv = ["fit.py", ROOT / "results" / "cpu.csv", "--out_dir", tmp_path / "fit"]
    done = run_python(ONLY, "numpy", OURS, *argv, check=False)
    said = "fit.py: error: the package matplotlib is missing; install it: pip install matplotlib\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
    assert not (tmp_path / "fit").exists()


def test_a_fit_without_pictures_loads_numpy_only(tmp_path):
    argv = ["fit.py", ROOT / "results" / "cpu.csv", "--out_dir", tmp_path / "fit", "--no-plots", "--bootstrap", "0"]
    run_python(ONLY, "numpy", OURS, *argv)
    assert (tmp_path / "fit" / "fit.json").exists()
