"""Causal self-attention: a fused CPU version beside its plain reference."""

import functools
import math

import torch
import torch.nn.functional as F

from isoflop.device import fused
from isoflop.kernels.cross_entropy import LOG2E, in_range
from isoflop.kernels.elementwise import (
    full_angles,
    inverse_rms,
    norm_backward,
    plain_norm,
    rotate,
    rotate_with,
    wide,
)


def self_attention(heads, n_head: int, rotary=None, eps=None):
    """Attention over what one product has made of x: heads (B, T, nh + 2 nkv, hs), queries, keys, values -> (B, T, C).

    Causal, the scores over sqrt(hs); each key head serves nh / nkv query heads in a row (grouped queries, Ainslie et
    al. 2023, arXiv:2305.13245). Queries and keys are normalized where eps is given, and rotated where rotary is: (cos,
    sin), (T, hs / 2) each.
    """
    if fused(heads):
        return SelfAttention.apply(heads, n_head, *(rotary or (None, None)), eps)
    return plain_self_attention(heads, n_head, rotary, eps)


def plain_self_attention(heads, n_head, rotary=None, eps=None):
    B, T, H, hs = heads.shape
    n_kv_head = (H - n_head) // 2
    qk, v = heads.transpose(1, 2).split((n_head + n_kv_head, n_kv_head), dim=1)
    qk = qk if eps is None else plain_norm(qk, eps=eps)
    q, k = (rotate(qk, *rotary) if rotary else qk).split((n_head, n_kv_head), dim=1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=n_kv_head < n_head)
    return y.transpose(1, 2).reshape(B, T, n_head * hs)


QUERY_BLOCK = 128  # queries taken at a time: each block meets the keys up to its own last one alone


class SelfAttention(torch.autograd.Function):
    """Batched products and exponentials in place. At these sizes torch's blocked CPU kernel costs more than it saves.

    Heads come first in memory, (nh + 2 nkv, B, T, hs), so that queries, keys and values are slices for the batched
    products, and their gradients too: one copy in, one out. They are normalized and rotated there, too.
    """

    @staticmethod
    def forward(ctx, heads, n_head, cos, sin, eps):
        B, T, H, hs = heads.shape
        sizes = sizes_of(H, n_head)
        packed = heads.permute(2, 0, 1, 3).clone(memory_format=torch.contiguous_format)
        angles = (None, None) if cos is None else full_angles(cos, sin)
        scale = norm_rotate_(packed[: -sizes[2]], *angles, eps)
        q, k, v = (a.view(-1, T, hs) for a in expand_kv(packed, sizes))
        y, kept = attend(q, k, v)
        ctx.sizes = sizes
        ctx.save_for_backward(packed, scale, *angles, *kept)
        return y.view(n_head, B, T, hs).permute(1, 2, 0, 3).reshape(B, T, n_head * hs)

    @staticmethod
    def backward(ctx, dy):
        packed, scale, cos, sin, *kept = ctx.saved_tensors
        (B, T, hs), sizes = packed.shape[1:], ctx.sizes
        dy = dy.view(B, T, sizes[0], hs).permute(2, 0, 1, 3).contiguous().view(-1, T, hs)
        q, k, v = (a.view(-1, T, hs) for a in expand_kv(packed, sizes))
        grad = torch.empty_like(packed)
        if sizes[0] == sizes[1]:
            attend_backward(dy, q, k, v, kept, *(a.view(-1, T, hs) for a in grad.split(sizes)))
        else:
            expanded = [torch.empty_like(q) for _ in range(3)]
            attend_backward(dy, q, k, v, kept, *expanded)
            for part, full in zip(grad.split(sizes), expanded, strict=True):
                torch.sum(full.view(len(part), -1, B, T, hs), 1, out=part)
        dqk = full = grad[: -sizes[2]]
        if scale is not None:  # a rotation changes neither the mean(dy y) of a norm nor its scale
            full = norm_backward(full, packed[: -sizes[2]], scale)
        if cos is not None:
            full = rotate_with(wide(full), cos, sin, back=True)
        if full is not dqk:
            dqk.copy_(full)
        return grad.permute(1, 2, 0, 3).contiguous(), None, None, None, None


