"""Files of weights: one that is written whole or not at all, and folders with a part from each process."""

import contextlib
import os
import warnings

from safetensors.torch import save_file

from isoflop.files import atomic, fsync


def write_tensors(path, tensors: dict, metadata: dict | None = None):
    """Write a safetensors file of {name: tensor}; OSError names path."""
    with atomic(path, "wb") as f:
        mode = os.fstat(f.fileno()).st_mode
        save_file(tensors, f.name, metadata)  # makes a new file, readable by its owner alone, in place of the open one
        os.chmod(f.name, mode)
        fsync(f.name)


def is_sharded(folder) -> bool:
    """Whether write_parts() wrote to a folder."""
    return any(folder.glob("shard-*.safetensors"))


def write_parts(folder, tensors: dict):
    """Write each process's parts of sharded tensors {name: DTensor}, as safetensors files of torch's own layout
    (torch.distributed.checkpoint). Every rank must call it; OSError on all of them where one could not write."""
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _first_failure():
        dcp.save(tensors, storage_writer=writer)


def read_parts(folder, tensors: dict, alone: bool = False):
    """Fill tensors {name: Tensor or DTensor} from a folder of write_parts(), by any number of processes.

    alone : this process reads for itself, whatever the others do. ValueError for a missing name or another size.
    """
    import torch.distributed.checkpoint as dcp

    with _first_failure():
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=alone)


@contextlib.contextmanager
def _first_failure():
    """torch's CheckpointException, which is no Exception, as the first error that it is made of."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process that reads alone
            yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        if isinstance(first, OSError):
            raise first from None
        raise ValueError(str(first)) from None
