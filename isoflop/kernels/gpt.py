"""Loss and gradients of the default model on a CPU, in one node of autograd and in memory that is kept between steps.

A small model's step is some hundreds of calls of a few microseconds each, over rows that are narrower than what a CPU
is fast at. So activations stand here as columns, (C, n), one for each of n = B T tokens: a linear layer is W x, a norm
is a sum over rows of n numbers, a rotation adds one half of the rows to the other, and all run along contiguous memory.
Queries, keys and values are (heads B, hs, T), the softmax P (heads B, keys, queries), so that attention is v P.

The modules of model.py say the same in the usual order, (B, T, C); they serve every other model, device and compiler,
and a test compares the two.
"""

import functools
from types import SimpleNamespace

import torch

from isoflop.kernels.attention import blocks
from isoflop.kernels.cross_entropy import LOG2E, TINY, head_loss, head_rows, in_range


def loss(model, idx, targets, reduction="mean", z_loss=0.0):
    """Cross-entropy of a GPT, as head_loss() returns it; idx, targets int64 (B, T).

    Without gradients the workspace is given up, and one layer's memory serves all.
    """
    weights = weights_of(model)
    if torch.is_grad_enabled():
        return GPTLoss.apply(workspace_of(model, idx), idx, targets, z_loss, *weights)
    model.workspace = None
    y = Workspace(model, idx.shape, keep=False).forward(weights, idx)
    return head_loss(y.t().view(*idx.shape, -1), weights[-1], targets, reduction, None, z_loss)


def add_gradients(model, idx, targets, share=1.0, z_loss=0.0):
    """share * loss(), its gradients added to those of the weights: loss().backward() without autograd's own time."""
    weights = weights_of(model)
    grads = [torch.empty_like(w) for w in weights]
    result = workspace_of(model, idx).run(weights, idx, targets, z_loss, grads)
    if share != 1:
        torch._foreach_mul_([result, *grads], share)
    for w, grad in zip(weights, grads, strict=True):
        w.grad = grad if w.grad is None else w.grad.add_(grad)
    return result


def weights_of(model) -> list:
    """Embedding, four of each layer, head."""
    inner = [(b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj) for b in model.h]
    return [model.wte.weight, *(linear.weight for layer in inner for linear in layer), model.lm_head.weight]


def workspace_of(model, idx) -> "Workspace":
    """The model's, of its last shape, or a new one."""
    found = model.workspace
    if found is None or (found.shape, found.dtype) != (idx.shape, model.wte.weight.dtype):
        model.workspace = None  # freed before the next is made
        with torch.no_grad():
            model.workspace = Workspace(model, idx.shape)
    return model.workspace


class GPTLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, workspace, idx, targets, z_loss, *weights):
        grads = [torch.empty_like(w) for w in weights]
        ctx.save_for_backward(*grads)
        return workspace.run(weights, idx, targets, z_loss, grads)

    @staticmethod
    def backward(ctx, grad):
        return None, None, None, None, *torch._foreach_mul(ctx.saved_tensors, grad)


