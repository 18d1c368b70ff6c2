"""Anyone's table of runs: what is read, what is dropped and why, and one line instead of a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fit
from isoflop import laws
from isoflop.fit import table as runs

ROOT = Path(__file__).parents[1]
LAW = laws.PUBLISHED["besiroglu"]


def grid(noise=0.003, seed=0, budgets=(1e18, 3e18, 1e19, 3e19), sizes=7):
    n, d, c = laws.isoflop_grid(LAW, budgets, sizes, 30.0)
    return n, d, c, laws.simulate(LAW, n, d, noise, seed)


def table(path, columns, sep=",", end="\n", extra=()):
    names = list(columns)
    rows = [sep.join(names)] + [sep.join(map(str, r)) for r in zip(*columns.values(), strict=True)] + list(extra)
    path.write_bytes((end.join(rows) + end).encode())
    return str(path)


def cli(*args, cwd=None):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(ROOT / "fit.py"), *map(str, args)], capture_output=True, text=True,
                          cwd=cwd, env=env)  # fmt: skip


def refused(path, *args):
    """main() as a user sees it: exit status, and the one line on stderr."""
    done = cli(path, "--no_plots", *args)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def codes(result):
    return {(r["method"], r["code"]) for r in result["refusals"]}


def quick(path, tmp_path, **options):
    return fit.run([path], tmp_path / "out", **{"bootstrap": 200, **options})


def no_numbers(section):
    """A refused section holds no estimate: nothing but counts, settings and text."""
    allowed = {"status", "warnings", "huber_delta", "n_rows", "budgets", "rule", "ends_dropped"}
    return set(section) <= allowed


# ----- columns, separators, encodings -----


@pytest.mark.parametrize(
    "names",
    [
        ("n_params", "tokens", "flops", "val_loss"),
        ("params", "D", "compute_budget", "final_loss"),
        ("Model Size", "training_tokens", "Training FLOP", "loss"),
        ("N", "tokens", "C", "L"),
    ],
)
def test_usual_names_are_found(tmp_path, names):
    values = grid()
    t = runs.read([table(tmp_path / "r.csv", dict(zip(names, values, strict=True)))])
    assert [t.info["columns"][k] for k in ("n", "d", "c", "loss")] == list(names)
    np.testing.assert_allclose(np.sort(t.loss), np.sort(values[3]))


@pytest.mark.parametrize("have", ["nd", "nc", "dc"])
def test_two_of_three_suffice_and_it_says_so(tmp_path, have):
    n, d, c, loss = grid()
    every = {"n_params": n, "tokens": d, "flops": c}
    keep = {k: v for k, v in every.items() if {"n_params": "n", "tokens": "d", "flops": "c"}[k] in have}
    t = runs.read([table(tmp_path / "r.csv", {**keep, "loss": loss})])
    full = runs.read([table(tmp_path / "f.csv", {**every, "loss": loss})])
    for k in ("n", "d", "c"):
        np.testing.assert_allclose(np.sort(getattr(t, k)), np.sort(getattr(full, k)), rtol=1e-9)
    assert any("6N" in s or "6D" in s for s in t.info["notes"])


def test_six_nd_does_not_wrap_in_int64(tmp_path):
    n, d = np.array([10**11] * 4, dtype=object), np.array([10**13 + i for i in range(4)], dtype=object)
    t = runs.read([table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "loss": [2.0, 2.1, 2.2, 2.3]})])
    assert (t.c > 5e24).all()


def test_flops_that_are_not_6nd_are_honoured(tmp_path):
    n, d, c, loss = grid()
    t = runs.read([table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "flops": 1.3 * c, "loss": loss})])
    assert t.info["flops_over_6nd"]["is_6nd"] is False and np.isclose(t.info["flops_over_6nd"]["median"], 1.3)
    cost = laws.cost_of(t.n, t.d, t.c)
    np.testing.assert_allclose(cost.kappa, 7.8, rtol=1e-6)


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_line_ends_and_bom(tmp_path, sep, end):
    n, d, c, loss = grid()
    path = table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss}, sep, end)
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert runs.read([path]).info["rows_used"] == len(n)


def test_quoted_fields_decimal_commas_and_blank_lines(tmp_path):
    (tmp_path / "q.csv").write_text(
        'run_id,"n_params",tokens,val_loss\n"a, b","1e6",2e8,"3.5"\n\n"c ""x""",2e6,3e8,3.4\n'
    )
    t = runs.read([str(tmp_path / "q.csv")])
    assert sorted(t.run_id) == ['a, b', 'c "x"'] and t.info["rows_read"] == 2  # fmt: skip
    (tmp_path / "c.csv").write_text("n_params;tokens;val_loss\n1e6;2e8;3,5\n2e6;3e8;3,4\n")
    assert sorted(runs.read([str(tmp_path / "c.csv")]).loss) == [3.4, 3.5]


