"""Rows that are no finished, independent runs: checkpoints, and rows that share N and D."""

import numpy as np
import pytest
from helpers import write_runs

from isoflop.fit.table import read
from isoflop.options import UserError

SIZES, TOKENS = (1e6, 3e6, 1e7), (1e8, 3e8)


def grid(lrs=(1e-3, 3e-3, 1e-2), seeds=(0,), **more):
    """Columns of runs over sizes, tokens, rates and seeds; the middle rate is the best, seeds move the loss by 0.01."""
    rows = [(n, d, lr, seed) for n in SIZES for d in TOKENS for lr in lrs for seed in seeds]
    n, d, lr, seed = map(np.array, zip(*rows, strict=True))
    loss = 2 + 100 / n**0.3 + 300 / d**0.3 + 0.1 * np.log(lr / 3e-3) ** 2 + 0.01 * seed
    columns = {"n_params": n, "tokens": d, "val_loss": loss, "lr": lr, "seed": seed, "train_s": 7 * n / 1e6 + lr + seed}
    return columns | {name: [values[i % len(values)] for i in range(len(n))] for name, values in more.items()}


def notes(table):
    return " | ".join(table.info["notes"])


# ----- rows that share N and D -----


def test_the_lowest_loss_of_each_n_and_d(tmp_path):
    path = write_runs(tmp_path / "r.csv", grid(bs=(32, 64, 128)))
    table = read([path])
    assert len(table.n) == 6 and table.info["dropped_counts"] == {"not the lowest loss of its (N, D)": 12}
    np.testing.assert_allclose(table.loss, 2 + 100 / table.n**0.3 + 300 / table.d**0.3)
    assert "18 rows share N and D and differ in lr, bs: the lowest loss of each of 6 (N, D) is taken" in notes(table)


def test_the_other_ways(tmp_path):
    path = write_runs(tmp_path / "r.csv", grid())
    mean = read([path], same_nd="mean")
    off = 0.1 * np.mean([np.log(lr / 3e-3) ** 2 for lr in (1e-3, 3e-3, 1e-2)])
    np.testing.assert_allclose(mean.loss, 2 + 100 / mean.n**0.3 + 300 / mean.d**0.3 + off)
    assert len(mean.n) == 6 and "the mean loss of each" in notes(mean)
    assert len(read([path], same_nd="all").n) == 18 and "all are taken" in notes(read([path], same_nd="all"))
    every = read([path], rows_are_runs=True)
    assert len(every.n) == 18 and "share" not in notes(every)


def test_seeds_alone_are_repeats(tmp_path):
    table = read([write_runs(tmp_path / "r.csv", grid(lrs=(3e-3,), seeds=(0, 1, 2)))])
    assert len(table.n) == 18 and "share" not in notes(table)


def test_seeds_of_the_best_setting_all_stay(tmp_path):
    table = read([write_runs(tmp_path / "r.csv", grid(seeds=(0, 1)))])
    assert len(table.n) == 12 and "36 rows share" in notes(table)
    assert sorted(set(np.round(table.loss - 2 - 100 / table.n**0.3 - 300 / table.d**0.3, 6))) == [0.0, 0.01]


def test_labels_are_series_and_not_mixed_up(tmp_path):
    columns = grid(lrs=(3e-3, 3.1e-3), optimizer=("adamw", "muon"))
    columns["val_loss"] = columns["val_loss"] - 0.1 * (np.array(columns["optimizer"]) == "muon")
    table = read([write_runs(tmp_path / "r.csv", columns)])
    (warning,) = table.info["warnings"]
    assert len(table.n) == 12 and warning["code"] == "series"
    assert "12 rows share N and D and differ in optimizer" in warning["message"]
    assert "--by 'optimizer'" in warning["message"] and "--where 'optimizer == adamw'" in warning["message"]
    lowest = read([str(tmp_path / "r.csv")], same_nd="lowest")
    assert len(lowest.n) == 6 and not lowest.info["warnings"]
    split = read([str(tmp_path / "r.csv")], by="optimizer")
    assert len(split.n) == 12 and set(split.label) == {"adamw", "muon"} and not split.info["warnings"]


