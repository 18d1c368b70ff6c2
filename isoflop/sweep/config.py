"""SweepConfig: the flags of sweep.py, and which of them exclude each other."""

from dataclasses import dataclass

from isoflop.options import check, option
from isoflop.sweep import grid
from isoflop.sweep.cells import SIZE_LADDER, ModelSize, Planner

DEFAULT_BUDGETS = (5e10, 1.5e11, 4.5e11)
# flags of train.py that are not flags here: the grid sets them
SWEPT = {"n_embd", "n_layer", "n_head", "flop_budget", "max_iters", "tokens_per_param", "overwrite"}
PARALLEL = {"cells": "cells", "ddp": "ddp", "runs": "cells", "data": "ddp"}  # the last two: names in an older version
EXCLUSIVE = (  # pairs of flags that can't be given together
    ("depths", "n_embds"), ("lrs", "tune_lr"), ("simulate", "api"), ("reuse_trunk", "recentre"),
    ("reuse_trunk", "lrs"), ("reuse_trunk", "tune_lr"), ("api", "seeds"), ("api", "reuse_trunk"),
    ("ablation", "recentre"), ("ablation", "lrs"), ("ablation", "tune_lr"), ("ablation", "reuse_trunk"),
    ("print_commands", "reuse_trunk"), ("slurm", "reuse_trunk"), ("slurm", "parallel"),
    ("print_commands", "collect"), ("print_commands", "slurm"), ("collect", "slurm"),
    *((way, asked) for way in ("print_commands", "collect", "slurm") for asked in ("simulate", "api")),
    ("ablation", "simulate"), ("ablation", "api"), ("ablation", "retry"), ("ablation", "law"),
    ("design", "lrs"), ("design", "tune_lr"), ("design", "recentre"),
    *(("tokens_per_params", other) for other in "design recentre ablation lrs tune_lr reuse_trunk batches".split()),
    ("batches", "tune_lr"), ("batches", "recentre"), ("batches", "reuse_trunk"), ("batches", "ablation"),
    ("batches", "design"), ("batches", "simulate"), ("batches", "retry"),
)  # fmt: skip


