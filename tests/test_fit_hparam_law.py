"""fit.py --law_of hparams: the best learning rate and batch of runs that differ in both."""

import json

import numpy as np
import pytest
from helpers import ROOT, write_runs

import fit
from isoflop.fit.hparam_law import cells_of, fit_form, fit_hparams, rise
from isoflop.options import UserError

SWEEP = ROOT.parent / "shared" / "cases" / "tables" / "lr_batch_sweep.csv"
needs_sweep = pytest.mark.skipif(not SWEEP.is_file(), reason="../shared/cases is not here")
LR, BATCH = (1.79, -0.713, 0.307), (0.58, 0.571)  # Step Law: Li et al. 2025, arXiv:2503.04715
CURVATURE = np.array([[0.012, -0.005], [-0.005, 0.010]])
NINE = [(n, d) for n in (1e8, 3e8, 1e9) for d in (2e9, 8e9, 3e10)]


def best_of(n, d):
    return np.log(LR[0] * n ** LR[1] * d ** LR[2]), np.log(BATCH[0] * d ** BATCH[1])


def sweep(noise=0.001, seed=0, cells=NINE, rates=7, batches=6, shift=0.0):
    """Runs of a known law: N, D, C, loss, lr, batch; grids in steps of 2, sqrt 2 off the optimum at most."""
    rng, rows = np.random.default_rng(seed), []
    for n, d in cells:
        centre = np.array(best_of(n, d)) + shift + np.log(2) * rng.uniform(-0.5, 0.5, 2)
        floor = np.log(1.7 + 400 / n**0.34 + 400 / d**0.28)
        for i in range(rates):
            for j in range(batches):
                x = centre + np.log(2) * np.array([i - (rates - 1) / 2, j - (batches - 1) / 2])
                off = x - best_of(n, d)
                loss = np.exp(floor + 0.5 * off @ CURVATURE @ off + noise * rng.standard_normal())
                rows.append((n, d, 6 * n * d, loss, *np.exp(x)))
    return np.array(rows).T


def inside(value, ends):
    return ends[0] <= value <= ends[1]


def sweep_file(folder, runs, **more):
    n, d, _, loss, lr, batch = runs
    columns = {"N": n, "D": d, "loss": loss, "lr": lr, "tokens_per_step": batch} | more
    return write_runs(folder / "runs.csv", {name: values for name, values in columns.items() if values is not None})


def test_a_known_law_is_recovered():
    found = fit_hparams(*sweep(noise=1e-7))
    batch = next(form for form in found.batch_forms if form.letters == "D")
    assert len(found.ok) == 9 and found.lr.letters == "ND" and "D" in found.batch.letters
    np.testing.assert_allclose([found.lr.k, batch.k], [LR[0], BATCH[0]], rtol=0.01)
    np.testing.assert_allclose([found.lr.exponents["N"], found.lr.exponents["D"]], LR[1:], atol=1e-3)
    np.testing.assert_allclose(batch.exponents["D"], BATCH[1], atol=1e-3)
    assert found.flat["lr 2x off"] == pytest.approx(0.5 * np.log(2) ** 2 * 0.012, rel=0.01)
    assert found.lr_of_batch == pytest.approx(0.5 / 1.2, rel=0.01)
    assert max(found.held_out) < 1e-6
    assert rise(found.ok[0], np.array([np.log(2), 0.0])) == pytest.approx(found.flat["lr 2x off"], rel=0.01)


def test_intervals_hold_where_the_cells_of_a_size_err_together():
    n, d = np.array([(n, d) for n in (1e8, 2e8, 4e8, 8e8) for d in (2e9, 8e9, 3e10, 1e11)]).T
    rng, held = np.random.default_rng(0), []
    for _ in range(150):
        of_size = np.repeat(0.08 * rng.standard_normal(4), 4)
        y = best_of(n, d)[0] + of_size + 0.06 * rng.standard_normal(16)
        form = fit_form("ND", n, d, 6 * n * d, y, np.full(16, 0.04))
        held.append([inside(LR[1], form.ci95["N"]), inside(LR[2], form.ci95["D"])])
    by_n, by_d = np.mean(held, 0)
    assert by_n > 0.84 and by_d > 0.90  # N's .69 with every cell on its own


def test_powers_of_c_are_taken_where_n_and_d_move_together():
    cells = [(n, 20 * n) for n in (1e8, 2e8, 4e8, 8e8, 1.6e9)]
    found = fit_hparams(*sweep(cells=cells))
    assert all(form.letters != "ND" for form in found.lr_forms)
    assert found.batch.letters in ("C", "D", "N")
    assert found.batch.at(3e8, 6e9) == pytest.approx(np.exp(best_of(3e8, 6e9)[1]), rel=0.1)


def test_one_batch_in_every_cell_gives_the_rate_alone():
    runs = sweep(batches=1)
    found = fit_hparams(*runs[:5])
    assert found.batch is None and found.lr.letters == "ND" and len(found.ok) == 9


def test_whole_steps_of_different_batches_are_one_cell():
    n, d = np.array([1e8] * 4), np.array([1e9, 1.01e9, 0.995e9, 2e9])
    assert [sorted(rows.tolist()) for rows in cells_of(n, d)] == [[0, 1, 2], [3]]


