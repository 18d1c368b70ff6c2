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
    """In x's own type but for the sums. With y = x / rms: dx = (dy - y mean(dy y)) / rms."""

    @staticmethod
    def forward(ctx, x, eps):
        scale = inverse_rms(x, eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        return norm_backward(dy, *ctx.saved_tensors), None


def layer_norm(x, gain, bias=None, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) along the last dimension, times gain (C,), plus bias (C,)."""
    return F.layer_norm(x, (x.size(-1),), gain, bias, eps)


def inverse_rms(x, eps):
    """(..., C) -> (..., 1)."""
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1))
    return mean_square.add_(eps).rsqrt_()


def norm_backward(dy, y, scale):
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
