"""--study porian: each variant changes one thing, a miscount moves the exponent as it must, and the whole runs."""

import csv
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

import sweep
from isoflop.distributed import World
from isoflop.laws import PUBLISHED
from isoflop.sweep import ablation
from isoflop.sweep import cells as grid

BUDGETS, SHAPES = (1e9, 4e9, 1.6e10), ((8, 1), (12, 1), (16, 1), (24, 1), (32, 2))
FLAGS = {"block_size": 32, "val_tokens": 1024, "device": "cpu"}
CONFIG = sweep.SweepConfig(
    flop_budgets=BUDGETS, n_embds=tuple(w for w, _ in SHAPES), n_layers=tuple(d for _, d in SHAPES), study="porian"
)


@pytest.fixture
def planner(toy_data, tmp_path):
    from isoflop.data import reader

    return grid.Planner(str(tmp_path), {**FLAGS, "data_dir": toy_data}, reader.open_data(toy_data), World())


def differs(a, b):
    """Fields of the plan that two cells of the grid do not share."""
    one, other = asdict(a.plan), asdict(b.plan)
    return {k for k in one if one[k] != other[k]} - {"outside"}  # what a plan warns of, not what it is


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
    """Rows as study.collect makes them, the losses Hoffmann's own with N that counts the head."""
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


@pytest.mark.slow
def test_the_whole_study(toy_data, tmp_path, script):
    out = tmp_path / "out"
    flags = ["--flop_budgets", "2e8", "4e8", "8e8", "--n_embds", 8, 12, 16, 24, "--n_layers", 1, 1, 1, 1]
    flags += ["--block_size", 32, "--val_tokens", 1024, "--data_dir", toy_data, "--out_dir", out, "--device", "cpu"]
    done = script("sweep.py", "--study", "porian", *flags, timeout=400)
    assert done.returncode == 0, done.stderr
    with open(out / "study.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["variant"] for r in rows} == set(ablation.VARIANTS) - {"other_vocab"}
    assert len(rows) == 12 * 7 and all(float(r["loss"]) > 0 for r in rows)
    text = (out / "study.md").read_text()
    assert text in done.stdout
    again = script("-m", "isoflop.sweep.ablation", out)
    assert (again.returncode, again.stdout, (out / "study.md").read_text()) == (0, text, text)
    once_more = script("sweep.py", "--study", "porian", *flags)
    assert once_more.returncode == 0 and "[1/" not in once_more.stdout


def test_mistakes_are_one_line(script, tmp_path):
    done = script("-m", "isoflop.sweep.ablation", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--study porian" in done.stderr
    (tmp_path / "study.csv").write_text("a,b\n1,2\n")
    done = script("-m", "isoflop.sweep.ablation", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "columns of a study" in done.stderr
    with pytest.raises(ValueError, match="--study and --tune_lr exclude each other"):
        sweep.SweepConfig(study="porian", tune_lr=True)
    with pytest.raises(ValueError, match="--other_vocab is for --study"):
        sweep.SweepConfig(other_vocab="x")


def test_no_size_that_can_run_is_said_in_a_line():
    bad = SimpleNamespace(plan=None, refused="--flop_budget 1 buys 0 tokens")
    fake = SimpleNamespace(n=lambda s: s[0], cell=lambda *a, **k: bad)
    with pytest.raises(ValueError, match="--study: --flop_budget 1 buys"):
        ablation.cells("base", SimpleNamespace(flop_budgets=(1.0,), shapes=lambda p: [(8, 1)], seeds=None), fake)
