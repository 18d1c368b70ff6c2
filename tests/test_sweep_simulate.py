"""Losses drawn from a law: the pipeline without training, its caps and its noise floor."""

import csv
import json

import numpy as np
import pytest
from helpers import quick_fits, rows_of, run_sweep

import sweep
from isoflop import laws
from isoflop.fit import table as table_
from isoflop.fit.result import to_arrays, to_json

LAW = "E=1.69,A=406.4,B=410.7,alpha=.34,beta=.28"
GRID = "--flop_budgets 1e18 3e18 1e19 3e19 1e20 --vocab_size 32000".split()


@pytest.fixture(scope="module", autouse=True)
def fast():
    with pytest.MonkeyPatch.context() as patch:
        quick_fits(patch)
        yield


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sim") / "out"
    assert run_sweep("--simulate", LAW, "--noise", ".003", *GRID, "--sizes", 9, "--out_dir", folder) == 0
    return folder


def test_a_simulated_sweep_gives_its_law_back(simulated):
    table, result = rows_of(simulated), json.loads((simulated / "fit.json").read_text())
    assert len(table) == 45 and {r["source"] for r in table} == {f"simulated {LAW}, noise 0.003"}
    law = laws.parse_law(LAW)
    off = [np.log(float(r["val_loss"]) / law.loss(float(r["n_params_matmul"]), float(r["tokens"]))) for r in table]
    assert 0.002 < np.std(off) < 0.004 and abs(np.mean(off)) < 0.0015
    for name, truth in law.params.items():
        low, high = result["parametric"][name]["ci95"]
        assert low <= truth <= high, name
    low, high = result["parametric"]["a"]["ci95"]
    assert low <= law.exponents()[0] <= high


def test_again_draws_nothing_and_another_kind_is_refused(simulated, capsys):
    before = (simulated / "runs.csv").read_bytes()
    assert run_sweep("--simulate", LAW, "--noise", ".003", *GRID, "--sizes", 9, "--out_dir", simulated) == 0
    assert (simulated / "runs.csv").read_bytes() == before
    assert run_sweep("--simulate", "hoffmann", *GRID, "--out_dir", simulated) == 2
    err = capsys.readouterr().err
    assert "holds rows of another kind" in err and err.count("\n") == 1


def test_two_vocabularies_never_share_a_folder(simulated, capsys):
    before = (simulated / "runs.csv").read_bytes()
    flags = ("--simulate", LAW, "--noise", ".003", *GRID, "--sizes", 9, "--vocab_size", 4096, "--out_dir", simulated)
    assert run_sweep(*flags) == 2
    err = capsys.readouterr().err
    assert "holds runs on another text" in err and "name another --out_dir" in err and err.count("\n") == 1
    assert (simulated / "runs.csv").read_bytes() == before


def test_sizes_follow_the_sweep_s_own_fits(simulated):
    """The second and later budgets are centred on the fit of those below, and a rerun finds the same cells."""
    law, kept = laws.parse_law(LAW), json.loads((simulated / "grid.json").read_text())
    by = {float(k.split()[0]): v for k, v in kept.items()}
    assert by[1e18]["by"] == "D = 20 N" and {v["by"] for c, v in by.items() if c > 1e18} == {"own fits"}
    for c, v in by.items():
        if c > 3e18:
            assert abs(np.log(v["centre"] / law.optimum(c)[0])) < 0.5
    ns = sorted(float(r["n_params_matmul"]) for r in rows_of(simulated) if float(r["flop_budget"]) == 1e19)
    assert 8 < ns[-1] / ns[0] < 32, "two doublings either side"


@pytest.mark.slow
def test_the_cap_stops_before_the_cell_that_breaks_it(tmp_path, capsys):
    flags = ["--simulate", LAW, *GRID, "--n_embds", 320, 512, 768, "--out_dir", tmp_path / "out"]
    assert run_sweep(*flags, "--total_flops", 2e19) == 1
    out = capsys.readouterr().out
    spent = sum(float(r["flops_spent"]) for r in rows_of(tmp_path / "out"))
    assert len(rows_of(tmp_path / "out")) == 6 and 1.1e19 < spent <= 2e19, (
        "three of 1e18 and of 3e18; 1e19 would pass it"
    )
    assert "\nstopped: --total_flops 2e+19" in out and out.splitlines()[-1].startswith("9 of 15 cells")
    assert run_sweep(*flags, "--total_flops", 2e19) == 1 and len(rows_of(tmp_path / "out")) == 6, (
        "cached cells are free"
    )
    assert run_sweep(*flags) == 0 and len(rows_of(tmp_path / "out")) == 15


@pytest.mark.slow
def test_seeds_make_a_noise_floor_that_weighs_the_fit(tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--simulate", LAW, "--noise", ".01", *GRID, "--n_embds", 320, 512, 768, 1024, "--seeds", 0, 1, 2]
    assert run_sweep(*flags, "--out_dir", out) == 0
    said = float(capsys.readouterr().out.split("seeds move a loss by ")[1].split("%")[0])
    assert 0.6 < said < 1.4, "of 1%"
    table = rows_of(out, "seeds.csv")
    assert len(table) == 60 and all(0.003 < float(r["seed_noise"]) / float(r["val_loss"]) < 0.02 for r in table)
    assert json.loads((out / "fit.json").read_text())["input"]["files"] == [str(out / "seeds.csv")]


def test_a_rate_on_the_edge_is_marked_in_the_picture(simulated, tmp_path):
    table = rows_of(simulated)
    for i, r in enumerate(table):
        r["lr_on_edge"] = 1 if i < 9 else 0 if i < 18 else ""
    with open(tmp_path / "runs.csv", "w", newline="") as f:
        out = csv.DictWriter(f, list(table[0]))
        out.writeheader()
        out.writerows(table)
    analysis = sweep.fit.analyse(table_.read([str(tmp_path / "runs.csv")]), sweep.fit.Options(bootstrap=0))
    result, arrays = to_json(analysis), to_arrays(analysis)
    assert arrays["lr_on_edge"].sum() == 9
    import matplotlib

    matplotlib.use("Agg")
    from isoflop.fit import figures

    marked = figures.draw_isoflop(result, arrays)
    crosses = [v for v in marked.axes[0].collections if v.get_label() == figures.ON_EDGE["label"]]
    assert len(crosses) == 1 and len(crosses[0].get_offsets()) == 9
    arrays["lr_on_edge"][:] = False
    plain = figures.draw_isoflop(result, arrays)
    assert not [v for v in plain.axes[0].collections if v.get_label() == figures.ON_EDGE["label"]]


def test_depths_are_the_one_knob_family(tmp_path):
    out = tmp_path / "out"
    assert (
        run_sweep("--simulate", LAW, *GRID[:3], *GRID[-2:], "--depths", 4, 6, 8, "--out_dir", out, "--block_size", 64)
        == 0
    )
    shapes = {(r["n_layer"], r["n_embd"], r["n_head"]) for r in rows_of(out)}
    assert shapes == {("4", "256", "4"), ("6", "384", "6"), ("8", "512", "8")} and len(rows_of(out)) == 6
