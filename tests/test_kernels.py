"""Each fused piece against its plain twin: values and gradients. A slip in place is silent anywhere else."""

import copy
import functools
import math

import pytest
import torch

from isoflop import device
from isoflop.config import ModelConfig
from isoflop.kernels import attention, cross_entropy, elementwise
from isoflop.optim import adamw, param_groups
from model import GPT

EXACT = {torch.float32: dict(rtol=2e-5, atol=2e-6), torch.float64: dict(rtol=1e-11, atol=1e-13)}


def leaves(*shapes, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def compare(fused, plain, inputs, **tolerance):
    """Values and the gradients of every input, under a random weighting of the outputs."""
    out, expected = fused(*inputs), plain(*inputs)
    torch.testing.assert_close(out, expected, **tolerance)
    weighting = torch.randn_like(expected)
    ours, twins = (torch.autograd.grad(o, inputs, weighting) for o in (out, expected))
    for a, b in zip(ours, twins, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, **tolerance)


def test_torch_still_has_the_private_functions():
    """If this fails, a release of torch has renamed one: everything works, slowly, until kernels.PRIVATE is mended."""
    assert device.HAS_PRIVATE, [name for name in device.PRIVATE if not hasattr(torch, name)]
    assert device.fused(torch.zeros(1)) and not device.fused(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("rows", [1, 7, 511, 512, 513, 1200])
def test_head_loss(rows, dtype):
    x, weight = leaves((rows, 12), (37, 12), dtype=dtype, seed=rows)
    targets = torch.randint(37, (rows,))
    compare(
        lambda x, w: cross_entropy.head_loss(x, w, targets),
        lambda x, w: cross_entropy.plain_head_loss(x, w, targets),
        [x, weight],
        **EXACT[dtype],
    )


@pytest.mark.parametrize("size", [1.0, 60.0, 1e3])
@pytest.mark.parametrize("z_loss, softcap", [(0.0, None), (1e-2, None), (1e-2, 5.0)])
def test_head_loss_with_z_loss_and_softcap_at_any_size_of_logits(size, z_loss, softcap):
    """Sums of exponentials beyond float32's range take the path that subtracts the maximum."""
    x, weight = leaves((600, 12), (37, 12), dtype=torch.float64)
    x, weight = (x * size).detach().requires_grad_(), (weight / 3).detach().requires_grad_()
    targets = torch.randint(37, (600,))
    compare(
        lambda x, w: cross_entropy.head_loss(x, w, targets, "mean", softcap, z_loss),
        lambda x, w: cross_entropy.plain_head_loss(x, w, targets, "mean", softcap, z_loss),
        [x, weight],
        rtol=1e-6,
        atol=1e-6 * size,
    )
    assert size == 1 or not cross_entropy.in_range((x @ weight.t()).float().exp().sum(-1))


def test_head_loss_takes_batches_and_leaves_its_inputs_alone():
    x, weight = leaves((3, 50, 16), (99, 16))
    targets = torch.randint(99, (3, 50))
    before = x.clone(), weight.clone()
    compare(lambda *a: cross_entropy.head_loss(*a, targets), lambda *a: cross_entropy.plain_head_loss(*a, targets),
            [x, weight], **EXACT[torch.float32])  # fmt: skip
    assert torch.equal(x, before[0]) and torch.equal(weight, before[1])
    with torch.no_grad():
        each = cross_entropy.head_loss(x, weight, targets, "none")
        assert each.shape == (3, 50)
        torch.testing.assert_close(each, cross_entropy.plain_head_loss(x, weight, targets, "none"))
        mean = cross_entropy.head_loss(x, weight, targets)
    torch.testing.assert_close(mean, each.mean())


def test_head_loss_of_a_hopeless_row_is_large_and_finite():
    x, weight = torch.full((2, 1), 1e3, requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = cross_entropy.head_loss(x, weight, torch.tensor([1, 1]))
    loss.backward()
    assert 80 < loss.item() < math.inf and x.grad.isfinite().all()
    assert cross_entropy.head_loss(x * math.nan, weight, torch.tensor([1, 1])).isnan()


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("n_head, n_kv_head", [(3, 3), (4, 2), (4, 1)])
@pytest.mark.parametrize("T, hs", [(1, 8), (31, 16), (128, 10), (257, 8), (600, 4)])
def test_self_attention(T, hs, n_head, n_kv_head, dtype):
    angles = torch.rand(T, hs // 2, dtype=dtype) * 7
    for rotary, eps in [
        (None, None),
        ((angles.cos(), angles.sin()), 1e-6),
        ((angles.cos(), angles.sin()), None),
        (None, 1e-3),
    ]:
        compare(
            lambda a, rotary=rotary, eps=eps: attention.self_attention(a, n_head, rotary, eps),
            lambda a, rotary=rotary, eps=eps: attention.plain_self_attention(a, n_head, rotary, eps),
            leaves((2, T, n_head + 2 * n_kv_head, hs), dtype=dtype, seed=T),
            rtol=1e-4 if dtype == torch.float32 else 1e-10,
            atol=1e-5 if dtype == torch.float32 else 1e-12,
        )


def test_self_attention_with_scores_beyond_float32s_exponentials():
    (heads,) = leaves((2, 200, 6, 8), seed=5)
    heads = (heads * 12).detach().requires_grad_()
    q, k = heads.transpose(1, 2)[:, :2], heads.transpose(1, 2)[:, 2:4]
    assert not cross_entropy.in_range((q @ k.transpose(-1, -2) / 8**0.5).exp().sum(-1))
    ours, plain = (lambda a, f=f: f(a, 2) for f in (attention.self_attention, attention.plain_self_attention))
    compare(ours, plain, [heads], rtol=1e-3, atol=1e-3)


def test_self_attention_without_grad_and_of_a_view():
    (x,) = leaves((2, 40, 100))
    view = lambda f: lambda x: f(x[:, :, 2:98].view(2, 40, 12, 8), 4)  # noqa: E731
    compare(view(attention.self_attention), view(attention.plain_self_attention), [x], **EXACT[torch.float32])
    with torch.no_grad():
        torch.testing.assert_close(view(attention.self_attention)(x), view(attention.plain_self_attention)(x))


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 34), (2, 1, 2, 40, 8)])
def test_norm_and_relu_squared(shape, dtype):
    compare(elementwise.norm, elementwise.plain_norm, leaves(shape, dtype=dtype), **EXACT[dtype])
    compare(elementwise.relu_squared, elementwise.plain_relu_squared, leaves(shape, dtype=dtype), **EXACT[dtype])
    small = leaves(shape, dtype=dtype)[0].detach() * 1e-3  # the constant in the root counts
    compare(elementwise.norm, elementwise.plain_norm, [small.requires_grad_()], **{**EXACT[dtype], "atol": 1e-4})
    assert elementwise.norm(torch.zeros(shape, dtype=dtype)).abs().max() == 0


@pytest.mark.parametrize("dtype", EXACT)
def test_norms_with_gains_and_activations_by_their_formulas(dtype):
    x, gain, bias = leaves((3, 5, 34), (34,), (34,), dtype=dtype)
    compare(lambda x, g: elementwise.norm(x, g, 1e-3), lambda x, g: x * g / (x * x).mean(-1, True).add(1e-3).sqrt(),
            [x, gain], **EXACT[dtype])  # fmt: skip

    def by_hand(x, g, b=0, eps=1e-5):
        off = x - x.mean(-1, True)
        return off / ((off * off).mean(-1, True) + eps).sqrt() * g + b

    layer_norm = functools.partial(elementwise.layer_norm, eps=1e-3)
    compare(layer_norm, functools.partial(by_hand, eps=1e-3), [x, gain, bias], **EXACT[dtype])
    compare(elementwise.layer_norm, by_hand, [x, gain], **EXACT[dtype])
    compare(elementwise.gelu, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2, [x], **EXACT[dtype])
    bend = lambda x: torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))  # noqa: E731
    compare(lambda x: elementwise.gelu(x, tanh=True), lambda x: x / 2 * (1 + bend(x)), [x], **EXACT[dtype])
    compare(
        elementwise.swiglu, lambda x: x[..., :17] / (1 + torch.exp(-x[..., :17])) * x[..., 17:], [x], **EXACT[dtype]
    )


