"""torch.compile around the model: whether it pays, which mode it has, and what happens where there is no compiler."""

import functools

import torch

from isoflop import gpus
from isoflop.options import UserError

# By estimate, not measured here: a model takes a minute to compile on a GPU and gains a fifth or more, so that runs
# of several minutes pay.
PAYS_FROM_S = 300  # seconds that the run takes without it
PEAK, MFU = 100e12, 0.4  # FLOP/s of a GPU that gpus.py doesn't know, and the share of a peak that a step reaches
LAYER_S = 5e-4  # seconds of forward and backward through a layer that is too small for a GPU: the time of its launches


def pays(plan, n_layer: int, device_name: str) -> bool:
    """Whether a run on this GPU is long enough to be compiled by default.

    plan : the run's RunPlan, of which one of world_size processes does its part.
    """
    gpu = gpus.find(device_name)
    peak = gpu.peak if gpu else PEAK
    passes = plan.steps * -(-plan.batch_size // plan.micro_batch_size)
    by_flops = plan.flops_exact / plan.world_size / (MFU * peak)
    return max(by_flops, passes * n_layer * LAYER_S) >= PAYS_FROM_S


def wanted(compile: bool | None, mode: str, plan, n_layer: int, device: str, device_name: str) -> bool:
    """Whether a run is compiled: as --compile says, by default on CUDA where it pays.

    UserError where --compile_mode reduce-overhead can't be had: its CUDA graphs take one micro-batch and one process.
    """
    if compile is None:
        compile = mode != "default" or (device.startswith("cuda") and pays(plan, n_layer, device_name))
    if not compile or mode == "default":
        return compile
    if plan.world_size > 1:
        raise UserError("--compile_mode reduce-overhead takes one process: leave it out or leave torchrun out")
    if plan.micro_batch_size < plan.batch_size:
        raise UserError(
            f"--compile_mode reduce-overhead takes the batch at once: leave it out, or give --micro_batch_size "
            f"{plan.batch_size}"
        )
    return compile


@functools.cache
def problem(device: str) -> str:
    """Why nothing can be compiled for a device here, in one line; empty where a small function can, with gradient."""

    def small(x):
        return (x.sin() * 2).sum()

    try:
        torch.compile(small)(torch.ones(8, device=device, requires_grad=True)).backward()
    except Exception as error:  # of the compiler, of a C++ compiler or Triton that is not there: any may be raised
        return " ".join((str(error) or type(error).__name__).split())[:200]
    return ""


def compiled(forward, mode: str, env, say):
    """The compiled `forward`, or itself, with a line that says why, where a process has no compiler."""
    reason = problem(env.device)
    if env.any(bool(reason)):
        say(f"warning: no compiler here, the run continues without --compile ({reason or 'on another process'})")
        return forward
    return torch.compile(forward, mode=None if mode == "default" else mode)
