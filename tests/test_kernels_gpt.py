"""isoflop/kernels/gpt.py against the modules of model.py: losses and gradients, and the memory that is kept."""

import copy
import dataclasses

import pytest
import torch

from isoflop.config import ModelConfig, configure
from isoflop.kernels import gpt
from model import GPT

CFG = ModelConfig(2, 24, n_head=3, block_size=150, vocab_size=50)  # 150: two blocks of queries
EXACT = {torch.float32: dict(rtol=1e-4, atol=1e-5), torch.float64: dict(rtol=1e-9, atol=1e-11)}


def model_of(cfg=CFG, dtype=torch.float64, std=0.3, seed=0):
    """A model without a zero weight: all of its gradients count."""
    torch.manual_seed(seed)
    model = GPT(cfg).to(dtype)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def text(B=3, T=150, V=50, seed=0):
    tokens = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def loss_and_gradients(model, idx, targets, in_one_piece, z_loss=0.0):
    model.in_one_piece = in_one_piece
    loss = model(idx, targets, z_loss=z_loss)[1]
    return loss, *torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("n_head, T, z_loss", [(3, 150, 0.0), (1, 128, 0.0), (1, 5, 1e-2), (12, 300, 1e-3)])
def test_equal_to_the_modules(n_head, T, z_loss, dtype):
    model = model_of(dataclasses.replace(CFG, n_head=n_head, n_kv_head=None, head_size=None, block_size=T), dtype)
    assert model.runs_in_one_piece
    idx, targets = text(T=T)
    ours, modules = (loss_and_gradients(model, idx, targets, one, z_loss) for one in (True, False))
    torch.testing.assert_close(ours, modules, **EXACT[dtype])


@pytest.mark.parametrize("size", [1.0, 300.0])  # at the second the sums of exponentials leave float32's range
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_logits_in_chunks_and_of_any_size(size, z_loss, monkeypatch):
    monkeypatch.setattr(gpt, "head_rows", lambda vocab_size, device: 100)  # 450 tokens: five chunks of 90
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight *= size
    idx, targets = text()
    ours, modules = (loss_and_gradients(model, idx, targets, one, z_loss) for one in (True, False))
    torch.testing.assert_close(ours, modules, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("width", [24, 32])
def test_bfloat16_is_as_near_to_float64_as_the_modules(width):
    """Errors of each weight's gradient, the mean over four draws of weights and text."""
    errors = []
    for seed in range(4):
        exact = model_of(ModelConfig(1, width, block_size=64, vocab_size=50), std=width**-0.5, seed=seed)
        small = copy.deepcopy(exact).bfloat16()
        exact.load_state_dict(small.state_dict())
        batch = text(B=4, T=64, seed=seed)
        true = loss_and_gradients(exact, *batch, False)[1:]
        found = [loss_and_gradients(small, *batch, one)[1:] for one in (True, False)]
        errors.append([[float((a - b).norm() / a.norm()) for a, b in zip(true, g, strict=True)] for g in found])
    for ours, modules in torch.tensor(errors).mean(0).T:
        assert ours < max(0.02, 1.3 * modules)


def test_relu_of_any_number():
    x = torch.tensor([3.0, -2.0, 0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y = x.to(dtype)
        expected = torch.relu(y)
        gpt.relu_(y)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.c_attn.weight", "h.1.attn.c_proj.weight", "lm_head.weight"])
def test_a_nan_reaches_the_loss(name):
    """And with it every gradient's norm, and so every weight."""
    model = model_of().bfloat16()
    with torch.no_grad():
        dict(model.named_parameters())[name][0, 0] = torch.nan
    idx, targets = text()
    loss, *grads = loss_and_gradients(model, idx.clamp(max=1), targets, True)
    assert loss.isnan() and any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_gradients(reduction):
    model = model_of()
    idx, targets = text()
    losses = []
    with torch.no_grad():
        for model.in_one_piece in (True, False):
            losses.append(model(idx, targets, reduction=reduction)[1])
    torch.testing.assert_close(*losses)


def test_a_step_is_the_loss_and_its_backward_pass():
    """And its gradients are added to those that are there, as backward() adds them."""
    model, twin = model_of(), model_of()
    for seed, share in ((0, 1.0), (1, 0.25)):
        idx, targets = text(seed=seed)
        loss = gpt.add_gradients(model, idx, targets, share, z_loss=1e-3)
        theirs = twin(idx, targets, z_loss=1e-3)[1] * share
        theirs.backward()
        torch.testing.assert_close(loss, theirs.detach())
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_the_workspace_is_kept_and_holds_nothing_over():
    """Another batch, another shape or another type in between changes no bit."""
    model = model_of()
    first = loss_and_gradients(model, *text(), True)
    kept = model.workspace
    loss_and_gradients(model, *text(seed=5), True)
    assert model.workspace is kept
    loss_and_gradients(model, *text(B=1, T=70), True)
    assert model.workspace is not kept
    again = loss_and_gradients(model, *text(), True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    model.float()
    assert loss_and_gradients(model, *text(), True)[0].dtype == torch.float32
    with torch.no_grad():
        model(*text())
    assert model.workspace is None  # evaluation needs the memory


def test_gradients_of_one_call_outlive_the_next():
    model = model_of()
    loss = model(*text())[1]
    model(*text(seed=3))
    loss.backward()
    expected = loss_and_gradients(model, *text(), True)[1:]
    for p, grad in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p.grad, grad)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "llama3"])
def test_other_models_are_left_to_the_modules(preset):
    cfg = configure(preset, n_layer=1, n_embd=32, n_head=4, n_kv_head=2 if preset == "llama3" else None, block_size=16)
    assert not GPT(dataclasses.replace(cfg, vocab_size=50)).runs_in_one_piece


@pytest.mark.parametrize(
    "change", [dict(tied=True), dict(logit_softcap=15.0), dict(qk_norm=False), dict(n_kv_head=1), dict(norm_gain=True)]
)
def test_one_field_decides(change):
    model = model_of(dataclasses.replace(CFG, **change))
    assert not model.runs_in_one_piece
    idx, targets = text()
    with torch.autocast("cpu", torch.bfloat16):
        assert not model_of().runs_in_one_piece  # autocast casts what modules multiply
    assert torch.isfinite(model(idx, targets)[1])
