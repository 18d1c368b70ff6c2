"""The optimizer's state to and from the disk, the same for flat buffers and for torch.optim."""

from abc import ABC, abstractmethod

import torch


class SavedState(ABC):
    """State that any optimizer here can load, whichever saved it and on how many processes.

    A subclass has `params`, in the order of the groups (Muon's last), and calls _name(model); tensors() gives its state
    and set_count(step) sets the steps taken, after the tensors were filled.
    """

    sharded = False  # whether a process holds a part of every tensor alone

    def _name(self, model):
        names = {p: name for name, p in model.named_parameters()}
        self.names = [names[p] for p in self.params]

    @abstractmethod
    def tensors(self) -> dict[str, list]:
        """float32 weights, m, v and perhaps ema: one tensor a parameter, in order; v ends before Muon's matrices."""

    @abstractmethod
    def set_count(self, step: int):
        """Set the number of updates taken, by which moments are corrected."""

    def named(self) -> dict[str, torch.Tensor]:
        """The tensors by name, as "m.h.0.attn.c_attn.weight": what a sharded checkpoint holds."""
        return {
            f"{kind}.{name}": tensor.detach()
            for kind, tensors in self.tensors().items()
            for name, tensor in zip(self.names, tensors, strict=False)  # v is shorter
        }

    def flat(self) -> dict[str, torch.Tensor]:
        """m, v and ema as flat buffers, and `first`, the index of their first element; not of a sharded state."""
        out = {"first": torch.tensor(0)}
        for kind, tensors in self.tensors().items():
            if kind != "weights":
                out[kind] = torch.cat([tensor.flatten() for tensor in tensors])
        return out

    def load(self, step: int, flat):
        """Take the state after `step` updates; flat(kind, first, last) gives pieces of the flat buffers."""
        for kind, tensors in self.tensors().items():
            at = 0
            for tensor in tensors:
                if kind != "weights":
                    put(tensor, flat(kind, at, at + tensor.numel()).view(tensor.shape))
                at += tensor.numel()
        self.set_count(step)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor; to import that class takes .7 s, longer than a small run's steps."""
    return hasattr(tensor, "to_local")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def put(tensor: torch.Tensor, whole: torch.Tensor):
    """Fill a tensor, sharded or not, from a whole one of its shape that every process has."""
    whole = whole.to(tensor.device)
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
    local(tensor.detach()).copy_(local(whole))
