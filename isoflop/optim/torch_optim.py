"""torch.optim's AdamW and Muon, for GPUs and for sharded models."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from isoflop.optim.muon import orthogonal, update_size
from isoflop.optim.param_groups import ordered_groups
from isoflop.optim.saved_state import SavedState, local


class TorchOptimizer(SavedState):
    """torch.optim.AdamW(fused=True) over param_groups(model), with `muon` torch.optim.Muon for the hidden matrices.

    The parameters are float32, plain or sharded by parallel.shard(); so are the moments. Parameters as FlatAdamW.

    muon : None, or what is passed to torch.optim.Muon as adjust_lr_fn.
    inner : type of Muon's iteration where matrices are sharded; torch's own is bfloat16.
    """

    def __init__(self, model, weight_decay: float, beta2: float, grad_clip: float, *, muon=None, inner=torch.bfloat16,
                 ema=0.0):  # fmt: skip
        self.grad_clip, self.decay, self.count = grad_clip, ema, 0
        groups = ordered_groups(model, weight_decay, muon is not None)
        self.params = [p for group in groups for p in group["params"]]
        self.sharded, self.model = isinstance(self.params[0], DTensor), model
        self._name(model)
        vectors = [group for group in groups if not group["muon"]]
        self.parts = [torch.optim.AdamW(vectors, betas=(0.9, beta2), eps=1e-8, fused=True)]
        for p in (p for group in vectors for p in group["params"]):  # as AdamW itself would, at its first step
            zero = torch.zeros((), device=local(p).device)
            self.parts[0].state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if muon is not None:
            matrices = [group for group in groups if group["muon"]]
            if self.sharded:
                self.parts.append(ShardedMuon(matrices, adjust_lr_fn=muon, inner=inner))
            else:
                self.parts.append(torch.optim.Muon(matrices, adjust_lr_fn=muon))
            for p in (p for group in matrices for p in group["params"]):
                self.parts[1].state[p] = {"momentum_buffer": torch.zeros_like(p)}
        self.ema = [torch.zeros_like(p) for p in self.params] if ema else None

    def gather(self):
        """Nothing: autograd adds up the gradients of micro-batches itself, in float32."""

    @torch.no_grad()
    def step(self, lr: float):
        """Clip the norm of the gradient, update; lr is the rate where lr_mult is 1."""
        torch.nn.utils.clip_grad_norm_(self.params, self.grad_clip)
        self.count += 1
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_mult"]
            part.step()
            part.zero_grad()
        for mean, p in zip(self.ema or [], self.params, strict=False):
            local(mean).lerp_(local(p), 1 - self.decay)

    @torch.no_grad()
    def finish(self):
        """Leave the model with the weights that are evaluated and saved: the last, or with ema their mean."""
        if self.sharded:
            self.model.reshard()  # a forward pass alone leaves embedding and head gathered
        for mean, p in zip(self.ema or [], self.params, strict=False):
            local(p).copy_(local(mean) / (1 - self.decay**self.count))

    def show_master(self):
        """Nothing: the model's parameters are the float32 weights."""

    show_weights = show_master

    def tensors(self) -> dict[str, list]:
        adam = self.parts[0].state
        found = {"weights": self.params, "m": [], "v": []}
        for p in self.params:
            if p in adam:
                found["m"].append(adam[p]["exp_avg"])
                found["v"].append(adam[p]["exp_avg_sq"])
            else:
                found["m"].append(self.parts[1].state[p]["momentum_buffer"])
        if self.ema is not None:
            found["ema"] = self.ema
        return found

    def set_count(self, step: int):
        self.count = step
        for state in self.parts[0].state.values():
            state["step"].fill_(step)


class ShardedMuon(torch.optim.Muon):
    """torch.optim.Muon over sharded matrices: each is gathered for its step alone, its momentum stays sharded.

    Every process makes the whole step orthogonal and keeps its own rows of it.
    """

    def __init__(self, params, adjust_lr_fn: str, inner):
        super().__init__(params, adjust_lr_fn=adjust_lr_fn)
        self.inner = inner

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                mean = self.state[p]["momentum_buffer"]
                mean.lerp_(p.grad, 1 - momentum)
                whole = p.grad.lerp(mean, momentum).full_tensor()  # Nesterov's look ahead
                step = orthogonal(whole[None].to(self.inner))[0].to(p.dtype)
                step = distribute_tensor(step, p.device_mesh, p.placements, src_data_rank=None)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(step, alpha=-lr * update_size(group["adjust_lr_fn"], *p.shape))
