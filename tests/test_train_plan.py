"""The arithmetic of a run: budgets, batches, learning rates, refusals."""

import math

import pytest

from isoflop.config import ModelConfig
from isoflop.optim import hparams
from isoflop.optim.schedule import lr_at
from isoflop.train.plan import TrainConfig, resolve

MC = ModelConfig(n_layer=1, n_embd=32, block_size=128, vocab_size=512)  # N = 28,672; 6N = 172,032


def test_budget_by_hand():
    # 1e11 / 172,032 = 581,287 tokens; the rule asks for 0.58 x 581,287^0.571 = 1,136 a step: 9 sequences of 128
    plan = resolve(MC, TrainConfig(flop_budget=1e11), train_tokens=4_000_001)
    assert (plan.n_params_matmul, plan.flops_per_token) == (28672, 172032)
    assert (plan.batch_size, plan.tokens_per_step, plan.steps) == (9, 1152, 505)
    assert plan.tokens == 505 * 1152
    assert plan.flops == 505 * 1152 * 172032
    assert plan.flops_exact == 505 * 1152 * (172032 + 12 * 128 * 32)
    assert plan.epochs == pytest.approx(581760 / 4e6)
    assert plan.tokens_per_param == pytest.approx(581760 / 28672)
    assert not plan.warnings()


@pytest.mark.parametrize("flops", [3e8, 1e10, 3.3e11, 1e13, 1e17])
@pytest.mark.parametrize("width, depth", [(16, 1), (96, 3), (768, 12)])
def test_budget_is_met_to_half_a_step(flops, width, depth):
    mc = ModelConfig(depth, width, vocab_size=1024)
    try:
        plan = resolve(mc, TrainConfig(flop_budget=flops))
    except ValueError as error:
        assert "less than half a step" in str(error)
        assert flops / (6 * 12 * depth * width**2 + 6 * 1024 * width) < 64
        return
    assert abs(plan.flops - flops) <= plan.flops_per_token * plan.tokens_per_step / 2


def test_steps_or_tokens_per_param_instead_of_a_budget():
    assert resolve(MC, TrainConfig(max_iters=300)).steps == 300
    plan = resolve(MC, TrainConfig(tokens_per_param=20, batch_size=4))
    assert plan.tokens_per_param == pytest.approx(20, abs=512 / 2 / 28672)
    assert plan.flop_budget == pytest.approx(6 * 20 * 28672**2)


def test_the_batch_rule_agrees_with_itself():
    for steps in (100, 1000, 20000):
        tokens = hparams.tokens_for_steps("default", MC, steps)
        assert steps * hparams.batch_rule(tokens) == pytest.approx(tokens)
    assert hparams.batch_rule(1e10) == pytest.approx(0.58 * 1e10**0.571)


def test_without_a_batch_flag_processes_share_the_rule_s_batch():
    """One step is the rule's number of tokens over all processes, in whole sequences each; a typed rate stays."""
    for rule in ("default", "steplaw", "porian"):
        mc = ModelConfig(n_layer=12, n_embd=768, block_size=256)
        tc = TrainConfig(tokens_per_param=20, hparams=rule)
        one = resolve(mc, tc)
        for processes in (2, 8):
            many = resolve(mc, tc, processes)
            assert many.tokens_per_step == processes * many.batch_size * 256
            assert many.tokens_per_step == pytest.approx(one.tokens_per_step, rel=0.01)
            assert many.lr == pytest.approx(one.lr, rel=0.01)
            assert many.lr_one_process is None and "note:" not in many.describe()
    assert resolve(MC, TrainConfig(flop_budget=1e11, lr=1e-2), 4).lr == 1e-2
    small = resolve(MC, TrainConfig(flop_budget=1e11), 32)  # the rule has 9 sequences for 32 processes
    assert small.batch_size == 1 and "its batch has 8.9 sequences" in small.warnings()[0]


def test_a_multiple_of_the_processes_trains_the_same_model():
    """The rule's 9 sequences a step: 1, 3 and 9 processes have one plan and so one run_id."""
    plans = [resolve(MC, TrainConfig(flop_budget=1e11), processes) for processes in (1, 3, 9)]
    assert [p.batch_size for p in plans] == [9, 3, 1]
    assert plans[0].identity() == plans[1].identity() == plans[2].identity()


def test_batch_size_per_process_is_one_note():
    for given, before, after in ((dict(lr=0.01), "0.01", "0.02"), ({}, None, None)):
        plan = resolve(MC, TrainConfig(flop_budget=1e11, batch_size=4, **given), 4)
        assert plan.lr == pytest.approx(2 * plan.lr_one_process)
        (line,) = [line for line in plan.describe().splitlines() if line.startswith("note:")]
        assert f"on 4 processes the peak lr goes from {before or f'{plan.lr_one_process:.3g}'} to" in line
        assert f"to {after or f'{plan.lr:.3g}'}, by the square root" in line
    for silent in (dict(total_batch_size=2048), dict(batch_size=4, hparams="porian")):
        assert "note:" not in resolve(MC, TrainConfig(flop_budget=1e11, **silent), 4).describe()
    assert "note:" not in resolve(MC, TrainConfig(flop_budget=1e11, batch_size=4)).describe()


def test_batch_size_grows_with_the_processes_and_the_rate_by_its_root():
    one = resolve(MC, TrainConfig(max_iters=200, batch_size=4, lr=1e-2), world_size=1)
    four = resolve(MC, TrainConfig(max_iters=200, batch_size=4, lr=1e-2), world_size=4)
    assert four.tokens_per_step == 4 * one.tokens_per_step
    assert four.lr == pytest.approx(2 * one.lr)
    by_rule = [resolve(MC, TrainConfig(flop_budget=1e11, batch_size=4), world_size=w).lr for w in (1, 4)]
    assert by_rule[1] == pytest.approx(2 * by_rule[0], rel=0.01)


