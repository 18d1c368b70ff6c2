"""Normalization, rotary positions and activations: fused CPU versions beside their plain references."""

import torch
import torch.nn.functional as F

from isoflop.device import fused

NORM_EPS = 1e-6  # a tiny x is not blown up; the same in every type, unlike F.rms_norm's default, which is 0.008 in bf16


def norm(x, gain=None, eps=NORM_EPS):
    """x over its root mean square along the last dimension, times gain (C,)."""
    if not fused(x):
        return plain_norm(x, gain, eps)
    y = Norm.apply(x, eps)
    return y if gain is None else y * gain


def plain_norm(x, gain=None, eps=NORM_EPS):
    return F.rms_norm(x, (x.size(-1),), gain, eps)


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        y, scale = normalize(x, eps)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return norm_backward(dy, *ctx.saved_tensors).to(dy.dtype), None


def layer_norm(x, gain, bias=None, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) along the last dimension, times gain (C,), plus bias (C,)."""
    return F.layer_norm(x, (x.size(-1),), gain, bias, eps)


def wide(x):
    """x (..., C), in float32 where it is bfloat16 and C no multiple of 32.

    There a CPU takes up to eight times as long in bfloat16 for what meets a (..., 1), or is summed over C (LOG
    2026-11-26). Elsewhere bfloat16 has half of the memory traffic.
    """
    return x.float() if x.dtype == torch.bfloat16 and x.size(-1) % 32 else x


def inverse_rms(x, eps):
    """(..., C) -> (..., 1)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1))
    return mean_square.add_(eps).rsqrt_()


def normalize(x, eps):
    """norm(x) in x's type, and what x was multiplied by, (..., 1), in wide()'s type."""
    full = wide(x)
    scale = inverse_rms(full, eps)
    return (full * scale).to(x.dtype), scale


def norm_backward(dy, y, scale):
    """With y = x scale: dx = (dy - y mean(dy y)) scale, in wide()'s type."""
    dy, y = wide(dy), wide(y)
    dot = (dy * y).sum(-1, keepdim=True)
    return torch.addcmul(dy, y, dot, value=-1 / y.size(-1)).mul_(scale)


def rotate(x, cos, sin):
    """Each pair (x1, x2), one from each half of the last dimension, rotated by the angle of its position.

    x (..., T, hs); cos, sin (T, hs / 2).
    """
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)


def norm_rotate(x, cos, sin, eps=NORM_EPS):
    """rotate(norm(x, eps=eps), cos, sin): queries and keys; self_attention() has its own."""
    return rotate(plain_norm(x, eps=eps), cos, sin)


def full_angles(cos, sin):
    """(T, hs / 2) -> (T, hs): rotate() as y cos + swap(y) sin, with the halves of y swapped."""
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate_with(y, cos, sin, back=False):
    """rotate() with full_angles(); back=True rotates by the opposite angle, for gradients."""
    return (y * cos).addcmul_(y.roll(y.size(-1) // 2, -1), sin, value=-1 if back else 1)


def embedding(idx, weight):
    """Rows of weight (V, C) at idx: (...) int64 -> (..., C)."""
    return Embedding.apply(idx, weight) if fused(weight) else F.embedding(idx, weight)


class Embedding(torch.autograd.Function):
    """Gradients are summed in float32 at least; torch's own CPU kernel sums in the weight's type, in 2 to 5 times the
    time."""

    @staticmethod
    def forward(ctx, idx, weight):
        ctx.save_for_backward(idx)
        ctx.shape = weight.shape
        return F.embedding(idx, weight)

    @staticmethod
    def backward(ctx, dy):
        (idx,) = ctx.saved_tensors
        rows = dy.reshape(-1, ctx.shape[1])
        rows = rows if dy.dtype == torch.float64 else rows.float()
        return None, rows.new_zeros(ctx.shape).index_add_(0, idx.flatten(), rows).to(dy.dtype)


def relu_squared(x):
    return ReluSquared.apply(x) if fused(x) else plain_relu_squared(x)


def plain_relu_squared(x):
    return F.relu(x).square()


class ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        r = x.relu()
        ctx.save_for_backward(r)
        return r.square()

    @staticmethod
    def backward(ctx, dy):
        (r,) = ctx.saved_tensors
        return (dy * r).mul_(2)


def gelu(x, tanh=False):
    """x times the normal distribution function at x, exact or with Hendrycks and Gimpel's tanh (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh" if tanh else "none")


def swiglu(x):
    """silu(gate) * up, the halves of x's last dimension in that order (Shazeer 2020, arXiv:2002.05202)."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
