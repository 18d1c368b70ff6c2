"""The optimizer that a plan names."""

import torch

from isoflop.device import weights_dtype
from isoflop.optim.adamw import FlatAdamW
from isoflop.optim.muon import FlatMuon


def build(model, plan, grad_clip: float, dtype: str, device: str, world_size: int = 1, zero1: bool = False):
    """The optimizer that `plan` names; dtype is the name of the compute type.

    Replicas (parallel.py) have the mean gradient of all processes when they step, so that each is alone here.
    """
    weights = weights_dtype(dtype, device)
    common = (model, plan.weight_decay, plan.beta2, grad_clip, weights, world_size if zero1 else 1)
    options = dict(zero1=zero1, micro_batches=-(-plan.batch_size // plan.micro_batch_size), ema=plan.ema)
    if plan.optimizer == "muon":
        return FlatMuon(*common, adjust=plan.muon_adjust, inner=getattr(torch, dtype), **options)
    return FlatAdamW(*common, **options)
