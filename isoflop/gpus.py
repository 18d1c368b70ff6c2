"""What GPUs can do and cost, by name: dense bf16 peak, memory, a first idea of the price. One table.

gpu = find(torch.cuda.get_device_name())  # "NVIDIA A100-SXM4-80GB" -> GPU, or None: no guess for a card unknown
gpu = named("h100-pcie")  # what a user typed; UserError lists the known names
mfu = flops_per_s / gpu.peak
"""

import re
from dataclasses import dataclass

from isoflop.options import UserError


@dataclass(frozen=True)
class GPU:
    """peak: dense bf16 FLOP/s. memory: bytes. price: dollars an hour, with where and when it was read, or None."""

    peak: float
    memory: float
    price: float | None = None
    price_source: str = ""


_RUNPOD = "RunPod, on demand, runpod.io/pricing, read {}"
_VERDA = "Verda, on demand, verda.com/pricing, read {}"

# Peaks: NVIDIA's data sheets, dense (without the factor two of structured sparsity). Prices move every week and differ
# fourfold between providers: they are a first idea, and --price_per_hour is the answer.
GPUS = {
    "a100-40gb": GPU(312e12, 40e9, 1.00, _RUNPOD.format("2026-08-19")),
    "a100": GPU(312e12, 80e9, 1.79, _RUNPOD.format("2026-11-09")),
    "a10g": GPU(70e12, 24e9),
    "a40": GPU(149.7e12, 48e9, 0.44, _RUNPOD.format("2026-08-19")),
    "a6000": GPU(154.8e12, 48e9, 0.82, _VERDA.format("2026-10-29")),
    "b200": GPU(2250e12, 180e9, 6.79, _RUNPOD.format("2026-10-07")),
    "h100": GPU(989e12, 80e9, 3.99, _RUNPOD.format("2026-11-09")),
    "h100-pcie": GPU(756e12, 80e9, 2.89, _RUNPOD.format("2026-11-09")),
    "h200": GPU(989e12, 141e9, 4.59, _RUNPOD.format("2026-10-07")),
    "l4": GPU(121e12, 24e9),
    "l40s": GPU(362e12, 48e9, 0.86, _RUNPOD.format("2025-08-12")),
    "rtx3090": GPU(71e12, 24e9),
    "rtx4090": GPU(165.2e12, 24e9),
}

# Words in a device's name that make it another card than the one it is named after, or a slice of it.
OTHER_CARDS = {"ti", "super", "d", "laptop", "max", "mobile", "nvl", "mig", "ada"}


def _words(name: str) -> set[str]:
    """The words of a name, in small letters: "NVIDIA GeForce RTX 4090" -> nvidia, geforce, rtx4090."""
    joined = re.sub(r"\brtx[ -]?(?=\d)", "rtx", name.lower())
    return set(re.findall(r"[a-z0-9]+", joined))


def find(name: str) -> GPU | None:
    """The row of a name as torch.cuda.get_device_name() or a user spells it; None for a card that is not in GPUS.

    A row fits if the name has all of its words, and of several rows the one with the most words: "H100 PCIe" is not
    the h100. Whole words, so that an A4000 is no A40 and an L40 no L4.
    """
    words = _words(name)
    if words & OTHER_CARDS:
        return None
    fitting = [key for key in GPUS if _words(key) <= words]
    if not fitting:
        return None
    return GPUS[max(fitting, key=lambda key: len(_words(key)))]


def named(name: str, flag: str = "--gpu") -> GPU:
    """The row of a name that a user typed; UserError lists the known ones.

    A card that is not in the table is no mistake where --peak_flops is given: machine.py asks find() then.
    """
    gpu = find(name)
    if gpu is None:
        raise UserError(f"{flag} {name} is unknown; known: {', '.join(GPUS)}, or give --peak_flops in FLOP/s")
    return gpu