def test_a_run_that_broke_moves_nothing():
    runs = sweep()
    clean = fit_hparams(*runs)
    runs[3, 20] *= 1.5  # in the middle of the first grid
    broken = fit_hparams(*runs)
    assert broken.cells[0].status == "ok"
    np.testing.assert_allclose(broken.cells[0].x, clean.cells[0].x, atol=0.15)


def test_cells_with_their_optimum_at_an_edge_are_named_and_left_out():
    good, off = sweep(cells=NINE[:5]), sweep(cells=NINE[5:], shift=np.array([3.5, 0.0]))
    found = fit_hparams(*np.concatenate([good, off], axis=1))
    assert [cell.status == "ok" for cell in found.cells] == [True] * 5 + [False] * 4
    assert {cell.status for cell in found.cells[5:]} == {"edge: the best rate is the lowest tried or below"}


@pytest.mark.parametrize(
    "runs, says",
    [
        (sweep(rates=1), "at most 1 learning rates at one (N, D)"),
        (sweep(shift=np.array([3.5, 0.0])), "9 of 9 (N, D) have their best setting at an edge"),
        (sweep(cells=NINE[:2]), "2 (N, D) with a best setting, 3 are needed"),
    ],
)
def test_tables_without_a_law_are_refused_with_what_would_help(runs, says):
    with pytest.raises(UserError) as error:
        fit_hparams(*runs)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_table_without_rates_is_one_line_and_status_2(tmp_path, capsys):
    path = sweep_file(tmp_path, sweep(), lr=None)
    for more, says in ([], "name it with --lr_col"), (["--lr_col", "speed"], "--lr_col speed: no such column"):
        with pytest.raises(SystemExit) as stopped:
            fit.main([str(path), "--law_of", "hparams", *more])
        said = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and says in said and "\n" not in said and not (tmp_path / "fit").exists()


def test_from_a_file_to_a_page_with_the_settings_of_given_sizes(tmp_path, capsys):
    path = sweep_file(tmp_path, sweep(), lr=None, speed=sweep()[4])
    wanted = write_runs(tmp_path / "wanted.csv", {"N": [3e8, 1e12], "D": [6e9, 6e9]})
    flags = ["--law_of", "hparams", "--lr_col", "speed", "--predict_runs", str(wanted)]
    assert fit.main([str(path), *flags]) == 0
    assert "lr* = " in capsys.readouterr().out
    folder = tmp_path / "fit" / "hparams"
    assert {one.name for one in folder.iterdir()} == {"fit.json", "hparams.md", "hparams.png"}
    section = json.loads((folder / "fit.json").read_text())["hparams"]
    near, far = section["predictions"]
    lr, batch = np.exp(best_of(3e8, 6e9))
    assert near["lr"] == pytest.approx(lr, rel=0.1) and near["batch"] == pytest.approx(batch, rel=0.1)
    assert not near["note"] and "N outside" in far["note"] and section["batch_unit"] == "tokens"


def test_flags_of_the_loss_are_of_no_use_and_rates_are_of_none_to_the_loss(tmp_path, capsys):
    path = sweep_file(tmp_path, sweep())
    for flags in (["--law_of", "hparams", "--same_nd", "mean"], ["--lr_col", "lr"]):
        with pytest.raises(SystemExit):
            fit.main([str(path), *flags])
        assert f"{flags[-2]} is of no use to --law_of" in capsys.readouterr().err


@needs_sweep
def test_step_laws_runs(tmp_path):
    """Step Law's 1,911 dense runs: their published powers, and the runs nearest to the law of the other cells."""
    result = fit.run(SWEEP, tmp_path, loss_col="smooth loss", law_of="hparams", plots=False)
    law = result["hparams"]
    forms = {form["letters"]: form for form in law["batch_forms"]}
    assert law["lr"]["letters"] == "ND" and len(law["cells"]) == 17
    assert inside(LR[1], law["lr"]["ci95"]["N"]) and inside(LR[2], law["lr"]["ci95"]["D"])
    assert inside(BATCH[1], forms["D"]["ci95"]["D"]) and inside(BATCH[0], forms["D"]["k_ci95"])
    assert inside(LR[0], law["lr"]["k_ci95"])
    assert {cell["status"] for cell in law["cells"]} == {"ok"}
    assert max(cell["nearest_over_best_run"] for cell in law["cells"]) < 0.0025


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0005, 0.001, 0.002])
def test_intervals_hold_a_known_law(noise):
    hits = []
    for seed in range(100):
        found = fit_hparams(*sweep(noise, seed), seed=seed)
        lr = next(form for form in found.lr_forms if form.letters == "ND")
        batch = next(form for form in found.batch_forms if form.letters == "D")
        held = [inside(LR[0], lr.k_ci95), inside(LR[1], lr.ci95["N"]), inside(LR[2], lr.ci95["D"])]
        hits.append([*held, inside(BATCH[0], batch.k_ci95), inside(BATCH[1], batch.ci95["D"])])
    share = np.mean(hits)
    assert 0.90 <= share <= 0.98