class Workspace:
    """The memory of one pass over idx (B, T), and the pass.

    shape : (B, T).
    keep : whether each layer keeps what its backward pass needs.
    """

    def __init__(self, model, shape, keep=True):
        cfg, (B, T), dtype = model.config, shape, model.wte.weight.dtype
        C, V, hs, n = cfg.n_embd, cfg.vocab_size, cfg.head_size, B * T
        self.shape, self.dtype, self.hs, self.eps = shape, dtype, hs, torch.tensor(cfg.norm_eps, dtype=dtype)
        self.heads, n_head = cfg.n_head * B, cfg.n_head
        new = functools.partial(torch.empty, dtype=dtype)

        cos, sin = (table[:T].t().to(dtype).contiguous() for table in (model.cos, model.sin))  # (hs / 2, T)
        self.cos, self.sin = torch.cat((cos, cos)), sin
        self.masks = [causal(first, last, new) for first, last in blocks(T)]

        # What is done with gives its place to the next: less memory is more of it in the caches.
        self.x, self.t = new(C, n), new(C, n)  # the residual stream; scratch
        self.rows = self.t.view(n, C)
        # Queries, keys and values as a product makes them, and the same as (3 n_head, B, hs, T): qk and v.
        self.made = new(3 * C, n)
        by_head = self.made.view(3 * n_head, hs, B, T).transpose(1, 2)
        self.made_qk, self.made_v = halves(by_head[: 2 * n_head]), by_head[2 * n_head :]
        self.made_rows = self.made[: 2 * C].view(2 * n_head, hs, n)
        self.z = new(n_head, B, hs, T)
        self.z_heads = self.z.view(self.heads, hs, T)

        self.layers = [self.layer(new, cfg, B, T) for _ in range(cfg.n_layer if keep else 1)]
        if not keep:
            self.layers *= cfg.n_layer
        self.y, self.scale = self.made[:C], new(1, n)  # what the head multiplies
        if keep:
            self.head_columns = -(-n // -(-n // head_rows(V, model.lm_head.weight.device)))  # chunks of equal size
            # Rows a little apart: where their distance is a power of two, they share a few lines of the cache.
            self.logits, self.columns = new(V, self.head_columns + 32), torch.arange(n)
            self.g, self.dy = self.x, new(C, n)  # gradients of x, and of what a norm or attention made
            self.dz_heads = self.dy.view(n_head, hs, B, T).transpose(1, 2)
            self.dot, self.qk_dot = new(1, n), new(2 * n_head, B, 1, T)
            dqkv, ds = new(3 * n_head, B, hs, T), [torch.empty_like(p) for p in self.layers[0].p]
            self.dqk, self.dv, self.delta = dqkv[: 2 * n_head], dqkv[2 * n_head :], new(self.heads, 1, T)
            for at in self.layers:
                at.backward = self.backward_blocks(at, dqkv.view(3, self.heads, hs, T).unbind(), ds)

    def layer(self, new, cfg, B, T):
        """What a layer makes, and keeps for its backward pass."""
        C, F, n, n_head, hs = cfg.n_embd, cfg.n_ffn, B * T, cfg.n_head, self.hs
        qkv = new(3 * n_head, B, hs, T)
        at = SimpleNamespace(qk=halves(qkv[: 2 * n_head]), v=qkv[2 * n_head :], z=new(C, n))
        at.y1, at.scale1, at.y2, at.scale2 = new(C, n), new(1, n), new(C, n), new(1, n)
        at.qk_scale, at.relu, at.square = new(2 * n_head, 1, n), new(F, n), new(F, n)
        at.qk_scale_heads = at.qk_scale.view(2 * n_head, 1, B, T).transpose(1, 2)
        at.z_heads = at.z.view(n_head, hs, B, T).transpose(1, 2)
        at.parts = q, k, v = qkv.view(3, self.heads, hs, T).unbind()
        at.p = [new(self.heads, last, last - first) for first, last in blocks(T)]  # exponentials of the scores
        at.over = new(self.heads, 1, T)  # one over their sums
        at.over_heads = at.over.view(n_head, B, 1, T)
        at.forward = []  # of each block of queries: mask, keys^T, queries, values, z, P, sums
        for (first, last), mask, p in zip(blocks(T), self.masks, at.p, strict=True):
            parts = k[..., :last].transpose(1, 2), q[..., first:last], v[..., :last], self.z_heads[..., first:last]
            at.forward.append((mask, *parts, p, at.over[..., first:last]))
        return at

    def backward_blocks(self, at, grads, ds):
        """Of each block of queries, the last first: keys, queries, values^T, dz, P, dS, -delta, dq, dk, dv, beta."""
        (q, k, v), (dq, dk, dv), T, out = at.parts, grads, self.shape[1], []
        for (first, last), p, s in zip(blocks(T), at.p, ds, strict=True):
            parts = k[..., :last], q[..., first:last], v[..., :last].transpose(1, 2), self.z_heads[..., first:last]
            beta = float(last < T)  # the last meets all keys, and the others add to what it wrote
            into = dq[..., first:last], dk[..., :last], dv[..., :last]
            out.append((*parts, p, s, self.delta[..., first:last], *into, beta))
        return out[::-1]

    def run(self, weights, idx, targets, z_loss, grads):
        """The mean loss; writes the gradients of the weights into grads."""
        with torch.inference_mode():  # nothing is recorded or counted
            self.forward(weights, idx)
            total = self.head(weights[-1], targets.flatten(), grads[-1], z_loss)
            self.backward(weights, idx, grads)
        return total / targets.numel()  # made outside, a tensor like others

    # ----- forward -----

    def forward(self, weights, idx):
        """Embedding, layers and the last norm: (C, n), what the head multiplies."""
        x = self.x
        torch.index_select(weights[0], 0, idx.flatten(), out=self.rows)
        x.copy_(self.rows.t())
        for at, (w_attn, w_proj, w_fc, w_out) in zip(self.layers, by_layer(weights), strict=True):
            self.norm(at.y1, at.scale1)
            torch.mm(w_attn, at.y1, out=self.made)
            self.attend(at)
            x.addmm_(w_proj, at.z)
            self.norm(at.y2, at.scale2)
            relu_(torch.mm(w_fc, at.y2, out=at.relu))
            torch.square(at.relu, out=at.square)
            x.addmm_(w_out, at.square)
        self.norm(self.y, self.scale)
        return self.y

    def norm(self, y, scale):
        """y = x scale, scale = 1 / (root mean square of each column)."""
        torch.square(self.x, out=self.t)
        torch.sum(self.t, 0, keepdim=True, out=scale)
        torch.add(self.eps, scale, alpha=1 / len(y), out=scale).rsqrt_()
        torch.mul(self.x, scale, out=y)

    def attend(self, at):
        """z from the products in `made`: queries and keys normalized and rotated, softmax, values.

        Normalized queries and keys have scores of at most sqrt(hs): their exponentials need no maximum subtracted.
        """
        squares = at.qk[0].view_as(self.made_rows)
        torch.square(self.made_rows, out=squares)
        torch.sum(squares, 1, keepdim=True, out=at.qk_scale)
        torch.add(self.eps, at.qk_scale, alpha=1 / self.hs, out=at.qk_scale).rsqrt_()
        self.made_rows.mul_(at.qk_scale)
        self.rotate(self.made_qk, at.qk)
        at.v.copy_(self.made_v)
        for mask, keys, queries, values, z, p, sums in at.forward:
            torch.baddbmm(mask, keys, queries, alpha=LOG2E * self.hs**-0.5, out=p).exp2_()
            torch.sum(p, 1, keepdim=True, out=sums)
            torch.bmm(values, p, out=z)
        at.over.reciprocal_()
        torch.mul(self.z, at.over_heads, out=at.z_heads)

    def rotate(self, x, out, sign=1):
        """Each pair (x1, x2), one from each half of hs, by its position's angle; x, out : halves()."""
        (x, x1, x2), (out, out1, out2) = x, out
        torch.mul(x, self.cos, out=out)
        out1.addcmul_(x2, self.sin, value=-sign)
        out2.addcmul_(x1, self.sin, value=sign)

    # ----- the loss, and its gradient by what the head multiplies: cross_entropy.HeadLoss in columns -----

    def head(self, weight, targets, dweight, z_loss):
        """Sum of the losses of targets (n,); leaves the mean's gradients by y in dy and by weight in dweight."""
        n, R = len(targets), self.head_columns
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        total = weight.new_zeros((), dtype=exact)
        for at in range(0, n, R):
            y = self.y[:, at : at + R]
            width = y.size(1)
            e, flat = self.logits[:, :width], self.logits.view(-1)
            here = torch.add(self.columns[:width], targets[at : at + R], alpha=self.logits.stride(0))  # of each target
            torch.addmm(e, weight, y, beta=0, alpha=LOG2E, out=e).exp2_()
            s = e.sum(0)
            target = flat.take(here)
            if in_range(s):
                log_s, log_target = s.to(exact).log(), target.to(exact).clamp(min=TINY).log()
            else:
                torch.mm(weight, y, out=e)
                log_target, most = flat.take(here).to(exact), e.amax(0)
                s = e.sub_(most).exp_().sum(0)
                target, log_s = flat.take(here), s.to(exact).log() + most
            total += (log_s - log_target).sum()
            over = (n * s.to(exact)).reciprocal_()
            if z_loss:
                total += z_loss * log_s.square().sum()
                more = 1 + 2 * z_loss * log_s
                s, over = s / more.to(s.dtype), over * more
            flat.put_(here, target - s)
            over = over.to(weight.dtype)
            torch.mm(weight.t(), e, out=self.dy[:, at : at + R]).mul_(over)
            torch.addmm(dweight, e, (y * over).t(), beta=float(at > 0), out=dweight)
        return total

    # ----- backward -----

    def backward(self, weights, idx, grads):
        """All other gradients into grads, from dy."""
        g = self.g
        self.norm_backward(self.y, self.scale, add=False)
        layers = zip(self.layers, by_layer(weights), by_layer(grads), strict=True)
        for at, (w_attn, w_proj, w_fc, w_out), (dw_attn, dw_proj, dw_fc, dw_out) in reversed(list(layers)):
            torch.mm(g, at.square.t(), out=dw_out)
            dhidden = at.square  # done with
            torch.addmm(dhidden, w_out.t(), g, beta=0, alpha=2, out=dhidden).mul_(at.relu)
            torch.mm(dhidden, at.y2.t(), out=dw_fc)
            torch.mm(w_fc.t(), dhidden, out=self.dy)
            self.norm_backward(at.y2, at.scale2)
            torch.mm(g, at.z.t(), out=dw_proj)
            torch.mm(w_proj.t(), g, out=self.dy)
            self.attend_backward(at)
            torch.mm(self.made, at.y1.t(), out=dw_attn)
            torch.mm(w_attn.t(), self.made, out=self.dy)
            self.norm_backward(at.y1, at.scale1)
        # Summed in float32: in bfloat16 a frequent token's gradient would stop growing.
        rows = self.rows.copy_(g.t())
        rows = rows if g.dtype == torch.float64 else rows.float()
        grads[0].copy_(rows.new_zeros(grads[0].shape).index_add_(0, idx.flatten(), rows))

    def norm_backward(self, y, scale, add=True):
        """g (+)= (dy - y mean(dy y)) scale."""
        torch.mul(self.dy, y, out=self.t)
        torch.sum(self.t, 0, keepdim=True, out=self.dot)
        torch.addcmul(self.dy, y, self.dot, value=-1 / len(y), out=self.t)
        if add:
            self.g.addcmul_(self.t, scale)
        else:
            torch.mul(self.t, scale, out=self.g)

    def attend_backward(self, at):
        """From dy, of z, the gradient of what attend() was given, into `made`.

        The softmax is P = E over, E the exponentials: with dz over in place of dz, E stands for P, and dS = E (dP -
        delta), delta = sum over the keys of E dP = z dz summed over a head (Dao 2023, arXiv:2307.08691).
        """
        root, t = self.hs**-0.5, self.t.view_as(self.z)
        torch.mul(self.dz_heads, at.over_heads, out=self.z)
        torch.mul(self.z, at.z_heads, out=t)
        torch.sum(t.view_as(self.z_heads), 1, keepdim=True, out=self.delta).neg_()
        for keys, queries, values, dz, p, ds, delta, dq, dk, dv, beta in at.backward:
            torch.baddbmm(delta, values, dz, out=ds).mul_(p)
            torch.baddbmm(dq, keys, ds, beta=0, alpha=root, out=dq)
            torch.baddbmm(dk, queries, ds.transpose(1, 2), beta=beta, alpha=root, out=dk)
            torch.baddbmm(dv, dz, p.transpose(1, 2), beta=beta, out=dv)
        qk, dqk = at.qk[0], self.dqk  # a rotation changes neither the mean(dy y) of a norm nor its scale
        t = self.made_rows.view_as(dqk)
        torch.mul(dqk, qk, out=t)
        torch.sum(t, 2, keepdim=True, out=self.qk_dot)
        torch.addcmul(dqk, qk, self.qk_dot, value=-1 / self.hs, out=qk).mul_(at.qk_scale_heads)
        self.rotate(at.qk, self.made_qk, -1)
        self.made_v.copy_(self.dv)


def relu_(x):
    """relu in place; of bfloat16 as of int16, which has the same signs and takes a CPU a sixth of the time.

    A NaN with a sign becomes 0. None passes unseen: the residual stream carries those of x to the loss, and weights
    become NaN together, by the norm of the gradient.
    """
    (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).clamp_min_(0)


def causal(first, last, new):
    """(last keys, last - first queries): -inf where a key comes after its query, else 0."""
    return new(last, last - first).fill_(-torch.inf).tril_(-1 - first)


def halves(x) -> tuple:
    """x (.., hs, T), and its first and its second hs / 2."""
    half = x.size(-2) // 2
    return x, x[..., :half, :], x[..., half:, :]


def by_layer(weights):
    """Of [embedding, four of each layer, head], a tuple for each layer."""
    inner = weights[1:-1]
    return [tuple(inner[i : i + 4]) for i in range(0, len(inner), 4)]
