"""A file of weights, written whole or not at all."""

import os

from safetensors.torch import save_file

from isoflop.files import atomic, fsync


def write_tensors(path, tensors: dict, metadata: dict | None = None):
    """Write a safetensors file of {name: tensor}; OSError names path."""
    with atomic(path, "wb") as f:
        mode = os.fstat(f.fileno()).st_mode
        save_file(tensors, f.name, metadata)  # makes a new file, readable by its owner alone, in place of the open one
        os.chmod(f.name, mode)
        fsync(f.name)
