"""The optimizer that a plan names."""

import torch

from isoflop.device import weights_dtype
from isoflop.optim.adamw import FlatAdamW
from isoflop.optim.muon import FlatMuon


def build(model, plan, grad_clip: float, dtype: str, device: str, sharded: bool = False):
    """The optimizer that `plan` names: over flat buffers on a CPU, where they are faster, else torch's own.

    dtype : name of the compute type. sharded : whether the model is parallel.shard()'s.
    """
    common = (model, plan.weight_decay, plan.beta2, grad_clip)
    inner = getattr(torch, dtype)  # of Muon's iteration
    muon = plan.muon_adjust if plan.optimizer == "muon" else None
    if sharded or device != "cpu":
        from isoflop.optim.torch_optim import TorchOptimizer

        return TorchOptimizer(*common, muon=muon, inner=inner, ema=plan.ema)
    weights = weights_dtype(dtype, device)
    if muon:
        return FlatMuon(*common, weights, adjust=muon, inner=inner, ema=plan.ema)
    return FlatAdamW(*common, weights, ema=plan.ema)
