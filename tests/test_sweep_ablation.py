"""--ablation porian: each variant changes one thing, a miscount moves the exponent as it must, and the whole runs."""

import csv
import itertools
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import rows_of, run_sweep

import sweep
from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.laws import PUBLISHED
from isoflop.options import UserError
from isoflop.sweep import ablation
from isoflop.sweep.cells import Planner

BUDGETS, SHAPES = (1e9, 4e9, 1.6e10), ((8, 1), (12, 1), (16, 1), (24, 1), (32, 2))
FLAGS = {"block_size": 32, "val_tokens": 1024, "device": "cpu"}
CONFIG = sweep.SweepConfig(
    flop_budgets=BUDGETS, n_embds=tuple(w for w, _ in SHAPES), n_layers=tuple(d for _, d in SHAPES), ablation="porian"
)


@pytest.fixture
def planner(toy_data, tmp_path):
    return Planner(str(tmp_path), {**FLAGS, "data_dir": toy_data}, reader.open_data(toy_data), DistributedEnv())


def differs(a, b):
    """Fields of the plan that two cells of the grid do not share."""
    one, other = asdict(a.plan), asdict(b.plan)
    return {k for k in one if one[k] != other[k]} - {"outside", "more_steps"}  # what a plan warns of, not what it is


def test_each_variant_changes_one_thing(planner):
    base = ablation.cells("base", CONFIG, planner)
    assert len(base) == 15 and not any(c.refused for c in base.values())
    follows = {"epochs", "tokens", "steps", "flops", "flops_exact", "tokens_per_param", "warmup_steps"}  # of rounding D
    for name, may in (
        ("one_rate", {"lr"}),
        ("long_warmup", {"warmup_steps"}),
        ("long_schedule", {"schedule_steps"}),
        ("one_batch", {"tokens_per_step", "batch_size", "micro_batch_size"} | follows),
        ("no_head", {"flop_budget", "tokens_per_step", "batch_size", "micro_batch_size", "lr"} | follows),
    ):
        cells = ablation.cells(name, CONFIG, planner)
        assert cells.keys() == base.keys()
        changed = set().union(*(differs(cells[k], base[k]) for k in base))
        assert changed and changed <= may, (name, changed - may)
    for name, value in (("one_rate", "lr"), ("one_batch", "tokens_per_step")):
        values = {getattr(c.plan, value) for c in ablation.cells(name, CONFIG, planner).values()}
        assert len(values) == 1 < len({getattr(c.plan, value) for c in base.values()}), name


def test_the_head_left_out_of_the_budget_is_trained_on_all_the_same(planner):
    for (_, budget, _), cell in ablation.cells("no_head", CONFIG, planner).items():
        body = cell.plan.n_params_non_embedding
        assert 6 * body * cell.plan.tokens == pytest.approx(budget, rel=0.02)
        assert cell.plan.flops > 6 * body * cell.plan.tokens


def test_the_longest_runs_are_base_s_own_and_shared(planner):
    base, long = (ablation.cells(name, CONFIG, planner) for name in ("base", "long_schedule"))
    for place, cell in long.items():
        assert (cell.run_id == base[place].run_id) == (place[1] == max(BUDGETS))
        if place[1] < max(BUDGETS):
            assert cell.plan.schedule_steps == pytest.approx(cell.plan.steps * max(BUDGETS) / place[1], abs=1)


def rows_from_a_law(name, budgets, sizes, head):
    """Rows as ablation.collect makes them, the losses Hoffmann's own with N that counts the head."""
    law, out = PUBLISHED["hoffmann"], []
    for c in budgets:
        for n in sizes:
            counted = n - head(n) if name == "no_head" else n
            d = c / (6 * counted)
            about = {"n": counted, "d": d, "c": c, "flop_budget": c, "loss": law.loss(n, d), "bits_per_byte": ""}
            out.append(dict.fromkeys(ablation.COLUMNS, "") | {"variant": name} | about)
    return out


