"""Tables of runs: the third of N, D and C, rows that cannot be used, training curves, logs and scores."""

import json

import numpy as np
import pytest
from helpers import isoflop_runs, write_runs

from isoflop import laws
from isoflop.fit.logs import scores
from isoflop.fit.table import read
from isoflop.options import UserError

RUNS = isoflop_runs(laws.PUBLISHED["besiroglu"], budgets=(1e18, 3e18, 1e19, 3e19))


@pytest.mark.parametrize("have", ["nd", "nc", "dc"])
def test_two_of_three_suffice_and_it_says_so(tmp_path, have):
    n, d, c, loss = RUNS
    every = {"n": n, "d": d, "c": c}
    kept = {name: every[name] for name in have}
    table = read([write_runs(tmp_path / "part.csv", {**kept, "loss": loss})])
    whole = read([write_runs(tmp_path / "whole.csv", {**every, "loss": loss})])
    for name in ("n", "d", "c"):
        np.testing.assert_allclose(np.sort(getattr(table, name)), np.sort(getattr(whole, name)), rtol=1e-9)
    assert any("6N" in note or "6D" in note for note in table.info["notes"]) and not whole.info["notes"]


def test_six_nd_does_not_wrap_in_int64(tmp_path):
    n, d = [10**11] * 4, [10**13 + i for i in range(4)]
    table = read([write_runs(tmp_path / "r.csv", {"n_params": n, "tokens": d, "loss": [2.0, 2.1, 2.2, 2.3]})])
    assert (table.c > 5e24).all()


def test_flops_that_are_not_6nd_are_honoured(tmp_path):
    n, d, c, loss = RUNS
    table = read([write_runs(tmp_path / "r.csv", {"n_params": n, "tokens": d, "flops": 1.3 * c, "loss": loss})])
    ratio = table.info["flops_over_6nd"]
    assert ratio["is_6nd"] is False and np.isclose(ratio["median"], 1.3)
    np.testing.assert_allclose(laws.cost_of(table.n, table.d, table.c).kappa, 7.8, rtol=1e-6)


# ----- rows that cannot be used -----


def test_every_dropped_row_has_its_reason(tmp_path):
    n, d, _, loss = RUNS
    good = {"run_id": [f"r{i}" for i in range(len(n))], "status": ["ok"] * len(n)}
    good |= {"n_params": n, "tokens": d, "val_loss": loss}
    bad = {
        "x1,ok,1e6,2e8,nan": "val_loss empty, nan or unparsable",
        "x2,ok,1e6,2e8,inf": "val_loss inf",
        "x3,ok,0,2e8,3": "n_params not positive",
        "x4,ok,1e6,-5,3": "tokens not positive",
        "x5,ok,1e6,2e8,": "val_loss empty, nan or unparsable",
        "x6,ok,1e6,abc,3": "tokens empty, nan or unparsable",
        "x7,diverged,1e6,2e8,3": "status diverged",
        "x8,OOM,1e6,2e8,3": "status OOM",
        "x9,blown_up,1e6,2e8,3": "status blown_up",
        "x9,ok,1,000,000,2,3": "with 7 cells under a header of 5; quote cells that hold the separator",
        "x9,ok,1e6": "tokens empty, nan or unparsable",
        f"r0,ok,{n[0]},{d[0]},{loss[0]}": "exact duplicate",
    }
    table = read([write_runs(tmp_path / "r.csv", good, extra=bad)])
    assert table.info["rows_read"] == len(n) + 12 and table.info["rows_used"] == len(n)
    assert [(row["run_id"], row["reason"]) for row in table.info["dropped"]] == [
        (line.split(",")[0], reason) for line, reason in bad.items()
    ]
    assert [row["row"] for row in table.info["dropped"]] == list(range(len(n) + 1, len(n) + 13))
    assert sum(table.info["dropped_counts"].values()) == 12


