"""--hparams path/fit.json: rates and batches by one's own runs."""

import json

import pytest

import plan
import train
from isoflop.config import ModelConfig
from isoflop.flops import count_params
from isoflop.optim import hparams
from isoflop.options import UserError
from isoflop.train.plan import TrainConfig, resolve

MC = ModelConfig(n_layer=2, n_embd=64, vocab_size=512)
N = count_params(MC)["matmul"]
LAW = {
    "lr": {"k": 2.0, "exponents": {"N": -0.5, "D": 0.1}},
    "batch": {"k": 0.5, "exponents": {"D": 0.6}},
    "lr_of_batch": 0.4,
    "batch_unit": "tokens",
    "n_convention": "n_params_matmul",
    "measured": {"n": [1e5, 1e6], "d": [1e6, 1e8]},
    "cells": [{"status": "ok", "lr": {"point": 0.05}}, {"status": "edge: no", "lr": {"point": 9.0}}],
}


@pytest.fixture
def law(tmp_path):
    def write(**more):
        path = tmp_path / "fit.json"
        path.write_text(json.dumps({"hparams": LAW | more}))
        return str(path)

    return write


def test_a_plan_has_the_rate_and_batch_of_the_law(law):
    planned = resolve(MC, TrainConfig(flop_budget=6 * N * 1e7, hparams=law()))
    assert planned.tokens_per_step == round(0.5 * 1e7**0.6 / 128) * 128 and not planned.outside
    batch = planned.tokens_per_step / (0.5 * planned.tokens**0.6)
    assert planned.lr == pytest.approx(2 * N**-0.5 * planned.tokens**0.1 * batch**0.4)
    assert resolve(MC, TrainConfig(flop_budget=6 * N * 1e7, hparams=law(), lr=0.3)).lr == 0.3


def test_another_batch_moves_the_rate(law):
    one, four = (hparams.hparams(law(), MC, 1e7, batch) for batch in (1024, 4096))
    assert four.lr == pytest.approx(one.lr * 4**0.4) and four.tokens_per_step == 4096


def test_powers_of_compute_and_laws_without_a_batch(law):
    found = hparams.hparams(law(lr={"k": 0.2, "exponents": {"C": -0.1}}, batch=None, lr_of_batch=None), MC, 1e7)
    assert found.lr == pytest.approx(0.2 * (6 * N * 1e7) ** -0.1)
    assert found.tokens_per_step == hparams.batch_rule(1e7)


def test_beyond_the_runs_is_said_and_the_rate_is_kept_in_bounds(law):
    far = hparams.hparams(law(lr={"k": 900.0, "exponents": {}}), MC, 1e9)
    assert far.outside == ["D 1e+09 is 10 times above what it was measured on, 1e+06 to 1e+08"]
    assert far.lr == max(0.05, 4 * hparams.width_lr(MC)) and "is cut" in far.cut


def test_n_is_counted_as_the_runs_had_it(law):
    found = hparams.hparams(law(n_convention="n_params_non_embedding"), MC, 1e7, None)
    assert found.lr == pytest.approx(2 * count_params(MC)["non_embedding"] ** -0.5 * 1e7**0.1)
    assert "its N, column size, is taken as" in hparams.hparams(law(n_convention="size"), MC, 1e7).outside[0]


@pytest.mark.parametrize(
    "more, says",
    [
        ({"batch_unit": "bs"}, "its batches are in column bs"),
        ({"lr": {"k": -1.0, "exponents": {}}}, "holds no law of rates"),
        ({"lr": {"k": 1.0, "exponents": {"X": 1}}}, "holds no law of rates"),
        ({"cells": []}, "holds no law of rates"),
        ({"measured": {"n": [None, 1], "d": [1, 1]}}, "holds no law of rates"),
    ],
)
def test_files_without_such_a_law_are_one_line(law, more, says):
    with pytest.raises(UserError) as error:
        hparams.hparams(law(**more), MC, 1e7)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, says", [("best", "--hparams best is unknown; known: default"), ("no.json", "no.json can't be read")]
)
def test_unknown_rules_are_one_line_and_status_2(name, says, capsys):
    for script, flags in ((plan, ["--n_embd", "64", "--tokens", "1e6"]), (train, ["--max_iters", "1"])):
        with pytest.raises(SystemExit) as stopped:
            script.main([*flags, "--hparams", name])
        said = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and says in said and "\n" not in said


def test_plan_shows_the_law_beside_the_rules(law, capsys):
    assert plan.main(["--n_embd", "64", "--n_layer", "2", "--tokens", "1e7", "--hparams", law()]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "own runs: rate 2 N^-0.5 D^0.1 x (B / rule)^0.4" in said and "fit.json *" in said
