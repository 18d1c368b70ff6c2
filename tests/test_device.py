"""device.py: the compute type is measured where a CPU has both."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import run_script

from isoflop import device


@pytest.fixture
def cpu(monkeypatch):
    """Makes this CPU one of given instructions, and of given seconds for its products."""

    def make(instructions: dict, **seconds):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
        monkeypatch.setattr(device, "time_products", lambda: seconds)

    return make


@pytest.mark.parametrize(
    "instructions, seconds, chosen",
    [
        ({"avx2": True}, {}, ("float32", "device")),  # without the instructions nothing is timed
        ({"avx512_bf16": True}, {"float32": 2.2, "bfloat16": 1.0}, ("bfloat16", "probe")),  # Zen 4
        ({"avx512_bf16": True}, {"float32": 4.3, "bfloat16": 1.0}, ("bfloat16", "probe")),  # Zen 5
        ({"avx512_bf16": True}, {"float32": 150.0, "bfloat16": 260.0}, ("float32", "probe")),  # a Xeon without AMX
        ({"avx512_bf16": True, "amx_bf16": True}, {"float32": 6.0, "bfloat16": 1.0}, ("bfloat16", "probe")),  # with it
        ({"bf16": True}, {"float32": 1.9, "bfloat16": 1.0}, ("bfloat16", "probe")),  # ARM
        ({"bf16": True}, {"float32": 1.05, "bfloat16": 1.0}, ("float32", "probe")),  # within the noise
    ],
)
def test_the_faster_type_is_taken(cpu, instructions, seconds, chosen):
    cpu(instructions, **seconds)
    assert device.compute_type("auto", "cpu") == chosen
    assert device.compute_type("bfloat16", "cpu") == ("bfloat16", "flag")


def test_a_torch_that_can_t_tell_has_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert device.compute_type("auto", "cpu") == ("float32", "device")


def test_the_timing_leaves_threads_as_they_were():
    threads = torch.get_num_threads()
    device.time_products.cache_clear()
    seconds = device.time_products()
    assert set(seconds) == {"float32", "bfloat16"} and min(seconds.values()) > 0
    assert torch.get_num_threads() == threads and device.time_products() is seconds


def test_gpus_get_float32_weights_and_autocast():
    assert device.weights_dtype("bfloat16", "cuda:0") == torch.float32
    assert device.weights_dtype("bfloat16", "cpu") == torch.bfloat16


def test_weights_are_in_the_compute_type_inside_alone():
    model = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyError), device.computing(model, "bfloat16", "cpu"):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        raise KeyError
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with device.computing(model, "bfloat16", "cuda"):  # autocast's work there
        assert {p.dtype for p in model.parameters()} == {torch.float32}


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KEPT = """
import torch
from isoflop.device import keep_memory
keep_memory()
blocks = [torch.zeros(2**20) for _ in range(8)]  # 32 MB
del blocks
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = [torch.zeros(2**20) for _ in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="this kernel has no huge pages")
def test_memory_is_kept_and_in_huge_pages():
    ran = subprocess.run([sys.executable, "-c", "import resource" + KEPT], capture_output=True, text=True, check=True)
    faults, huge_kb = (int(line) for line in ran.stdout.split())
    assert faults < 2048  # 32 MB are 8,192 pages of 4 KB; the kernel may have taken a huge one apart
    assert huge_kb > 0


@pytest.mark.slow
def test_the_bench_of_a_machine_runs_here(tmp_path):
    """bench/bench_device.py: one row a case, its share of the peak between the spread of its rounds, and a picture."""
    flags = ["--models", "16x1:2", "--rounds", 2, "--seconds", 0.05, "--types", "float32", "--block_size", 64]
    done = run_script("bench/bench_device.py", *flags, "--device", "cpu", "--out_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "device.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["lever"] for row in rows] == ["as it is", "2 micro-batches", "modules", "torch's attention"]
    for row in rows:
        assert float(row["least"]) <= float(row["tokens_per_s"]) <= float(row["most"])
        assert 0 < float(row["of_product_peak"]) < 1.5 and float(row["peak_mem"]) > 1e5 and row["mfu"] == ""
        assert row["lever"] in done.stdout
    assert (tmp_path / "device.png").stat().st_size > 5000
    assert "as gpt2:16" in run_script("bench/bench_device.py", "--models", "16y1", "--device", "cpu").stderr
