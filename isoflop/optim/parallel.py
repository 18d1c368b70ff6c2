"""Several processes train one model through torch's own engines."""

import contextlib
import inspect
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

SYNC_BUFFERS = "forward_sync_buffers"  # since torch 2.13, which warns of the name before
if SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    SYNC_BUFFERS = "broadcast_buffers"
UNIT = 2**20  # weights


def broadcast_weights(model):
    """Give all processes rank 0's weights, which are theirs already where all have the same kind of machine."""
    for p in model.parameters():
        dist.broadcast(p.data, 0)


def replicate(model, device: str) -> DistributedDataParallel:
    """The model with one copy on each process: a backward pass leaves the mean gradient of all of them.

    Gradients are summed in buckets while the backward pass still runs. The buffers (rotary tables) are never sent.
    """
    devices = [device] if device.startswith("cuda") else None
    buffers = {SYNC_BUFFERS: False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **buffers)


def shard(model, dtype: str, device: str):
    """Let each process hold an equal part of every weight, in place (FSDP2's fully_shard); so it is with gradients.

    Blocks are gathered one after the other, small ones several at once (units()), in the compute type `dtype`, for
    their own part of each pass, on a CPU until the step ends: there speed is short, not memory. Embedding, head and the
    rest are gathered for the whole pass. Gradients are reduced in float32, once a micro-batch. A model on the CPU goes
    to `device` unit by unit: the whole is never there.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.split(":")[0], (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model.in_one_piece = False  # a block gathers its weights when it is called
    for blocks in units(model.h):
        fully_shard(blocks, mesh=mesh, mp_policy=policy, reshard_after_forward=device != "cpu")
    fully_shard(model, mesh=mesh, mp_policy=policy)


def units(blocks) -> list[list]:
    """Consecutive blocks in lists of at least UNIT weights: a smaller message takes longer than what it carries.

    The last list may be smaller. Blocks of models 300 and more wide are lists of their own.
    """
    out, size = [[]], 0
    for block in blocks:
        if size >= UNIT:
            out.append([])
            size = 0
        out[-1].append(block)
        size += sum(p.numel() for p in block.parameters())
    return out


def gather_weights(model) -> dict[str, torch.Tensor]:
    """The whole weights of a sharded model by name, on the CPU of rank 0, elsewhere none; every rank must call it."""
    out = {}
    for name, weight in model.state_dict().items():
        whole = weight.full_tensor()
        if dist.get_rank() == 0:
            out[name] = whole.cpu()
    return out


@contextlib.contextmanager
def accumulate(forward, more: bool) -> Iterator[bool]:
    """Around forward and backward of a micro-batch: whether its gradients can be gathered at the end.

    Replicas sum over the processes once a step: until the last micro-batch the parameters keep their gradients.

    Parameters
    ----------
    forward : the model, or replicate()'s, compiled or not.
    more : whether another micro-batch of the step follows.
    """
    if more and hasattr(forward, "no_sync"):
        with forward.no_sync():
            yield False
    else:
        yield True
