"""Several series in one fit: a law each, and a known compute multiplier recovered."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import write_runs

import fit
from isoflop import laws
from isoflop.fit.cells import names_of
from isoflop.fit.coupled import fit_coupled
from isoflop.fit.series import Series, choose_base, common_budgets, compare, folders, split, summary
from isoflop.fit.table import read
from isoflop.laws import SIX_ND
from isoflop.options import UserError

LAW = replace(laws.PUBLISHED["besiroglu"], p=1.6)
BUDGETS = (1e17, 3e17, 1e18, 3e18)


def saves(law, multiplier):
    """The law whose every run is as good as one of `multiplier` times its compute: N and D both count more."""
    s = multiplier**0.5
    return replace(law, A=law.A / s**law.alpha, B=law.B / s**law.beta)


def runs_of(law, seed, noise=0.003, sizes=6):
    n, d, c = laws.isoflop_grid(LAW, BUDGETS, sizes, 16.0)
    return n, d, c, laws.simulate(law, n, d, noise, seed)


def series_of(label, law, seed, resamples=300, noise=0.003):
    n, d, c, loss = runs_of(law, seed, noise)
    found = fit_coupled(n, d, loss, c, resamples=resamples, seed=seed)
    return Series(label, c, loss, found, SIX_ND)


def test_the_multiplier_is_recovered_without_noise():
    pair = [series_of("a", LAW, 1, 0, noise=0), series_of("b", saves(LAW, 1.5), 2, 0, noise=0)]
    for difference in compare(pair, "a", common_budgets(pair)):
        assert difference.multiplier.point == pytest.approx(1.5, rel=0.02) and difference.multiplier.ci95 is None
        expected = LAW.frontier_loss(1.5 * difference.flops) / LAW.frontier_loss(difference.flops) - 1
        assert difference.loss.point == pytest.approx(expected, abs=5e-4) and not difference.beyond
    (back, _) = compare(pair, "b", common_budgets(pair))
    assert back.multiplier.point == pytest.approx(1 / 1.5, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("multiplier", [1.0, 1.3, 3.0])
def test_coverage_of_a_known_multiplier(multiplier):
    """Of 95% intervals over 40 pairs of sweeps; fewer than 34 would have a chance of 1 in 100 if 95% held."""
    held, half = np.zeros(2), []
    for seed in range(40):
        pair = [series_of("a", LAW, 2 * seed), series_of("b", saves(LAW, multiplier), 2 * seed + 1)]
        for i, difference in enumerate(compare(pair, "a", common_budgets(pair), seed)):
            low, high = difference.multiplier.ci95
            held[i] += low < multiplier < high
            half.append(np.log(high / low) / 2)
    print("held", held / 40, "half-width of ln multiplier", np.median(half))
    assert (held >= 34).all() and np.median(half) < 0.15


def two_optimizers(tmp_path, multiplier=1.4):
    columns = {"optimizer": [], "n_params": [], "tokens": [], "flops": [], "val_loss": [], "lr": []}
    for name, law in (("muon w/ decay", saves(LAW, multiplier)), ("adamw", LAW)):
        n, d, c, loss = runs_of(law, len(name))
        for i in range(len(n)):
            for lr, worse in ((1e-3, 0.0), (3e-3, 0.1)):  # the second rate is worse throughout
                row = (name, n[i], d[i], c[i], loss[i] + worse, lr)
                for key, value in zip(columns, row, strict=True):
                    columns[key].append(value)
    return write_runs(tmp_path / "runs.csv", columns)


def test_a_law_for_each_label(tmp_path):
    table = read([two_optimizers(tmp_path)], by="optimizer")
    parts = split(table, "optimizer")
    assert list(parts) == ["muon w/ decay", "adamw"]  # as in the file
    assert all(len(part.n) == 24 and part.info["rows_used"] == 24 for part in parts.values())  # the better rate
    assert parts["adamw"].info["notes"][0] == "optimizer: adamw"
    assert choose_base(list(parts), None, "optimizer") == "muon w/ decay"
    assert folders(["a b", "a_b", "..", ""]) == {"a b": "a_b", "a_b": "a_b_", "..": "empty", "": "empty_"}


@pytest.mark.slow
def test_fit_by_a_column(tmp_path, capsys):
    argv = [two_optimizers(tmp_path), "--by", "optimizer", "--base", "adamw", "--bootstrap", "200"]
    assert fit.main([*argv, "--out_dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "series.json").read_text())
    assert result["by"] == "optimizer" and [row["folder"] for row in result["series"]] == ["muon_w_decay", "adamw"]
    for row in result["differences"]:
        assert row["label"] == "muon w/ decay" and row["multiplier"]["ci95"][0] < 1.4 < row["multiplier"]["ci95"][1]
    assert "against adamw" in said and "compute multiplier: so many times C adamw needs" in said
    for name in ("series.md", "series.png", "adamw/fit.json", "muon_w_decay/prediction.md"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    page = (tmp_path / "out" / "series.md").read_text()
    assert "![" in page and "[adamw](adamw/prediction.md)" in page
    assert json.loads((tmp_path / "out" / "adamw" / "fit.json").read_text())["input"]["rows_used"] == 24


def test_a_file_for_each_series(tmp_path):
    paths = []
    for name, law in (("adamw", LAW), ("muon", saves(LAW, 1.4))):
        n, d, _, loss = runs_of(law, len(name))
        paths.append(write_runs(tmp_path / f"{name}.csv", {"N": n, "D": d, "loss": loss}))
    assert set(split(read(paths, by="file"), "file")) == {"adamw", "muon"}


def test_a_row_that_two_series_share_stays_in_both(tmp_path):
    n, d, _, loss = runs_of(LAW, 1)
    paths = [write_runs(tmp_path / f"{name}.csv", {"N": n, "D": d, "loss": loss}) for name in ("a", "b")]
    assert {label: len(part.n) for label, part in split(read(paths, by="file"), "file").items()} == {"a": 24, "b": 24}
    assert len(read(paths).n) == 24


def test_names_of_files(tmp_path):
    same = [str(tmp_path / folder / "runs.csv") for folder in ("adamw", "muon")]
    assert list(names_of(same).values()) == ["adamw", "muon"]  # sweep.py's own folders
    assert list(names_of(["a/x.csv", "b/x.csv", "b/y.csv"]).values()) == ["a/x", "b/x", "b/y"]
    assert list(names_of(["runs.csv"]).values()) == ["runs"]


def test_a_series_of_few_runs_has_no_law_and_the_others_go_on():
    lone = fit_coupled(np.array([1e8]), np.array([1e9]), np.array([3.0]), np.array([6e17]), resamples=0)
    found = [series_of("a", LAW, 1, 0), Series("few", np.array([6e17]), np.array([3.0]), lone, SIX_ND)]
    result = fit.series.to_json(found, "data", "a", compare(found, "a", [1e18]), "nats per token")
    assert result["differences"] == [] and "few has no law: " in summary(result)
    assert compare(found, "few", [1e18]) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--by", "depth"), "--by depth: no such column"),
        (("--by", "kind"), "--by kind: every run has 'a' there"),
        (("--by", "n_params"), "--by n_params: 24 values, more than 12; --where selects some"),
        (("--by", "half", "--base", "z"), "--base z: no such value in half; it has x, y"),
        (("--base", "x"), "--base x is a value of the column that --by names"),
    ],
)
def test_mistakes(tmp_path, argv, says):
    n, d, _, loss = runs_of(LAW, 1)
    columns = {"n_params": n, "tokens": d, "loss": loss, "kind": ["a"] * 24, "half": ["x", "y"] * 12}
    options = dict(zip((word[2:] for word in argv[::2]), argv[1::2], strict=True))
    with pytest.raises(UserError, match=says):
        fit.run(write_runs(tmp_path / "r.csv", columns), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
