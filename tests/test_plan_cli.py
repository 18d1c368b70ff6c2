"""What plan.py answers: the published comparisons, the search, Chinchilla's table, and mistakes in one line."""

import csv
import itertools
import json
import math
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import fit
import plan
from isoflop import laws
from isoflop.cli import Parser
from isoflop.config import PRESETS, ModelConfig, configure
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact
from isoflop.optim import hparams
from isoflop.plan import estimate, search, tables
from isoflop.train.plan import TrainConfig, resolve

FOUR = {
    "GPT-2 1.36B": "preset=gpt2 n_layer=18 n_embd=2432 n_head=19 vocab_size=50304",  # published with 18 heads of 135.1
    "LLaMA-2 1.36B": "preset=llama2-7b n_layer=18 n_embd=2304 n_ffn=6144",
    "LLaMA-3 1.5B": "preset=llama3 n_layer=18 n_embd=2048 n_kv_head=8 n_ffn=7168 vocab_size=128000",
    "LLaMA-3 2.2B": "preset=llama3 n_layer=30 n_embd=2048 n_kv_head=8 n_ffn=7168 vocab_size=128000",
}
CONFIGS = list(itertools.chain(*(("--config", f"name='{name}' {text}") for name, text in FOUR.items())))
AT = "--block_size 2048 --tokens 13.1072e9 --total_batch_size 524288".split()


@pytest.fixture
def ask(capsys):
    """ask("--flag", ...) -> what plan.py prints; with --json, the object."""

    def call(*argv):
        plan.main([str(a) for a in argv])
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in argv else out

    return call


def test_the_published_comparison(ask):
    found = ask(*CONFIGS, *AT, "--json")["configurations"]
    assert [a["name"] for a in found] == list(FOUR)
    verdicts = [a["chinchilla"] for a in found]
    assert [round(v["n"] / 1e9, 3) for v in verdicts] == [1.405, 1.294, 1.544, 2.223]  # the third published as 1.545
    assert [round(v["ratio"], 1) for v in verdicts] == [9.3, 10.1, 8.5, 5.9]
    assert [round(v["tokens_wanted"] / 1e9, 1) for v in verdicts] == [28.1, 25.9, 30.9, 44.5]
    assert [round(v["iterations_wanted"], -2) for v in verdicts] == [53600, 49400, 58900, 84800]
    for v in verdicts:  # 25,000 steps have been taken
        assert v["iterations_needed"] == v["iterations_wanted"] - 25000
        assert v["shortfall"] == pytest.approx(20 * v["n"] - 13.1072e9)
    assert [v["status"] for v in verdicts] == ["under-trained"] * 3 + ["heavily under-trained"]


def test_published_figures_that_are_wrong_are_right_here(ask):
    """LLaMA-2's layer was published as 71.62M, its MLP as 50.33M; three matrices of 2304 x 6144 are 42.5M."""
    a = ask(*CONFIGS, *AT, "--json")["configurations"][1]
    assert a["per_layer"]["mlp"] == 3 * 2304 * 6144
    assert round(a["per_layer"]["attention"] / 1e6, 2) == 21.23
    assert round((a["per_layer"]["mlp"] + a["per_layer"]["attention"]) / 1e6, 1) == 63.7


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_tables_fit_a_terminal(ask, form):
    out = ask(*CONFIGS, *AT, "--gpu", "a6000", "--n_gpus", 2, *(["--markdown"] if form == "markdown" else []))
    for word in ("1.405B", "heavily under-trained", "84,805", "ZeRO-1", "a6000", "Verda"):
        assert word in out
    if form == "text":
        assert max(len(line) for line in out.splitlines() if "python" not in line and "torchrun" not in line) <= 100
    else:
        blocks = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
        assert len(blocks) >= 6
        for lines in blocks:
            assert len({line.count("|") for line in lines}) == 1


def test_a_json_file_of_configurations(ask, tmp_path):
    settings = {name: dict(word.split("=") for word in text.split()) for name, text in FOUR.items()}
    settings["LLaMA-2 1.36B"]["tied"] = True
    (tmp_path / "four.json").write_text(json.dumps(settings))
    found = ask("--config", tmp_path / "four.json", *AT, "--json")["configurations"]
    assert [a["name"] for a in found] == list(FOUR)
    assert found[1]["shape"]["tied"] and found[0]["parameters"]["total"] > 1.4e9
    found = ask("--config", "n_layer=2 n_embd=64 tokens=1e7", "--config", "depth=3", "--tokens", "2e7", "--json")
    assert [round(a["run"]["tokens"] / 1e7) for a in found["configurations"]] == [1, 2]


