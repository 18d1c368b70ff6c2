"""AdamW and Muon against torch's own; groups of every architecture; replicas, sharded models, the mean of weights."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import curve_of, record_of, run_script, same_weights
from ranks import SHAPE

from isoflop import device
from isoflop.config import ModelConfig
from isoflop.optim import adamw, parallel, param_groups
from isoflop.optim import muon as muon_
from isoflop.optim.build import build
from isoflop.optim.torch_optim import TorchOptimizer
from isoflop.train.plan import TrainConfig
from model import GPT, load_model
from train import train

TINY = ModelConfig(n_layer=2, n_embd=16, block_size=32, vocab_size=61)


def randomised(mc=TINY, seed=0):
    torch.manual_seed(seed)
    model = GPT(mc)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.05)
    return model


def drive(optimizer, models, step, scale=1.0):
    """The same random gradients on all models; ours takes its own."""
    torch.manual_seed(step)
    for group in zip(*(m.parameters() for m in models), strict=True):
        grad = torch.randn(group[0].shape) * scale
        for p in group:
            p.grad = grad.clone()
    optimizer.gather()


# ----- against torch.optim -----


@pytest.mark.parametrize("kind, adjust", [("adamw", None), ("muon", "match_rms_adamw"), ("muon", "original")])
def test_the_update_is_torchs(kind, adjust):
    """Ten steps on random gradients, the rate falling. Muon's iteration is in bfloat16, as torch has it: products of
    several matrices at once may round differently by one unit of it, of which the steps here are 1e-5."""
    ours, theirs = randomised(), randomised()
    if kind == "adamw":
        optimizer = adamw.FlatAdamW(ours, 0.1, 0.95, grad_clip=1e9)
    else:
        optimizer = muon_.FlatMuon(ours, 0.1, 0.95, grad_clip=1e9, adjust=adjust)
    references = []
    for group in param_groups.param_groups(theirs, 0.1):
        decay = group["weight_decay"]
        if kind == "muon" and group.get("hidden"):
            reference = torch.optim.Muon(group["params"], weight_decay=decay, adjust_lr_fn=adjust)
        else:
            reference = torch.optim.AdamW(group["params"], betas=(0.9, 0.95), weight_decay=decay)
        references.append((reference, group["lr_mult"]))
    for step in range(10):
        lr = 1e-2 * (1 - step / 10)
        drive(optimizer, (ours, theirs), step)
        optimizer.step(lr)
        for reference, lr_mult in references:
            reference.param_groups[0]["lr"] = lr * lr_mult
            reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() < (1e-6 if kind == "adamw" else 5e-5)


def test_clipping_is_torchs():
    ours, theirs = randomised(), randomised()
    optimizer = adamw.FlatAdamW(ours, 0.0, 0.95, grad_clip=1.0)
    references = [(torch.optim.AdamW(g["params"], betas=(0.9, 0.95), weight_decay=0.0), g["lr_mult"])
                  for g in param_groups.param_groups(theirs, 0.0)]  # fmt: skip
    for step in range(4):
        drive(optimizer, (ours, theirs), step, scale=10.0 ** (step - 3))  # norms below and above the limit
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step(1e-2)
        for reference, lr_mult in references:
            reference.param_groups[0]["lr"] = 1e-2 * lr_mult
            reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(4, 48, 16), (1, 16, 64), (2, 32, 32)])
def test_orthogonal_steps_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon_.orthogonal(torch.randn(shape)))
    assert (values < 1.3).all() and (values > 0.6).float().mean() > 0.9  # a square one's smallest take longer
    assert (muon_.orthogonal(torch.zeros(shape)) == 0).all()


def test_muons_step_is_as_large_as_adamws():
    """match_rms_adamw: 0.2 per weight (Liu et al. 2025) where AdamW's is at most one rate."""
    model = randomised()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = muon_.FlatMuon(model, 0.0, 0.95, grad_clip=1e9, inner=torch.float32)
    drive(optimizer, (model,), 0)
    optimizer.step(1e-3)
    for name, p in model.named_parameters():
        rms = (p - before[name]).square().mean().sqrt().item()
        assert rms == pytest.approx(2e-4, rel=0.15) if name.startswith("h.") else rms > 5e-4


