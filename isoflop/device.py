"""Device, compute type, autocast, peak memory and allocator settings."""

import contextlib
import ctypes
import functools
import resource
import statistics
import sys
import time
from typing import NamedTuple

import torch

from isoflop.options import UserError


def pick_device(requested: str) -> str:
    """cuda, else Apple's mps, else cpu for "auto"; UserError where the requested device is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        return next(device for device, found in available.items() if found)
    if not available[requested]:
        raise UserError(f"--device {requested}: torch finds no such device here; use --device cpu")
    return requested


# ----- the compute type -----

BF16_MARGIN = 1.1  # how much faster bf16 products must be than float32 ones: timings of one machine differ by less
PROBE_S = 0.05  # seconds that the timing may take
TURNS = 5  # of each type at least, in the timing


class ComputeType(NamedTuple):
    """The type that products are computed in, and what chose it."""

    name: str  # float32 or bfloat16
    source: str  # flag: --dtype; probe: timed on this CPU; device: what the GPU multiplies natively; folder: see sweep


def compute_type(requested: str, device: str) -> ComputeType:
    """The compute type of --dtype; for "auto" bfloat16 where the device is faster with it, else float32.

    That a CPU has instructions for bfloat16 doesn't make it faster: where it has, products are timed (once a process).
    On a GPU the instructions decide.

    Parameters
    ----------
    requested : auto, float32 or bfloat16.
    """
    if requested != "auto":
        return ComputeType(requested, "flag")
    if device == "cpu":
        if not cpu_has_bf16():
            return ComputeType("float32", "device")
        return ComputeType(faster_type(time_products()), "probe")
    native = device.startswith("cuda") and torch.cuda.get_device_capability() >= (8, 0)
    return ComputeType("bfloat16" if native else "float32", "device")


def faster_type(seconds: dict[str, float]) -> str:
    """bfloat16 where its products take less time by more than BF16_MARGIN, else float32.

    seconds : {"float32": time of a set of products, "bfloat16": time of the same}.
    """
    return "bfloat16" if seconds["float32"] > BF16_MARGIN * seconds["bfloat16"] else "float32"


@functools.cache
def time_products() -> dict[str, float]:
    """Median CPU seconds, by type, of the products of an MLP 256 wide: (T, w) x (w, 4 w) and (T, 4 w) x (4 w, w).

    One width for all models: every run of a machine has one type, and above 256 the ratio no longer changes. The two
    types take turns, at least TURNS each, then until PROBE_S are over. One thread, and its own CPU time: on a busy
    machine wall time is mostly the others', and chose either type.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    width, rows = 256, 256
    operands, seconds = {}, {"float32": [], "bfloat16": []}
    for name in seconds:
        dtype = getattr(torch, name)
        operands[name] = torch.ones(rows, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    begun = time.thread_time()
    turn = 0
    while turn <= TURNS or time.thread_time() - begun < PROBE_S:
        for name, (x, w) in operands.items():
            start = time.thread_time()
            (x @ w) @ w.T
            if turn:  # the first turn sets up the kernels
                seconds[name].append(time.thread_time() - start)
        turn += 1
    torch.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in seconds.items()}


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them bf16 is slower than float32."""
    try:
        has = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # an older torch, which can't tell
        return False
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))  # the last one is ARM's


def weights_dtype(dtype: str, device: str) -> torch.dtype:
    """Type of the weights that forward and backward see; the optimizer's own are always float32.

    A CPU gets bf16 weights, and with them a model that is bf16 throughout. GPUs get float32 weights and autocast.
    """
    return torch.bfloat16 if dtype == "bfloat16" and device == "cpu" else torch.float32


@contextlib.contextmanager
def computing(model, dtype: str, device: str):
    """Inside, the model's float32 weights are those that a step computes with, see weights_dtype()."""
    kept = [p.data for p in model.parameters()]
    for p in model.parameters():
        p.data = p.data.to(weights_dtype(dtype, device))
    try:
        yield
    finally:
        for p, data in zip(model.parameters(), kept, strict=True):
            p.data = data


def autocast(dtype: str, device: str):
    """The context of a forward pass; a no-op where weights_dtype() has done the work."""
    on = dtype == "bfloat16" and weights_dtype(dtype, device) == torch.float32
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=on)


def device_name(device: str) -> str:
    """The card's name, which gpus.find() understands; elsewhere cpu or mps."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def peak_memory_gb(device: str) -> float:
    """Peak memory in GB: the allocator's on CUDA, elsewhere the whole process's so far."""
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


HEAP_BYTES, HUGE_PAGE = 2**28, 2**21


def keep_memory():
    """Tell glibc to keep freed memory: a training step frees and takes the same large blocks over and over.

    By default each comes from the kernel as zeroed pages, and page faults cost a small model more than its products.
    Trim threshold off, no mmap for large blocks, HEAP_BYTES requested at a time, and the first of these in huge pages,
    where the kernel has them: fewer look-ups of addresses. Does nothing without glibc.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "gnu_get_libc_version"):
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -2, -4, 14
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TOP_PAD, HEAP_BYTES)
        libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        first = -(-libc.sbrk(0) // HUGE_PAGE) * HUGE_PAGE
        libc.free(libc.malloc(2 * HUGE_PAGE + 2**25))  # more than is free: the heap grows by that and HEAP_BYTES
        last = libc.sbrk(0) // HUGE_PAGE * HUGE_PAGE
        if last > first:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_HUGEPAGE)


# ----- fused kernels -----

# torch's own kernels that isoflop/kernels is made of. Their names begin with an underscore: a release may change
# them. Then the plain versions run everywhere, and a test of the kernels fails.
PRIVATE = ("_softmax", "_softmax_backward_data", "_fused_adamw_")
HAS_PRIVATE = all(hasattr(torch, name) for name in PRIVATE)


def fused(x: torch.Tensor) -> bool:
    """Whether x goes through the fused kernels: on a CPU, but not inside torch.compile, which makes its own."""
    return x.device.type == "cpu" and HAS_PRIVATE and not torch.compiler.is_compiling()