def test_leaving_the_head_out_raises_a_by_what_the_arithmetic_says():
    """Exact losses of a law: the table's a must be that of the true optimum under each way of counting."""
    budgets, sizes = np.geomspace(1e16, 1e18, 5), np.geomspace(3e6, 1e9, 60)
    head = lambda n: 0.9 * n * np.minimum(1.0, (2e6 / n) ** (1 / 3))  # noqa: E731  falls with N, as a real head's share
    rows = [r for name in ("base", "no_head") for r in rows_from_a_law(name, budgets, sizes, head)]
    table = {r["variant"]: r for r in ablation.compare(ablation.fits(rows, resamples=200))}
    truth = {}
    fine = np.geomspace(3e6, 1e9, 20001)
    for name in table:
        counted = fine - head(fine) if name == "no_head" else fine
        best = [counted[np.argmin(PUBLISHED["hoffmann"].loss(fine, c / (6 * counted)))] for c in budgets]
        truth[name] = np.polyfit(np.log(budgets), np.log(best), 1)[0]
        assert table[name]["a"] == pytest.approx(truth[name], abs=0.01)
    assert table["no_head"]["shift"] == pytest.approx(truth["no_head"] - truth["base"], abs=0.01)
    assert truth["no_head"] - truth["base"] > 0.05, "the example shows nothing"


def test_a_shared_run_is_a_row_of_each_variant(planner):
    cells = ablation.cells("long_schedule", CONFIG, planner)
    about = {"status": "ok", "n_params_matmul": 100, "n_params_non_embedding": 60, "tokens": 7, "val_loss": 3.0}
    rows = [{"run_id": cell.run_id} | about for cell in cells.values()]
    found = ablation.collect(CONFIG, planner, None, rows)
    shared = [row for row in found if row["variant"] == "base"]
    assert {row["flop_budget"] for row in shared} == {max(BUDGETS)} and len(shared) == 5
    assert sum(row["variant"] == "long_schedule" for row in found) == 15
    assert {(row["n"], row["c"]) for row in found} == {(100, 4200)} and list(found[0]) == ablation.COLUMNS


def seeded(noise: float, apart: float, seeds=(0, 1, 2), draw=0) -> list[dict]:
    """Rows of base and one_rate from a law, `apart` between them at the ends; the seeds of a cell differ by noise."""
    law, rng, out = PUBLISHED["hoffmann"], np.random.default_rng(draw), []
    budgets, sizes = np.geomspace(1e18, 1e20, 4), np.geomspace(3e7, 1e10, 9)
    for c, n, seed in itertools.product(budgets, sizes, seeds):
        error = noise * rng.standard_normal()  # shared: one seed, one order of the text
        for name in ("base", "one_rate"):
            tilt = apart * np.log(n / 5e8) * (np.log(c / 1e19) if name == "one_rate" else 0)
            loss = law.loss(n, c / (6 * n)) * np.exp(error + tilt)
            about = {"n": n, "d": c / (6 * n), "c": c, "flop_budget": c, "loss": loss, "bits_per_byte": ""}
            shape = {"n_embd": str(n), "n_layer": "1", "seed": str(seed)}
            out.append(dict.fromkeys(ablation.COLUMNS, "") | {"variant": name} | about | shape)
    return out


def test_intervals_over_seeds_know_that_variants_err_together(monkeypatch):
    """The error that a seed has in both variants leaves their difference alone, and widens each exponent."""
    monkeypatch.setattr(ablation, "SEED_DRAWS", 40)
    found = {r["variant"]: r for r in ablation.compare(ablation.fits(seeded(0.003, 0.002)))}
    low, high = found["one_rate"]["shift_ci"]
    own = np.diff(found["base"]["a_ci"])[0]
    assert low <= found["one_rate"]["shift"] <= high and not low <= 0 <= high
    assert 0.002 < own and high - low < 0.5 * own
    wider = {r["variant"]: r for r in ablation.compare(ablation.fits(seeded(0.009, 0.002)))}
    assert np.diff(wider["base"]["a_ci"])[0] > 1.5 * own


def test_intervals_over_seeds_are_as_wide_as_other_seeds_are_apart(monkeypatch):
    monkeypatch.setattr(ablation, "SEED_DRAWS", 40)
    fits = [ablation.fits(seeded(0.003, 0.0, draw=draw)[::2])["base"] for draw in range(12)]
    said = np.mean([fit.draws["a"].std() for fit in fits])
    assert said == pytest.approx(np.std([fit.a for fit in fits], ddof=1), rel=0.5)


