"""Named rules against what their sources say of themselves; the schedule as literal lists; who wins over a rule."""

import math
import statistics
from types import SimpleNamespace

import pytest

from isoflop.cli import Parser
from isoflop.config import ModelConfig, configure
from isoflop.flops import count_params
from isoflop.optim import hparams
from isoflop.optim import schedule as schedule_
from isoflop.train.plan import TrainConfig, resolve

SMALL = ModelConfig(n_layer=1, n_embd=32, vocab_size=512)
GPT2 = configure("gpt2")


def numbers(h):
    return h.lr, h.tokens_per_step, h.weight_decay, h.beta2, h.warmup_frac


# ----- worked values -----


def test_deepseeks_own_models():
    """Bi et al. 2024, table 2: rates 4.2e-4 and 3.2e-4, batches of 2304 and 4608 sequences of 4096, 2e12 tokens."""
    for layers, width, rate, sequences in (30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608):
        # equation 2 counts 72 L d^2 for the matrices of a layer; MLPs of four widths have exactly that
        cfg = ModelConfig(layers, width, block_size=4096, vocab_size=102400, head_size=128)
        M = 72 * layers * width**2 + 12 * layers * width * 4096
        assert hparams.deepseek_flops_per_token(cfg) == M
        said = hparams.hparams("deepseek", cfg, 2e12)
        assert said.lr == pytest.approx(rate, rel=0.03)
        assert said.tokens_per_step == pytest.approx(sequences * 4096, rel=0.1)
        assert hparams.deepseek_rates(M * 2e12) == (said.lr, said.tokens_per_step)


# data/dense_lr_bs_loss.csv of step-law/steplaw at 32a8f4c: for each of its five models N, layers, width, heads and MLP
# (gated), and for each of its 17 pairs of N and D the run of lowest smoothed loss: D, rate, sequences of 2048 a step.
STEP_LAW_GRID = {
    (214_663_680, 7, 960, 15, 9368): [
        (4e9, 2.762e-3, 128), (1.14e10, 2.762e-3, 192), (2e10, 3.906e-3, 256), (1e11, 7.812e-3, 1024),
    ],
    (268_304_384, 8, 1024, 16, 9552): [
        (5e9, 1.953e-3, 128), (1.42e10, 3.906e-3, 192), (2.5e10, 3.906e-3, 352), (8e10, 3.906e-3, 512),
    ],
    (429_260_800, 10, 1280, 10, 9472): [
        (8e9, 1.953e-3, 128), (2.27e10, 1.953e-3, 192), (4e10, 2.762e-3, 256), (5e10, 1.953e-3, 256),
    ],
    (536_872_960, 13, 1280, 10, 9048): [
        (1e10, 9.766e-4, 128), (2.84e10, 1.953e-3, 192), (5e10, 2.762e-3, 352),
    ],
    (1_073_741_824, 16, 2048, 16, 8192): [(2e10, 1.381e-3, 256), (5.69e10, 1.381e-3, 256)],
}  # fmt: skip


def test_step_law_finds_the_best_of_its_own_grid():
    """All 17 pairs of N and D that its authors released. Their grid has steps of about root two in rate and batch, the
    valley is flat and each best is one run: each may be two steps off, the middle of all 17 one."""
    rates, batches = [], []
    for (N, layers, width, heads, ffn), best in STEP_LAW_GRID.items():
        cfg = ModelConfig(layers, width, heads, n_ffn=ffn, activation="swiglu", vocab_size=65536)
        assert count_params(cfg)["non_embedding"] == N
        for D, rate, sequences in best:
            said = hparams.hparams("steplaw", cfg, D)
            rates.append(said.lr / rate)
            batches.append(said.tokens_per_step / (2048 * sequences))
            assert said.outside == []
    assert len(rates) == 17
    for ratios in rates, batches:
        assert 1 / 2 < min(ratios) and max(ratios) < 2
        assert 1 / math.sqrt(2) < statistics.geometric_mean(ratios) < math.sqrt(2)
    within = hparams.RULES["steplaw"].within
    sizes, tokens = [key[0] for key in STEP_LAW_GRID], [row[0] for best in STEP_LAW_GRID.values() for row in best]
    assert within["non-embedding N"] == pytest.approx((min(sizes), max(sizes)), rel=0.03)
    assert within["D"] == (min(tokens), max(tokens))


