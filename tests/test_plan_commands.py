"""isoflop/plan/commands.py: the command that a plan ends with trains that very run."""

import shlex

import pytest
from helpers import FOUR_RUNS, plan_answer

import data
from isoflop.cli import Parser
from isoflop.config import PRESETS, ModelConfig
from isoflop.plan import estimate
from isoflop.plan.commands import architecture_flags
from isoflop.train.plan import TrainConfig, resolve

COMMANDS = [
    [*FOUR_RUNS, "--gpu", "a6000", "--n_gpus", "2"],
    "--flop_budget 1.36e21 --law hoffmann --family llama3 --block_size 2048 --vocab_size 128000".split(),
    "--gpu a6000 --n_gpus 2 --days 7 --hparams steplaw".split(),
    "--flop_budget 1e16 --block_size 256 --vocab_size 4096 --activation gelu".split(),
    "--depth 12 --tokens 2e9 --no-qk_norm --seed 3".split(),
    "--config depth=8 --config depth=9 --tokens 2e9".split(),
    "--n_embd 96 --n_layer 3 --ffn_mult 3 --vocab_size 512 --flop_budget 1e12 --optimizer muon --lr 0.02".split(),
    "--n_embd 96 --n_layer 3 --max_iters 50 --batch_size 4 --lr 0.01 --n_gpus 4".split(),
    "--preset llama3 --n_layer 2 --n_embd 128 --n_head 4 --n_kv_head 2 --tied --tokens_per_param 20".split(),
    *(["--preset", name, "--tokens", "1e9"] for name in PRESETS),
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv)[:60])
def test_the_command_it_ends_with_trains_the_same_run(argv):
    answer = plan_answer(*argv)
    answers = answer.get("configurations") or [answer["best"][0]]
    assert len(answer["commands"]) == len(answers)
    for planned, command in zip(answers, answer["commands"], strict=True):
        words = shlex.split(command["train"])
        parser = Parser("train.py", "", ModelConfig, TrainConfig)
        args = parser.parse_args(words[words.index("train.py") + 1 :])
        sizes = planned.get("shape") or {key: planned["cfg"][key] for key in estimate.SIZES}
        mc = parser.read(ModelConfig, args, vocab_size=sizes["vocab_size"])
        assert {key: getattr(mc, key) for key in sizes} == sizes
        if "cfg" in planned:
            assert mc.identity() == ModelConfig(**planned["cfg"]).identity()
        n_gpus = next((int(word.split("=")[1]) for word in words if word.startswith("--nproc_per_node")), 1)
        run = resolve(mc, parser.read(TrainConfig, args), n_gpus)
        if "run" in planned:
            assert {key: getattr(run, key) for key in planned["run"]} == planned["run"]
        else:
            assert run.tokens == pytest.approx(planned["tokens"], rel=0.01)
        config = data.parse(shlex.split(command["data"])[2:])
        assert args.data_dir == command["data"].split()[-1] and config


def test_the_learning_rate_of_the_command_is_the_planned_one():
    parser = Parser("plan.py", "", ModelConfig, TrainConfig)
    argv = "--n_embd 96 --n_layer 3 --max_iters 50 --batch_size 4 --lr 0.01".split()
    args = parser.parse_args(argv)
    planned = resolve(parser.read(ModelConfig, args), parser.read(TrainConfig, args), 4)
    words = shlex.split(plan_answer(*argv, "--n_gpus", 4)["commands"][0]["train"])
    args = parser.parse_args(words[words.index("train.py") + 1 :])
    trained = resolve(parser.read(ModelConfig, args), parser.read(TrainConfig, args), 4)
    assert (trained.lr, trained.steps, trained.tokens) == (planned.lr, planned.steps, planned.tokens)


def test_flags_are_few_and_rare_ones_go_behind_model():
    cfg = ModelConfig(n_layer=2, n_embd=128, vocab_size=512, activation="gelu", qk_norm=False, norm_eps=1e-5)
    assert architecture_flags(cfg) == [
        "--n_layer", "2", "--n_embd", "128", "--model", "activation=gelu", "norm_eps=1e-05", "qk_norm=false"
    ]  # fmt: skip
    plain = ModelConfig(n_layer=12, n_embd=768, head_size=64, vocab_size=512)
    assert architecture_flags(plain, depth=12) == ["--depth", "12"]


def test_a_data_folder_that_is_named_is_used():
    command = plan_answer("--depth", 4, "--tokens", 1e8, "--data_dir", "data/mine")["commands"][0]
    assert command["data"] is None and "--data_dir data/mine" in command["train"] and "data/mine" in command["note"]