def test_a_measured_loss_above_a_uniform_guess_is_left_out_by_name(tmp_path):
    """Runs of older versions that had blown up: only where the vocabulary is known, and the loss is a measured one."""
    columns = {"n_params": [1e6, 2e6, 3e6, 4e6], "tokens": [1e8, 1e8, 1e8, 1e8], "val_loss": [6.3, 6.4, 9.0, 7.0]}
    assert len(read([write_runs(tmp_path / "a.csv", columns)]).n) == 4
    columns["vocab_size"] = [512, 512, "", 50257]  # ln 512 = 6.238
    table = read([write_runs(tmp_path / "b.csv", columns)])
    (dropped,) = table.info["dropped"]
    assert (dropped["row"], dropped["reason"]) == (2, "val_loss above ln V: blown up") and len(table.n) == 3
    columns["source"] = ["trained", "simulated hoffmann", "", "trained"]
    assert len(read([write_runs(tmp_path / "c.csv", columns)]).n) == 4


def test_selection_is_listed(tmp_path):
    n, d, _, loss = RUNS
    columns = {"n_params": n, "tokens": d, "val_loss": loss, "kind": ["a", "b"] * (len(n) // 2)}
    path = write_runs(tmp_path / "r.csv", columns)
    assert len(read([path], where="kind == b").n) == len(n) // 2
    table = read([path], where=["kind == a", "n_params > 1e8"], exclude_flops_above=2e19, drop_top_loss=2)
    assert (table.n > 1e8).all() and (table.c < 2.01e19).all()
    counts = table.info["dropped_counts"]
    assert counts["outside --where kind == a"] == len(n) // 2 and counts["one of --drop_top_loss 2"] == 2
    assert table.info["rows_used"] + sum(counts.values()) == len(n)


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("n_params,tokens,val_loss\n", {}, "has a header and no rows"),
        ("n_params,tokens,val_loss\n1,nan,3\n", {}, "none of 1 rows can be used .1 tokens empty"),
        ("n_params,tokens,val_loss\n1,2,3\n", {"drop_top_loss": 1}, "every run was left out"),
        ("n_params,tokens,val_loss\n1,2,3\n", {"where": ["depth > 3"]}, "no column 'depth' in .*; it has n_params"),
    ],
)
def test_nothing_left(tmp_path, content, options, says):
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(UserError, match=says):
        read([str(tmp_path / "r.csv")], **options)


def test_files_with_other_columns_share_the_common_ones(tmp_path):
    first = write_runs(tmp_path / "a.csv", {"N": [1e6, 2e6], "D": [1e8, 2e8], "loss": [4, 3], "loss_se": [0.1, 0.1]})
    second = write_runs(tmp_path / "b.csv", {"N": [3e6], "D": [3e8], "loss": [2.5]})
    table = read([first, second])
    assert len(table.n) == 3 and table.loss_se is None and len(read([first]).loss_se) == 2
    assert "the files have different columns; only the common ones are used" in table.info["notes"]


def test_rows_to_predict_need_no_loss_and_keep_their_names_apart(tmp_path):
    path = write_runs(tmp_path / "next.csv", {"run": ["a", "a", ""], "N": [1e6, 1e6, 2e6], "D": [1e8, 1e8, 2e8]})
    table = read([path], need_loss=False)
    assert sorted(table.run_id) == ["a", "a (1)", "row 3"] and np.isnan(table.loss).all()


# ----- curves, logs, scores -----