def test_porian_as_olmo_has_it():
    """OLMo's scripts/ladder.py: 0.0047 and 160 sequences of 2048 at 108M, with exponents -1/3 and 2/3 of N. The step
    in beta2 and the warm-up over N tokens are OLMo-core's wsds_chinchilla_run_configurator.py."""
    cfg = ModelConfig(12, 768, vocab_size=30080)  # N = 108,036,096 with the head
    N = count_params(cfg)["matmul"]
    assert N == pytest.approx(108e6, rel=1e-3)
    said = hparams.hparams("porian", cfg, 20 * N)
    assert said.lr == pytest.approx(0.0047, rel=1e-3)
    assert said.tokens_per_step == pytest.approx(160 * 2048, rel=1e-3)
    assert said.beta2 == 0.99 and said.warmup_frac == pytest.approx(1 / 20)  # N tokens of 20 N
    large = ModelConfig(24, 2048, vocab_size=50304)
    ratio = count_params(large)["matmul"] / N
    more = hparams.hparams("porian", large, 1e10)
    assert more.lr / said.lr == pytest.approx(ratio ** (-1 / 3))
    assert more.tokens_per_step / said.tokens_per_step == pytest.approx(ratio ** (2 / 3))
    assert more.beta2 == 0.95
    assert hparams.hparams("porian", large, 1e10, tokens_per_step=2**18).beta2 == 0.99


def nanochat_model(depth):
    return ModelConfig(depth, 64 * depth, vocab_size=32768, head_size=128)


def test_nanochats_reference_and_its_larger_model():
    """base_train.py's d12: 2^19 tokens a step, decay 0.28, Muon's rate 0.02; dev/LOG.md, 2026-02-05: 2^20 at d26."""
    cfg = nanochat_model(12)
    tokens = 12 * count_params(cfg)["matmul"]
    said = hparams.hparams("nanochat", cfg, tokens)
    assert said.tokens_per_step == pytest.approx(2**19)
    assert said.weight_decay == pytest.approx(0.28)
    assert said.lr * 0.2 * math.sqrt(768) == pytest.approx(0.02)  # the step of a square matrix under either adjustment
    big = nanochat_model(26)
    D = 12 * count_params(big)["matmul"]
    more = hparams.hparams("nanochat", big, D)
    assert round(math.log2(more.tokens_per_step)) == 20
    assert more.tokens_per_step / 2**19 == pytest.approx((D / tokens) ** 0.383)
    # B / (rate x decay x D), the time scale of AdamW's mean in epochs, is the same but for the width's part of the rate
    scale = [h.tokens_per_step / (h.lr * math.sqrt(w) * h.weight_decay * d)
             for h, w, d in ((said, 768, tokens), (more, 1664, D))]  # fmt: skip
    assert scale[0] == pytest.approx(scale[1])
    # a batch that was decided moves rate and decay by its root
    twice = hparams.hparams("nanochat", cfg, tokens, tokens_per_step=2**20)
    assert twice.lr / said.lr == pytest.approx(math.sqrt(2))
    assert twice.weight_decay / said.weight_decay == pytest.approx(math.sqrt(2))


def test_depth_rule_against_nanochats_sweep():
    """dev/LOG.md, 2026-01-10: the best decay was about .40, .22, .10, .08 at depths 8, 12, 16, 20."""
    for layers, best in (8, 0.40), (12, 0.22), (16, 0.10), (20, 0.08):
        assert hparams.hparams("depth", nanochat_model(layers), 1e9).weight_decay == pytest.approx(best, rel=0.15)
    wide, narrow = (hparams.hparams("depth", nanochat_model(d), 1e9).lr for d in (16, 4))
    assert narrow / wide == pytest.approx(2)