# ----- the search -----

SEARCH = "--flop_budget 1.36e21 --law hoffmann --family llama3 --block_size 2048 --vocab_size 128000".split()


def test_the_search_finds_the_least_loss_by_our_counts(ask):
    a = ask(*SEARCH, "--json")
    law, given = laws.PUBLISHED["hoffmann"], {"block_size": 2048, "vocab_size": 128000}
    for r in a["best"] + a["constrained"]:
        cfg = ModelConfig(**r["cfg"])
        assert r["tokens"] == 1.36e21 / flops_per_token_exact(cfg)
        assert r["n"] == count_params(cfg)["total"]
        assert r["loss"] == float(law.loss(r["n"], r["tokens"]))
        assert r["gap"] == pytest.approx(r["loss"] - a["best"][0]["loss"])
        assert 32 <= cfg.n_embd / cfg.n_layer <= 128 and cfg.head_size in (64, 128) and cfg.n_head % cfg.n_kv_head == 0
    everything = list(search.architectures("llama3", given, 2e9, span=100))
    losses = [float(law.loss(count_params(c)["total"], 1.36e21 / flops_per_token_exact(c))) for c in everything]
    assert a["best"][0]["loss"] == min(losses)
    assert [r["loss"] for r in a["best"]] == sorted(r["loss"] for r in a["best"])
    assert all(abs(r["ratio"] / 20 - 1) < 0.06 for r in a["constrained"])
    # the figures that README quotes
    best, constrained = a["best"][0], a["constrained"][0]
    assert (best["cfg"]["n_layer"], best["cfg"]["n_embd"]) == (18, 2304) and round(best["n"] / 1e9, 3) == 1.848
    assert round(best["tokens"] / 1e9, 1) == 131.6 and round(best["loss"], 4) == 2.2936
    assert (constrained["cfg"]["n_layer"], constrained["cfg"]["n_embd"]) == (28, 2688)
    assert round(constrained["gap"], 3) == 0.011


def test_why_the_published_answer_differs():
    """1.545B parameters on 101.9B tokens for 1.36e21 FLOPs: attention counted eight times, the head not at all."""
    cfg = configure("llama3", n_layer=18, n_embd=2048, n_ffn=7168, vocab_size=128000, block_size=2048)
    attention = flops_per_token_exact(cfg) - flops_per_token(cfg)
    theirs = flops_per_token(cfg) - 6 * 128000 * 2048 + 8 * attention
    assert 1.36e21 / theirs == pytest.approx(101.909e9, rel=0.003)
    assert 1.36e21 / flops_per_token_exact(cfg) == pytest.approx(158.2e9, rel=0.001)


def test_days_on_a_machine_are_a_budget(ask):
    a = ask("--gpu", "a6000", "--n_gpus", 2, "--days", 7, "--mfu", 0.5, "--json")
    assert a["flops"] == 7 * 86400 * 2 * 0.5 * 154.8e12
    assert a["best"][0]["time"]["seconds"] == pytest.approx(7 * 86400)
    assert a["best"][0]["time"]["dollars"] == pytest.approx(7 * 24 * 2 * 0.82)
    assert a["best"][0]["cfg"]["block_size"] == search.SEARCH_BLOCK


def test_a_searched_ratio_and_6nd(ask):
    a = ask("--flop_budget", "1e20", "--tokens_per_param", 100, "--no-exact", "--block_size", 512, "--json")
    for r in a["constrained"]:
        cfg = ModelConfig(**r["cfg"])
        assert r["ratio"] == pytest.approx(100, rel=0.06) and cfg.block_size == 512
        assert r["tokens"] * flops_per_token(cfg) == pytest.approx(1e20)


# ----- closed forms -----


def test_chinchillas_own_table(ask):
    for n, d in ((400e6, 7.7e9), (1e9, 20e9), (10e9, 219.5e9), (67e9, 1.7e12)):
        assert ask("--n_params", n, "--json")["tokens_for"]["answers"]["Hoffmann table A3"]["tokens"] == pytest.approx(
            d
        )
    # between the rows: N ~ C^.49 and D ~ C^.51 make D ~ N^1.041 through the row of 1B; only the row of 67B is off it
    for n in (2e9, 30e9, 400e9, 5e12):
        assert laws.chinchilla_tokens(n) == pytest.approx(20e9 * (n / 1e9) ** (0.51 / 0.49), rel=0.06)
    assert math.isnan(laws.chinchilla_tokens(1e8)) and math.isnan(laws.chinchilla_tokens(1e14))


