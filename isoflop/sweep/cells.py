"""Cell, one run of a sweep, and Planner, which makes cells from sizes, budgets and flags."""

import dataclasses
import hashlib
import json
import math
import types
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from isoflop import device
from isoflop.config import ModelConfig, configure
from isoflop.distributed import World
from isoflop.flops import count_params
from isoflop.train.plan import RunPlan, TrainConfig, resolve
from isoflop.train.record import RunRecord, run_id
from isoflop.train.validation import validation_rows

# The ladder of default sizes, (n_embd, n_layer), each about 1.4 times the one before. Depth grows with width as people
# build them: 32 wide, 1 deep; 768 wide, 12 deep.
SHAPES = ((12, 1), (16, 1), (20, 1), (24, 1), (32, 1), (40, 1), (48, 1), (48, 2), (64, 2), (80, 2), (96, 2), (96, 3),
          (128, 3), (160, 3), (160, 4), (192, 4), (224, 4), (256, 4), (256, 6), (320, 6), (384, 6), (448, 7), (512, 8),
          (576, 9), (640, 10), (768, 12), (896, 14), (1024, 16), (1152, 18), (1280, 20), (1536, 24),
          (1792, 24), (2048, 24), (2304, 28), (2560, 32), (3072, 32), (3584, 36), (4096, 40))  # fmt: skip


Shape = tuple  # (n_embd, n_layer, n_head or None)


@dataclass(frozen=True)
class Cell:
    """One run to be: everything that train() needs, or why it can't be run (`refused`)."""

    run_id: str
    shape: Shape
    flop_budget: float
    seed: int
    mc: ModelConfig | None = None
    tc: TrainConfig | None = None
    plan: RunPlan | None = None
    refused: str = ""
    probe: bool = False  # looks for a learning rate; its row goes to probes.csv
    lr_from: str = "rule"
    lr_on_edge: bool | None = None
    trunk: str | None = None  # run_id of the run that it branches off
    start: str | None = None  # that run's checkpoint
    start_step: int = 0
    keep: tuple[tuple[int, str], ...] = ()  # checkpoints to leave for branches: step, folder
    charged: float | None = None  # what a service takes for it

    @property
    def cost(self) -> float:
        """FLOPs that running it computes."""
        if self.charged is not None:
            return self.charged
        return self.plan.flops * (1 - self.start_step / self.plan.steps) if self.plan else 0.0

    @property
    def place(self) -> tuple:
        """Where it stands in the grid, whatever its rate or batch."""
        return (*self.shape[:2], float(self.flop_budget), self.seed)

    def __str__(self):
        return f"{self.flop_budget:.3g} FLOPs, {self.shape[0]} wide, {self.shape[1]} deep, seed {self.seed}"


def default_depth(n_embd: int) -> int:
    """The depth that the ladder of SHAPES has at this width, or at the next one below."""
    return max([d for w, d in SHAPES if w <= n_embd], default=1)


# ----- plans -----


def stand_in(vocab_size: int, name: str):
    """What stands for the text where none is read: no token is ever taken from it."""
    return types.SimpleNamespace(
        meta={"vocab_size": vocab_size, "corpus_sha256": name, "tokenizer_sha256": ""}, train=None, val=None, folder=""
    )