def test_total_batch_size_hides_the_number_of_processes():
    plans = [resolve(MC, TrainConfig(flop_budget=1e11, total_batch_size=1024, lr=1e-2), w) for w in (1, 2, 8)]
    assert [p.batch_size for p in plans] == [8, 4, 1]
    assert len({(p.steps, p.tokens, p.lr) for p in plans}) == 1


def test_warnings_name_the_flag():
    few = resolve(MC, TrainConfig(flop_budget=1e10, batch_size=16), train_tokens=10**6)
    assert few.steps < 100 and "for 100 or more: --batch_size 4" in few.warnings()[0]
    repeats = resolve(MC, TrainConfig(flop_budget=1e11), train_tokens=290_881)
    assert repeats.epochs == pytest.approx(2) and "2.00 epochs" in repeats.warnings()[0]
    assert "from step 253 on" in repeats.warnings()[0]


@pytest.mark.parametrize(
    "flags, words",
    [
        ({}, "exactly one of"),
        ({"flop_budget": 1e12, "max_iters": 5}, "exactly one of"),
        ({"flop_budget": 0}, "--flop_budget 0 must be above 0 and at most"),
        ({"flop_budget": -1}, "--flop_budget -1"),
        ({"flop_budget": math.nan}, "--flop_budget nan"),
        ({"flop_budget": math.inf}, "--flop_budget inf"),
        ({"max_iters": 5, "batch_size": 4, "total_batch_size": 512}, "exclude each other"),
        ({"max_iters": 5, "warmup_frac": 1.5}, "--warmup_frac 1.5"),
        ({"max_iters": 5, "schedule": "step"}, "--schedule step must be one of cosine, linear, wsd, constant"),
        ({"max_iters": 5, "lr": -1.0}, "--lr -1"),
        ({"max_iters": 10**12}, "--max_iters 1000000000000 must be at least 1 and at most 1000000000"),
        ({"max_iters": 5, "ckpt_every": 0}, "--ckpt_every 0 must be at least 1"),
    ],
)
def test_requests_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**flags)


def test_a_rule_s_rate_can_be_scaled():
    plan, half = (resolve(MC, TrainConfig(flop_budget=1e11, lr_scale=x)) for x in (1.0, 0.5))
    assert half.lr == plan.lr / 2 and half.steps == plan.steps
    with pytest.raises(ValueError, match="--lr and --lr_scale exclude each other"):
        TrainConfig(flop_budget=1e11, lr=0.1, lr_scale=0.5)


def test_a_schedule_longer_than_the_run():
    plan = resolve(MC, TrainConfig(max_iters=60, schedule_steps=100, warmup_steps=10))
    whole = resolve(MC, TrainConfig(max_iters=100, batch_size=plan.batch_size, lr=plan.lr, warmup_steps=10))
    assert [lr_at(s, plan) for s in range(60)] == [lr_at(s, whole) for s in range(60)]
    own = resolve(MC, TrainConfig(max_iters=60, schedule_steps=60))
    assert own == resolve(MC, TrainConfig(max_iters=60)) and "schedule_steps" not in own.identity()
    assert plan.identity()["schedule_steps"] == 100
    with pytest.raises(ValueError, match="--schedule_steps 59 are fewer than the run's 60"):
        resolve(MC, TrainConfig(max_iters=60, schedule_steps=59))


def test_plans_refused():
    with pytest.raises(ValueError, match="--flop_budget 1e\\+06 buys 6 tokens.*raise it"):
        resolve(MC, TrainConfig(flop_budget=1e6))
    with pytest.raises(ValueError, match="--total_batch_size 1000 is not a multiple of --block_size 128 x 2.*try 1024"):
        resolve(MC, TrainConfig(max_iters=5, total_batch_size=1000), world_size=2)
    with pytest.raises(ValueError, match="more than the 500 of the training text"):
        resolve(MC, TrainConfig(max_iters=5, batch_size=4), train_tokens=500)


@pytest.mark.parametrize(
    "flags",
    [
        {"flop_budget": 1e10, "batch_size": 16},
        {"flop_budget": 1e9},  # the rule's batch is one sequence
        {"flop_budget": 1e9, "batch_size": 1},
        {"flop_budget": 1e8, "total_batch_size": 1024},
        {"flop_budget": 1e10, "total_batch_size": 2048},
        {"tokens_per_param": 0.02, "batch_size": 4},
        {"max_iters": 7, "batch_size": 1},
        {"flop_budget": 1.2e10, "hparams": "nanochat"},
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_advice_for_few_steps_gives_a_hundred_when_followed(flags, processes):
    plan = resolve(MC, TrainConfig(**flags), processes)
    assert plan.steps < 100
    words = plan.more_steps.split()
    assert words and plan.warnings()[-1].endswith(f"for 100 or more: {plan.more_steps}")
    advised = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        advised[name.removeprefix("--")] = float(value) if "." in value or "e" in value else int(value)
    assert advised.items() - flags.items() == advised.items(), "what is advised differs from what was given"
    followed = resolve(MC, TrainConfig(**{**flags, **advised}), processes)
    assert followed.steps >= 100 and not followed.more_steps


def test_less_than_half_a_step_names_the_budget_of_one():
    with pytest.raises(ValueError, match="raise it .one step: 2.21e.07., or lower --block_size$"):
        resolve(MC, TrainConfig(flop_budget=1e7, batch_size=1))
    assert resolve(MC, TrainConfig(flop_budget=2.21e7, batch_size=1)).steps == 1
    with pytest.raises(ValueError, match="or lower --batch_size or --block_size$"):
        resolve(MC, TrainConfig(flop_budget=1e7, batch_size=2))
