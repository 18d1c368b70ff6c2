"""Memory, time and money: against the allocator, the optimizer's own buffers, and arithmetic."""

import itertools
import json

import pytest
import torch

from bench.bench_memory import allocated_peak, measure, run
from isoflop import device, display, gpus
from isoflop.config import ModelConfig, configure
from isoflop.data import reader
from isoflop.flops import count_params, flops_per_token_exact
from isoflop.kernels import attention, cross_entropy
from isoflop.optim import adamw
from isoflop.optim.build import build
from isoflop.plan import estimate as costs
from isoflop.plan import memory
from isoflop.train.plan import TrainConfig, resolve
from model import GPT

SMALL = ModelConfig(2, 48, block_size=64, vocab_size=300)


def test_figures_that_stand_in_two_places_agree():
    assert memory.QUERY_BLOCK == attention.QUERY_BLOCK
    for V, path in itertools.product((257, 2**14, 50257), ("cpu", "cuda")):
        assert memory.head_rows(V, path) == cross_entropy.head_rows(V, torch.device(path))


def test_every_price_says_where_and_when():
    for name, gpu in gpus.GPUS.items():
        assert (gpu.price is None) == (not gpu.price_source), name
        assert gpu.price is None or "read 202" in gpu.price_source, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind, ema", [("adamw", 0.0), ("muon", 0.9)])
def test_weights_gradients_and_state_are_the_optimizers_own_buffers(dtype, kind, ema):
    plan = resolve(SMALL, TrainConfig(max_iters=5, batch_size=2, optimizer=kind, ema=ema))
    opt = build(GPT(SMALL), plan, 1.0, dtype, "cpu")
    said = memory.memory(SMALL, 2, dtype, "cpu", optimizer=kind, ema=bool(ema))
    assert said["weights"] == opt.weights.nbytes
    assert said["gradients"] == opt.grad.nbytes
    assert said["optimizer"] == opt.state_bytes()


# Model and sequences a step; the default architecture, with one head and one layer, several, long contexts, a batch of
# one, and a model whose evaluation is larger than its steps.
DEFAULT = [
    (ModelConfig(1, 32, block_size=64), 12),
    (ModelConfig(2, 64), 24),
    (ModelConfig(3, 96, block_size=256), 4),
    (ModelConfig(2, 128, block_size=512), 3),
    (ModelConfig(2, 256, block_size=128), 1),
]


FAST, SLOW = list(itertools.product(DEFAULT[:3], ["bfloat16"])), list(itertools.product(DEFAULT, ["float32"]))
SLOW += list(itertools.product(DEFAULT[3:], ["bfloat16"]))


@pytest.mark.parametrize("which, dtype", FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW])
def test_peak_of_a_real_run_within_ten_percent(toy_data, tmp_path, which, dtype):
    measured, predicted = measure(*which, toy_data, dtype, tmp_path, val_tokens=2**12)
    assert predicted == pytest.approx(measured, rel=0.1)


OTHERS = {
    "gpt2": configure("gpt2", n_layer=3, n_embd=128, block_size=128),
    "llama": configure("llama", n_layer=3, n_embd=128, head_size=32, block_size=128),
    "llama3": configure("llama3", n_layer=3, n_embd=128, n_head=8, n_kv_head=2, block_size=128),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_peak_of_the_presets_within_ten_percent(toy_data, tmp_path, name):
    measured, predicted = measure(OTHERS[name], 16, toy_data, "bfloat16", tmp_path, steps=2)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", *OTHERS])
def test_plain_pieces_under_autocast_within_fifteen_percent(monkeypatch, name):
    """What the CUDA column counts, rehearsed on a CPU: no GPU was at hand."""
    monkeypatch.setattr(device, "HAS_PRIVATE", False)  # fused() says no; the optimizer keeps its own copy
    monkeypatch.setattr(memory, "_evaluation", lambda *a: 0)
    mc = OTHERS.get(name, ModelConfig(3, 192, block_size=128))
    mc = ModelConfig(**{**mc.__dict__, "vocab_size": 1024})

    def step():
        model = GPT(mc)
        opt = adamw.FlatAdamW(model, 0.1, 0.95, 1.0)
        idx = torch.randint(0, mc.vocab_size, (16, mc.block_size))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(idx, idx)[1]
        loss.backward()
        opt.gather()
        opt.step(1e-3)

    assert memory.memory(mc, 16, "bfloat16", "cuda")["peak"] == pytest.approx(allocated_peak(step), rel=0.15)


def test_zero1_and_checkpointing_save_what_they_should():
    cfg = configure("gpt2-xl")
    one, four = (memory.memory(cfg, 4, n_gpus=n) for n in (1, 4))
    P = count_params(cfg)["total"]
    assert one["optimizer"] == four["optimizer"] == 8 * P
    assert four["optimizer_zero1"] == 12 * P / 4  # with the part of the master that each keeps
    assert four["peak"] - four["peak_zero1"] == 5 * P
    assert one["activations_checkpointed"] < one["activations"] / 5
    saved = one["activations"] - one["activations_checkpointed"]
    assert 0.8 * saved < one["peak"] - one["peak_checkpointed"] <= 1.001 * saved  # another moment may be the peak then


def test_time_is_exact_flops_over_speed(toy_data, tmp_path):
    mc = ModelConfig(1, 32, vocab_size=reader.open_data(toy_data).meta["vocab_size"])
    record = run(mc, toy_data, tmp_path, max_iters=12, batch_size=4, val_tokens=2**11)
    speed = costs.speed(None, 1, None, None, str(tmp_path / "run.json"))
    assert speed.seconds(mc, record.tokens) == pytest.approx(record.train_s)
    assert record.run_id in speed.how
    assert costs.speed(None, 3, None, None, str(tmp_path / "run.json")).flops_per_s == 3 * speed.flops_per_s


def test_time_and_money_by_hand():
    cfg = configure("gpt2")
    speed = costs.speed("a100", 8, 0.5, None, None)
    assert speed.flops_per_s == 8 * 0.5 * 312e12 and "assumed" not in speed.how
    assert speed.seconds(cfg, 1e9) == flops_per_token_exact(cfg) * 1e9 / (4 * 312e12)
    assert "assumed" in costs.speed("a100", 1, None, None, None).how
    assert costs.speed(None, 1, None, None, None) is None
    assert costs.dollars(7200, 8, 1.5) == 24.0
    assert display.seconds(7200) == "2.0 h" and display.seconds(86400 * 10.5) == "10.5 d"


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="--gpu h300 is unknown; known: a100-40gb"):
        gpus.named("h300")
    with pytest.raises(ValueError, match="--mfu 1.5 must be above 0 and at most 1"):
        costs.speed("h100", 1, 1.5, None, None)
    (tmp_path / "run.json").write_text(json.dumps({"status": "ok"}))
    for path in (tmp_path / "run.json", tmp_path / "none.csv"):
        with pytest.raises(ValueError, match="--measured .* holds no finished run"):
            costs.read_speed(path, 1)