class Planner:
    """Makes cells: holds what all of them share."""

    def __init__(self, out_dir: str, flags: dict, tokens, world: World, source: str = "trained"):
        self.out_dir, self.flags, self.tokens, self.world, self.source = Path(out_dir), flags, tokens, world, source
        self.vocab_size = tokens.meta["vocab_size"]

    def of(self, config) -> dict:
        return {f.name: self.flags[f.name] for f in fields(config) if f.name in self.flags}

    def model(self, shape: Shape) -> ModelConfig:
        n_embd, n_layer, n_head = shape
        given = self.of(ModelConfig) | {"n_embd": n_embd, "n_layer": n_layer, "vocab_size": self.vocab_size}
        if n_head is not None:
            given["n_head"] = n_head
        return configure(self.flags.get("preset"), None, **given)

    def refuses(self, shape: Shape) -> bool:
        try:
            self.model(shape)
        except ValueError:
            return True
        return False

    def n(self, shape: Shape) -> int:
        return count_params(self.model(shape))["matmul"]

    def head(self, shape: Shape) -> int:
        """What the head adds to N."""
        counts = count_params(self.model(shape))
        return counts["matmul"] - counts["non_embedding"]

    def typed_rate(self, lr: float) -> float:
        """The --lr that makes a plan with peak rate `lr`: resolve() multiplies where --batch_size is typed."""
        per_process = self.flags.get("batch_size") is not None
        return lr / math.sqrt(self.world.size) if per_process else lr

    def cell(self, shape: Shape, flops: float, seed: int | None = None, more: dict | None = None, **about) -> Cell:
        """A cell, planned; one that can't be run has the reason in `refused`."""
        flags = self.of(TrainConfig) | (more or {})
        if more and more.get("lr") is not None:
            flags.pop("lr_scale", None)  # it is in that rate already
        seed = flags.get("seed", 0) if seed is None else seed
        about = {"lr_from": "given" if "lr" in self.flags else "rule"} | about
        try:
            mc = self.model(shape)
            tc = TrainConfig(flop_budget=flops, **flags | {"seed": seed})
            real = self.tokens.train is not None
            plan = resolve(mc, tc, self.world.size, len(self.tokens.train) if real else None)
            if real:
                validation_rows(self.tokens, mc.block_size, tc.val_tokens)
            dtype = device.compute_dtype(tc.dtype, self.world.device) if self.source == "trained" else self.source
            id_ = run_id(mc, tc, plan, dtype, self.tokens)
        except ValueError as error:
            what = json.dumps([shape, flops, seed, self.source, {k: str(v) for k, v in self.flags.items()}])
            id_ = "refused-" + hashlib.sha256(what.encode()).hexdigest()[:8]
            return Cell(id_, tuple(shape), flops, seed, refused=str(error), **about)
        if self.source.startswith("api "):
            about["charged"] = float(int(flops))
        tc = dataclasses.replace(tc, out_dir=str(self.out_dir / "cells" / id_), overwrite=True)
        return Cell(id_, tuple(shape), flops, seed, mc, tc, plan, **about)

    def record(self, cell: Cell, status: str, **more) -> dict:
        """A record of a cell that train() did not make: what the plan says, and `more`; the rest is empty."""
        known = {}
        for config in (cell.tc, cell.mc, cell.plan):
            known |= asdict(config) if config else {}
        known |= {"n_embd": cell.shape[0], "n_layer": cell.shape[1], "flop_budget": cell.flop_budget, "seed": cell.seed}
        row = {f.name: known.get(f.name) for f in fields(RunRecord)}
        return row | {"run_id": cell.run_id, "status": status, "world_size": self.world.size} | more

    # ----- trunks -----

    def family(self, shape: Shape, budgets: list[float], seed: int | None = None) -> list[Cell]:
        """The cells of one model size at all budgets: one trunk at a constant rate, and branches that cool down.

        Rate, batch, warm-up and whatever else a rule makes of a budget are those of the budgets' geometric mean, so
        that all runs share their first steps. The largest budget's run is the trunk; the others start at the
        checkpoint that it leaves where their cooldown begins (Haegele et al. 2024, arXiv:2405.18392).
        """
        middle = self.cell(shape, math.exp(sum(map(math.log, budgets)) / len(budgets)), seed)
        if middle.refused:
            return [self.cell(shape, c, seed) for c in budgets]
        p, out = middle.plan, []
        first = max(1, round(min(budgets) / (p.flops_per_token * p.tokens_per_step)))  # steps of the shortest run
        shared = {"batch_size": None, "total_batch_size": p.tokens_per_step, "lr": p.lr, "warmup_frac": None}
        shared |= {"weight_decay": p.weight_decay, "beta2": p.beta2}
        shared["warmup_steps"] = middle.tc.warmup_steps
        if middle.tc.warmup_steps is None:
            shared["warmup_steps"] = max(1, round(first * p.warmup_steps / p.steps))
        out = [self.cell(shape, c, seed, shared, lr_from=middle.lr_from) for c in sorted(budgets)]
        if any(c.refused for c in out) or len(out) < 2:
            return out
        *branches, trunk = out
        kept = []
        for i, c in enumerate(branches):
            at = c.plan.steps - c.plan.cooldown_steps
            folder = str(self.out_dir / "trunks" / trunk.run_id / f"step_{at}")
            whole = trunk.plan.steps - trunk.plan.cooldown_steps
            if c.plan.warmup_steps < at < c.plan.steps and at <= whole:
                branches[i] = dataclasses.replace(c, trunk=trunk.run_id, start=folder, start_step=at)
                kept.append((at, folder))
        return [*branches, dataclasses.replace(trunk, keep=tuple(kept))]
