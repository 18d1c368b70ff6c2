"""What a training service runs, from a JSON file: sweep.py and plan.py --constraints FILE. Plain arithmetic, no torch.

    {"d_model": {"min": 64, "max": 1024}, "num_layers": {"min": 2, "max": 24}, "num_heads": {"min": 2, "max": 16},
     "batch_size": [128, 256], "learning_rate": {"min": 1e-4, "max": 1e-3}, "train_flops": [1e13, 3e13, 6e13],
     "params": "non_embedding", "total_flops": 2e18}

A list holds all values that are allowed, an object the least and the most; what is not named is free. Heads divide the
width into even sizes. `params` is how the service counts N (a key of flops.count_params(); what it does not see, as its
head, may be left out), `total_flops` all that may be spent; vocab_size and block_size are its model's, where known.
docs/cs336_service.json is the file of Stanford's CS336, assignment 3.
"""

import difflib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from isoflop import files
from isoflop.config import ModelConfig
from isoflop.options import UserError

OURS = {  # a service's name of a quantity -> ours
    "d_model": "n_embd", "num_layers": "n_layer", "num_heads": "n_head", "batch_size": "batch_size",
    "learning_rate": "lr", "train_flops": "flop_budget",
}  # fmt: skip
WHOLE = ("n_embd", "n_layer", "n_head", "batch_size", "vocab_size", "block_size")
SINGLE = ("total_flops", "vocab_size", "block_size")  # keys with one positive number
CONVENTIONS = ("non_embedding", "total", "matmul")
WIDTHS = range(64, 8192 + 1, 64)  # where a file names no choices
WIDTH_PER_LAYER = (32, 128)  # from GPT-2 XL's 33 to LLaMA-7B's and GPT-3's 128
USUAL_HEAD = 64  # size of a head
APART, DEFAULT_BUDGETS = 2.9, 5  # the budgets of a sweep that names none: how many, and how far apart at least


@dataclass(frozen=True)
class Allowed:
    """The values of one quantity: from low to high, or `choices` alone (in increasing order)."""

    name: str  # as the file has it
    low: float
    high: float
    choices: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        if self.choices:
            return any(math.isclose(value, choice, rel_tol=1e-9) for choice in self.choices)
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)

    def nearest(self, value: float) -> float:
        """The allowed value that is nearest in logs; the value itself where it is allowed."""
        if self.choices:
            return min(self.choices, key=lambda choice: abs(math.log(choice / value)))
        return min(max(value, self.low), self.high)

    def text(self, value: float) -> str:
        """What is allowed, to be read behind "must be": of many choices those around the value."""
        if not self.choices:
            return f"from {self.low:g} to {self.high:g}"
        near = sorted(sorted(self.choices, key=lambda choice: abs(math.log(choice / value)))[:4])
        names = [f"{choice:g}" for choice in near]
        return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