# ----- groups -----

ARCHITECTURES = {
    "default": {},
    "gpt2": dict(position="learned", norm="layernorm", norm_gain=True, bias=True, qk_norm=False, activation="gelu_tanh",
                 tied=True, init="normal"),
    "llama": dict(norm_gain=True, qk_norm=False, activation="swiglu", init="normal"),
    "llama3": dict(norm_gain=True, qk_norm=False, activation="swiglu", n_head=4, n_kv_head=2, init="normal"),
    "scaled, all options": dict(position="learned", norm="layernorm", norm_gain=True, bias=True),
    "scaled, tied": dict(position="learned", norm_gain=True, tied=True),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_in_one_group(name):
    mc = ModelConfig(n_layer=2, n_embd=64, block_size=16, vocab_size=50, **ARCHITECTURES[name])
    model = GPT(mc)
    groups = param_groups.param_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    found = [(names[id(p)], g) for g in groups for p in g["params"]]
    assert sorted(n for n, _ in found) == sorted(names.values())
    for n, group in found:
        p = model.get_parameter(n)
        matrix = n.startswith("h.") and p.ndim == 2
        assert bool(group.get("hidden")) == matrix
        if mc.init == "normal":
            assert group["lr_mult"] == 1.0
            assert group["weight_decay"] == (0.1 if p.ndim >= 2 else 0.0)
        else:
            assert group["weight_decay"] == (0.1 if matrix else 0.0)
            small = matrix or p is model.lm_head.weight or (mc.tied and p.ndim == 2)
            assert group["lr_mult"] == (1.0 if small else 2.0 if p.ndim < 2 else 16.0)


# ----- torch's own, as GPUs and sharded models have it -----


@pytest.mark.parametrize("muon", [None, "original"])
def test_torchs_own_takes_the_same_steps_and_either_loads_the_others_state(muon):
    """Clipped, with a mean of the weights; interrupted after three steps and carried on by the other kind."""

    def make(kind):
        model = randomised()
        if kind == "torch":
            return model, TorchOptimizer(model, 0.1, 0.95, 1.0, muon=muon, ema=0.8)
        if muon:
            return model, muon_.FlatMuon(model, 0.1, 0.95, 1.0, adjust=muon, ema=0.8)
        return model, adamw.FlatAdamW(model, 0.1, 0.95, 1.0, ema=0.8)

    def steps(model, optimizer, first, last):
        for step in range(first, last):
            drive(optimizer, (model,), step)
            optimizer.step(1e-2)

    finished = []
    for kind, other in (("flat", "torch"), ("torch", "flat")):
        model, optimizer = make(kind)
        steps(model, optimizer, 0, 3)
        saved, weights = optimizer.flat(), {n: p.detach().clone() for n, p in model.named_parameters()}
        steps(model, optimizer, 3, 6)
        optimizer.finish()
        finished.append(model)

        model, optimizer = make(other)
        for name, p in model.named_parameters():
            p.data.copy_(weights[name])
        optimizer.load(3, lambda kind, first, last, saved=saved: saved[kind][first:last])
        steps(model, optimizer, 3, 6)
        optimizer.finish()
        finished.append(model)
    for group in zip(*(model.parameters() for model in finished), strict=True):
        assert max((p - group[0]).abs().max() for p in group) < (1e-6 if muon is None else 5e-4)  # bfloat16 inside


# ----- several processes -----

KINDS = {"adamw": {}, "muon": {"optimizer": "muon"}}


@pytest.fixture(scope="module")
def two_ranks(toy_data, tmp_path_factory):
    """(folder, TrainConfig's fields, [rank 0's, rank 1's bytes]) of the runs of tests/ranks.py, 50 steps each.

    Each kind of optimizer plain and sharded, and each resumed after step 40 from the other's checkpoint, and its own.
    """
    folder = tmp_path_factory.mktemp("two")
    common = dict(
        max_iters=50, total_batch_size=256, micro_batch_size=2, data_dir=toy_data, val_tokens=2048, dtype="float32",
        device="cpu", log_every=1, ema=0.9, lr=0.02,
    )  # fmt: skip
    runs = {}
    for kind, more in KINDS.items():
        for name, shard in (("plain", False), ("shard", True)):
            runs[f"{kind}-{name}"] = common | more | {"shard": shard, "ckpt_every": 20}
        for a, b in (("shard", "plain"), ("plain", "shard"), ("shard", "shard")):
            resume = f"{folder}/{kind}-{a}/checkpoints/step_00000040"
            runs[f"{kind}-{a}-{b}"] = common | more | {"shard": b == "shard", "resume": resume}
    ask = json.dumps({"out": str(folder), "runs": runs})
    done = run_script("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d",
                      "--rdzv_endpoint=localhost:0", "tests/ranks.py", ask, timeout=400)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, common, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_and_two_processes_train_the_same_model(two_ranks, tmp_path, kind):
    """50 steps in float32, two micro-batches: within 1e-5, with either optimizer, replicated and sharded."""
    folder, common, held = two_ranks
    torch.set_num_threads(1)
    tc = TrainConfig(**common, **KINDS[kind], out_dir=f"{tmp_path}/alone")
    alone = train(ModelConfig(**SHAPE), tc, quiet=True)
    losses = curve_of(tmp_path / "alone")
    assert len(losses) == 50 and losses[-1] < losses[0] - 0.5
    for name in ("plain", "shard"):
        record = record_of(folder / f"{kind}-{name}")
        assert np.abs(np.subtract(losses, curve_of(folder / f"{kind}-{name}"))).max() < 1e-5
        assert record["run_id"] == alone.run_id and record["world_size"] == 2
        assert record["val_loss"] == pytest.approx(alone.val_loss, abs=1e-5)

    # A sharded state is half a state on each, weights too.
    for rank in held:
        whole, part = rank[f"{kind}-plain"], rank[f"{kind}-shard"]
        assert whole["weights"] == 4 * alone.n_params and whole.keys() == part.keys() == {"weights", "m", "v", "ema"}
        for tensors in whole:
            assert part[tensors] == pytest.approx(whole[tensors] / 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_run_resumes_to_the_bit_and_in_any_other_form(two_ranks, tmp_path, kind):
    folder, common, _ = two_ranks
    assert same_weights(folder / f"{kind}-shard", folder / f"{kind}-shard-shard")
    losses = curve_of(folder / f"{kind}-plain")
    for name in ("shard-plain", "plain-shard"):
        assert np.abs(np.subtract(losses, curve_of(folder / f"{kind}-{name}"))).max() < 1e-5
    saved = folder / f"{kind}-shard" / "checkpoints" / "step_00000040"
    tc = TrainConfig(**common, **KINDS[kind], out_dir=f"{tmp_path}/alone", resume=str(saved))
    train(ModelConfig(**SHAPE), tc, quiet=True)
    assert np.abs(np.subtract(losses, curve_of(tmp_path / "alone"))).max() < 1e-5

    # The checkpoint is a model, too: the last weights, not their mean.
    model = load_model(saved)
    assert sum(p.numel() for p in model.parameters()) == record_of(folder / f"{kind}-plain")["n_params"]
    (saved / "config.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(model.config, n_layer=90))))
    with pytest.raises(ValueError, match="holds no usable model .its .* bytes of weights are not the model"):
        load_model(saved)


# ----- the mean of the weights -----


def test_the_mean_of_weights_is_adams_kind_of_mean():
    model = randomised()
    optimizer = adamw.FlatAdamW(model, 0.0, 0.95, 1.0, ema=0.8)
    seen = []
    for step in range(5):
        drive(optimizer, (model,), step)
        optimizer.step(1e-2)
        seen.append(optimizer.master.clone())
    optimizer.finish()
    weights = np.array([0.8 ** (4 - i) for i in range(5)])
    expected = sum(w * s for w, s in zip(weights / weights.sum(), seen, strict=True))
    final = torch.cat([p.detach().flatten() for p in optimizer.params])
    assert torch.allclose(final, expected, atol=1e-6)


def test_options_reach_the_loss_and_the_weights(toy_data, tmp_path):
    """The first loss of a model whose head is zero is ln V + z (ln V)^2; the mean of weights is what is evaluated."""

    def run(name, **more):
        tc = TrainConfig(data_dir=toy_data, batch_size=4, val_tokens=2048, out_dir=str(tmp_path / name), **more)
        return train(ModelConfig(**SHAPE), tc, quiet=True)

    V = math.log(run("one", max_iters=1).vocab_size)
    assert run("plain", max_iters=1, dtype="float32").train_loss == pytest.approx(V, abs=1e-5)
    assert run("z", max_iters=1, dtype="float32", z_loss=0.1).train_loss == pytest.approx(V + 0.1 * V**2, abs=1e-4)
    raw, mean = run("raw", max_iters=12), run("mean", max_iters=12, ema=0.9)
    assert mean.train_loss == raw.train_loss and (raw.ema, mean.ema) == (0.0, 0.9)
    assert 1e-3 < abs(mean.val_loss - raw.val_loss) < 1
    assert run("none", max_iters=12, ema=1e-7).val_loss == pytest.approx(raw.val_loss, abs=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_with_every_option_resumes_to_the_bit(toy_data, tmp_path, kind):
    common = dict(max_iters=12, batch_size=4, data_dir=toy_data, val_tokens=2048, optimizer=kind, ema=0.8, z_loss=1e-3)
    mc = ModelConfig(**SHAPE)
    whole = train(mc, TrainConfig(**common, out_dir=str(tmp_path / "whole"), ckpt_every=5), quiet=True)
    step = tmp_path / "whole" / "checkpoints" / "step_00000005"
    parts = train(mc, TrainConfig(**common, out_dir=str(tmp_path / "parts"), resume=str(step)), quiet=True)
    files = [(tmp_path / d / "model.safetensors").read_bytes() for d in ("whole", "parts")]
    assert files[0] == files[1] and parts.val_loss == whole.val_loss


def test_small_blocks_are_gathered_several_at_once(monkeypatch):
    blocks = [torch.nn.Linear(10, 10, bias=False) for _ in range(5)]
    for least, sizes in ((1, [1, 1, 1, 1, 1]), (101, [2, 2, 1]), (200, [2, 2, 1]), (2**20, [5])):
        monkeypatch.setattr(parallel, "UNIT", least)
        made = parallel.units(blocks)
        assert [len(unit) for unit in made] == sizes and sum(made, []) == blocks


def test_build_follows_the_plan():
    plan = SimpleNamespace(optimizer="muon", muon_adjust="original", weight_decay=0.3, beta2=0.9, ema=0.0)
    made = build(randomised(), plan, 1.0, "float32", "cpu")
    assert type(made) is muon_.FlatMuon and (made.adjust, made.inner) == ("original", torch.float32)
    assert made.betas == (0.9, 0.9) and made.groups[-1]["weight_decay"] == 0.3
    plan.optimizer = "adamw"
    made = build(randomised(), plan, 1.0, "bfloat16", "cpu")
    assert type(made) is adamw.FlatAdamW and made.weights.dtype == device.weights_dtype("bfloat16", "cpu")
    made = build(randomised(), plan, 1.0, "bfloat16", "cpu", sharded=True)
    assert type(made) is TorchOptimizer, "and so it is on a GPU"