def test_head_loss_under_autocast_is_in_bf16_with_float32_gradients():
    x, weight = leaves((700, 64), (300, 64))
    targets = torch.randint(300, (700,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy.head_loss(x, weight * 0.1, targets)
    expected = cross_entropy.plain_head_loss(x, weight * 0.1, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    for a, b in zip(*(torch.autograd.grad(value, (x, weight)) for value in (loss, expected)), strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.02 * b.norm()


def test_bf16_is_close_to_float32():
    def error(a, b):
        return ((a.float() - b).norm() / b.norm()).item()

    x, weight = leaves((700, 64), (300, 64), seed=3)
    targets = torch.randint(300, (700,))
    (heads,) = leaves((2, 300, 6, 32), seed=4)
    cos, sin, ramp = torch.rand(300, 16).cos(), torch.rand(300, 16).sin(), torch.linspace(0, 1, 64)
    pieces = [
        (lambda a, b: cross_entropy.head_loss(a, b * 0.1, targets), (x, weight)),
        (lambda a: attention.self_attention(a, 2), (heads,)),
        (lambda a: attention.self_attention(a, 2, (cos.to(a.dtype), sin.to(a.dtype)), 1e-6), (heads,)),
        (lambda a: elementwise.norm(a) * ramp.to(a.dtype), (x,)),
        (elementwise.relu_squared, (x,)),
    ]
    for f, inputs in pieces:
        small = [a.detach().bfloat16().requires_grad_() for a in inputs]
        out, expected = f(*small), f(*inputs)
        assert error(out, expected) < 0.01
        for a, b in zip(
            torch.autograd.grad(out.square().sum(), small),
            torch.autograd.grad(expected.square().sum(), inputs),
            strict=True,
        ):
            assert a.dtype == torch.bfloat16 and error(a, b) < 0.03


# ----- the optimizer -----


@pytest.mark.parametrize("plain", [False, True])
def test_flat_adamw_against_torch(plain, monkeypatch):
    """Twenty steps on random gradients, half of them clipped; the plain update too."""
    monkeypatch.setattr(adamw, "HAS_PRIVATE", not plain)
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_embd=16, block_size=8, vocab_size=40))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    twin = copy.deepcopy(model)
    ours = adamw.FlatAdamW(model, weight_decay=0.1, beta2=0.95, grad_clip=1.0)
    theirs = torch.optim.AdamW(param_groups.param_groups(twin, 0.1), lr=0.0, betas=(0.9, 0.95))
    for step in range(20):
        lr = 0.01 * (step + 1)
        for group in theirs.param_groups:
            group["lr"] = lr * group["lr_mult"]
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p) * 0.01 * (1 + step % 2 * 9)
            q.grad = p.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        assert (norm > 1) == (step % 2 == 1)
        ours.gather()
        ours.step(lr)
        theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)


