"""The table of GPUs: no entry lost, every spelling found, no guess for other cards."""

import pytest

from isoflop.gpus import GPUS, find, named
from isoflop.options import UserError

PEAKS = {
    "a100-40gb": 312e12, "a100": 312e12, "a10g": 70e12, "a40": 149.7e12, "a6000": 154.8e12, "b200": 2250e12,
    "h100": 989e12, "h100-pcie": 756e12, "h200": 989e12, "l4": 121e12, "l40s": 362e12, "rtx3090": 71e12,
    "rtx4090": 165.2e12,
}  # fmt: skip


def test_the_table():
    assert {name: gpu.peak for name, gpu in GPUS.items()} == PEAKS
    for name, gpu in GPUS.items():
        assert 24e9 <= gpu.memory <= 180e9, name
        assert (gpu.price is None) == (not gpu.price_source), name
        assert gpu.price is None or "read 202" in gpu.price_source, name


@pytest.mark.parametrize("name", list(PEAKS))
def test_short_names(name):
    assert find(name) is find(name.upper()) is named(name) is GPUS[name]


@pytest.mark.parametrize(
    "device, name",
    [
        ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"), ("NVIDIA A10G", "a10g"), ("NVIDIA A40", "a40"),
        ("NVIDIA RTX A6000", "a6000"), ("NVIDIA B200", "b200"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("rtx-4090", "rtx4090"),
        ("H100 PCIe", "h100-pcie"), ("RTX 3090", "rtx3090"), ("a100-80gb", "a100"),
    ],
)  # fmt: skip
def test_names_of_devices(device, name):
    assert find(device) is GPUS[name]


@pytest.mark.parametrize(
    "device",
    ["cpu", "", "Apple M2 Max", "NVIDIA RTX A4000", "NVIDIA L40", "NVIDIA A10", "NVIDIA H100 NVL", "NVIDIA GH200 480GB",
     "NVIDIA GB200", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA RTX 6000 Ada Generation", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Tesla V100-SXM2-16GB"],
)  # fmt: skip
def test_no_guess_for_other_cards(device):
    assert find(device) is None


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError) as error:
        named("h300")
    assert str(error.value).startswith("--gpu h300 is unknown; known: a100-40gb, a100, a10g")
    assert str(error.value).endswith("rtx4090, or give --peak_flops in FLOP/s")
