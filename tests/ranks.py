"""Run under torchrun by test_optim.py: several trainings in one process group, and what the optimizers hold and send.

torchrun --nproc_per_node=2 tests/ranks.py '{"out": ..., "bucket": 1000, "runs": {"name": {TrainConfig}}}'
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist

from isoflop.config import ModelConfig
from isoflop.distributed import launch
from isoflop.optim import adamw, buckets, muon
from isoflop.train.plan import TrainConfig
from model import GPT
from train import train

SHAPE = dict(n_layer=2, n_embd=16, block_size=32)


def gradients(model, step: int, rank: int):
    """Random gradients, another for each process, through a real backward pass."""
    torch.manual_seed(1000 * step + rank)
    sum((p * torch.randn(p.shape)).sum() for p in model.parameters()).backward()


def steps(kind: str, env, zero1: bool, first: int, last: int, saved=None):
    """The optimizer after steps first to last of two micro-batches each, and the sums under way at each gather."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SHAPE, vocab_size=61))
    if saved:
        model.load_state_dict(saved[0])
    make = adamw.FlatAdamW if kind == "adamw" else muon.FlatMuon
    more = {} if kind == "adamw" else {"inner": torch.float32}
    optimizer = make(model, 0.1, 0.95, 1.0, world_size=env.size, zero1=zero1, micro_batches=2, ema=0.9, **more)
    if saved:
        optimizer.load(first, saved[1])
    under_way = []
    for step in range(first, last):
        for micro_step in range(2):
            gradients(model, 2 * step + micro_step, env.rank)
            under_way.append(len(optimizer.sync.works))
            optimizer.gather()
        optimizer.step(1e-2)
    return optimizer, model, under_way


def save(optimizer, model, env):
    """What a checkpoint holds: the master weights by name, and a reader of the flat buffers over all ranks' shares."""
    optimizer.show_master()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.show_weights()
    shares = [None] * env.size
    dist.all_gather_object(shares, optimizer.shares())

    def flat(name, first, last):
        return torch.cat([share[name] for share in shares if share])[first:last]

    return weights, flat


def final(optimizer, model):
    optimizer.finish()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main():
    requested = json.loads(sys.argv[1])
    buckets.BUCKET = requested["bucket"]
    with launch("cpu") as env:
        for name, run in requested["runs"].items():
            train(ModelConfig(**SHAPE), TrainConfig(**run, out_dir=f"{requested['out']}/{name}"), env, quiet=True)
        found = {}
        for kind in ("adamw", "muon"):
            whole, model, under_way = steps(kind, env, False, 0, 6)
            cut, cut_model, _ = steps(kind, env, True, 0, 6)
            expected = final(whole, model)
            # interrupted after three steps, resumed the other way round, and the same way
            half = {zero1: save(*steps(kind, env, zero1, 0, 3)[:2], env) for zero1 in (False, True)}
            resumed = [steps(kind, env, b, 3, 6, half[a])[:2] for a, b in ((True, False), (False, True), (True, True))]
            own = torch.tensor([whole.state_bytes(), cut.state_bytes()])
            bytes_ = [torch.zeros_like(own) for _ in range(env.size)]
            dist.all_gather(bytes_, own)
            found[kind] = {
                "buckets": len(whole.buckets),
                "under_way": under_way,
                "apart": (final(cut, cut_model) - expected).abs().max().item(),
                "resumed": [(final(*r) - expected).abs().max().item() for r in resumed],
                "bytes": torch.stack(bytes_).tolist(),
                "weights": sum(p.numel() for p in whole.params),
                "hidden": sum(p.numel() for p in whole.params if p.ndim > 1) - 2 * 61 * 16,
            }
        if env.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
