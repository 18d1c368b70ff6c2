"""Cell, one run of a sweep, and Planner, which makes cells from model sizes, budgets and flags."""

import dataclasses
import hashlib
import json
import math
import types
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from isoflop import device
from isoflop.config import ModelConfig, configure
from isoflop.constraints import Constraints
from isoflop.distributed import DistributedEnv
from isoflop.flops import count_params
from isoflop.options import UserError
from isoflop.train.plan import RunPlan, TrainConfig, resolve
from isoflop.train.record import RunRecord, run_id
from isoflop.train.validation import validation_rows

# The ladder of default sizes, (n_embd, n_layer), each about 1.4 times the one before. Depth grows with width as people
# build them: 32 wide, 1 deep; 768 wide, 12 deep.
SIZE_LADDER = (
    (12, 1), (16, 1), (20, 1), (24, 1), (32, 1), (40, 1), (48, 1), (48, 2), (64, 2), (80, 2), (96, 2), (96, 3),
    (128, 3), (160, 3), (160, 4), (192, 4), (224, 4), (256, 4), (256, 6), (320, 6), (384, 6), (448, 7), (512, 8),
    (576, 9), (640, 10), (768, 12), (896, 14), (1024, 16), (1152, 18), (1280, 20), (1536, 24),
    (1792, 24), (2048, 24), (2304, 28), (2560, 32), (3072, 32), (3584, 36), (4096, 40),
)  # fmt: skip


FEWEST_STEPS = 10  # of a cell: whole steps miss a budget by up to half a step, 5% then, and a warm-up has one step


class ModelSize(NamedTuple):
    """What a sweep varies of a model."""

    n_embd: int
    n_layer: int
    n_head: int | None = None  # None: as train.py chooses them


@dataclass(frozen=True)
class Cell:
    """A run that is to be done: everything that train() needs, or why it can't be run (`refused`)."""

    run_id: str
    size: ModelSize
    flop_budget: float
    seed: int
    mc: ModelConfig | None = None
    tc: TrainConfig | None = None
    plan: RunPlan | None = None
    refused: str = ""
    probe: bool = False  # looks for a learning rate; its row goes to probes.csv
    dtype_from: str = ""  # what chose tc.dtype
    lr_from: str = "rule"
    lr_on_edge: bool | None = None
    trunk: str | None = None  # run_id of the run that it branches off
    start: str | None = None  # that run's checkpoint
    start_step: int = 0
    keep: tuple[tuple[int, str], ...] = ()  # checkpoints to leave for branches: (step, folder)
    charged: float | None = None  # FLOPs that a service charges for it

    @property
    def cost(self) -> float:
        """FLOPs that running it computes."""
        if self.charged is not None:
            return self.charged
        if self.plan is None:
            return 0.0
        return self.plan.flops * (1 - self.start_step / self.plan.steps)

    @property
    def place(self) -> tuple:
        """Its place in the grid, whatever its learning rate or batch: (n_embd, n_layer, budget, seed)."""
        return (*self.size[:2], float(self.flop_budget), self.seed)

    def __str__(self):
        return f"{self.flop_budget:.3g} FLOPs, {self.size[0]} wide, {self.size[1]} deep, seed {self.seed}"


def default_depth(n_embd: int) -> int:
    """The depth that SIZE_LADDER has at this width, or at the next one below."""
    return max([depth for width, depth in SIZE_LADDER if width <= n_embd], default=1)


def stand_in(vocab_size: int, name: str):
    """Takes the place of a token folder where no text is read, for losses that are not trained here."""
    meta = {"vocab_size": vocab_size, "corpus_sha256": name, "tokenizer_sha256": ""}
    return types.SimpleNamespace(meta=meta, train=None, val=None, folder="")


def few_steps_text(plan: RunPlan) -> str:
    """Why a cell of few steps is refused, and the ways out."""
    batch = plan.smaller_batch()
    ways_out = f"add --batch_size {batch}, " if batch else ""
    steps = f"{plan.steps} step{'s' * (plan.steps > 1)}, {plan.flops / plan.flop_budget - 1:+.0%} off the budget"
    return f"{steps}: {ways_out}leave its size or budget out, or add --allow_few_steps to train it all the same"


# ----- plans -----


