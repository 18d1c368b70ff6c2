"""GPUs by name: peak bf16 FLOP/s, memory, price per hour."""

from dataclasses import dataclass

# Dense bf16 peak in FLOP/s, from NVIDIA's data sheets; a GPU that is not here gets no MFU rather than a guess.
PEAK_FLOPS = {
    "A100": 312e12, "A10G": 70e12, "A40": 149.7e12, "A6000": 154.8e12, "B200": 2250e12, "H100 PCIe": 756e12,
    "H100": 989e12, "H200": 989e12, "L40S": 362e12, "L4": 121e12, "RTX 3090": 71e12, "RTX 4090": 165.2e12,
}  # fmt: skip


def peak_flops(name: str) -> float | None:
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


# ----- devices -----


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


def find_gpu(name: str) -> GPU:
    """The row of `name`; ValueError names the known ones."""
    if name.lower() not in GPUS:
        raise ValueError(f"--gpu {name} is unknown; known: {', '.join(GPUS)}, or give --peak_flops in FLOP/s")
    return GPUS[name.lower()]
