"""isoflop/plan/estimate.py: published comparisons, Chinchilla's table, closed forms, repeated text, inference."""

import doctest
import importlib
import json
import math

import pytest
from helpers import FOUR_MODELS, FOUR_RUNS, plan_answer

from isoflop import laws
from isoflop.config import configure
from isoflop.fit import data_report
from isoflop.optim import hparams
from isoflop.options import UserError
from isoflop.plan import best_size, estimate
from isoflop.plan.law import load_law
from isoflop.plan.machine import make_machine

# ----- runs -----


def test_the_published_comparison():
    found = plan_answer(*FOUR_RUNS)["configurations"]
    assert [a["name"] for a in found] == list(FOUR_MODELS)
    verdicts = [a["chinchilla"] for a in found]
    assert [round(v["n"] / 1e9, 3) for v in verdicts] == [1.405, 1.294, 1.544, 2.223]  # the third published as 1.545
    assert [round(v["ratio"], 1) for v in verdicts] == [9.3, 10.1, 8.5, 5.9]
    assert [round(v["tokens_wanted"] / 1e9, 1) for v in verdicts] == [28.1, 25.9, 30.9, 44.5]
    assert [round(v["iterations_wanted"], -2) for v in verdicts] == [53600, 49400, 58900, 84800]
    for v in verdicts:  # 25,000 steps have been taken
        assert v["iterations_needed"] == v["iterations_wanted"] - 25000
        assert v["shortfall"] == pytest.approx(20 * v["n"] - 13.1072e9)
    assert [v["status"] for v in verdicts] == ["under-trained"] * 3 + ["heavily under-trained"]


def test_published_figures_that_are_wrong_are_right_here():
    """LLaMA-2's layer was published as 71.62M, its MLP as 50.33M; three matrices of 2304 x 6144 are 42.5M."""
    layer = plan_answer(*FOUR_RUNS)["configurations"][1]["per_layer"]
    assert layer["mlp"] == 3 * 2304 * 6144
    assert round(layer["attention"] / 1e6, 2) == 21.23
    assert round((layer["mlp"] + layer["attention"]) / 1e6, 1) == 63.7


@pytest.mark.parametrize("tokens, status", [(9e9, "heavily under-trained"), (13e9, "under-trained"),
                                            (28e9, "compute-optimal"), (280e9, "over-trained")])  # fmt: skip
def test_verdict(tokens, status):
    found = estimate.verdict(1.4e9, tokens)
    assert found.status == status and found.shortfall == max(0, 28e9 - tokens)


def test_the_rules_are_those_of_train():
    flags = ["--preset", "gpt2", "--tokens", 2.5e9, "--total_batch_size", 524288, "--hparams", "steplaw"]
    answer = plan_answer(*flags)
    assert list(answer["rules"]) == list(hparams.RULES)
    run = answer["configurations"][0]["run"]
    for name, row in answer["rules"].items():
        rule = hparams.hparams(name, configure("gpt2"), run["tokens"], run["tokens_per_step"])
        assert (row["lr"], row["outside"], row["source"]) == (rule.lr, rule.outside, rule.source)


def test_a_tiny_run_has_no_predicted_loss_and_says_why():
    """At 1e10 FLOPs and 512 tokens published laws say 24 nats and more; a uniform guess has 6.24."""
    run = plan_answer("--n_embd", 32, "--n_layer", 1, "--vocab_size", 512, "--flop_budget", 1e10)["configurations"][0]
    assert {name: row["loss"] for name, row in run["loss"].items()} == {"besiroglu": None, "hoffmann": None}
    assert any("above ln V = 6.24" in warning for warning in run["warnings"])


def test_a_batch_per_process_says_what_becomes_of_the_rate():
    flags = "--n_embd 96 --n_layer 3 --max_iters 50 --batch_size 4 --lr 0.01 --n_gpus 4".split()
    warnings = plan_answer(*flags)["configurations"][0]["warnings"]
    assert any("on 4 the peak lr goes from 0.01 to 0.02" in warning for warning in warnings)


# ----- closed forms -----


