"""When a run is compiled, and what happens where nothing can be. The compiler is a stand-in: no test here compiles."""

from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL_MODEL, small_run

from isoflop.config import ModelConfig
from isoflop.options import UserError
from isoflop.train import compiled
from train import train

MC = ModelConfig(**SMALL_MODEL)
H100 = "NVIDIA H100 80GB HBM3"


def plan(steps=1000, flops=1e15, batch=8, micro=8, processes=1):
    return SimpleNamespace(
        steps=steps, flops_exact=flops, batch_size=batch, micro_batch_size=micro, world_size=processes
    )


@pytest.mark.parametrize(
    "long, layers, device_name, expected",
    [
        (plan(flops=2e17), 2, H100, True),  # 2e17 / (0.4 x 989e12) is 505 s
        (plan(flops=1e17), 2, H100, False),
        (plan(flops=2e17, processes=2), 2, H100, False),
        (plan(flops=2e16), 2, "an unknown card", True),
        (plan(steps=60_000), 12, H100, True),  # small, but 360 s of launches
        (plan(steps=60_000), 2, H100, False),
        (plan(steps=100_000, micro=2), 2, H100, True),  # four passes a step
    ],
)
def test_long_runs_on_cuda_are_compiled_by_default(long, layers, device_name, expected):
    assert compiled.pays(long, layers, device_name) is expected
    assert compiled.wanted(None, "default", long, layers, "cuda:0", device_name) is expected
    assert not compiled.wanted(None, "default", long, layers, "cpu", "cpu")
    assert compiled.wanted(True, "default", long, layers, "cpu", "cpu")
    assert not compiled.wanted(False, "reduce-overhead", long, layers, "cuda", device_name)


def test_cuda_graphs_take_one_process_and_whole_batches():
    assert compiled.wanted(None, "reduce-overhead", plan(), 2, "cuda", H100)
    with pytest.raises(UserError, match="leave torchrun out"):
        compiled.wanted(True, "reduce-overhead", plan(processes=2), 2, "cuda", H100)
    with pytest.raises(UserError, match="give --micro_batch_size 8"):
        compiled.wanted(None, "reduce-overhead", plan(micro=4), 2, "cuda", H100)


def test_without_a_compiler_a_run_continues(toy_data, tmp_path, monkeypatch, capsys):
    def no_compiler(function, **settings):
        def fail(*args, **given):
            raise RuntimeError("Failed to find\nC compiler")

        return fail

    plain = train(MC, small_run(toy_data, tmp_path / "a"), quiet=True)
    compiled.problem.cache_clear()
    monkeypatch.setattr(torch, "compile", no_compiler)
    run = train(MC, small_run(toy_data, tmp_path / "b", compile=True), quiet=False)
    compiled.problem.cache_clear()
    assert run.val_loss == plain.val_loss and run.status == "ok"
    lines = [line for line in capsys.readouterr().out.splitlines() if "no compiler" in line]
    assert lines == ["warning: no compiler here, the run continues without --compile (Failed to find C compiler)"]


def test_the_mode_reaches_torch(monkeypatch):
    modes = []
    monkeypatch.setattr(compiled, "problem", lambda device: "")
    monkeypatch.setattr(torch, "compile", lambda forward, mode: modes.append(mode) or forward)
    env = SimpleNamespace(device="cpu", any=bool)
    for mode in ("default", "reduce-overhead"):
        assert compiled.compiled(len, mode, env, print) is len
    assert modes == [None, "reduce-overhead"]