class Planner:
    """Makes cells. Holds what all of them share.

    Parameters
    ----------
    out_dir : of the sweep; each run gets a folder in it.
    flags : {name: value} of the flags of train.py that were typed, and of --preset.
    tokens : the token folder, or a stand_in().
    env : the processes that will train a cell together.
    source : "trained", or what losses are drawn from or asked of.
    """

    def __init__(self, out_dir: str, flags: dict, tokens, env: DistributedEnv, source: str = "trained"):
        self.out_dir = Path(out_dir)
        self.flags = flags
        self.tokens = tokens
        self.env = env
        self.source = source
        self.few_steps = True  # whether cells may have fewer than FEWEST_STEPS steps
        self.constraints: Constraints | None = None  # what a service allows
        self.vocab_size = tokens.meta["vocab_size"]
        self._compute = None

    @property
    def compute(self) -> device.ComputeType:
        """The compute type of every cell; decided once, so that all workers have the same."""
        if self._compute is None:
            self._compute = device.compute_type(self.flags.get("dtype", "auto"), self.env.device)
        return self._compute

    def keep_type(self, dtype: str | None):
        """Take the compute type that the sweep's folder has, where there is one and no flag says otherwise."""
        if dtype and self.flags.get("dtype", "auto") == "auto":
            self._compute = device.ComputeType(dtype, "folder")

    def typed(self, config) -> dict:
        """The typed flags that are fields of a dataclass."""
        return {f.name: self.flags[f.name] for f in fields(config) if f.name in self.flags}

    # ----- sizes -----

    def model(self, size: ModelSize) -> ModelConfig:
        """The model of a size; UserError where there is none such."""
        size = ModelSize(*size)
        given = self.typed(ModelConfig)
        given |= {"n_embd": size.n_embd, "n_layer": size.n_layer, "vocab_size": self.vocab_size}
        if size.n_head is not None:
            given["n_head"] = size.n_head
        elif self.constraints and "n_head" not in given:
            given["n_head"] = self.constraints.heads(size.n_embd)
        return configure(self.flags.get("preset"), None, **given)

    def refuses(self, size: ModelSize) -> bool:
        try:
            self.model(size)
        except ValueError:
            return True
        return False

    @property
    def convention(self) -> str:
        """How N is counted, a key of count_params(); by a service as it says, by default without its head."""
        if self.constraints:
            return self.constraints.params
        return "non_embedding" if self.source.startswith("api ") else "matmul"

    @property
    def ladder(self) -> list[ModelSize]:
        """SIZE_LADDER, as far as it is allowed, by increasing N."""
        if self.constraints is None:
            return [ModelSize(*rung) for rung in SIZE_LADDER]
        return sorted([ModelSize(*pair) for pair in self.constraints.sizes(SIZE_LADDER)], key=self.n)

    def n(self, size: ModelSize) -> int:
        """N of a size, in this planner's convention."""
        return count_params(self.model(size))[self.convention]

    def head(self, size: ModelSize) -> int:
        """Weights of the output head, which N includes."""
        counts = count_params(self.model(size))
        return counts["matmul"] - counts["non_embedding"]

    # ----- cells -----

    def cell(self, size: ModelSize, flops: float, seed: int | None = None, more: dict | None = None, **about) -> Cell:
        """A planned cell; one that can't be run has the reason in `refused`.

        Parameters
        ----------
        flops : its budget.
        seed : of the run; None for the typed one, or 0.
        more : fields of TrainConfig, in place of the typed ones. "lr" is the peak rate of the plan.
        about : fields of the Cell.
        """
        size = ModelSize(*size)
        if seed is None:
            seed = self.flags.get("seed", 0)
        about.setdefault("lr_from", "given" if "lr" in self.flags else "rule")
        try:
            mc = self.model(size)
            tc = TrainConfig(flop_budget=flops, **self._run_flags(mc, more or {}), seed=seed)
            if self.constraints:
                tc, plan = self._allowed(mc, tc)
            else:
                plan = self._plan(mc, tc)
            dtype = self.source  # where nothing is trained, losses are the source's
            if self.source == "trained":
                dtype, about["dtype_from"] = self.compute
                tc = dataclasses.replace(tc, dtype=dtype)
            if plan.steps < FEWEST_STEPS and not self.few_steps:
                raise UserError(few_steps_text(plan))
            id_ = run_id(mc, tc, plan, dtype, self.tokens)
        except ValueError as error:
            return Cell(self._refused_id(size, flops, seed), size, flops, seed, refused=str(error), **about)
        if self.source.startswith("api "):
            about["charged"] = float(int(flops))
        tc = dataclasses.replace(tc, out_dir=str(self.out_dir / "cells" / id_), overwrite=True)
        if self.convention != "matmul":
            n = count_params(mc)[self.convention]
            counts = {"n_params_matmul": n, "tokens": round(flops / (6 * n)), "tokens_per_param": flops / (6 * n * n)}
            plan = dataclasses.replace(plan, flops=int(flops), flop_budget=flops, **counts)
        return Cell(id_, size, flops, seed, mc, tc, plan, **about)

    def _run_flags(self, mc: ModelConfig, more: dict) -> dict:
        """Fields of TrainConfig for a cell, but for budget and seed."""
        flags = self.typed(TrainConfig) | more
        flags.pop("seed", None)
        if more.get("lr") is None:
            return flags
        # A rate that the sweep sets is the plan's: nothing may multiply it, neither --lr_scale nor the number of
        # processes, by whose square root resolve() raises the rate where --batch_size is per process.
        flags.pop("lr_scale", None)
        if flags.get("batch_size") is not None:
            flags["total_batch_size"] = flags.pop("batch_size") * mc.block_size * self.env.size
        return flags

    def _plan(self, mc: ModelConfig, tc: TrainConfig) -> RunPlan:
        if self.tokens.train is None:
            return resolve(mc, tc, self.env.size)
        plan = resolve(mc, tc, self.env.size, len(self.tokens.train))
        validation_rows(self.tokens, mc.block_size, tc.val_tokens)  # UserError where the text is too short
        return plan

    def _allowed(self, mc: ModelConfig, tc: TrainConfig) -> tuple[TrainConfig, RunPlan]:
        """The run with batch and rate that the constraints allow, where rules chose them; UserError: it is refused."""
        problem = self.constraints.mistake("flop_budget", tc.flop_budget)
        counts = count_params(mc)  # the budget by which our count comes to the service's D = C / 6N
        tc = dataclasses.replace(tc, flop_budget=tc.flop_budget * counts["matmul"] / counts[self.convention])
        tc, plan = self.constraints.hold(tc, lambda changed: self._plan(mc, changed))
        problem = problem or self.constraints.refuses(mc, plan.batch_size, plan.lr)
        if problem:
            raise UserError(problem)
        return tc, plan

    def _refused_id(self, size: ModelSize, flops: float, seed: int) -> str:
        flags = {name: str(value) for name, value in self.flags.items()}
        text = json.dumps([size, flops, seed, self.source, flags])
        return "refused-" + hashlib.sha256(text.encode()).hexdigest()[:8]

    def record(self, cell: Cell, status: str, **more) -> dict:
        """A record of a cell that train() did not make: what the plan says, and `more`; the rest is None."""
        known = {}
        for config in (cell.tc, cell.mc, cell.plan):
            if config is not None:
                known |= asdict(config)
        known |= {"n_embd": cell.size.n_embd, "n_layer": cell.size.n_layer}
        known |= {"flop_budget": cell.flop_budget, "seed": cell.seed}
        row = {f.name: known.get(f.name) for f in fields(RunRecord)}
        return row | {"run_id": cell.run_id, "status": status, "world_size": self.env.size} | more

    # ----- trunk and branches -----

    def family(self, size: ModelSize, budgets: list[float], seed: int | None = None) -> list[Cell]:
        """The cells of one model size at all budgets: one trunk at a constant rate, and branches that cool down.

        Rate, batch, warm-up and whatever else a rule makes of a budget are those of the budgets' geometric mean, so
        that all runs share their first steps. The largest budget's run is the trunk; the others start at the
        checkpoint that it leaves where their cooldown begins (Haegele et al. 2024, arXiv:2405.18392).
        """
        mean_budget = math.exp(sum(map(math.log, budgets)) / len(budgets))
        middle = self.cell(size, mean_budget, seed)
        if middle.refused:
            return [self.cell(size, c, seed) for c in budgets]
        shared = self.shared_flags(middle, min(budgets))
        cells = [self.cell(size, c, seed, shared, lr_from=middle.lr_from) for c in sorted(budgets)]
        if len(cells) < 2 or any(c.refused for c in cells):
            return cells
        *branches, trunk = cells
        trunk_end = trunk.plan.steps - trunk.plan.cooldown_steps
        out, keep = [], []
        for cell in branches:
            at = cell.plan.steps - cell.plan.cooldown_steps
            if cell.plan.warmup_steps < at < cell.plan.steps and at <= trunk_end:
                folder = str(self.out_dir / "trunks" / trunk.run_id / f"step_{at}")
                cell = dataclasses.replace(cell, trunk=trunk.run_id, start=folder, start_step=at)
                keep.append((at, folder))
            out.append(cell)
        return [*out, dataclasses.replace(trunk, keep=tuple(keep))]

    def shared_flags(self, middle: Cell, smallest_budget: float) -> dict:
        """Fields of TrainConfig that all cells of a family have from the one at their mean budget."""
        plan = middle.plan
        warmup_steps = middle.tc.warmup_steps
        if warmup_steps is None:
            shortest = max(1, round(smallest_budget / (plan.flops_per_token * plan.tokens_per_step)))  # in steps
            warmup_steps = max(1, round(shortest * plan.warmup_steps / plan.steps))
        return {
            "batch_size": None,
            "total_batch_size": plan.tokens_per_step,
            "lr": plan.lr,
            "warmup_frac": None,
            "warmup_steps": warmup_steps,
            "weight_decay": plan.weight_decay,
            "beta2": plan.beta2,
        }