@pytest.mark.parametrize("module", ["estimate", "search"])
def test_examples_of_docstrings(module):
    module = importlib.import_module(f"isoflop.plan.{module}")
    found = doctest.testmod(module)
    assert found.attempted >= 2 and found.failed == 0


@pytest.mark.parametrize("law, n", [("hoffmann_unrounded", 40.4), ("hoffmann", 32.2), ("besiroglu", 72.3)])
def test_the_best_size_for_chinchillas_budget(law, n):
    best = best_size(5.76e23, law)
    assert best.n / 1e9 == pytest.approx(n, abs=0.06)
    assert 6 * best.n * best.tokens == pytest.approx(5.76e23) and best.ratio == best.tokens / best.n
    assert best.loss == pytest.approx(float(laws.PUBLISHED[law].frontier_loss(5.76e23)))


@pytest.mark.parametrize("flops", [0, -1, math.nan, math.inf])
def test_a_compute_must_be_a_number(flops):
    with pytest.raises(UserError, match="--flop_budget .* must be a positive finite number"):
        best_size(flops)


def test_chinchillas_own_table():
    for n, d in ((400e6, 7.7e9), (1e9, 20e9), (10e9, 219.5e9), (67e9, 1.7e12)):
        answers = plan_answer("--n_params", n)["tokens_for"]["answers"]
        assert answers["Hoffmann table A3"]["tokens"] == pytest.approx(d)
    # between the rows: N ~ C^.49 and D ~ C^.51 make D ~ N^1.041 through the row of 1B; only the row of 67B is off it
    for n in (2e9, 30e9, 400e9, 5e12):
        assert laws.chinchilla_tokens(n) == pytest.approx(20e9 * (n / 1e9) ** (0.51 / 0.49), rel=0.06)
    assert math.isnan(laws.chinchilla_tokens(1e8)) and math.isnan(laws.chinchilla_tokens(1e14))


def test_compute_for_a_loss_lies_on_the_frontier():
    answers = plan_answer("--target_loss", 2.5, "--law", "besiroglu", "kaplan")["for_loss"]["answers"]
    assert list(answers) == ["besiroglu", "kaplan"]
    for name, row in answers.items():
        assert laws.PUBLISHED[name].loss(row["n"], row["tokens"]) == pytest.approx(2.5, rel=1e-6)
        assert row["flops"] == pytest.approx(6 * row["n"] * row["tokens"])


@pytest.mark.parametrize("law, loss, words", [("besiroglu", 1.5, "no model reaches 1.5; its floor is E = 1.817"),
                                              ("kaplan", 1e-6, "no model reaches 1e-06"),
                                              ("besiroglu", 20, "above ln V = 10.82")])  # fmt: skip
def test_losses_that_no_compute_reaches_are_refused(law, loss, words):
    with pytest.raises(UserError) as refused:
        estimate.compute_for_loss([load_law(law)], loss, make_machine(), 50257)
    assert words in str(refused.value) and f"--target_loss {loss:g}" in str(refused.value)


def test_repeated_data_by_the_authors_own_examples():
    assert laws.repeated_loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, abs=1e-12)
    assert laws.repeated_loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, abs=1e-12)
    answer = plan_answer("--tokens", 10e9, "--unique_tokens", 5e9)["repeated"]
    assert answer["effective_tokens"] == pytest.approx(5e9 + 5e9 * 15.387756 * (1 - math.exp(-1 / 15.387756)))
    assert laws.effective_tokens(7e9, 9e9) == 7e9  # nothing repeats
    assert laws.effective_tokens(1e15, 1e9) == pytest.approx(16.387756e9)


def test_repeated_data_in_a_run():
    flags = ["--n_layer", 12, "--n_embd", 768, "--tokens", 10e9, "--unique_tokens", 5e9]
    run = plan_answer(*flags)["configurations"][0]
    assert run["repeated"]["loss"] > run["repeated"]["loss_if_all_new"]
    n = run["loss"]["besiroglu"]["n"]
    expected = laws.PUBLISHED["besiroglu"].loss(n, run["repeated"]["effective_tokens"])
    assert run["loss"]["besiroglu"]["loss"] == pytest.approx(float(expected))


