"""fit.py --law_of data: answers against brute force and closed forms, files, one-line refusals."""

import csv
import json

import numpy as np
import pytest

import fit
from isoflop.fit import data_report
from isoflop.fit.data_law import fit_data_law
from isoflop.laws import SIX_ND

DATA = ["--law_of", "data", "--no-plots"]


def simulated(form):
    """3 sizes, 3 texts, 1 to 32 epochs, 0.3% of noise."""
    grid = np.meshgrid([2e7, 1e8, 5e8], [1e8, 4e8, 1.6e9], 2.0 ** np.arange(6), indexing="ij")
    n, u, epochs = (v.ravel() for v in grid)
    d = u * epochs
    worth = u + u * 12 * (1 - np.exp(-(epochs - 1) / 12)) if form == "effective" else d
    loss = 1.8 + 500 / n**0.35 + 2000 / worth**0.37
    if form == "excess":
        loss += 5e-7 * n**1.25 / u**0.8 * np.log(epochs) ** 3
    return n, d, u, loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(n)))


def write(path, columns, runs):
    with open(path, "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["run_id", *columns])
        rows.writerows([f"r{i}", *row] for i, row in enumerate(zip(*runs, strict=True)))
    return str(path)


@pytest.fixture(scope="module")
def laws_of():
    return {form: fit_data_law(*simulated(form), form=form, resamples=0) for form in ("effective", "excess")}


def test_best_run(laws_of):
    """No other N on a fine grid does better."""
    for law in laws_of.values():
        for c, u in ((1e19, 1e9), (1e20, 1e9), (1e18, 1e11)):
            ln_n, loss = (v[0, 0] for v in data_report.best_runs(law, law.theta[None], SIX_ND, c, u))
            n = np.exp(ln_n + np.linspace(-1, 1, 2001))
            all_losses = law.loss(n, c / (6 * n), u)
            assert loss == pytest.approx(all_losses.min(), rel=1e-4)
            assert abs(np.log(n[all_losses.argmin()]) - ln_n) < 0.03


def test_worth_of_epochs(laws_of):
    """Of effective tokens the next one is worth exp(-(D/U - 1) / R_D); over-fitting turns the loss up."""
    law = laws_of["effective"]
    half, turn = data_report.worth_of_epochs(law, law.theta[None], [1e8], 1e9)
    assert half[0] == pytest.approx(1 + law.letters["R_D"] * np.log(2), rel=0.05)
    assert turn[0] == np.inf  # flat in the end, it never rises
    law = laws_of["excess"]
    half, turn = data_report.worth_of_epochs(law, law.theta[None], [5e8], 1e8)
    d = 1e8 * np.array([0.93, 1.0, 1.07]) * turn[0]
    losses = law.loss(5e8, d, 1e8)
    assert losses.argmin() == 1 and half[0] < turn[0]


def test_worth_of_twice_the_text(laws_of):
    """So much more compute on the same text reaches the loss; little where one epoch isn't filled."""
    law = laws_of["effective"]
    factor = data_report.worth_of_twice(law, law.theta[None], SIX_ND, 1e19, 5e8)[0]
    there = data_report.best_runs(law, law.theta[None], SIX_ND, factor * 1e19, 5e8)[1][0, 0]
    assert there == pytest.approx(law.loss(*best(law, 1e19, 1e9)), rel=1e-3)
    assert factor > 1.05
    assert data_report.worth_of_twice(law, law.theta[None], SIX_ND, 1e18, 1e11)[0] == pytest.approx(1, abs=1e-6)


def best(law, c, u):
    n = np.exp(data_report.best_runs(law, law.theta[None], SIX_ND, c, u)[0][0, 0])
    return n, c / (6 * n), u


@pytest.mark.slow
def test_files_and_columns(tmp_path, capsys):
    """unique_tokens and epochs give one answer; fit.json, the page and the picture are there, fit/ stays free."""
    n, d, u, loss = simulated("excess")
    unique = write(tmp_path / "u.csv", ("n_params", "tokens", "unique_tokens", "val_loss"), (n, d, u, loss))
    epochs = write(tmp_path / "e.csv", ("n_params", "tokens", "epochs", "val_loss"), (n, d, d / u, loss))
    flags = ["--law_of", "data", "--bootstrap", "100", "--predict_flops", "1e20", "--unique_tokens", "1e9", "2e9"]
    assert fit.main([unique, *flags]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "fit" / "data"
    assert sorted(p.name for p in folder.iterdir()) == ["data.md", "data.png", "fit.json"]
    result = json.loads((folder / "fit.json").read_text())
    section = result["data"]
    assert section["form"] == "excess" and len(section["backtests"]) == 6
    assert [row["unique_tokens"] for row in section["answers"]] == [1e9, 2e9]
    low, high = section["letters"]["beta"]["ci95"]
    assert low < section["letters"]["beta"]["point"] < high
    assert "C 1e20" in printed and "unique tokens" in printed
    assert not [row for row in result["input"]["warnings"] if row["code"] == "epochs"]
    assert fit.main([epochs, *DATA, "--bootstrap", "0", "--out_dir", str(tmp_path / "e")]) == 0
    other = json.loads((tmp_path / "e" / "fit.json").read_text())["data"]
    assert other["letters"]["beta"]["point"] == pytest.approx(section["letters"]["beta"]["point"], rel=1e-6)


def test_runs_of_one_size_are_answered_at_that_size(tmp_path):
    n, d, u, loss = simulated("excess")
    one = n == n[0]
    path = write(
        tmp_path / "one.csv", ("n_params", "tokens", "unique_tokens", "val_loss"), (n[one], d[one], u[one], loss[one])
    )
    options = {"law_of": "data", "plots": False, "bootstrap": 100, "predict_flops": (1e19,), "unique_tokens": (1e9,)}
    section = fit.run(path, tmp_path / "out", **options)["data"]
    (row,) = section["answers"]
    assert section["only_size"] == pytest.approx(n[0]) and row["n"] == {"point": pytest.approx(n[0]), "ci95": None}
    assert row["tokens"]["point"] == pytest.approx(1e19 / 6 / n[0]) and row["loss"]["ci95"]
    assert any("no best N" in text for text in section["answer"])


def refused(flags):
    with pytest.raises(SystemExit) as stopped:
        fit.main([*flags, *DATA])
    assert stopped.value.code == 2


def test_refusals(tmp_path, capsys):
    """One line, exit status 2, nothing written; what it advises works."""
    n, d, u, loss = simulated("excess")
    above = u.copy()
    above[[3, 7]] = 10 * d[[3, 7]]
    cases = [
        (("n_params", "tokens", "val_loss"), (n, d, loss), "no column of them"),
        (("n_params", "tokens", "unique_tokens", "val_loss"), (n, d, above, loss), "r3 (row 4)"),
        (("n_params", "tokens", "unique_tokens", "val_loss"), (n, d, d, loss), "0 of 54 runs repeat"),
        (
            ("n_params", "tokens", "epochs", "val_loss"),
            (n[:18], d[:18], d[:18] / 1e8, loss[:18]),
            "one number of unique",
        ),
    ]
    for i, (columns, runs, text) in enumerate(cases):
        path = write(tmp_path / f"{i}.csv", columns, runs)
        refused([path])
        error = capsys.readouterr().err.strip()
        assert text in error and "\n" not in error
        assert not (tmp_path / "fit").exists()
    path = str(tmp_path / "1.csv")
    refused([path, "--compare"])
    with pytest.raises(SystemExit):
        fit.main([path, "--unique_tokens", "1e9"])
    assert "add --law_of data" in capsys.readouterr().err
    assert fit.main([path, *DATA, "--bootstrap", "0", "--where", "unique_tokens / tokens <= 1"]) == 0
    assert json.loads((tmp_path / "fit" / "data" / "fit.json").read_text())["data"]["runs"] == 52