@pytest.mark.parametrize("law, n", [("hoffmann_unrounded", 40.4), ("hoffmann", 32.2), ("besiroglu", 72.3)])
def test_the_best_size_for_chinchillas_budget(law, n):
    assert laws.PUBLISHED[law].optimum(5.76e23)[0] / 1e9 == pytest.approx(n, abs=0.06)


def test_a_size_with_tokens_gets_the_verdict(ask):
    a = ask("--n_params", 1.4e9, "--tokens", 13e9, "--json")
    assert a["chinchilla"]["status"] == "under-trained" and a["chinchilla"]["shortfall"] == 15e9
    assert ask("--n_params", 1.4e9, "--tokens", 28e9, "--json")["chinchilla"]["status"] == "compute-optimal"
    assert ask("--n_params", 1.4e9, "--tokens", 280e9, "--json")["chinchilla"]["status"] == "over-trained"


def test_compute_for_a_loss_lies_on_the_frontier(ask):
    a = ask("--target_loss", 2.5, "--law", "besiroglu", "kaplan", "--json")["for_loss"]["answers"]
    for name, r in a.items():
        assert laws.PUBLISHED[name].loss(r["n"], r["tokens"]) == pytest.approx(2.5, rel=1e-6)
        assert r["flops"] == pytest.approx(6 * r["n"] * r["tokens"])


def test_repeated_data_by_the_authors_own_examples(ask):
    assert laws.repeated_loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, abs=1e-12)
    assert laws.repeated_loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, abs=1e-12)
    r = ask("--tokens", 10e9, "--unique_tokens", 5e9, "--json")["repeated"]
    assert r["effective_tokens"] == pytest.approx(5e9 + 5e9 * 15.387756 * (1 - math.exp(-1 / 15.387756)))
    assert laws.effective_tokens(7e9, 9e9) == 7e9  # nothing repeats
    assert laws.effective_tokens(1e15, 1e9) == pytest.approx(16.387756e9)
    a = ask("--n_layer", 12, "--n_embd", 768, "--tokens", 10e9, "--unique_tokens", 5e9, "--json")["configurations"][0]
    assert a["repeated"]["loss"] > a["repeated"]["loss_if_all_new"]
    n = a["loss"]["besiroglu"]["n"]
    expected = laws.PUBLISHED["besiroglu"].loss(n, a["repeated"]["effective_tokens"])
    assert a["loss"]["besiroglu"]["loss"] == pytest.approx(float(expected))


def test_inference_moves_the_optimum_to_smaller_models(ask):
    a = ask("--target_loss", 2.1, "--inference_tokens", 1e12, "--law", "besiroglu", "--json")["lifetime"]["answers"]
    r, law = a["besiroglu"], laws.PUBLISHED["besiroglu"]
    assert r["n"] < r["n_training_only"] and r["tokens"] > r["tokens_training_only"]
    assert law.loss(r["n"], r["tokens"]) == pytest.approx(2.1, rel=1e-9)
    for factor in (0.9, 0.99, 1.01, 1.1):  # no other size is cheaper
        n = factor * r["n"]
        assert n * (6 * laws.tokens_to_reach(law, n, 2.1) + 2e12) > r["flops"]
    none = laws.lifetime_optimum(law, 2.1, 0.0)[0]
    assert none == pytest.approx(float(law.optimum(law.compute_for(2.1))[0]), rel=1e-6)


def test_sardanas_example():
    """A 13B Chinchilla model and 2T tokens of inference: 7B on more data saves 1.7e22 FLOPs, 17% (their figure 1)."""
    law = laws.Law(1.69, 406.4, 410.7, 0.336, 0.283)  # their constants
    d = law.tokens_for(13e9)
    loss = law.loss(13e9, d)
    large = 13e9 * (6 * d + 2 * 2e12)
    small = 7e9 * (6 * laws.tokens_to_reach(law, 7e9, loss) + 2 * 2e12)
    assert large - small == pytest.approx(1.7e22, rel=0.01) and 1 - small / large == pytest.approx(0.17, abs=0.005)


# ----- laws and their range -----


def test_a_law_outside_its_range_says_by_how_much(ask):
    out = ask("--preset", "llama3", "--tokens", "15e12", "--total_batch_size", 2**22, "--law", "hoffmann", "kaplan")
    assert "outside: hoffmann: D = 1.5e+13 is 30x above its largest run (5e+11)" in out
    assert "outside: kaplan: N = 6.98e+09 is 4.65x above its largest run (1.5e+09)" in " ".join(out.split())
    inside = ask("--preset", "gpt2", "--tokens", "1e10", "--law", "hoffmann")
    assert "outside: hoffmann" not in inside