def test_json_list_json_lines_and_several_files(tmp_path):
    n, d, c, loss = grid()
    rows = [{"parameters": a, "compute_budget": b, "final_loss": v} for a, b, v in zip(n, c, loss, strict=True)]
    (tmp_path / "a.json").write_text(json.dumps(rows[:10]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(r) for r in rows[10:]))
    t = runs.read([str(tmp_path / "a.json"), str(tmp_path / "b.jsonl")])
    assert t.info["rows_used"] == len(n)


# ----- rows that cannot be used -----


def test_every_dropped_row_has_its_reason(tmp_path):
    n, d, c, loss = grid()
    good = {
        "run_id": [f"r{i}" for i in range(len(n))],
        "status": ["ok"] * len(n),
        "n_params": n,
        "tokens": d,
        "val_loss": loss,
    }
    bad = ["x1,ok,1e6,2e8,nan", "x2,ok,1e6,2e8,inf", "x3,ok,0,2e8,3", "x4,ok,1e6,-5,3", "x5,ok,1e6,2e8,"]
    bad += ["x6,ok,1e6,abc,3", "x7,diverged,1e6,2e8,3", "x8,oom,1e6,2e8,3", "x9,ok,1e6"]
    bad += [f"r0,ok,{n[0]},{d[0]},{loss[0]}"]
    t = runs.read([table(tmp_path / "r.csv", good, extra=bad)])
    assert t.info["rows_read"] == len(n) + 10 and t.info["rows_used"] == len(n)
    why = {d["run_id"]: d["reason"] for d in t.info["dropped"]}
    assert (
        why["x2"] == "val_loss inf"
        and why["x3"] == why["x3"]
        and "not positive" in why["x3"]
        and "not positive" in why["x4"]
    )
    assert "unparsable" in why["x5"] and "unparsable" in why["x6"] and why["x7"] == "status diverged"
    assert why["x8"] == "status oom" and why["r0"] == "exact duplicate" and "unparsable" in why["x9"]
    assert sum(t.info["dropped_counts"].values()) == 10


def test_selection_is_listed(tmp_path):
    n, d, c, loss = grid()
    path = table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss, "kind": ["a", "b"] * (len(n) // 2)})
    t = runs.read([path], where=["kind == a", "n_params > 1e8"], exclude_flops_above=2e19, drop_top_loss=2)
    assert (t.n > 1e8).all() and (t.c < 2.01e19).all()
    counts = t.info["dropped_counts"]
    assert counts["outside --where kind == a"] == len(n) // 2 and counts["one of --drop_top_loss 2"] == 2
    assert t.info["rows_used"] + sum(counts.values()) == len(n)


def test_rows_of_one_run_are_a_curve_and_its_last_row_the_run(tmp_path):
    rows = ["run_id,n_params,tokens,val_loss"]
    for r in range(5):
        rows += [f"r{r},{10 ** (6 + 0.3 * r)},{t},{4 - 0.1 * r - 0.2 * t / 1e9}" for t in (4e8, 1e9, 2e8)]
    (tmp_path / "r.csv").write_text("\n".join(rows))
    t = runs.read([str(tmp_path / "r.csv")])
    assert (
        len(t.n) == 5 and (t.d == 1e9).all() and len(t.curve["d"]) == 15 and t.info["curves"] == {"runs": 5, "rows": 15}
    )


def test_training_logs_join_the_runs_by_id(tmp_path):
    n, d, c, loss = grid()
    ids = [f"r{i}" for i in range(len(n))]
    path = table(tmp_path / "r.csv", {"run_id": ids, "n_params": n, "tokens": d, "val_loss": loss})
    with open(tmp_path / "log.jsonl", "w") as f:
        for i, t in zip(ids, d, strict=True):
            for s in (1, 2, 3, 4):
                row = {"run_id": i, "step": s, "n_params": 1, "flops": 1, "tokens": s * t / 4, "loss": 5 - s / 4}
                print(json.dumps(row), file=f)
    t = runs.read([path, str(tmp_path / "log.jsonl")])
    assert len(t.n) == len(n) and len(t.curve["d"]) == 4 * len(n)
    np.testing.assert_allclose(t.curve["c"], 6 * t.curve["n"] * t.curve["d"], rtol=1e-9)


# ----- mistakes -----


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (bytes(range(256)) * 20, "binary"),
        (b"\x89PNG\r\n\x1a\n" + b"\x93\x81\x02\x07\x05" * 50, "binary"),
        (b"a,b,c\n1,2,3\n", "found a, b, c"),
        (b"n_params,tokens,val_loss\n", "no rows"),
        (b"n_params,tokens,val_loss\n1,nan,3\n", "none of 1 rows"),
        (b"[1, 2, 3]", "list of objects"),
        (b"{oops", "cannot be parsed"),
    ],
)
def test_unusable_files_are_one_line_and_status_2(tmp_path, content, says):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        runs.read([str(tmp_path / "x.csv")])
    if says in ("is empty", "binary", "found a, b, c"):
        status, err = refused(tmp_path / "x.csv")
        assert status == 2 and err.startswith("fit.py: error: ") and "\n" not in err and says in err
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{dir}"], "is a directory"),
        (["missing.csv"], "No such file"),
        ([], "no file given"),
        (["{csv}", "--n_col", "width"], "no such column"),
        (["{csv}", "--where", "val_loss"], "expected 'column op value'"),
        (["{csv}", "--where", "depth > 3"], "no column 'depth'"),
        (["{csv}", "--huber_delta", "-1"], "--huber_delta"),
        (["{csv}", "--predict_flops", "nan"], "--predict_flops"),
        (["{csv}", "--predict_flops", "1e12x"], "invalid float value"),
        (["{csv}", "--bootstrap", "7"], "--bootstrap 7"),
        (["{csv}", "--predict_flop", "1e20"], "unrecognized arguments"),
        (["{csv}", "--drop_top_loss", "99999"], "every run was left out"),
        (["--law", "hofmann", "--predict_flops", "1e20"], "hoffmann"),
        (["--simulate", "E=1,A=2", "--budgets", "1e18"], "missing"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, args, says, capsys):
    n, d, c, loss = grid()
    path = table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss})
    args = [a.format(dir=tmp_path, csv=path) for a in args]
    try:
        status = fit.main([*args, "--no_plots", "--out_dir", str(tmp_path / "out")])
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err.strip()
    assert status == 2 and err.startswith("fit.py: error: ") and "\n" not in err and says in err
    assert not (tmp_path / "out").exists()