def test_constants_and_roots():
    assert numbers(hparams.hparams("fixed", SMALL, 5000 * 2**14)) == (1e-3, 2**14, 0.1, 0.99, 100 / 5000)
    small = hparams.hparams("sqrt_batch", GPT2, 1e9, tokens_per_step=2**17)
    assert small.lr == pytest.approx(6e-4 / 2)  # GPT-3 small: 6e-4 at half a million tokens
    assert hparams.hparams("sqrt_batch", GPT2, 1e9, tokens_per_step=2**19).lr == pytest.approx(6e-4)


def test_widths_of_mup():
    said = [(w, hparams.hparams("mup", ModelConfig(2, w, vocab_size=512), 1e7)) for w in (64, 256, 1024)]
    for width, h in said:
        assert h.lr * width == pytest.approx(0.045 * 32)
        assert h.lr * h.weight_decay == pytest.approx(0.1 * 0.045 * 32 / 256)
        assert h.lr == hparams.hparams("default", ModelConfig(2, width, vocab_size=512), 1e7).lr


# ----- what holds for all -----


@pytest.mark.parametrize("name", hparams.RULES)
def test_every_rule_says_something_usable(name):
    for cfg in (SMALL, GPT2, ModelConfig(4, 256, vocab_size=4096, tied=True)):
        for tokens in (1e6, 1e9, 1e12):
            said = hparams.hparams(name, cfg, tokens)
            assert 0 < said.lr < math.inf and 1 < said.tokens_per_step < tokens and 0.9 <= said.beta2 < 1
            assert said.weight_decay >= 0 and 0 <= said.warmup_frac <= hparams.MOST_WARMUP
            again = hparams.hparams(name, cfg, tokens, said.tokens_per_step)
            assert numbers(again) == pytest.approx(numbers(said))
    for steps in (10, 1000, 100_000):
        tokens = hparams.tokens_for_steps(name, SMALL, steps)
        assert steps * hparams.hparams(name, SMALL, tokens).tokens_per_step == pytest.approx(tokens)


@pytest.mark.parametrize("name", hparams.RULES)
def test_a_run_outside_the_range_is_told_so(name):
    tiny = hparams.hparams(name, ModelConfig(1, 8, vocab_size=64), 1e4)
    assert tiny.outside and all("it was measured on" in line for line in tiny.outside)
    assert any(" below " in line for line in tiny.outside)


def test_how_far_outside_in_words():
    for value, low, high, said in (
        (3.4e6, 7.8e3, 3.3e6, "3% above"), (3.3e6, 7.8e3, 3.3e6, ""), (7.8e3, 7.8e3, 3.3e6, ""),
        (15, 20, 20, "25% below"), (10.02, 20, 20, "50% below"), (10, 20, 20, "2 times below"),
        (39.98, 20, 20, "100% above"), (40, 20, 20, "2 times above"),
        (84, 10, 20, "4.2 times above"), (1e-9, 0, 20, ""), (1e99, 5, math.inf, ""),
    ):  # fmt: skip
        assert hparams.how_far(value, low, high) == said
    assert hparams.how_far(20.08, 20, 20) == hparams.how_far(19.92, 20, 20) == ""  # whole steps move D by as much
    assert hparams.how_far(20.2, 20, 20) == "1% above" and hparams.how_far(19.8, 20, 20) == "1% below"
    model = ModelConfig(8, 640, vocab_size=32000)
    line = "D/N 30 is 50% above what it was measured on, 20"
    assert hparams.hparams("porian", model, 30 * count_params(model)["matmul"]).outside == [line]
    far = hparams.hparams("deepseek", SMALL, 1e3).outside[0]
    assert far.endswith(" times below what it was measured on, 1e+17 to 1e+20")