@dataclass(frozen=True)
class Constraints:
    """The constraints of a file. allowed : by our names; a quantity that the file does not name is free."""

    path: str
    allowed: dict[str, Allowed] = field(default_factory=dict)
    params: str = "non_embedding"  # how the service counts N, a key of count_params()
    total_flops: float | None = None
    vocab_size: int | None = None
    block_size: int | None = None

    def mistake(self, name: str, value: float) -> str:
        """What is wrong with the value of a quantity, "" where nothing is."""
        limit = self.allowed.get(name)
        if limit is None or limit.holds(value):
            return ""
        return f"{limit.name} {value:g} must be {limit.text(value)} (--constraints {self.path})"

    def nearest(self, name: str, value: float) -> float:
        limit = self.allowed.get(name)
        return limit.nearest(value) if limit else value

    def refuses(self, cfg: ModelConfig, batch_size: int, lr: float) -> str:
        """Why the service won't run this, "" where it does."""
        values = {"n_embd": cfg.n_embd, "n_layer": cfg.n_layer, "n_head": cfg.n_head}
        values |= {"batch_size": batch_size, "lr": lr}
        return "; ".join(filter(None, (self.mistake(name, value) for name, value in values.items())))

    def hold(self, tc, plan_of):
        """A run with batch and rate that are allowed, where rules chose them; a typed one that is not stays.

        tc : TrainConfig. plan_of : makes the RunPlan of one. Returns both.
        """
        plan, changes = plan_of(tc), {}
        if tc.batch_size is None and tc.total_batch_size is None:
            changes["batch_size"] = int(self.nearest("batch_size", plan.batch_size))
            plan = plan_of(replace(tc, **changes))
        if tc.lr is None:
            changes |= {"lr": self.nearest("lr", plan.lr), "lr_scale": 1.0}
        tc = replace(tc, **changes)
        return tc, plan_of(tc)

    def query(self, cfg: ModelConfig, batch_size: int, lr: float, flops: float) -> dict[str, float]:
        """A run as the service is asked for it, by its own names."""
        values = {"n_embd": cfg.n_embd, "n_layer": cfg.n_layer, "n_head": cfg.n_head, "batch_size": batch_size}
        values |= {"lr": float(f"{lr:.3g}"), "flop_budget": flops}
        theirs = {ours: name for name, ours in OURS.items()} | {n: limit.name for n, limit in self.allowed.items()}
        return {theirs[name]: value for name, value in values.items()}

    def heads(self, n_embd: int) -> int | None:
        """Allowed heads that divide the width into even sizes, the size nearest to USUAL_HEAD; None: there are none."""
        fitting = []
        for n_head in range(1, n_embd // 2 + 1):
            if n_embd % (2 * n_head) == 0 and not self.mistake("n_head", n_head):
                fitting.append(n_head)
        return min(fitting, key=lambda n_head: abs(math.log(n_embd / n_head / USUAL_HEAD)), default=None)

    def without(self, name: str) -> "Constraints":
        """These constraints, but for one quantity that is free."""
        return replace(self, allowed={key: limit for key, limit in self.allowed.items() if key != name})

    def shapes(self) -> Iterator[tuple[int, int, int]]:
        """Every (width, depth, heads): widths that are multiples of 64, or the choices; depths as people build them."""
        widths = WIDTHS
        if "n_embd" in self.allowed and self.allowed["n_embd"].choices:
            widths = self.allowed["n_embd"].choices
        for width in widths:
            heads = self.heads(width)
            if heads is None or self.mistake("n_embd", width):
                continue
            shallow = int(self.nearest("n_layer", max(1, math.ceil(width / WIDTH_PER_LAYER[1]))))
            deep = int(self.nearest("n_layer", max(1, width // WIDTH_PER_LAYER[0])))
            for depth in range(shallow, deep + 1):
                if not self.mistake("n_layer", depth):
                    yield width, depth, heads

    def sizes(self, ladder) -> list[tuple[int, int]]:
        """The (width, depth) pairs of a ladder as far as they are allowed, and the deepest model of the widest.

        Where widths are choices it is these, each as deep as the ladder's next width below. UserError: no size is left.
        """
        width_limit, found = self.allowed.get("n_embd"), []
        pairs = list(ladder)
        if width_limit and width_limit.choices:
            pairs = []
            for width in width_limit.choices:
                pairs.append((int(width), max([d for w, d in ladder if w <= width], default=1)))
        for width, depth in pairs:
            if not self.mistake("n_embd", width) and self.heads(width):
                found.append((width, int(self.nearest("n_layer", depth))))
        if not found:
            raise UserError(
                f"--constraints {self.path}: no width has heads that are allowed; check d_model and num_heads"
            )
        if "n_layer" in self.allowed:
            found.append((found[-1][0], int(self.allowed["n_layer"].high)))
        return list(dict.fromkeys(found))

    def rates(self, rates) -> list[float]:
        """Learning rates to try: the given ones, kept in the range; three over the range where fewer are left."""
        kept = sorted({self.nearest("lr", rate) for rate in rates})
        limit = self.allowed.get("lr")
        if len(kept) >= 3 or limit is None or limit.choices:
            return kept
        return [limit.low, math.sqrt(limit.low * limit.high), limit.high]

    def budgets(self, low: float, high: float) -> list[float] | None:
        """The allowed budgets from low to high; None where any is allowed between the range's ends."""
        limit = self.allowed.get("flop_budget")
        if limit is None or not limit.choices:
            return None
        return [choice for choice in limit.choices if low <= choice <= high * (1 + 1e-9)]

    def next_budget(self, above: float, about: float) -> float | None:
        """The allowed budget above one that is nearest to `about`; None where there is none."""
        limit = self.allowed.get("flop_budget")
        if limit is None:
            return about
        if not limit.choices:
            return min(about, limit.high) if above < limit.high else None
        higher = [choice for choice in limit.choices if choice > above * (1 + 1e-9)]
        return min(higher, key=lambda choice: abs(math.log(choice / about)), default=None)

    def default_budgets(self, total: float, sizes: int) -> tuple[float, ...]:
        """DEFAULT_BUDGETS budgets APART from each other, the highest whose runs of `sizes` sizes `total` pays for."""
        limit = self.allowed["flop_budget"]
        choices = limit.choices
        if not choices:
            steps = int(math.log(limit.high / limit.low) / math.log(3) + 1e-9)
            choices = tuple(limit.high / 3**k for k in range(steps, -1, -1))
        for top in reversed(choices):
            picked = [top]
            for choice in reversed(choices):
                if choice <= picked[-1] / APART and len(picked) < DEFAULT_BUDGETS:
                    picked.append(choice)
            if sizes * sum(picked) <= total:
                return tuple(reversed(picked))
        least = sizes * choices[0]
        raise UserError(f"--total_flops {total:g} does not pay for {sizes} sizes at any budget of {self.path}: "
                        f"{least:.3g} would; raise it, or lower --sizes")  # fmt: skip


# ----- the file -----


def read_constraints(path: str) -> Constraints:
    """The constraints in a file; UserError, naming the entry, where it is none."""
    try:
        found = files.read_json(path)
    except OSError as error:
        raise UserError(f"--constraints {path} can't be read ({error.strerror}); check the path") from None
    except UserError as error:
        raise UserError(f"--constraints {error}") from None
    if not isinstance(found, dict):
        raise UserError(f'--constraints {path} must hold an object, as {{"batch_size": [128, 256]}}')
    names = {**OURS, **{ours: ours for ours in OURS.values()}}
    allowed, more = {}, {}
    for key, value in found.items():
        where = f"--constraints {path}: {key}"
        if key in names:
            allowed[names[key]] = _allowed(key, value, where, names[key] in WHOLE)
        elif key == "params":
            if value not in CONVENTIONS:
                raise UserError(f"{where} {json.dumps(value)[:40]} must be one of {', '.join(CONVENTIONS)}")
            more[key] = value
        elif key in SINGLE:
            more[key] = _number(value, where, key in WHOLE)
        else:
            known = [*OURS, "params", *SINGLE]
            near = difflib.get_close_matches(key, known, 1)
            said = f"the nearest is {near[0]}" if near else f"known: {', '.join(known)}"
            raise UserError(f"--constraints {path}: {key!r:.40} is unknown; {said}")
    return Constraints(path, allowed, **more)


def _allowed(key: str, value, where: str, whole: bool) -> Allowed:
    if isinstance(value, list) and value:
        choices = tuple(sorted({_number(one, where, whole) for one in value}))
        return Allowed(key, choices[0], choices[-1], choices)
    if isinstance(value, dict) and set(value) == {"min", "max"}:
        low, high = _number(value["min"], where, whole), _number(value["max"], where, whole)
        if low > high:
            raise UserError(f"{where}: min {low:g} is above max {high:g}; swap them")
        return Allowed(key, low, high)
    raise UserError(
        f'{where} {json.dumps(value)[:40]} must be {{"min": .., "max": ..}}, or a list of all allowed values'
    )


def _number(value, where: str, whole: bool) -> float:
    """A positive number of the file; an int where it must be a whole one."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e40
    if not good or (whole and (value != int(value) or value > 2**31)):
        kind = "whole number" if whole else "number"
        raise UserError(f"{where}: {json.dumps(value)[:40]} must be a positive {kind}")
    return int(value) if whole else float(value)