@dataclass(frozen=True)
class SweepConfig:
    """The grid, its limits, and where its results go."""

    flop_budgets: tuple[float, ...] = option(
        DEFAULT_BUDGETS, "budgets, C = 6ND (default: 5e10 1.5e11 4.5e11)", group="grid", above=0, max=1e40
    )
    n_embds: tuple[int, ...] | None = option(None, "widths (default: --sizes around a guess)", min=1, max=2**20)
    n_layers: tuple[int, ...] | None = option(None, "depths, paired (default: by width)", min=1, max=2**12)
    n_heads: tuple[int, ...] | None = option(None, "heads, paired (default: as in train.py)", min=1, max=2**12)
    depths: tuple[int, ...] | None = option(None, "instead of --n_embds: N layers, width 64 N each", min=1, max=2**10)
    sizes: int = option(7, "sizes per budget, if none are given", min=1, max=len(SIZE_LADDER))
    tokens_per_params: tuple[float, ...] | None = option(
        None, "instead of budgets: each size sees X tokens per N", above=0, max=1e12
    )
    recentre: bool | None = option(None, "centre sizes on the fit of lower budgets")
    ablation: str | None = option(
        None, "repeat the grid, once per common mistake", choices=("porian",), aliases=("study",)
    )
    other_vocab: str | None = option(None, "--ablation: folder of the text in other tokens")

    design: str | None = option(
        None,
        "adaptive: choose runs for the forecast at a target; exponent: a grid for a",
        choices=("adaptive", "exponent"),
        group="runs that are chosen",
    )
    target_flops: float | None = option(None, "--design: compute to forecast at", above=0, max=1e40)
    until_width: float | None = option(None, "--design: stop at this pi95 of ln loss, as 0.02", above=0, max=10)
    max_cell_share: float = option(0.4, "--design: largest share of the money for a run", above=0, max=1)

    seeds: tuple[int, ...] | None = option(
        None, "seeds of each cell; their spread weighs the fit", group="seeds and learning rates", min=0, below=2**63
    )
    seeds_on: str = option("all", "which sizes get all seeds", choices=("all", "middle"))
    lrs: tuple[float, ...] | None = option(None, "try these rates at the end sizes of a budget", above=0, max=1e6)
    batches: tuple[int, ...] | None = option(
        None, "every rate of --lrs at each of these tokens per step, all sizes", min=1, max=2**40
    )
    tune_lr: bool = option(False, "like --lrs, at 0.5x to 2x the default rate")

    total_flops: float | None = option(
        None, "cap on all FLOPs ever spent in --out_dir", group="limits", above=0, max=1e40
    )
    max_hours: float | None = option(None, "cap on all hours of its runs", above=0, max=1e9)

    parallel: str | None = option(
        None, "cells: a cell per process; ddp: each cell on all", group="execution", metavar="NAME"
    )  # no choices: PARALLEL has old names, too
    workers: int | None = option(None, "processes of cells (default: one per core or GPU)", min=1, max=2**12)
    reuse_trunk: bool = option(False, "--schedule wsd: budgets of one size share a trunk")
    allow_few_steps: bool = option(False, "train cells of under 10 steps, too")
    retry: bool = option(False, "run only cells that have no result, by these flags")
    drop_bad_rows: bool = option(False, "move damaged rows of OUT_DIR to *.bad.*, and go on")

    print_commands: bool = option(False, "print a line of train.py per missing cell; stop", group="clusters")
    collect: tuple[str, ...] | None = option(
        None, "take the run.json files below DIR into runs.csv; stop", metavar="DIR"
    )
    slurm: str | None = option(None, "run cells as a job array, with these options of sbatch", metavar="OPTIONS")
    wait: bool = option(True, "--slurm: wait for the array, and collect (--no-wait: stop)")
    nproc_per_node: int | None = option(None, "processes of each such job, by torchrun", min=2, max=2**10)

    simulate: str | None = option(
        None, "law to draw from: a name, or E=1.7,A=..,B=..,..", group="losses without training"
    )
    noise: float = option(0.005, "sd of ln L in --simulate and --dry_run", min=0, below=1)
    api: str | None = option(None, "address of a training service to ask")
    api_key_file: str | None = option(None, "file of its key (default: $ISOFLOP_API_KEY)")
    check: bool = option(False, "--api: try address and key, spend nothing; stop")
    constraints: str | None = option(None, "JSON file of what a service allows", metavar="FILE")
    vocab_size: int | None = option(None, "vocabulary without --data_dir (default: 512)", min=1, max=2**24)

    out_dir: str = option("sweep_results", "CSV, fit, figures, cells", group="output")
    predict_flops: tuple[float, ...] | None = option(
        None, "predict N* here (default: 10x the largest)", above=0, max=1e40
    )
    dry_run: bool = option(False, "print cells, cost and expected intervals; stop")
    mfu: float | None = option(None, "--dry_run: time from this share of peak FLOP/s", above=0, max=1)
    law: str | None = option(None, "--dry_run: law to try the grid with")
    price_per_hour: float | None = option(None, "of a process (GPU or core): fills runs.csv's cost", above=0, max=1e6)

    def __post_init__(self):
        problems = []
        for name in ("n_layers", "n_heads"):
            given, widths = getattr(self, name), self.n_embds
            if given and not widths:
                problems.append(f"--{name} is paired with --n_embds: give both")
            elif given and len(given) != len(widths):
                problems.append(f"--{name} has {len(given)} values and --n_embds {len(widths)}: give one each")
        if self.lrs and len(set(self.lrs)) < 3:
            problems.append(f"--lrs has {len(set(self.lrs))} rates; a parabola needs 3 (one rate for all is --lr)")
        if self.batches and not self.lrs:
            problems.append("--batches needs --lrs, the rates to try at each of them, as --lrs 0.01 0.02 0.04")
        if self.batches and len(set(self.batches)) < 3:
            problems.append(
                f"--batches has {len(set(self.batches))} batches; their law needs 3 (one for all is --total_batch_size)"
            )
        for one, other in EXCLUSIVE:
            if getattr(self, one) not in (None, False, ()) and getattr(self, other) not in (None, False, ()):
                problems.append(f"--{one} and --{other} exclude each other: leave one out")
        problems += self._design_problems()
        if self.other_vocab and not self.ablation:
            problems.append("--other_vocab is for --ablation porian: leave it out")
        if self.constraints and not (self.api or self.simulate):
            problems.append("--constraints are those of a service: add --api URL, or --simulate LAW to rehearse")
        if self.tokens_per_params and self.flop_budgets != DEFAULT_BUDGETS:
            problems.append("--flop_budgets and --tokens_per_params both end a run: leave one out")
        if self.tokens_per_params and not (self.n_embds or self.depths):
            problems.append("--tokens_per_params needs the sizes: add --depths 2 3 4 6, or --n_embds 64 96 128")
        if self.check and not self.api:
            problems.append("--check tries the service of --api: give its address")
        if not self.wait and self.slurm is None:
            problems.append("--no-wait is for --slurm: leave it out")
        if self.nproc_per_node and not (self.print_commands or self.collect or self.slurm is not None):
            problems.append(
                f"--nproc_per_node {self.nproc_per_node} is for --print_commands, --collect and --slurm; for a sweep "
                "here start torchrun --nproc_per_node=K sweep.py"
            )
        if self.parallel is not None and self.parallel not in PARALLEL:
            problems.append(f"--parallel {self.parallel} must be one of cells, ddp")
        check(self, problems)
        object.__setattr__(self, "parallel", PARALLEL.get(self.parallel))

    def _design_problems(self) -> list[str]:
        """What is wrong with the flags of --design."""
        problems, left_out = [], ("ablation", "seeds", "retry")
        if self.design != "adaptive":
            left_out = ("n_embds", "depths", "reuse_trunk", "api", "constraints")
            given = [name for name in ("target_flops", "until_width") if getattr(self, name)]
            problems += [f"--{name} is for --design adaptive: add that, or leave it out" for name in given]
        if not self.design:
            return problems
        for name in left_out:
            if getattr(self, name):
                problems.append(f"--design {self.design} and --{name} exclude each other: leave one out")
        for name, default in (("flop_budgets", DEFAULT_BUDGETS), ("sizes", 7)):
            if getattr(self, name) != default:
                problems.append(f"--{name} is for a grid, and --design {self.design} chooses: leave one out")
        if self.design == "exponent":
            if not self.total_flops:
                problems.append("--design exponent needs what may be spent: --total_flops 1e14")
            return problems
        if not self.target_flops:
            problems.append("--design adaptive needs --target_flops, the compute to forecast at, as 1e21")
        if not (self.total_flops or self.max_hours or self.dry_run):
            problems.append("--design adaptive needs what may be spent: --total_flops 3e13, or --max_hours 2")
        if self.max_hours and not self.total_flops and (self.simulate or self.api):
            problems.append("--max_hours says nothing of losses that are not trained here: give --total_flops")
        return problems

    def shapes(self, planner: Planner) -> list[ModelSize]:
        """The sizes of --ablation."""
        return grid.ablation_sizes(self, planner)

    @property
    def moves(self) -> bool:
        """Whether the sizes of a budget wait for the fit of those below it."""
        if self.n_embds or self.depths or self.reuse_trunk or self.ablation or self.batches:
            return False
        return self.flop_budgets != DEFAULT_BUDGETS if self.recentre is None else self.recentre