def test_inside_the_range_nothing_is_said():
    million = ModelConfig(12, 768, vocab_size=30080)
    small, d16 = ModelConfig(8, 640, vocab_size=32000), nanochat_model(16)
    inside = {"default": (SMALL, 5e5), "fixed": (ModelConfig(6, 384, vocab_size=65), 8e7), "nanochat":
              (d16, 12 * count_params(d16)["matmul"]), "steplaw": (ModelConfig(16, 1280, vocab_size=65536), 2e10),
              "porian": (small, 20 * count_params(small)["matmul"]), "deepseek": (million, 3e9)}  # fmt: skip
    for name, (cfg, tokens) in inside.items():
        assert hparams.hparams(name, cfg, tokens).outside == [], name
    assert "--init normal" in hparams.hparams("mup", GPT2, 1e9).outside[0]


def test_the_default_rate_follows_the_start_of_the_weights():
    """With --init normal one rate serves all tensors: 2.6e-3 at width 64, less by 2^(3/4) at twice that."""
    for width, rate in (64, 2.6e-3), (128, 2.6e-3 / 2**0.75), (1024, 2.6e-3 / 8):
        cfg = configure("gpt2", n_embd=width, n_layer=2)
        B = hparams.batch_rule(1e8)
        assert hparams.hparams("default", cfg, 1e8).lr == pytest.approx(rate)
        assert hparams.hparams("default", cfg, 1e8, tokens_per_step=4 * B).lr == pytest.approx(2 * rate)


def test_no_rule_gives_a_rate_that_breaks_training():
    """S1's case: 64 sequences on a small budget had a rate of 0.67 by the root of the batch."""
    mc = ModelConfig(n_layer=1, n_embd=16, vocab_size=512, block_size=128)
    plan = resolve(mc, TrainConfig(flop_budget=1e9, batch_size=64))
    assert plan.lr == pytest.approx(4 * 0.045 * 32 / 16)
    assert any("its rate 0.67 is cut to 0.36" in line for line in plan.warnings())
    for name in hparams.RULES:
        for width in (8, 64, 1024):
            for tokens in (1e4, 1e8, 1e12):
                for batch in (None, 2**22):
                    cfg = ModelConfig(1, width, vocab_size=512)
                    said = hparams.hparams(name, cfg, tokens, batch)
                    assert said.lr <= max(4 * 1.44 / width, 2**-7)
                    assert bool(said.cut) == (said.lr == hparams.most_lr(name, cfg))
    typed = resolve(mc, TrainConfig(flop_budget=1e9, batch_size=64, lr=0.74))
    assert typed.lr == 0.74 and not any("is cut" in line for line in typed.warnings())


def test_unknown_rule():
    with pytest.raises(ValueError, match="--hparams chinchilla is unknown; known: default, mup"):
        hparams.hparams("chinchilla", SMALL, 1e9)
    with pytest.raises(ValueError, match="--hparams chinchilla is unknown; known: default"):
        TrainConfig(max_iters=5, hparams="chinchilla")


# ----- in a plan -----


