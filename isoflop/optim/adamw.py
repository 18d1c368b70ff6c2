"""AdamW over flat buffers: all weights in one float32 buffer, all gradients in another, and so the moments.

One flat buffer makes one call each of clipping, of the sum over processes and of a group's update. Several processes
cut the buffers into buckets (buckets.py), whose gradients are summed while the backward pass still runs
(gradient_sync.py); with zero1 each process keeps and updates its own part of every bucket alone.
"""

import math

import torch
import torch.distributed as dist

from isoflop.device import HAS_PRIVATE
from isoflop.optim import buckets as buckets_
from isoflop.optim.gradient_sync import GradientSync, gather_parts
from isoflop.optim.param_groups import param_groups

# ----- the update -----


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


# ----- the optimizer -----


class FlatAdamW:
    """AdamW over param_groups(model).

    The model's parameters become views of `weights`, which is the float32 buffer itself or its copy in a smaller type:
    bf16 alone would lose updates that are small against their weight (3 to 5% of the loss). Per step: backward() and
    gather() for each micro-batch, then step(lr).

    Parameters
    ----------
    grad_clip : largest norm of the mean gradient.
    dtype : type of the weights that forward and backward see.
    world_size : processes that share a step; all hold the same model.
    zero1 : each process keeps master weights, moments and mean of its own part of every bucket alone, and updates that
        (Rajbhandari et al. 2020, arXiv:1910.02054, stage 1); gradients are reduce-scattered, weights gathered.
    micro_batches : backward passes per step.
    ema : decay of a running mean of the weights, which finish() leaves in the model. It starts at zero and is divided
        by 1 - ema^steps, as Adam's moments are, so that the initial weights are not in it.
    """

    muon = False

    def __init__(self, model, weight_decay: float, beta2: float, grad_clip: float, dtype=torch.float32, world_size=1,
                 *, zero1=False, micro_batches=1, ema=0.0):  # fmt: skip
        self.betas, self.grad_clip, self.world_size = (0.9, beta2), grad_clip, world_size
        self.decay, self.sharded = ema, zero1 and world_size > 1
        self._lay_out(model, weight_decay)
        self._allocate(dtype)
        self.sync = None
        if world_size > 1:
            self.sync = GradientSync(model, self.buckets, self.grad, self._collect_bucket, micro_batches, self.sharded)

    def _lay_out(self, model, weight_decay):
        """Parameters to groups, groups to buckets."""
        groups = param_groups(model, weight_decay)
        for group in groups:
            group["muon"] = self.muon and group.get("hidden", False)
        groups.sort(key=lambda group: group["muon"])  # v, which Muon lacks, is then a prefix
        self.order = [p for group in groups for p in group["params"]]
        limit = buckets_.BUCKET if self.world_size > 1 else math.inf
        if self.sharded:
            self.buckets = buckets_.lay_out(groups, limit, dist.get_rank(), self.world_size)
        else:
            self.buckets = buckets_.lay_out(groups, limit)
        self.params = [p for bucket in self.buckets for p in bucket.params]

    def _allocate(self, dtype):
        """The flat buffers, with the initial weights of rank 0 in them, and the parameters as views of them."""
        flat = torch.zeros(self.buckets[-1].span.stop, device=self.params[0].device)
        for view, p in zip(self._views(flat), self.params, strict=True):
            view.copy_(p.detach())
        if self.world_size > 1:
            dist.broadcast(flat, 0)
        self.weights = flat if dtype == torch.float32 else flat.to(dtype)
        self.master = torch.cat([flat[b.mine] for b in self.buckets]) if self.sharded else flat
        self.grad, self.m = torch.zeros_like(flat), torch.zeros_like(self.master)
        with_v = [bucket for bucket in self.buckets if not bucket.group["muon"]]
        self.v = torch.zeros_like(self.m[: sum(b.own.stop - b.own.start for b in with_v)])
        self.ema = torch.zeros_like(self.master) if self.decay else None
        self.grad_views = dict(zip(self.params, self._views(self.grad), strict=True))
        for bucket in self.buckets:
            own = bucket.own
            bucket.flat = self.master[own], self.grad[bucket.mine], self.m[own], self.v[own]
        self.count = torch.zeros((), device=flat.device)  # steps taken
        self.empty = True  # whether grad holds nothing of this step yet
        self._point_at(self.weights)

    def _views(self, flat, buckets=None) -> list:
        """Views of a whole flat buffer, one a parameter, in the order of self.params (or of some buckets' params)."""
        views = []
        for bucket in buckets or self.buckets:
            for at, p in zip(bucket.at, bucket.params, strict=True):
                views.append(flat[at : at + p.numel()].view(p.shape))
        return views

    def _point_at(self, flat):
        for p, view in zip(self.params, self._views(flat), strict=True):
            p.data = view

    # ----- gradients -----

    def gather(self):
        """Add the parameters' gradients to the flat buffer, in float32, and take them off the parameters."""
        if self.sync is None or not self.sync.works:  # else the hooks have collected them
            self._collect(self.params)
        self.empty = False
        if self.sync is not None:
            self.sync.done += 1

    def _collect_bucket(self, bucket):
        self._collect(bucket.params)

    def _collect(self, params):
        add = torch._foreach_copy_ if self.empty else torch._foreach_add_
        add([self.grad_views[p] for p in params], [p.grad for p in params])
        for p in params:
            p.grad = None

    def mute(self):
        """Send nothing from here on: for trials after a failure, when other processes may be gone."""
        self.empty = True
        if self.sync is not None:
            self.sync.mute()

    # ----- the step -----

    def step(self, lr: float):
        """Sum over processes, clip the norm of the mean gradient, update; lr is the rate where lr_mult is 1."""
        if self.sync is not None:
            self.sync.wait()
        norm = self.grad.norm() if self.sync is None else self.sync.norm()
        # the update divides by scale: world_size makes the mean, the rest clips; no value leaves the device
        scale = ((norm + 1e-6) / self.grad_clip).clamp(min=self.world_size)
        self.count += 1
        for bucket in self.buckets:
            self._update(bucket, lr * bucket.group["lr_mult"], bucket.group["weight_decay"], scale)
        if self.ema is not None:
            self.ema.lerp_(self.master, 1 - self.decay)
        self._publish()
        self.empty = True
        if self.sync is not None:
            self.sync.reset()

    def _update(self, bucket, lr, weight_decay, scale):
        adamw(*bucket.flat, self.count, lr, self.betas, weight_decay, scale)

    def _publish(self):
        """Copy the master weights to `weights`."""
        if self.sharded:
            gather_parts(self.master, self.buckets, self.weights)
        elif self.weights is not self.master:
            self.weights.copy_(self.master)

    def whole(self, owned):
        """A whole flat buffer from the parts that each process owns; with zero1 every process must call it."""
        return gather_parts(owned, self.buckets, torch.zeros_like(self.grad)) if self.sharded else owned

    def finish(self):
        """Leave the model with the float32 weights that are evaluated and saved: the last, or with ema their mean."""
        last = self.master if self.ema is None else self.ema / (1 - self.decay**self.count)
        self._point_at(self.whole(last))

    def show_master(self):
        """Let the model's parameters be the last float32 weights. With zero1 every process must call it."""
        self._point_at(self.whole(self.master))

    def show_weights(self):
        """Back to the weights that training computes with."""
        self._point_at(self.weights)

    # ----- the state: its size, and to and from the disk -----

    def state_bytes(self) -> int:
        """Bytes that this process holds beyond weights and gradients."""
        held = [self.m, self.v]
        if self.ema is not None:
            held.append(self.ema)
        if self.master is not self.weights:
            held.append(self.master)
        return sum(t.numel() * t.element_size() for t in held)

    def shares(self) -> dict[str, torch.Tensor] | None:
        """This rank's part of the state: flat buffers, and `first`, the index of their first element. None: no part.

        The buffers are in the order of the groups, without padding, so that any number of processes can load() them,
        with zero1 or not. With zero1 every process must call it, and has one contiguous part to save.
        """
        rank = dist.get_rank() if self.world_size > 1 else 0
        if rank > 0 and not self.sharded:
            return None
        part = buckets_.n_weights(self.params)
        if self.sharded:
            part = -(-part // self.world_size)
        out = {"first": torch.tensor(rank * part)}
        for name in self._saved():
            owned = getattr(self, name)
            flat = torch.cat([view.flatten() for view in self._in_order(self.whole(owned), len(owned))])
            out[name] = flat[rank * part : (rank + 1) * part]
        return out

    def load(self, step: int, flat):
        """Take the state after `step` updates; flat(name, first, last) gives pieces of the whole buffers."""
        for name in self._saved():
            owned = getattr(self, name)
            whole = torch.zeros_like(self.grad)
            at = 0
            for view in self._in_order(whole, len(owned)):
                view.copy_(flat(name, at, at + view.numel()).view(view.shape))
                at += view.numel()
            for bucket in self.buckets:
                if bucket.own.stop <= len(owned):
                    owned[bucket.own].copy_(whole[bucket.mine])
        self.count.fill_(step)

    def _saved(self) -> list[str]:
        return ["m", "v"] if self.ema is None else ["m", "v", "ema"]

    def _in_order(self, whole, owned: int) -> list:
        """Views of a whole buffer, one a parameter, in the order of the groups.

        owned : length of this process's part, which tells v from the rest: it ends before Muon's matrices.
        """
        covered = [bucket for bucket in self.buckets if bucket.own.stop <= owned]
        params = [p for bucket in covered for p in bucket.params]
        views = dict(zip(params, self._views(whole, covered), strict=True))
        return [views[p] for p in self.order if p in views]