def data_fit(tmp_path, **more):
    """A fit.json of --law_of data with the letters of Muennighoff et al.'s law, effective tokens alone."""
    law = laws.PUBLISHED["muennighoff"]
    letters = {name: {"point": value} for name, value in (law.params | {"R_D": laws.R_D} | more).items()}
    fit = {"input": {"n_convention": "n_params_total"}, "data": {"form": "effective", "letters": letters}}
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit))
    return path


def test_repeated_data_by_a_fitted_law(tmp_path):
    """A law of the published letters says of tokens what the published law says."""
    path, law = data_fit(tmp_path), laws.PUBLISHED["muennighoff"]
    flags = ["--tokens", 50e9, "--unique_tokens", 5e9, "--data_law", path]
    answer = plan_answer(*flags, "--n_params", 1e9)["repeated"]
    worth = float(laws.effective_tokens(50e9, 5e9))
    assert answer["effective_tokens"] == pytest.approx(worth, rel=1e-3)
    assert answer["most"] == pytest.approx(5e9 * (1 + laws.R_D), rel=0.01)
    assert answer["loss"] == pytest.approx(float(law.loss(1e9, worth)), rel=1e-9)
    assert answer["loss_if_all_new"] == pytest.approx(float(law.loss(1e9, 50e9)), rel=1e-9)
    run = plan_answer("--n_layer", 12, "--n_embd", 768, *flags)["configurations"][0]["repeated"]
    assert run["effective_tokens"] == pytest.approx(worth, rel=1e-3)


def test_laws_of_repeated_data_that_are_none(tmp_path):
    flags = ["--tokens", "50e9", "--unique_tokens", "5e9", "--data_law"]
    cases = [(tmp_path / "none.json", "can't be read"), (data_fit(tmp_path, A=-1.0), "holds no law of repeated data")]
    for path, words in cases:
        with pytest.raises(UserError, match=words):
            data_report.load(path)
    for more, words in ((flags, "add --n_params"), (flags[:2] + flags[4:], "add it, or leave this out")):
        with pytest.raises((UserError, SystemExit)) as refused:
            plan_answer(*more, data_fit(tmp_path))
        assert words in str(refused.value) or refused.value.code == 2


# ----- inference -----


def test_inference_moves_the_optimum_to_smaller_models():
    flags = ["--target_loss", 2.1, "--inference_tokens", 1e12, "--law", "besiroglu"]
    row, law = plan_answer(*flags)["lifetime"]["answers"]["besiroglu"], laws.PUBLISHED["besiroglu"]
    assert row["n"] < row["n_training_only"] and row["tokens"] > row["tokens_training_only"]
    assert law.loss(row["n"], row["tokens"]) == pytest.approx(2.1, rel=1e-9)
    for factor in (0.9, 0.99, 1.01, 1.1):  # no other size is cheaper
        n = factor * row["n"]
        assert n * (6 * laws.tokens_to_reach(law, n, 2.1) + 2e12) > row["flops"]
    without_inference = laws.lifetime_optimum(law, 2.1, 0.0)[0]
    assert without_inference == pytest.approx(float(law.optimum(law.compute_for(2.1))[0]), rel=1e-6)


def test_sardanas_example():
    """A 13B Chinchilla model and 2T tokens of inference: 7B on more data saves 1.7e22 FLOPs, 17% (their figure 1)."""
    law = laws.Law(1.69, 406.4, 410.7, 0.336, 0.283)  # their constants
    tokens = law.tokens_for(13e9)
    large = 13e9 * (6 * tokens + 2 * 2e12)
    small = 7e9 * (6 * laws.tokens_to_reach(law, 7e9, law.loss(13e9, tokens)) + 2 * 2e12)
    assert large - small == pytest.approx(1.7e22, rel=0.01) and 1 - small / large == pytest.approx(0.17, abs=0.005)


def test_inference_needs_a_loss_that_a_law_reaches():
    with pytest.raises(UserError, match="--inference_tokens needs a loss to reach"):
        estimate.with_inference([load_law("hoffmann")], {"hoffmann": None}, 1e12)