def test_outcomes_and_names_are_no_settings(tmp_path):
    columns = grid(lrs=(3e-3,), seeds=(0, 1))
    count = len(columns["seed"])
    columns |= {
        "wandb_url": [f"u{i}" for i in range(count)],
        "acc": [0.1, 0.2] * (count // 2),
        "gpu": ["a", "b"] * (count // 2),
    }
    table = read([write_runs(tmp_path / "r.csv", columns)])
    assert len(table.n) == count and not table.info["warnings"]


# ----- checkpoints -----


def history(name, steps=4):
    """Columns of runs as a history, `steps` rows each under the column `name`, with a column of steps."""
    rows = []
    for n in SIZES:
        for d in TOKENS:
            for step in range(1, steps + 1):
                rows.append((f"r-{n}-{d}", step, n, d * step / steps, 9 - step - np.log10(n) / 2))
    return dict(zip((name, "_step", "n_params", "tokens", "val_loss"), zip(*rows, strict=True), strict=True))


@pytest.mark.parametrize("name", ["run_id", "run_name", "Name", "exp_name", "model_name"])
def test_histories_by_any_name(tmp_path, name):
    table = read([write_runs(tmp_path / "r.csv", history(name))])
    assert len(table.n) == 6 and table.info["curves"] == {"runs": 6, "rows": 24} and set(table.d) == set(TOKENS)


def test_a_name_without_steps_is_no_run(tmp_path):
    columns = history("model_name")
    del columns["_step"]
    table = read([write_runs(tmp_path / "r.csv", columns)])
    assert len(table.n) == 24 and not table.curve and "--run_cols 'model_name'" in notes(table)
    assert len(read([str(tmp_path / "r.csv")], run_cols=("model_name",)).n) == 6


def test_portions_tell_the_final_rows(tmp_path):
    columns = history("sweep")
    columns["sweep"] = ["s"] * 24
    columns["portion_steps_elapsed"] = np.array(columns.pop("_step")) / 4
    path = write_runs(tmp_path / "r.csv", columns)
    table = read([path])
    assert len(table.n) == 6 and not table.curve and set(table.d) == set(TOKENS)
    assert table.info["dropped_counts"] == {"checkpoint before the end of portion_steps_elapsed": 18}
    assert len(read([path], rows_are_runs=True).n) == 24


def test_total_steps_tell_the_final_rows(tmp_path):
    columns = history("x") | {"max_steps": [4] * 24}
    del columns["x"]
    assert len(read([write_runs(tmp_path / "r.csv", columns)]).n) == 6


def test_steps_that_nothing_names_are_asked_about(tmp_path):
    columns = history("x")
    del columns["x"]
    path = write_runs(tmp_path / "r.csv", columns)
    (warning,) = read([path]).info["warnings"]
    assert warning["code"] == "checkpoints" and "--run_cols" in warning["message"]
    assert not read([path], rows_are_runs=True).info["warnings"]


def test_several_columns_name_a_run(tmp_path):
    columns = history("model")
    columns["lr"] = [1e-3, 2e-3] * 12
    columns["model"] = [f"m{n:g}" for n in columns["n_params"]]
    table = read([write_runs(tmp_path / "r.csv", columns)], run_cols=("model", "lr"), same_nd="all")
    assert len(table.n) == 6 and "m1e+06 0.001" in table.run_id
    with pytest.raises(UserError, match="--run_cols depth: no such column"):
        read([str(tmp_path / "r.csv")], run_cols=("depth",))


def test_rows_of_two_files_without_names_stay_apart(tmp_path):
    paths = [
        write_runs(tmp_path / f"{i}.csv", {"N": SIZES, "D": [i * 1e8 + 1e8] * 3, "loss": [4, 3, 2]}) for i in (1, 2)
    ]
    table = read(paths)
    assert len(table.n) == 6 and not table.curve and "1 row 1" in table.run_id


# ----- statuses -----


def test_statuses_can_be_kept(tmp_path):
    columns = {"N": [1e6, 2e6, 3e6], "D": [1e8] * 3, "loss": [4, 3, 2], "State": ["finished", "failed", "Crashed"]}
    path = write_runs(tmp_path / "r.csv", columns)
    table = read([path])
    assert len(table.n) == 1 and "--status Crashed failed, or --status any" in notes(table)
    assert len(read([path], status=("failed",)).n) == 2 and len(read([path], status=("any",)).n) == 3
    columns["State"] = ["failed"] * 3
    with pytest.raises(UserError, match="none of 3 rows can be used .3 status failed.; .*--status failed, or"):
        read([write_runs(tmp_path / "s.csv", columns)])


# ----- epochs -----


def test_many_epochs_are_warned_of_and_the_way_out_works(tmp_path):
    columns = {"N": [1e6, 2e6, 3e6], "D": [1e8, 2e8, 8e8], "loss": [4, 3, 2]}
    for extra in ({"epochs": [1, 2, 8]}, {"unique_tokens": [1e8] * 3}):
        path = write_runs(tmp_path / "r.csv", columns | extra)
        (warning,) = read([path]).info["warnings"]
        assert "1 of 3 runs saw their data more than 4 times (up to 8)" in warning["message"]
        way_out = warning["message"].split("--where '")[1].split("'")[0]
        helped = read([path], where=way_out)
        assert len(helped.n) == 2 and not helped.info["warnings"]
