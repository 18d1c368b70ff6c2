"""Run under torchrun by test_optim_adamw.py: several trainings in one process group, and what a rank holds in each.

torchrun --nproc_per_node=2 tests/ranks.py '{"out": ..., "runs": {"name": {TrainConfig}}}'

A sharded model with Muon has each block gathered on its own, as large ones are; with AdamW all at once.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.distributed as dist

import train as train_module
from isoflop.config import ModelConfig
from isoflop.distributed import launch, leave
from isoflop.optim import parallel
from isoflop.optim.saved_state import local
from isoflop.train.plan import TrainConfig

SHAPE = dict(n_layer=2, n_embd=16, block_size=32)


def main():
    requested = json.loads(sys.argv[1])
    held = {}  # run -> kind of tensor -> bytes that this rank has of it
    build, running = train_module.build_optimizer, []

    def noted(run, model):
        optimizer = build(run, model)
        kinds = optimizer.tensors().items()
        held[running[-1]] = {kind: sum(local(t).nbytes for t in tensors) for kind, tensors in kinds}
        return optimizer

    train_module.build_optimizer = noted
    with launch("cpu") as env:
        for name, run in requested["runs"].items():
            running.append(name)
            parallel.UNIT = 1 if run.get("optimizer") == "muon" else 2**20
            tc = TrainConfig(**run, out_dir=f"{requested['out']}/{name}")
            train_module.train(ModelConfig(**SHAPE), tc, env, quiet=True)
        of_ranks = [None] * env.size
        dist.all_gather_object(of_ranks, held)
        env.print0(json.dumps(of_ranks))
    return 0


if __name__ == "__main__":
    leave(main())
