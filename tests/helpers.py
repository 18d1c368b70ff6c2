"""What several test files share. One section per subject."""

# ----- training runs -----

SMALL_MODEL = dict(n_layer=1, n_embd=16, block_size=32)
SMALL_FLAGS = "--n_layer 1 --n_embd 16 --block_size 32 --val_tokens 2048 --device cpu".split()


def small_run(toy_data, out_dir, **more):
    """The TrainConfig of 20 steps of 4 sequences in float32; `more` goes on top."""
    from isoflop.train.plan import TrainConfig

    flags = dict(max_iters=20, batch_size=4, val_tokens=2048, dtype="float32")
    return TrainConfig(data_dir=toy_data, out_dir=str(out_dir), **{**flags, **more})


def torchrun(script, n, *args):
    """`script` under torchrun on n processes of this machine."""
    agent = ["-m", "torch.distributed.run", f"--nproc_per_node={n}", "--rdzv_backend=c10d"]
    return script(*agent, "--rdzv_endpoint=localhost:0", *args, timeout=240)


def record_of(folder) -> dict:
    """run.json."""
    import json
    from pathlib import Path

    return json.loads((Path(folder) / "run.json").read_text())


def losses_of(folder) -> list[float]:
    """The losses of log.jsonl."""
    import json
    from pathlib import Path

    return [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def same_weights(a, b) -> bool:
    """Whether two folders hold the same model to the bit."""
    from pathlib import Path

    import torch
    from safetensors.torch import load_file

    a, b = (load_file(Path(folder) / "model.safetensors") for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def interrupted_run(mc, tc, steps):
    """Train until `steps` more steps are done; the checkpoint that a signal leaves there."""
    from train import Interrupted, train

    left = iter(range(steps - 1))
    try:
        train(mc, tc, quiet=True, stop=lambda: next(left, None) is None)
    except Interrupted as end:
        return end.saved
    raise AssertionError("the run was not interrupted")