@pytest.mark.parametrize("rows", [seeded(0.01, 0.0, seeds=(0,)), seeded(0.01, 0.0)[:-1]], ids=["one seed", "one short"])
def test_without_the_same_seeds_everywhere_runs_are_resampled(rows):
    assert ablation.by_seed(rows, 5) is None


# ----- files -----


def test_the_published_table_and_picture_come_out_again(tmp_path):
    """results/porian's own files, to the digit; the fit's last digits differ between machines, the table's do not."""
    source = Path(__file__).resolve().parent.parent / "results" / "porian"
    shutil.copy(source / "study.csv", tmp_path)
    assert ablation.main([str(tmp_path)]) == 0
    assert (tmp_path / "study.md").read_text() == (source / "study.md").read_text()
    assert (tmp_path / "study.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_a_whole_ablation(toy_data, tmp_path, script, capsys):
    out = tmp_path / "out"
    flags = ["--flop_budgets", "1e8", "2e8", "4e8", "--n_embds", 8, 12, 16, 24, "--n_layers", 1, 1, 1, 1]
    flags += ["--block_size", 32, "--val_tokens", 1024, "--data_dir", toy_data, "--out_dir", out, "--device", "cpu"]
    done = script("sweep.py", "--ablation", "porian", *flags, timeout=400)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out, "ablation.csv")
    assert {row["variant"] for row in rows} == set(ablation.VARIANTS) - {"other_vocab"}
    assert len(rows) == 12 * 7 and all(float(row["loss"]) > 0 for row in rows)
    text = (out / "ablation.md").read_text()
    assert text in done.stdout
    again = script("-m", "isoflop.sweep.ablation", out)
    assert (again.returncode, again.stdout, (out / "ablation.md").read_text()) == (0, text, text)
    assert run_sweep("--ablation", "porian", *flags) == 0
    assert "[1/" not in capsys.readouterr().out


# ----- mistakes -----


def row_of(**more):
    return dict.fromkeys(ablation.COLUMNS, "1") | {"variant": "base", "bits_per_byte": ""} | more


def write(folder, rows):
    with open(folder / "ablation.csv", "w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


@pytest.mark.parametrize(
    "rows, words",
    [
        (None, "has no ablation.csv; name the out_dir of python sweep.py --ablation porian"),
        ([{"a": 1, "b": 2}], "does not have the columns of an ablation"),
        ([row_of(), row_of(n="")], "ablation.csv, line 3: n '' must be a positive number"),
        ([row_of(loss="-2")], "ablation.csv, line 2: loss '-2' must be a positive number"),
        ([row_of(flop_budget="inf")], "line 2: flop_budget 'inf' must be"),
        ([row_of(variant="kaplan")], "line 2: variant 'kaplan' must be one of base, no_head"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, rows, words):
    if rows:
        write(tmp_path, rows)
    with pytest.raises(SystemExit) as stop:
        ablation.main([str(tmp_path)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and words in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.md"))


def test_rows_without_a_minimum_have_a_table_and_no_picture(tmp_path):
    text = ablation.report(tmp_path, [row_of(n=n, loss=str(9 - n)) for n in (1, 2, 3)])
    assert "| as it should be | - | - |" in text and "no picture: no variant has a budget with an inner minimum" in text
    assert rows_of(tmp_path, "ablation.csv")[2]["loss"] == "6" and not (tmp_path / "ablation.png").exists()


def test_a_budget_too_small_for_the_middle_size_is_one_line():
    bad = SimpleNamespace(plan=None, refused="--flop_budget 1 buys 0 tokens")
    fake = SimpleNamespace(n=lambda shape: shape[0], cell=lambda *a, **k: bad)
    config = SimpleNamespace(flop_budgets=(1.0,), shapes=lambda planner: [(8, 1)], seeds=None)
    with pytest.raises(UserError, match="--ablation: --flop_budget 1 buys"):
        ablation.cells("base", config, fake)