def test_a_fit_of_ones_own(ask, tmp_path):
    truth = laws.Law(2.0, 400.0, 1200.0, 0.35, 0.37)
    n, d, c = laws.isoflop_grid(truth, [1e18, 3e18, 1e19, 3e19])
    with open(tmp_path / "runs.csv", "w") as f:
        rows = csv.writer(f)
        rows.writerow(["n_params_matmul", "tokens", "flops", "loss"])
        rows.writerows(zip(n, d, c, laws.simulate(truth, n, d, 0.001), strict=True))
    fit.run([tmp_path / "runs.csv"], tmp_path / "fit", bootstrap=0)
    path = str(tmp_path / "fit" / "fit.json")
    a = ask("--preset", "gpt2", "--tokens", "2e9", "--law", path, "--json")["configurations"][0]
    row = a["loss"]["fit/fit.json"]
    assert row["convention"] == "matmul" and row["n"] == count_params(configure("gpt2"))["matmul"]
    assert row["loss"] == pytest.approx(float(truth.loss(row["n"], 2e9)), rel=0.005)
    out = ask("--flop_budget", "3e21", "--law", path)
    assert "C = 3e+21 is 100x above its largest run (3e+19)" in " ".join(out.split())


# ----- the rules, and the command that trains -----


def test_the_rules_are_those_of_train(ask):
    a = ask("--preset", "gpt2", "--tokens", 2.5e9, "--total_batch_size", 524288, "--hparams", "steplaw", "--json")
    assert list(a["rules"]) == list(hparams.RULES)
    run = a["configurations"][0]["run"]
    for name, row in a["rules"].items():
        said = hparams.hparams(name, configure("gpt2"), run["tokens"], run["tokens_per_step"])
        assert (row["lr"], row["outside"], row["source"]) == (said.lr, said.outside, said.source)
    out = ask("--preset", "gpt2", "--tokens", 2.5e9, "--total_batch_size", 524288, "--hparams", "steplaw")
    assert "steplaw *" in out and "--hparams steplaw" in out.split("Train it")[1]
    assert "Measured:" in ask("--preset", "gpt2", "--tokens", 2.5e9, "--rules").split("porian:")[1]


COMMANDS = [
    [*CONFIGS, *AT, "--gpu", "a6000", "--n_gpus", "2"],
    SEARCH,
    "--gpu a6000 --n_gpus 2 --days 7 --hparams steplaw".split(),
    "--flop_budget 1e16 --block_size 256 --vocab_size 4096 --activation gelu".split(),
    "--depth 12 --tokens 2e9 --no-qk_norm --seed 3".split(),
    "--n_embd 96 --n_layer 3 --ffn_mult 3 --vocab_size 512 --flop_budget 1e12 --optimizer muon --lr 0.02".split(),
    "--preset llama3 --n_layer 2 --n_embd 128 --n_head 4 --n_kv_head 2 --tied --tokens_per_param 20".split(),
    *(["--preset", name, "--tokens", "1e9"] for name in PRESETS),
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv)[:60])
def test_the_command_it_ends_with_trains_the_same_run(ask, argv):
    import data

    a = ask(*argv, "--json")
    answers = a.get("configurations") or [a["best"][0]]
    assert len(a["commands"]) == len(answers)
    for answer, command in zip(answers, a["commands"], strict=True):
        words = shlex.split(command["train"])
        parser = Parser("train.py", "", ModelConfig, TrainConfig)
        args = parser.parse_args(words[words.index("train.py") + 1 :])
        shape = answer.get("shape") or {k: answer["cfg"][k] for k in estimate.SHAPE}
        mc = parser.read(ModelConfig, args, vocab_size=shape["vocab_size"])
        assert {k: getattr(mc, k) for k in shape} == shape
        if "cfg" in answer:
            cfg = ModelConfig(**answer["cfg"])
            assert mc.identity() == cfg.identity()
        n_gpus = next((int(w.split("=")[1]) for w in words if w.startswith("--nproc_per_node")), 1)
        run = resolve(mc, parser.read(TrainConfig, args), n_gpus)
        if "run" in answer:
            assert {k: getattr(run, k) for k in answer["run"]} == answer["run"]
        else:
            assert run.tokens == pytest.approx(answer["tokens"], rel=0.01)
        config = data.parse(shlex.split(command["data"])[2:])
        assert args.data_dir == command["data"].split()[-1] and config