def test_unwritable_out_dir(tmp_path, capsys):
    n, d, c, loss = grid()
    path = table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss})
    (tmp_path / "file").write_text("")
    assert fit.main([path, "--out_dir", str(tmp_path / "file" / "x"), "--no_plots", "--bootstrap", "0"]) == 2
    assert "--out_dir" in capsys.readouterr().err


# ----- what a statistician would refuse -----


def test_three_runs_of_three_sizes(tmp_path):
    path = table(
        tmp_path / "r.csv", {"n_params": [1e6, 2e6, 4e6], "tokens": [1e8, 1e8, 1e8], "val_loss": [4.0, 3.8, 3.7]}
    )
    status, err = refused(path)
    assert status == 2 and err == ""
    result = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert ("parametric", "too_few_rows") in codes(result) and ("isoflop", "no_budgets") in codes(result)
    assert no_numbers(result["parametric"]) and no_numbers(result["isoflop"]) and no_numbers(result["envelope"])
    assert result["predictions"]["flops"] == [] and result["valley"] == []


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda n, d: (n, 20 * n), "constant_ratio"),
        (lambda n, d: (0 * n + 1e8, d), "one_size"),
        (lambda n, d: (n, 0 * d + 1e10), "one_token_count"),
        (lambda n, d: (n, 1e19 / 6 / n), "one_budget"),
        (lambda n, d: (np.where(n > 2e8, 3e8, 1e8), d), "too_few_sizes"),
    ],
)
def test_designs_that_cannot_carry_the_law(tmp_path, make, code):
    n, d, _, _ = grid()
    n, d = make(n, d)
    loss = laws.simulate(LAW, n, d, 0.002, 1)
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss}), tmp_path)
    assert ("parametric", code) in codes(result) and result["parametric"]["status"] == "refused"
    assert no_numbers(result["parametric"])
    assert all(r["method"] != "parametric" for r in result["predictions"]["flops"])


def test_edge_minima_are_named_and_left_out(tmp_path):
    n, d, c, loss = grid(0.0)
    low = c < 2e18
    keep = ~low | (n > np.sort(n[low])[3])  # the smallest budget keeps only sizes above its optimum
    n, d, c, loss = (v[keep] for v in (n, d, c, loss))
    n2 = np.geomspace(1.2, 8, 5) * LAW.optimum(1e20)[0]
    n, c = np.r_[n, n2], np.r_[c, np.full(5, 1e20)]
    d = c / 6 / n
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": LAW.loss(n, d)}), tmp_path)
    budgets = {f"{v['flops']:.0e}": v for v in result["isoflop"]["budgets"]}
    edge = budgets["1e+20"]
    assert edge["status"] == "edge" and edge["n_opt"] is None and edge["d_opt"] is None and edge["loss"] is None
    assert any("1e+20 (edge)" in w["message"] for w in result["isoflop"]["warnings"])
    assert abs(result["isoflop"]["a"]["point"] - LAW.exponents()[0]) < 0.01