def sizes_of(heads: int, n_head: int) -> tuple[int, int, int]:
    """How many of the heads are queries, keys and values."""
    n_kv_head = (heads - n_head) // 2
    return n_head, n_kv_head, n_kv_head


def norm_rotate_(qk, cos, sin, eps):
    """Normalize qk (heads, B, T, hs) if eps is given and rotate it if cos is, in place; the norm's scale or None."""
    full, scale = wide(qk), None
    if eps is not None:
        scale = inverse_rms(full, eps)
        full = full * scale
    if cos is not None:
        full = rotate_with(full, cos, sin)
    if full is not qk:
        qk.copy_(full)
    return scale


def expand_kv(packed, sizes):
    """Queries, keys, values; keys and values once for each query head that they serve."""
    q, k, v = packed.split(sizes)
    group = sizes[0] // sizes[1]
    return (q, k, v) if group == 1 else (q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0))


def attend(q, k, v):
    """Attention over (heads, T, hs), and what its backward pass needs: per block of queries, the softmax P.

    The exponentials E of the scores are not shifted by their maximum, which spares a pass and the mask: what lies
    after its query is set to zero. Where a sum leaves float32's range, the block goes through the safe softmax.
    """
    (T, hs), y, kept = q.shape[1:], torch.empty_like(q), []
    for first, last in blocks(T):
        p = q.new_empty(len(q), last - first, last)
        qb, kb = q[:, first:last], k[:, :last].transpose(1, 2)
        torch.baddbmm(p, qb, kb, beta=0, alpha=LOG2E * hs**-0.5, out=p).exp2_().tril_(first)
        s = p.sum(-1, keepdim=True)
        if in_range(s):
            p *= s.reciprocal_()
        else:
            torch.baddbmm(causal_mask(first, last, q.dtype), qb, kb, alpha=hs**-0.5, out=p)
            torch._softmax(p, -1, False, out=p)
        torch.bmm(p, v[:, :last], out=y[:, first:last])
        kept.append(p)
    return y, kept


def attend_backward(dy, q, k, v, kept, dq, dk, dv):
    """Per block dv = P^T dy, dS = softmax' (dy v^T), dq = dS k / sqrt(hs), dk = dS^T q / sqrt(hs), into the last three.

    The last block comes first, and meets all keys; the others add to what it wrote.
    """
    T, hs = q.shape[1:]
    for (first, last), p in reversed(list(zip(blocks(T), kept, strict=True))):
        qb, kb, vb, dyb = q[:, first:last], k[:, :last], v[:, :last], dy[:, first:last]
        ds = torch.bmm(dyb, vb.transpose(1, 2))
        torch._softmax_backward_data(ds, p, -1, p.dtype, grad_input=ds)
        more = dict(beta=float(last < T))
        torch.baddbmm(dq[:, first:last], ds, kb, beta=0, alpha=hs**-0.5, out=dq[:, first:last])
        torch.baddbmm(dk[:, :last], ds.transpose(1, 2), qb, alpha=hs**-0.5, out=dk[:, :last], **more)
        torch.baddbmm(dv[:, :last], p.transpose(1, 2), dyb, out=dv[:, :last], **more)


@functools.lru_cache(64)
def causal_mask(first: int, last: int, dtype: torch.dtype):
    """(last - first, last): -inf where a key lies after its query, 0 elsewhere; queries first .. last - 1."""
    return torch.full((last - first, last), -math.inf, dtype=dtype).triu_(first + 1)


def blocks(T: int) -> list[tuple[int, int]]:
    return [(first, min(first + QUERY_BLOCK, T)) for first in range(0, T, QUERY_BLOCK)]