def test_flat_adamw_sums_pieces_and_keeps_float32_masters():
    model = GPT(ModelConfig(n_layer=1, n_embd=16, block_size=8, vocab_size=40))
    optimizer = adamw.FlatAdamW(model, 0.0, 0.95, 1.0, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for _ in range(2):  # the second round shows that a step starts from nothing
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.5)
            optimizer.gather()
        assert optimizer.grad.dtype == torch.float32 and (optimizer.grad == 1.5).all()
        assert all(p.grad is None for p in model.parameters())
        before = optimizer.master.clone()
        optimizer.step(1e-5)  # smaller than bf16 resolves beside weights of size one
        assert (optimizer.master != before).all()
    optimizer.show_master()
    flat = torch.cat([p.flatten() for p in optimizer.params])
    assert flat.dtype == torch.float32 and torch.equal(flat, optimizer.master)


def test_the_model_is_the_same_without_the_fused_pieces(monkeypatch):
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_embd=32, block_size=300, vocab_size=64))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    idx, targets = torch.randint(64, (2, 2, 300)).unbind()
    results = []
    for has in (True, False):
        monkeypatch.setattr(device, "HAS_PRIVATE", has)
        loss = model(idx, targets)[1]
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_embedding_sums_repeated_rows():
    (weight,) = leaves((5, 7), dtype=torch.float64)
    idx = torch.tensor([[1, 4, 1], [0, 1, 4]])
    compare(lambda w: elementwise.embedding(idx, w), lambda w: w[idx], [weight], **EXACT[torch.float64])
    few = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    elementwise.embedding(torch.zeros(1000, dtype=torch.long), few).sum().backward()
    assert few.grad[0].tolist() == [1000.0] * 3  # a bfloat16 sum of ones stays at 256
