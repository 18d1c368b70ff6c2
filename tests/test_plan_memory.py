"""isoflop/plan/memory.py: against the allocator in real runs, the optimizer's own buffers, and arithmetic."""

import dataclasses
import itertools

import pytest
import torch
import torch.distributed as dist

from bench.bench_memory import allocated_peak, measure
from isoflop import device
from isoflop.config import ModelConfig, configure
from isoflop.flops import count_params
from isoflop.kernels import attention, cross_entropy
from isoflop.optim import adamw
from isoflop.optim.build import build
from isoflop.optim.parallel import shard
from isoflop.optim.saved_state import local
from isoflop.plan import memory
from isoflop.plan.memory import estimate_memory
from isoflop.train.plan import TrainConfig, resolve
from model import GPT

SMALL = ModelConfig(2, 48, block_size=64, vocab_size=300)


def test_figures_that_stand_in_two_places_agree():
    assert memory.QUERY_BLOCK == attention.QUERY_BLOCK
    for vocab_size, path in itertools.product((257, 2**14, 50257), ("cpu", "cuda")):
        assert memory.head_rows(vocab_size, path) == cross_entropy.head_rows(vocab_size, torch.device(path))


@pytest.mark.parametrize("T", [1, 100, 128, 300, 1024])
def test_scores_are_those_of_blocks_of_queries(T):
    entries = 0
    for first in range(0, T, memory.QUERY_BLOCK):
        last = min(first + memory.QUERY_BLOCK, T)
        entries += (last - first) * last
    assert memory._score_columns(T) == entries / T


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind, ema", [("adamw", 0.0), ("muon", 0.9)])
def test_weights_gradients_and_state_are_the_optimizers_own_buffers(dtype, kind, ema):
    plan = resolve(SMALL, TrainConfig(max_iters=5, batch_size=2, optimizer=kind, ema=ema))
    opt = build(GPT(SMALL), plan, 1.0, dtype, "cpu")
    estimated = estimate_memory(SMALL, 2, dtype, "cpu", optimizer=kind, ema=bool(ema))
    assert estimated.weights == opt.weights.nbytes
    assert estimated.gradients == opt.grad.nbytes
    assert estimated.optimizer == opt.state_bytes()


# Model and sequences a step; the default architecture, with one head and one layer, several, long contexts, a batch of
# one, and a model whose evaluation is larger than its steps.
DEFAULT = [
    (ModelConfig(1, 32, block_size=64), 12),
    (ModelConfig(2, 64), 24),
    (ModelConfig(3, 96, block_size=256), 4),
    (ModelConfig(2, 128, block_size=512), 3),
    (ModelConfig(2, 256, block_size=128), 1),
]
FAST = list(itertools.product(DEFAULT[:3], ["bfloat16"]))
SLOW = [*itertools.product(DEFAULT, ["float32"]), *itertools.product(DEFAULT[3:], ["bfloat16"])]


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
    mc = dataclasses.replace(OTHERS.get(name, ModelConfig(3, 192, block_size=128)), vocab_size=1024)

    def step():
        model = GPT(mc)
        opt = adamw.FlatAdamW(model, 0.1, 0.95, 1.0)
        idx = torch.randint(0, mc.vocab_size, (16, mc.block_size))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(idx, idx)[1]
        loss.backward()
        opt.gather()
        opt.step(1e-3)

    predicted = estimate_memory(mc, 16, "bfloat16", "cuda").peak
    assert predicted == pytest.approx(allocated_peak(step), rel=0.15)


def test_shard_saves_what_it_should():
    cfg = configure("gpt2-xl")
    one, four = (estimate_memory(cfg, 4, n_gpus=n) for n in (1, 4))
    P = count_params(cfg)["total"]
    assert one.optimizer == four.optimizer == 8 * P and one.peak == four.peak
    assert (four.weights_shard, four.gradients_shard, four.optimizer_shard) == (P, P, 2 * P)
    assert one.peak_shard - four.peak_shard == 16 * P * 3 / 4, "all but what is gathered and computed"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_shard_of_a_large_model_is_what_the_wrapper_holds(kind):
    """1.4B parameters on two GPUs: the local tensors of fully_shard and the optimizer, on the meta device."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    cfg = ModelConfig(24, 2048, block_size=1024, vocab_size=50304)
    plan = resolve(cfg, TrainConfig(max_iters=5, batch_size=4, optimizer=kind, ema=0.9), 2)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with torch.device("meta"):
            model = GPT(cfg)
        shard(model, "bfloat16", "cpu")
        tensors = build(model, plan, 1.0, "bfloat16", "cpu", sharded=True).tensors()
        held = {name: sum(local(t).nbytes for t in of_name) for name, of_name in tensors.items()}
        block = sum(p.numel() for p in model.h[0].parameters())
        root = count_params(cfg)["total"] - cfg.n_layer * block
    finally:
        dist.destroy_process_group()
    assert count_params(cfg)["total"] == pytest.approx(1.4e9, rel=0.02)
    estimated = estimate_memory(cfg, 4, n_gpus=2, optimizer=kind, ema=True)
    assert held["weights"] == estimated.weights_shard == estimated.gradients_shard
    assert held["m"] + held["v"] + held["ema"] == estimated.optimizer_shard
    # beside them what is gathered in bfloat16, the root and two blocks, and what one GPU computes
    gathered = estimated.peak_shard - estimated.weights_shard - estimated.gradients_shard - estimated.optimizer_shard
    assert gathered == pytest.approx(2 * (root + 2 * block) + estimated.activations + estimated.logits, rel=0.1)
