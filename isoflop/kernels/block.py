"""The two halves of the default block, each one node of autograd: x + attention(norm(x)) and x + mlp(norm(x)).

A small model's step on a CPU is some hundreds of calls of a few microseconds each. What modules, separate nodes and
separate additions cost there is a good part of it.
"""

import torch

from isoflop.kernels import attention
from isoflop.kernels.elementwise import norm_backward, normalize


def attention_half(x, w_attn, w_proj, n_head: int, head_size: int, rotary, eps: float, qk_norm: bool):
    """x + attention(norm(x)), (B, T, C) -> (B, T, C).

    w_attn : weight of the queries, keys and values, ((nh + 2 nkv) hs, C). w_proj : (C, C).
    rotary : (cos, sin), (T, hs / 2) each, or None. eps : of the norm, and with qk_norm of queries' and keys'.
    """
    cos, sin = rotary or (None, None)
    return AttentionHalf.apply(x, w_attn, w_proj, n_head, head_size, cos, sin, eps, eps if qk_norm else None)


def mlp_half(x, w_fc, w_proj, eps: float):
    """x + relu(norm(x) w_fc^T)^2 w_proj^T, (B, T, C) -> (B, T, C); w_fc (F, C), w_proj (C, F)."""
    return MLPHalf.apply(x, w_fc, w_proj, eps)


class AttentionHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_attn, w_proj, n_head, head_size, cos, sin, eps, qk_eps):
        B, T, C = x.shape
        rows = x.reshape(-1, C)
        y, scale = normalize(rows, eps)
        heads = (y @ w_attn.t()).view(B, T, -1, head_size)
        z, saved = attention.forward(heads, n_head, cos, sin, qk_eps)
        z = z.view(-1, C)
        ctx.n_head = n_head
        ctx.save_for_backward(y, scale, z, w_attn, w_proj, *saved)
        return torch.addmm(rows, z, w_proj.t()).view(B, T, C)

    @staticmethod
    def backward(ctx, grad):
        y, scale, z, w_attn, w_proj, *saved = ctx.saved_tensors
        rows = grad.reshape(z.shape)
        dz, dw_proj = rows @ w_proj, rows.t() @ z
        dheads = attention.backward(dz.view(grad.shape), ctx.n_head, *saved).view(len(z), -1)
        dy, dw_attn = dheads @ w_attn, dheads.t() @ y
        dx = norm_backward(dy, y, scale).add_(rows).to(grad.dtype)
        return dx.view(grad.shape), dw_attn, dw_proj, None, None, None, None, None, None


class MLPHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_fc, w_proj, eps):
        rows = x.reshape(-1, x.size(-1))
        y, scale = normalize(rows, eps)
        r = (y @ w_fc.t()).relu_()
        a = r * r
        ctx.save_for_backward(y, scale, r, a, w_fc, w_proj)
        return torch.addmm(rows, a, w_proj.t()).view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        y, scale, r, a, w_fc, w_proj = ctx.saved_tensors
        rows = grad.reshape(y.shape)
        dr, dw_proj = (rows @ w_proj).mul_(r).mul_(2), rows.t() @ a
        dy, dw_fc = dr @ w_fc, dr.t() @ y
        dx = norm_backward(dy, y, scale).add_(rows).to(grad.dtype)
        return dx.view(grad.shape), dw_fc, dw_proj, None
