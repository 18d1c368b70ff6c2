"""Optimizers over flat buffers: parameter groups, AdamW, Muon, and how processes share a step. rules.py sets the rates.

build() makes the optimizer that a plan names. All weights lie in one float32 buffer, all gradients in another, and so
the optimizer's state; several processes cut the buffers into buckets, whose gradients are summed while the backward
pass still runs, and with --zero1 each process keeps and updates its own part of every bucket.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from isoflop.device import HAS_PRIVATE
from isoflop.optim.param_groups import param_groups

BUCKET = 2**22  # gradients that processes sum in one call: 16 MB, large enough that the start of a call doesn't count

# Newer releases of torch have the same two collectives under new names, and warn of the old ones.
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


# ----- where everything lies -----


@dataclass
class Bucket:
    """A stretch of the flat buffers of weights and gradients: parameters of one group, and perhaps padding."""

    group: dict
    params: list
    at: list[int]  # where each of them starts
    span: slice  # the stretch
    mine: slice  # the part of it that this process updates: the whole, or one of `ranks` equal parts
    own: slice  # where that part lies in the buffers of what this process owns: master, m, v, ema
    flat: tuple = ()  # views of that part of master, grad, m and v
    missing: int = 0  # parameters whose gradient has not arrived in this backward pass
    matrices: dict = field(default_factory=dict)  # Muon's, in `mine`: shape -> where they start in it


def lay_out(groups: list[dict], limit: float, rank: int = 0, ranks: int = 1) -> list[Bucket]:
    """Buckets of about `limit` weights, each shared out over `ranks` in equal contiguous parts.

    AdamW works on single weights, so its buckets are cut anywhere; Muon needs whole matrices, which are dealt out, the
    largest first, to the rank that has least: a bucket holds several for each. With one rank there is no padding.
    """
    buckets, at, owned = [], 0, 0
    for group in groups:
        deal = group.get("muon") and ranks > 1
        for params in _chunks(group["params"], limit, 4 * ranks if deal else 1):
            piles = [params]
            if deal:
                piles = [[] for _ in range(ranks)]
                for p in sorted(params, key=lambda p: -p.numel()):
                    min(piles, key=_size).append(p)
                part = max(map(_size, piles))
            else:
                part = -(-_size(params) // ranks)
            places = []
            for i, pile in enumerate(piles):
                start = at + i * part
                for p in pile:
                    places.append(start)
                    start += p.numel()
            dealt = [p for pile in piles for p in pile]
            mine = slice(at + rank * part, at + (rank + 1) * part)
            bucket = Bucket(group, dealt, places, slice(at, at + ranks * part), mine, slice(owned, owned + part))
            if group.get("muon"):
                bucket.matrices = defaultdict(list)
                for p, start in zip(dealt, places, strict=True):
                    if mine.start <= start < mine.stop:
                        bucket.matrices[tuple(p.shape)].append(start - mine.start)
            buckets.append(bucket)
            at, owned = at + ranks * part, owned + part
    return buckets


def _size(params) -> int:
    return sum(p.numel() for p in params)


def _chunks(params, limit, least):
    """Runs of at least `least` parameters, and not more than needed for `limit` weights."""
    chunks = [[]]
    for i, p in enumerate(params):
        full = _size(chunks[-1]) + p.numel() > limit and len(chunks[-1]) >= least
        if full and len(params) - i >= least:
            chunks.append([])
        chunks[-1].append(p)
    return chunks


# ----- AdamW -----


class FlatAdamW:
    """AdamW over param_groups with all weights in one float32 buffer, all gradients in another, and so the moments.

    The model's parameters become views of `weights`, which is the float32 buffer itself or its copy in a smaller
    type: bf16 alone would lose updates that are small against their weight (3 to 5% of the loss). One flat buffer
    makes of clipping, of the sum over processes and of a group's update one call each.

    Per step: backward() and gather() for each of `pieces` pieces of the batch, then step(lr). Several processes sum
    their gradients once per step: hooks start the sum of a bucket as soon as the last piece's backward has filled it.

    zero1 : each process keeps master weights, moments and mean of its own part of every bucket alone, and updates
        that (Rajbhandari et al. 2020, arXiv:1910.02054, stage 1); gradients are reduce-scattered, weights gathered.
    ema : decay of a running mean of the weights, which finish() leaves in the model. It starts at zero and is divided
        by 1 - ema^steps, as Adam's moments are, so that the initial weights are not in it.
    """

    muon = False

    def __init__(self, model, weight_decay: float, beta2: float, grad_clip: float, dtype=torch.float32, world_size=1,
                 *, zero1=False, pieces=1, ema=0.0):  # fmt: skip
        self.betas, self.grad_clip, self.world_size = (0.9, beta2), grad_clip, world_size
        self.pieces, self.decay = pieces, ema
        self.ranks = world_size if zero1 else 1
        groups = param_groups(model, weight_decay)
        for group in groups:
            group["muon"] = self.muon and group.get("hidden", False)
        groups.sort(key=lambda group: group["muon"])  # v, which Muon lacks, is then a prefix
        rank = dist.get_rank() if self.ranks > 1 else 0
        self.buckets = lay_out(groups, BUCKET if world_size > 1 else math.inf, rank, self.ranks)
        self.order = [p for group in groups for p in group["params"]]
        place = {p: i for i, p in enumerate(model.parameters())}
        self.queue = sorted(self.buckets, key=lambda b: -min(place[p] for p in b.params))
        self.params = [p for b in self.buckets for p in b.params]

        flat = torch.zeros(self.buckets[-1].span.stop, device=self.params[0].device)
        for view, p in zip(self._views(flat), self.params, strict=True):
            view.copy_(p.detach())
        if world_size > 1:
            dist.broadcast(flat, 0)
        self.weights = flat if dtype == torch.float32 else flat.to(dtype)
        self.master = flat if self.ranks == 1 else torch.cat([flat[b.mine] for b in self.buckets])
        self.grad, self.m = torch.zeros_like(flat), torch.zeros_like(self.master)
        self.v = torch.zeros_like(self.m[: sum(b.own.stop - b.own.start for b in self.buckets if not b.group["muon"])])
        self.ema = torch.zeros_like(self.master) if ema else None
        self.grad_views = self._views(self.grad)
        for b in self.buckets:
            b.flat = self.master[b.own], self.grad[b.mine], self.m[b.own], self.v[b.own]
        self.count = torch.zeros((), device=flat.device)  # steps taken
        self.empty = True  # whether grad holds nothing of this step yet
        self._point_at(self.weights)
        self._reset()
        if world_size > 1:
            self._listen()

    def _views(self, flat):
        places = [(at, p) for b in self.buckets for at, p in zip(b.at, b.params, strict=True)]
        return [flat[at : at + p.numel()].view(p.shape) for at, p in places]

    def _point_at(self, flat):
        for p, view in zip(self.params, self._views(flat), strict=True):
            p.data = view

    # ----- gradients, and their sum over processes -----

    def gather(self):
        """Add the parameters' gradients to the flat buffer, in float32, and take them off the parameters."""
        if not self.works:  # else the hooks have taken them
            self._take(self.params, self.grad_views)
        self.empty = False
        self.gathered += 1

    def _take(self, params, views):
        add = torch._foreach_copy_ if self.empty else torch._foreach_add_
        add(views, [p.grad for p in params])
        for p in params:
            p.grad = None

    def _listen(self):
        """Hooks that take a bucket's gradients and start their sum when the last piece's backward has made them all.

        Buckets are started in one order on all ranks, the last in the forward pass first, whatever the order in which
        they fill: collectives pair up by it.
        """
        views = dict(zip(self.params, self.grad_views, strict=True))

        def arrived(p, bucket):
            if self.gathered < self.pieces - 1:
                return
            bucket.missing -= 1
            while len(self.works) < len(self.queue) and not self.queue[len(self.works)].missing:
                ready = self.queue[len(self.works)]
                self._take(ready.params, [views[q] for q in ready.params])
                self.works.append(self._sum(ready))

        for bucket in self.buckets:
            for p in bucket.params:
                p.register_post_accumulate_grad_hook(lambda p, bucket=bucket: arrived(p, bucket))

    def _sum(self, bucket):
        if self.ranks > 1:
            return reduce_scatter(self.grad[bucket.mine], self.grad[bucket.span], async_op=True)
        return dist.all_reduce(self.grad[bucket.span], async_op=True)

    def _reset(self):
        self.empty, self.gathered, self.works = True, 0, []
        for bucket in self.buckets:
            bucket.missing = len(bucket.params)

    def _norm(self):
        """Norm of the summed gradient, on the device."""
        if self.ranks == 1:
            return self.grad.norm()
        squares = torch.stack([self.grad[b.mine].norm().square() for b in self.buckets]).sum()
        dist.all_reduce(squares)
        return squares.sqrt()

    # ----- the update -----

    def step(self, lr: float):
        """Sum over processes, clip the norm of the mean gradient, update; lr is the rate where lr_mult is 1."""
        if self.world_size > 1:
            assert self.gathered == self.pieces and len(self.works) == len(self.buckets), "a piece was not summed"
            for work in self.works:
                work.wait()
        # the update divides by scale: world_size makes the mean, the rest clips; no value leaves the device
        scale = ((self._norm() + 1e-6) / self.grad_clip).clamp(min=self.world_size)
        self.count += 1
        for bucket in self.buckets:
            self._update(bucket, lr * bucket.group["lr_mult"], bucket.group["weight_decay"], scale)
        if self.ema is not None:
            self.ema.lerp_(self.master, 1 - self.decay)
        self._publish()
        self._reset()

    def _update(self, bucket, lr, weight_decay, scale):
        adamw(*bucket.flat, self.count, lr, self.betas, weight_decay, scale)

    def _publish(self):
        """Make `weights` of the master weights."""
        if self.ranks > 1:
            self._whole(self.master, self.weights)
        elif self.weights is not self.master:
            self.weights.copy_(self.master)

    def _whole(self, owned, out=None):
        """A flat buffer of all parts, from the parts that each process owns; v has none of Muon's."""
        if self.ranks == 1:
            return owned
        out = torch.zeros_like(self.grad) if out is None else out
        works = []
        for bucket in self.buckets:
            if bucket.own.stop <= len(owned):
                out[bucket.mine].copy_(owned[bucket.own])
                works.append(all_gather(out[bucket.span], out[bucket.mine], async_op=True))
        for work in works:
            work.wait()
        return out

    def finish(self):
        """Leave the model with the float32 weights that are evaluated and saved: the last, or with ema their mean."""
        last = self.master if self.ema is None else self.ema / (1 - self.decay**self.count)
        self._point_at(self._whole(last))

    def mute(self):
        """Send nothing from here on: for trials after a failure, when other processes may be gone."""
        self.pieces = math.inf
        self._reset()

    # ----- on the disk -----

    def show_master(self):
        """Let the model's parameters be the last float32 weights. With zero1 every process must call it."""
        self._point_at(self._whole(self.master))

    def show_weights(self):
        """Back to the weights that training computes with."""
        self._point_at(self.weights)

    def state_bytes(self) -> int:
        """Bytes that this process holds beyond weights and gradients."""
        held = [self.m, self.v, self.ema] + ([] if self.master is self.weights else [self.master])
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def shares(self) -> dict[str, torch.Tensor] | None:
        """This rank's part of the state: flat buffers, and `first`, the index of their first element. None: no part.

        The buffers are in the order of the groups, without padding, so that any number of processes can load() them,
        with zero1 or not. With zero1 every process must call it, and has one contiguous part to save.
        """
        rank = dist.get_rank() if self.world_size > 1 else 0
        if self.ranks == 1 and rank > 0:
            return None
        part, out = -(-_size(self.params) // self.ranks), {}
        for name in self._kept():
            whole = torch.cat([view.flatten() for view in self._ordered(getattr(self, name))])
            out[name] = whole[rank * part : (rank + 1) * part]
        return out | {"first": torch.tensor(rank * part)}

    def load(self, step: int, flat):
        """Take the state after `step` updates; flat(name, first, last) gives pieces of the whole buffers."""
        for name in self._kept():
            buffer, at = getattr(self, name), 0
            whole = torch.zeros_like(self.grad)
            for view in self._ordered(buffer, whole):
                view.copy_(flat(name, at, at + view.numel()).view(view.shape))
                at += view.numel()
            for bucket in self.buckets:
                if bucket.own.stop <= len(buffer):
                    buffer[bucket.own].copy_(whole[bucket.mine])
        self.count.fill_(step)

    def _kept(self):
        return [name for name in ("m", "v", "ema") if getattr(self, name) is not None]

    def _ordered(self, owned, whole=None):
        """Views of the whole buffer that `owned` is this rank's part of, one a parameter, in the order of the groups.

        v has none of Muon's matrices; they come last.
        """
        whole = self._whole(owned) if whole is None else whole
        views = {
            p: whole[at : at + p.numel()].view(p.shape)
            for b in self.buckets
            if b.own.stop <= len(owned)
            for at, p in zip(b.at, b.params, strict=True)
        }
        return [views[p] for p in self.order if p in views]


# ----- the optimizer's update -----


def adamw(w, grad, m, v, step, lr, betas, weight_decay, scale, eps=1e-8):
    """One AdamW update in place (Loshchilov and Hutter 2019, algorithm 2) with the gradient grad / scale.

    w, grad, m, v : flat tensors, float32 (n,). step : 1 for the first update, a float32 tensor, as scale is.
    """
    if HAS_PRIVATE and w.device.type in ("cpu", "cuda"):
        torch._fused_adamw_(
            [w], [grad], [m], [v], [], [step], lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=weight_decay,
            eps=eps, amsgrad=False, maximize=False, grad_scale=scale, found_inf=None,
        )  # fmt: skip
    else:
        plain_adamw(w, grad, m, v, step, lr, betas, weight_decay, scale, eps)


def plain_adamw(w, grad, m, v, step, lr, betas, weight_decay, scale, eps=1e-8):
    grad = grad / scale
    w.mul_(1 - lr * weight_decay)
    m.lerp_(grad, 1 - betas[0])
    v.lerp_(grad.square(), 1 - betas[1])
    size = (v / (1 - betas[1] ** step)).sqrt_().add_(eps)
    w.sub_(m / (1 - betas[0] ** step) / size * lr)