def test_a_plan_follows_its_rule_and_flags_win():
    asked = dict(tokens_per_param=20, hparams="steplaw")
    plan = resolve(GPT2, TrainConfig(**asked))
    said = hparams.hparams("steplaw", GPT2, plan.tokens, plan.tokens_per_step)
    assert plan.tokens_per_step == pytest.approx(said.tokens_per_step, rel=0.01)  # whole sequences of 1024
    assert (plan.lr, plan.weight_decay, plan.beta2, plan.hparams) == (said.lr, 0.1, 0.95, "steplaw")
    assert plan.warmup_steps == round(said.warmup_frac * plan.steps) == 2000
    assert any("--hparams steplaw: non-embedding N" in w for w in plan.warnings())
    flags = dict(lr=1e-3, batch_size=64, weight_decay=0.0, beta2=0.9, warmup_steps=7)
    typed = resolve(GPT2, TrainConfig(**asked, **flags))
    found = (typed.lr, typed.tokens_per_step, typed.weight_decay, typed.beta2, typed.warmup_steps)
    assert found == (1e-3, 65536, 0.0, 0.9, 7)
    assert not any("--hparams" in w for w in typed.warnings())  # the rule decided nothing that counts
    by_steps = resolve(GPT2, TrainConfig(max_iters=1000, hparams="porian"))
    assert by_steps.tokens_per_step == pytest.approx(160 * 2048 * (123_532_032 / 108e6) ** (2 / 3), rel=0.01)
    shared = resolve(GPT2, TrainConfig(max_iters=1000, hparams="porian"), world_size=4)
    assert shared.tokens_per_step == pytest.approx(by_steps.tokens_per_step, rel=0.01)


def test_depth_is_one_knob_for_rates_too():
    parser = Parser("plan.py", "", ModelConfig, TrainConfig)
    for typed, rule in ([], "depth"), (["--hparams", "porian"], "porian"):
        args = parser.parse_args(["--depth", "6", "--max_iters", "100", *typed])
        mc, tc = parser.read(ModelConfig, args), parser.read(TrainConfig, args)
        assert (mc.n_layer, mc.n_embd, tc.hparams) == (6, 384, rule)
    args = parser.parse_args(["--max_iters", "100"])
    assert parser.read(TrainConfig, args).hparams == "default"


def test_warmup_in_steps():
    assert resolve(SMALL, TrainConfig(max_iters=300, warmup_steps=0)).warmup_steps == 0
    assert resolve(SMALL, TrainConfig(max_iters=300, warmup_frac=0.1)).warmup_steps == 30
    with pytest.raises(ValueError, match="--warmup_steps 400 are more than the run's 300"):
        resolve(SMALL, TrainConfig(max_iters=300, warmup_steps=400))
    with pytest.raises(ValueError, match="--warmup_steps and --warmup_frac exclude each other"):
        TrainConfig(max_iters=300, warmup_steps=4, warmup_frac=0.1)


# ----- the schedule -----


def at(schedule, steps, warmup, cooldown=0, final=0.1, shape="linear"):
    plan = SimpleNamespace(lr=1.0, schedule=schedule, steps=steps, warmup_steps=warmup, cooldown_steps=cooldown,
                           schedule_steps=None, cooldown=shape, final_lr_frac=final)  # fmt: skip
    return [round(schedule_.lr_at(step, plan), 4) for step in range(steps)]


def test_schedules_as_literal_lists():
    assert at("cosine", 6, 2) == [0.5, 1.0, 0.8682, 0.55, 0.2318, 0.1]
    assert at("linear", 6, 2) == [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]
    assert at("linear", 4, 0, final=0.0) == [0.75, 0.5, 0.25, 0.0]
    assert at("constant", 5, 3) == [0.3333, 0.6667, 1.0, 1.0, 1.0]
    assert at("wsd", 7, 1, 4, 0.0) == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert at("wsd", 7, 1, 4, 0.0, "1-sqrt") == [1.0, 1.0, 1.0, 0.5, 0.2929, 0.134, 0.0]
    assert at("wsd", 6, 2, 2, 0.1, "1-sqrt") == [0.5, 1.0, 1.0, 1.0, 0.3636, 0.1]
    assert at("cosine", 1, 0) == at("linear", 1, 0) == [0.1]


def test_cooldown_shapes_through_a_plan():
    plan = resolve(SMALL, TrainConfig(max_iters=10, schedule="wsd", cooldown="1-sqrt", cooldown_frac=0.5))
    assert (plan.cooldown, plan.cooldown_steps) == ("1-sqrt", 5)
    assert schedule_.lr_at(6, plan) / plan.lr == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(2 / 5)))
