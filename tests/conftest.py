"""Small token folders and a way to call the scripts as a user does."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores: more threads than that collapse

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """A byte-level token folder of about 60,000 tokens of structured text, made by data.prepare itself."""
    import data
    from isoflop.data import config as config_

    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 7))) for _ in range(60)]
    lines = [" ".join(rng.choice(words, rng.integers(5, 20))) + "." for _ in range(1400)]
    (folder / "toy.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    config = config_.DataConfig(
        source=str(folder / "toy.jsonl"), tokenizer="byte", out_dir=str(folder / "bins"), val_fraction=0.1
    )
    return str(data.prepare(config, quiet=True))


@pytest.fixture(scope="session")
def finished_run(toy_data, tmp_path_factory):
    """(folder, record) of a short run on toy_data."""
    from isoflop.config import ModelConfig
    from isoflop.train.plan import TrainConfig
    from train import train

    out = tmp_path_factory.mktemp("run")
    mc = ModelConfig(n_layer=1, n_embd=32, block_size=64, vocab_size=257)
    tc = TrainConfig(max_iters=60, data_dir=toy_data, out_dir=str(out), batch_size=8, val_tokens=2048, dtype="float32")
    return out, train(mc, tc, quiet=True)


@pytest.fixture
def script():
    """script("train.py", "--flag", ...) -> CompletedProcess, run from the checkout on one thread."""

    def call(*args, timeout=120, **env):
        command = [sys.executable, *map(str, args)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)

    return call