def test_the_rate_that_was_typed_survives_processes():
    parser = Parser("plan.py", "", ModelConfig, TrainConfig)
    args = parser.parse_args("--n_embd 96 --n_layer 3 --max_iters 50 --batch_size 4 --lr 0.01".split())
    mc, tc = parser.read(ModelConfig, args), parser.read(TrainConfig, args)
    before = resolve(mc, tc, 4)
    words = shlex.split(search.commands(mc, before, 4, 4, more=plan.passed_on(args, before))["train"])
    args = parser.parse_args(words[words.index("train.py") + 1 :])
    after = resolve(parser.read(ModelConfig, args), parser.read(TrainConfig, args), 4)
    assert (after.lr, after.steps, after.tokens) == (pytest.approx(before.lr), before.steps, before.tokens)


# ----- the whole command -----


@pytest.mark.parametrize("argv", ["--n_params 1e9", "--flop_budget 1e20", "--preset gpt2 --tokens 1e9 --gpu h100"])
def test_nothing_heavy_is_imported(argv):
    code = f"import sys, plan; plan.main({argv.split()!r}); print([m for m in ('torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--preset llama4 --tokens 1e9", "--preset llama4 is unknown; known: default, gpt2"),
        ("--flop_budget 1e20 --family llama4", "--family llama4 is unknown; known: default"),
        ("--preset gpt2 --n_embd 2432 --n_head 18 --tokens 1e9", "--n_head 18 into heads; try --n_embd 2430 or 2448"),
        ("--preset gpt2 --n_embd 2432 --n_head 18 --tokens 1e9", "or --n_head 16 or 19"),
        ("--preset gpt2 --tokens 1e9 --gpu h300", "--gpu h300 is unknown; known: a100-40gb"),
        ("--flop_budget -1e20", "--flop_budget -1e+20 must be a positive finite number"),
        ("--flop_budget nan", "--flop_budget nan must be a positive"),
        ("--n_layer 2 --n_embd 64 --flop_budget -1", "--flop_budget -1 must be a positive"),
        ("--n_layer 2 --n_embd 64 --tokens -5", "--tokens -5 must be a positive"),
        ("--n_layer 2 --n_embd 64 --tokens 1e8 --max_iters 5", "exactly one of --tokens"),
        ("", "exactly one of --tokens"),
        ("--days 7", "--days needs a speed"),
        ("--days 7 --gpu h100 --flop_budget 1e20", "leave one out"),
        ("--preset gpt2 --tokens 1e9 --mfu 40 --gpu h100", "--mfu 40 must be above 0 and at most 1"),
        ("--preset gpt2 --tokens 1e9 --law chinchila", "law 'chinchila' is not known; known: hoffmann"),
        ("--preset gpt2 --tokens 1e9 --law none.json", "--law none.json is no fit.json"),
        ("--preset gpt2 --tokens 1e9 --measured none.csv", "--measured none.csv holds no finished run"),
        ("--target_loss 1.5 --law besiroglu", "no model reaches 1.5; its floor is E = 1.817"),
        ("--inference_tokens 1e12 --tokens 1e9 --unique_tokens 1e8", "--inference_tokens needs a loss to reach"),
        ("--config n_layer --tokens 1e9", "'n_layer' is not key=value"),
        ("--config none.json --tokens 1e9", "--config none.json can't be read"),
        ("--config n_layers=3 --tokens 1e9", "--n_layers"),
        ("--config pyproject.toml.json --tokens 1e9", "can't be read"),
        ("--config tests/nothing.json --config n_layer=2 --tokens 1e9", "can't be read"),
        ("--n_gpus 0 --preset gpt2 --tokens 1e9", "--n_gpus 0 must be a positive"),
        ("--flop_budget 1e3", "nothing near that size"),
        ("--hparams best --preset gpt2 --tokens 1e9", "best"),
    ],
)
def test_mistakes_are_one_line(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        plan.main(argv.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and words in err and err.count("\n") == 1 and not out, err


def test_a_json_file_of_something_else(capsys, tmp_path):
    for wrong in ("[1, 2]", '{"n_layer": 3}', '"text"'):
        (tmp_path / "c.json").write_text(wrong)
        with pytest.raises(SystemExit) as stop:
            plan.main(["--tokens", "1e9", "--config", str(tmp_path / "c.json")])
        assert stop.value.code == 2 and "must hold a list, or a dict by name" in capsys.readouterr().err


def test_si():
    assert [tables.si(x) for x in (1.405e9, 524288, 20, 3e15, None)] == ["1.405B", "524.3k", "20", "3e+15", "-"]
    assert tables.si(999.96e6, 4) == "1000M" and np.isfinite(float(tables.si(0.5)))
