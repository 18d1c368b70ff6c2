"""AdamW over flat buffers: all weights in one float32 buffer, all gradients in another, and so the moments.

One flat buffer makes one call each of clipping and of a group's update, which is what a small model on a CPU saves time
by. Elsewhere torch.optim does the same (torch_optim.py). Replicas (parallel.py) step with their mean gradient, each
for itself.
"""

import torch

from isoflop.device import HAS_PRIVATE
from isoflop.optim.param_groups import ordered_groups
from isoflop.optim.saved_state import SavedState

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


class FlatAdamW(SavedState):
    """AdamW over param_groups(model).

    The model's parameters become views of `weights`, which is the float32 buffer itself or its copy in a smaller type:
    bf16 alone would lose updates that are small against their weight (3 to 5% of the loss). Per step: backward() and
    gather() for each micro-batch (of replicas: gather() once, after the last), then step(lr).

    Parameters
    ----------
    grad_clip : largest norm of the gradient.
    dtype : type of the weights that forward and backward see.
    ema : decay of a running mean of the weights, which finish() leaves in the model. It starts at zero and is divided
        by 1 - ema^steps, as Adam's moments are, so that the initial weights are not in it.
    """

    muon = False

    def __init__(self, model, weight_decay: float, beta2: float, grad_clip: float, dtype=torch.float32, *, ema=0.0):
        self.betas, self.grad_clip, self.decay = (0.9, beta2), grad_clip, ema
        self.groups = ordered_groups(model, weight_decay, self.muon)
        self.params = [p for group in self.groups for p in group["params"]]
        self._name(model)
        self._allocate(dtype)

    def _allocate(self, dtype):
        """The flat buffers, with the initial weights in them, and the parameters as views of them."""
        flat = torch.cat([p.detach().flatten() for p in self.params])
        self.master = flat
        self.weights = flat if dtype == torch.float32 else flat.to(dtype)
        self.grad, self.m = torch.zeros_like(flat), torch.zeros_like(flat)
        self.v = torch.zeros_like(flat[: sum(p.numel() for g in self.groups if not g["muon"] for p in g["params"])])
        self.ema = torch.zeros_like(flat) if self.decay else None
        self.grad_views = self._views(self.grad)
        start = 0
        for group in self.groups:
            stop = start + sum(p.numel() for p in group["params"])
            group["flat"] = [buffer[start:stop] for buffer in (flat, self.grad, self.m, self.v)]
            start = stop
        self.count = torch.zeros((), device=flat.device)  # steps taken
        self.empty = True  # whether grad holds nothing of this step yet
        self._point_at(self.weights)

    def _views(self, flat) -> list:
        """Views of a flat buffer, one a parameter, in the order of the groups; v ends before Muon's."""
        views, start = [], 0
        for p in self.params:
            if start < len(flat):
                views.append(flat[start : start + p.numel()].view(p.shape))
            start += p.numel()
        return views

    def _point_at(self, flat):
        for p, view in zip(self.params, self._views(flat), strict=True):
            p.data = view

    # ----- the step -----

    def gather(self):
        """Add the parameters' gradients to the flat buffer, in float32, and take them off the parameters."""
        add = torch._foreach_copy_ if self.empty else torch._foreach_add_
        add(self.grad_views, [p.grad for p in self.params])
        for p in self.params:
            p.grad = None
        self.empty = False

    def step(self, lr: float):
        """Clip the norm of the gradient, update; lr is the rate where lr_mult is 1."""
        scale = ((self.grad.norm() + 1e-6) / self.grad_clip).clamp(min=1)  # no value leaves the device
        self.count += 1
        for group in self.groups:
            self._update(group, lr * group["lr_mult"], group["weight_decay"], scale)
        if self.ema is not None:
            self.ema.lerp_(self.master, 1 - self.decay)
        self.publish()
        self.empty = True

    def _update(self, group, lr, weight_decay, scale):
        adamw(*group["flat"], self.count, lr, self.betas, weight_decay, scale)

    def publish(self):
        """Copy the master weights to `weights`."""
        if self.weights is not self.master:
            self.weights.copy_(self.master)

    def finish(self):
        """Leave the model with the float32 weights that are evaluated and saved: the last, or with ema their mean."""
        self._point_at(self.master if self.ema is None else self.ema / (1 - self.decay**self.count))

    def show_master(self):
        """Let the model's parameters be the last float32 weights."""
        self._point_at(self.master)

    def show_weights(self):
        """Back to the weights that training computes with."""
        self._point_at(self.weights)

    # ----- the state -----

    def state_bytes(self) -> int:
        """Bytes beyond weights and gradients."""
        held = [self.m, self.v]
        if self.ema is not None:
            held.append(self.ema)
        if self.master is not self.weights:
            held.append(self.master)
        return sum(t.numel() * t.element_size() for t in held)

    def tensors(self) -> dict[str, list]:
        found = {"weights": self._views(self.master), "m": self._views(self.m), "v": self._views(self.v)}
        if self.ema is not None:
            found["ema"] = self._views(self.ema)
        return found

    def set_count(self, step: int):
        self.count.fill_(step)
        self.publish()
