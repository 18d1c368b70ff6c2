"""Which cells there are: sizes, rates, guesses from the runs so far."""

import numpy as np
import pytest
from helpers import sweep_planner

import sweep
from isoflop.config import ModelConfig
from isoflop.flops import count_params
from isoflop.options import UserError
from isoflop.sweep import grid

# run_ids of the default sweep on the embedded text, compute type bfloat16: they must never change
DEFAULT_IDS = """
    818eb41d7f26 b53ef8b9f228 9c2fc31f1265 5c385b0a8a16 9d302a4e6b94 64c711f0c50a bc0b7593687d
    16ff2f99ffc6 87b98aa2a78c f9044bd22395 45ee1684c265 2cb20d8e6b08 5008b922af26 8697edbc309a
    56ab5309bae0 b641dabd9e50 1e99a4ca0d1b 67219dad8a88 8bc1e4efda4f ca8b30602f93 2f43e6cd415f
""".split()
CORPUS = "0e2fe690ba0425079774d2ac3dc984421d41d14c564a9d523788efe25c8637ef"
TOKENIZER = "a2eec0701340e4cbd245656f868a592f9a5d1ab78c0814c4e69599c7cdf712b3"


def test_default_sizes_surround_the_guess():
    for flops in (5e10, 1e12, 1e15):
        sizes = grid.default_sizes(flops, 512, 5)
        ns = [count_params(ModelConfig(s.n_layer, s.n_embd, vocab_size=512))["matmul"] for s in sizes]
        assert len(ns) == 5 and ns == sorted(ns)
        assert ns[0] < grid.guess_n_opt(flops) < ns[-1]


def test_the_default_sweep_has_the_runs_that_it_always_had(tmp_path, monkeypatch):
    planner = sweep_planner(tmp_path, {"dtype": "bfloat16"})
    planner.tokens.meta.update(corpus_sha256=CORPUS, tokenizer_sha256=TOKENIZER)
    (cells,) = grid.stages(sweep.SweepConfig(), planner, None)
    assert [c.run_id for c in cells] == DEFAULT_IDS


def test_ends_are_probed_and_what_has_run_is_read(tmp_path):
    """Probes are looked for among all rows: a probe may be a run of the grid."""
    planner, flags = sweep_planner(tmp_path), {"flop_budgets": (1e9,), "n_embds": (8, 12, 16), "tune_lr": True}
    sc = sweep.SweepConfig(**flags)
    sizes = grid.sizes_of(sc, planner, None, 1e9)

    class Rows:
        def __init__(self, rows):
            self.rows = rows

        def all_rows(self):
            return self.rows

    probes, ends = grid.rates_of(sc, planner, Rows([]), 1e9, sizes)
    assert len(probes) == 10 and {c.size.n_embd for c in probes} == {8, 16} and not ends
    rows = [{"run_id": c.run_id, "status": "ok", "val_loss": str(3 + c.plan.lr)} for c in probes]
    _, ends = grid.rates_of(sc, planner, Rows(rows), 1e9, sizes)
    assert [n for n, _, _ in ends] == [planner.n(sizes[0]), planner.n(sizes[2])]
    assert [rate for _, rate, _ in ends] == pytest.approx([min(c.plan.lr for c in probes[:5]), probes[5].plan.lr])
    assert all(on_edge for _, _, on_edge in ends)
    rows[2]["status"] = rows[3]["status"] = rows[4]["status"] = "diverged"
    assert len(grid.rates_of(sc, planner, Rows(rows), 1e9, sizes)[1]) == 1, "two rates are too few"


def test_batches_take_every_rate_at_every_size(tmp_path):
    flags = {"flop_budgets": (1e9, 2e9), "n_embds": (8, 16), "lrs": (0.01, 0.02, 0.04), "batches": (128, 256, 512)}
    planner = sweep_planner(tmp_path, {"batch_size": 7, "lr_scale": 3.0})
    (cells,) = grid.stages(sweep.SweepConfig(**flags), planner, None)
    plans = {(c.size.n_embd, c.flop_budget, c.plan.lr, c.plan.tokens_per_step) for c in cells}
    assert len(plans) == len(cells) == 2 * 2 * 3 * 3 and {c.plan.lr for c in cells} == {0.01, 0.02, 0.04}
    assert {c.plan.tokens_per_step for c in cells} == {128, 256, 512} and not any(c.probe for c in cells)


def test_best_guess_of_edges_and_few_budgets():
    def row(n, c, loss):
        return {
            "status": "ok",
            "n_params_matmul": n,
            "tokens": c / 6 / n,
            "flops": c,
            "flop_budget": c,
            "val_loss": loss,
        }

    falling = [row(n, 1e12, 5 - k * 0.1) for k, n in enumerate((1e4, 2e4, 4e4, 8e4))]
    assert grid.best_guess(1e12, falling) is None, "a budget does not guess for itself"
    assert np.isclose(grid.best_guess(4e12, falling), 8e4 * 2), "from the lowest run, at an end, with slope 1/2"
    valley = [row(n, 1e12, 3 + np.log(n / 3e4) ** 2) for n in (1e4, 2e4, 4e4, 8e4)]
    assert np.isclose(grid.best_guess(1e14, valley), 3e5, rtol=0.02)


def test_best_rate_is_the_vertex_or_an_edge():
    rates = [0.01, 0.02, 0.04, 0.08, 0.16]
    losses = [3 + 0.1 * np.log(r / 0.03) ** 2 for r in rates]
    at, edge = grid.best_rate(rates, losses)
    assert not edge and np.isclose(at, 0.03, rtol=1e-6)
    assert grid.best_rate(rates, [1, 2, 3, 4, 5]) == (pytest.approx(0.01), True)
    assert grid.best_rate(rates[::-1], [5, 4, 3, 2, 1][::-1]) == (pytest.approx(0.16), True)
    assert np.isclose(grid.rate_between(2e4, [(1e4, 0.04), (4e4, 0.01)]), 0.02)


def test_a_ladder_trains_each_size_on_so_many_tokens_per_parameter(tmp_path):
    planner = sweep_planner(tmp_path, {"block_size": 32})
    (cells,) = grid.stages(sweep.SweepConfig(n_embds=(64, 32, 48), tokens_per_params=(10, 20)), planner, None)
    assert len(cells) == 6 and [c.flop_budget for c in cells] == sorted(c.flop_budget for c in cells)
    for cell in cells:
        ratio = cell.plan.tokens / cell.plan.n_params_matmul
        assert min(abs(ratio / 10 - 1), abs(ratio / 20 - 1)) < 0.01


@pytest.mark.parametrize(
    "flags, words",
    [
        ({}, "needs the sizes: add --depths"),
        ({"depths": (2, 3), "flop_budgets": (1e12,)}, "--flop_budgets and --tokens_per_params both end a run"),
        ({"depths": (2, 3), "recentre": True}, "--tokens_per_params and --recentre exclude each other"),
    ],
)
def test_a_ladder_s_flags(flags, words):
    with pytest.raises(UserError, match=words):
        sweep.SweepConfig(tokens_per_params=(10.0,), **flags)