def test_all_minima_at_an_edge_refuse_isoflop(tmp_path):
    n = np.concatenate([np.geomspace(2, 10, 5) * LAW.optimum(c)[0] for c in (1e18, 1e19, 1e20)])
    c = np.repeat([1e18, 1e19, 1e20], 5)
    loss = LAW.loss(n, c / 6 / n)
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "flops": c, "val_loss": loss}), tmp_path)
    assert ("isoflop", "no_interior_minimum") in codes(result) and no_numbers(result["isoflop"])
    assert result["parametric"]["status"] != "refused"  # no noise: the surface is still there


def test_two_budgets_give_a_line_and_no_interval(tmp_path):
    n, d, c, loss = grid(0.001, budgets=(1e18, 1e19))
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss}), tmp_path)
    assert ("isoflop.interval", "two_budgets") in codes(result)
    assert result["isoflop"]["a"]["point"] is not None and result["isoflop"]["a"]["ci95"] is None


def test_jittered_budgets_are_grouped_and_cost_little(tmp_path):
    n, d, c, _ = grid()
    rng = np.random.default_rng(3)
    d = d * np.exp(rng.uniform(-0.06, 0.06, len(d)))
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": LAW.loss(n, d)}), tmp_path)
    assert [v["n_runs"] for v in result["isoflop"]["budgets"]] == [7, 7, 7, 7]
    assert abs(result["isoflop"]["a"]["point"] - LAW.exponents()[0]) < 0.005


def test_noise_that_hides_the_law_is_refused(tmp_path):
    n, d, c, loss = grid(0.3, seed=5)
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss}), tmp_path)
    assert result["parametric"]["status"] == "refused" and no_numbers(result["parametric"])


def test_no_irreducible_loss_is_refused(tmp_path):
    n, d, c, _ = grid()
    loss = 40 * n**-0.2 + 60 * d**-0.2
    result = quick(table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss}), tmp_path)
    assert ("parametric", "e_at_zero") in codes(result) and no_numbers(result["parametric"])


def test_fit_json_never_holds_nan_and_is_written_whole(tmp_path):
    n, d, c, loss = grid()
    path = table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss})
    quick(path, tmp_path, target_loss=(1.0, 2.5))
    text = (tmp_path / "out" / "fit.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in fit.json"))
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    assert ("parametric.target_loss", "below_floor") in codes(json.loads(text))


def test_starts_without_scipy_matplotlib_or_torch(tmp_path):
    n, d, c, loss = grid()
    path = table(tmp_path / "r.csv", {"n_params": n, "tokens": d, "val_loss": loss})
    code = "import sys, fit; fit.run([sys.argv[1]], sys.argv[2], bootstrap=100); print([m for m in ('scipy', 'matplotlib', 'torch') if m in sys.modules])"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code, path, str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    rng = np.random.default_rng(0)
    n, d, c = laws.isoflop_grid(LAW, 10 ** np.linspace(17, 21, 9), 11, 30.0)
    pick = rng.integers(len(n), size=1_000_000)
    n, d = np.round(n[pick] * np.exp(rng.normal(0, 0.01, len(pick)))), np.round(d[pick])
    loss = laws.simulate(LAW, n, d, 0.005, 1)
    with open(tmp_path / "big.csv", "w") as f:
        f.write("n_params,tokens,val_loss\n")
        np.savetxt(f, np.stack([n, d, loss], 1), fmt="%.9g", delimiter=",")
    code = (
        "import resource, sys, time, fit; t = time.time(); r = fit.run([sys.argv[1]], sys.argv[2]);"
        "print(time.time() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6);"
        "print(r['parametric']['alpha']['point'], *r['parametric']['alpha']['ci95'], r['isoflop']['a']['point'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "big.csv"), str(tmp_path / "out")],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, gigabytes, alpha, low, high, a = map(float, done.stdout.split())
    print(f"a million rows: {seconds:.1f} s, {gigabytes:.2f} GB")
    assert abs(alpha - LAW.alpha) < 0.01 and low < alpha < high and abs(a - LAW.exponents()[0]) < 0.02
    assert seconds < 60 and gigabytes < 2.5