def test_rows_of_one_run_are_a_curve_and_its_last_row_the_run(tmp_path):
    rows = ["run_id,n_params,tokens,val_loss"]
    for run in range(5):
        for tokens in (4e8, 1e9, 2e8):
            rows.append(f"r{run},{10 ** (6 + 0.3 * run)},{tokens},{4 - 0.1 * run - 0.2 * tokens / 1e9}")
    (tmp_path / "r.csv").write_text("\n".join(rows))
    table = read([str(tmp_path / "r.csv")])
    assert len(table.n) == 5 and (table.d == 1e9).all() and table.info["curves"] == {"runs": 5, "rows": 15}
    assert len(table.curve["d"]) == 15
    some = table.select(table.n > 2e6)
    assert sorted(set(some.curve["run"].tolist())) == list(range(len(some.n)))
    np.testing.assert_array_equal(some.curve["n"], some.n[some.curve["run"]])


def test_training_logs_join_the_runs_by_id(tmp_path):
    n, d, _, loss = RUNS
    ids = [f"r{i}" for i in range(len(n))]
    path = write_runs(tmp_path / "r.csv", {"run_id": ids, "n_params": n, "tokens": d, "val_loss": loss})
    with open(tmp_path / "log.jsonl", "w") as f:
        for name, tokens in zip([*ids, "another"], [*d, 1e9], strict=True):
            for step in (1, 2, 3, 4):
                row = {"run_id": name, "step": step, "n_params": 1, "flops": 1}
                print(json.dumps({**row, "tokens": step * tokens / 4, "loss": 5 - step / 4}), file=f)
    table = read([path, str(tmp_path / "log.jsonl")])
    assert len(table.n) == len(n) and len(table.curve["d"]) == 4 * len(n)
    np.testing.assert_allclose(table.curve["c"], 6 * table.curve["n"] * table.curve["d"], rtol=1e-9)
    assert f"{len(n)} training curves from 1 logs; 4 log rows name no run here" in table.info["notes"]


def test_scores_by_task_and_run(tmp_path):
    lines = ["run_id,n,d,loss,score_core,score_core_se,score_piqa", "a,1,2,3,0.4,0.01,0.5", "b,1,2,3,0.3,,", "c,1,2"]
    (tmp_path / "scored.csv").write_text("\n".join(lines))
    (tmp_path / "plain.csv").write_text("n,d,loss,score_core\n1,2,3,0.4\n")
    found = scores([str(tmp_path / "scored.csv"), str(tmp_path / "plain.csv")])
    assert sorted(found) == ["core", "piqa"] and list(found["core"]) == ["a", "b"] and list(found["piqa"]) == ["a"]
    assert found["core"]["a"] == (0.4, 0.01) and found["core"]["b"][0] == 0.3 and np.isnan(found["core"]["b"][1])
    assert found["piqa"]["a"][0] == 0.5 and np.isnan(found["piqa"]["a"][1])


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    """Read and fitted in under 2.5 GB, with the law's own exponents."""
    from helpers import run_python

    law, rng = laws.PUBLISHED["besiroglu"], np.random.default_rng(0)
    n, d, _ = laws.isoflop_grid(law, 10 ** np.linspace(17, 21, 9), 11, 30.0)
    pick = rng.integers(len(n), size=1_000_000)
    n, d = np.round(n[pick] * np.exp(rng.normal(0, 0.01, len(pick)))), np.round(d[pick])
    loss = laws.simulate(law, n, d, 0.005, 1)
    with open(tmp_path / "big.csv", "w") as f:
        f.write("n_params,tokens,val_loss\n")
        np.savetxt(f, np.stack([n, d, loss], 1), fmt="%.9g", delimiter=",")
    code = (
        "import resource, sys, fit\n"
        "result = fit.run(sys.argv[1], sys.argv[2], plots=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)\n"
        "print(result['parametric']['alpha']['point'], *result['parametric']['alpha']['ci95'])\n"
        "print(result['isoflop']['a']['point'])\n"
    )
    done = run_python(code, tmp_path / "big.csv", tmp_path / "out")
    gigabytes, alpha, low, high, a = map(float, done.stdout.split())
    assert gigabytes < 2.5 and abs(alpha - law.alpha) < 0.01 and low < alpha < high
    assert abs(a - law.exponents()[0]) < 0.02
