"""The search for an architecture: real configurations around a law's best size, ranked by predicted loss."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from isoflop.config import PRESETS, ModelConfig
from isoflop.constraints import WIDTH_PER_LAYER, Constraints
from isoflop.display import sig
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact
from isoflop.options import UserError, mistake_in, options_of
from isoflop.plan.estimate import CHINCHILLA, best_size
from isoflop.plan.law import RangedLaw, load_law
from isoflop.plan.machine import Bill, Machine
from isoflop.plan.memory import Memory

HEAD_SIZES = (64, 128)  # below width 1024, and from there on
LEAST_HEAD_SIZE, LEAST_KV_HEADS = 16, 4
WIDTHS = (*range(64, 1024, 64), *range(1024, 4096, 128), *range(4096, 20480 + 1, 256))
DEFAULT_BLOCK = 1024  # context of a search where neither --family nor --block_size says otherwise
NEAR_RATIO = 0.05  # how far from D = ratio x N, in ln, a row of the constrained leaderboard may be


@dataclass(frozen=True)
class Candidate:
    """An architecture that spends the budget."""

    cfg: ModelConfig
    n: float  # in the convention that the law counts
    tokens: float
    ratio: float  # tokens / n
    loss: float  # nats per token
    gap: float = 0.0  # to the least loss of all candidates
    memory: Memory | None = None
    time: Bill | None = None


@dataclass(frozen=True)
class SearchResult:
    """What search_architectures() returns; plan.py --json prints these fields."""

    flops: float
    law: str
    convention: str  # the law's N, a key of count_params()
    exact: bool  # whether flops count attention
    family: str
    candidates: int
    ratio: float
    optimum: dict[str, float]  # the law's own n and tokens at C = 6ND
    best: list[Candidate]  # the best depth of each width, least loss first
    constrained: list[Candidate]  # the same at tokens = ratio x n; where none is within 5%, the nearest alone
    ratio_met: bool
    warnings: list[str]


def search_architectures(
    flops: float, law="hoffmann", family: str = "default", given: dict | None = None, ratio: float = CHINCHILLA,
    exact: bool = True, top: int = 8, machine: Machine | None = None, constraints: Constraints | None = None,
    **memory_settings,
) -> SearchResult:  # fmt: skip
    """The architectures of least predicted loss that spend `flops`, with and without D = ratio x N.

    Parameters
    ----------
    flops : of the whole run.
    law : what load_law() takes; it ranks, and N is counted as it was fitted.
    family : preset whose architecture the candidates have.
    given : fields of ModelConfig that every candidate has, as {"vocab_size": 32000, "block_size": 2048}.
    ratio : tokens per parameter of the constrained list.
    exact : whether flops count attention, which the hardware does; else they are 6ND, the unit of train.py's budgets.
    top : rows of each list.
    machine : of make_machine(), for time and cost of the listed rows, and whether it holds one sequence of them.
    constraints : of a service, whose architectures alone are candidates; N is counted as it counts, FLOPs are 6ND.
    memory_settings : dtype, path and the further arguments of estimate_memory().

    Raises
    ------
    UserError : an unknown family or law, fields out of bounds, a budget with no architecture near its best size, or
        one that the law does not reach: its least loss is above that of a uniform guess.

    Examples
    --------
    >>> found = search_architectures(1e21, "hoffmann", "llama3", {"block_size": 2048})
    >>> found.best[0].cfg.n_layer, found.best[0].cfg.n_embd
    (18, 2304)
    """
    if not 0 < ratio < math.inf:
        raise UserError(f"--tokens_per_param {ratio:g} must be a positive finite number")
    ranged, given = load_law(law), given or {}
    per_token = flops_per_token_exact if exact else flops_per_token
    if constraints:
        ranged, exact = replace(ranged, count=constraints.params), False

        def per_token(cfg):
            return 6 * count_params(cfg)[constraints.params]

    optimum = best_size(flops, ranged)
    if constraints:
        candidates = allowed_architectures(family, given, constraints)
    else:
        candidates = architectures(family, given, optimum.n)
    rows = _ranked(flops, ranged, candidates, per_token)
    if not rows and constraints:
        raise UserError(f"--constraints {constraints.path}: no model is allowed; check d_model, num_layers, num_heads")
    if not rows:
        raise UserError(
            f"--flop_budget {flops:g} is best spent on some {optimum.n:.3g} parameters, and family {family} with its "
            "vocabulary has nothing near that size; raise it"
        )
    near = [row for row in rows if abs(math.log(row.ratio / ratio)) <= NEAR_RATIO]
    constrained = near or [min(rows, key=lambda row: abs(math.log(row.ratio / ratio)))]
    machine = machine or Machine()
    best = _leaders(rows, top, machine, memory_settings)
    return SearchResult(
        flops, ranged.name, ranged.count, exact, family, len(rows), ratio,
        optimum={"n": optimum.n, "tokens": optimum.tokens},
        best=best,
        constrained=_leaders(constrained, top, machine, memory_settings),
        ratio_met=bool(near),
        warnings=ranged.outside(N=best[0].n, D=best[0].tokens, C=flops),
    )  # fmt: skip


def _ranked(flops: float, ranged: RangedLaw, configurations, per_token) -> list[Candidate]:
    """Candidates for the budget, least loss first; UserError where that is above the loss of a uniform guess."""
    rows = []
    for cfg in configurations:
        n, tokens = count_params(cfg)[ranged.count], flops / per_token(cfg)
        rows.append(Candidate(cfg, n, tokens, tokens / n, float(ranged.law.loss(n, tokens))))
    if not rows:
        return []
    rows.sort(key=lambda row: row.loss)
    least, guess = rows[0].loss, math.log(rows[0].cfg.vocab_size)
    if least > guess:
        raise UserError(
            f"--flop_budget {flops:g} is not reached by --law {ranged.name}: its least loss, {sig(least, 3)} nats, is "
            f"above that of a uniform guess, ln V = {guess:.2f}; raise it, or give the fit.json of a sweep near it"
        )
    return [replace(row, gap=row.loss - least) for row in rows]


def _leaders(rows: list[Candidate], top: int, machine: Machine, memory_settings: dict) -> list[Candidate]:
    """The first row of each width, with its memory, time and cost."""
    first = {}
    for row in rows:
        first.setdefault(row.cfg.n_embd, row)
    leaders = []
    for row in list(first.values())[:top]:
        memory = machine.memory_of(row.cfg, 1, **memory_settings)
        leaders.append(replace(row, memory=memory, time=machine.bill(row.cfg, row.tokens)))
    return leaders


# ----- candidates -----


def architectures(family: str, given: dict, n_about: float, span: float = 30.0) -> Iterator[ModelConfig]:
    """Configurations of a family, at widths that hardware likes, within a factor `span` of n_about matmul parameters.

    Widths are multiples of 64 up to 1024, of 128 up to 4096, of 256 above; depths keep width over layers between 32
    and 128; heads have the family's size, or 64 below 1024 and 128 from there on; shared key heads are as many of the
    family's as divide the heads, at least 4.
    """
    if family not in PRESETS:
        raise UserError(f"--family {family} is unknown; known: {', '.join(PRESETS)}")
    _check_fields(given)
    row = {"block_size": DEFAULT_BLOCK} if family == "default" else {}
    row |= {key: value for key, value in PRESETS[family].items() if key not in ("n_layer", "n_embd", "n_ffn")}
    row |= given
    for width in WIDTHS:
        heads = _heads(width, row, given)
        if heads is None:
            continue
        base = ModelConfig(**{**row, **heads, "n_embd": width, "n_layer": 1})
        head = base.vocab_size * width
        layer = count_params(base)["matmul"] - head
        shallow = max(1, math.ceil(width / WIDTH_PER_LAYER[1]))
        deep = max(1, width // WIDTH_PER_LAYER[0])
        for n_layer in range(shallow, deep + 1):
            if n_about / span <= head + n_layer * layer <= n_about * span:
                yield replace(base, n_layer=n_layer)


def allowed_architectures(family: str, given: dict, constraints: Constraints) -> Iterator[ModelConfig]:
    """Every architecture of a family that a service allows."""
    row = {key: value for key, value in PRESETS[family].items() if key not in ("head_size", "n_kv_head", "n_ffn")}
    row |= {"vocab_size": constraints.vocab_size or row.get("vocab_size", ModelConfig.vocab_size)}
    row |= {"block_size": constraints.block_size or DEFAULT_BLOCK, **given}
    for width, depth, heads in constraints.shapes():
        yield ModelConfig(**{**row, "n_embd": width, "n_layer": depth, "n_head": heads})


def _check_fields(given: dict):
    """UserError where a field breaks its own bounds: no ModelConfig has seen it yet."""
    problems = []
    for f in options_of(ModelConfig):
        mistake = mistake_in(f, given[f.name]) if given.get(f.name) is not None else None
        if mistake:
            problems.append(f"--{f.name} {given[f.name]} must be {mistake}")
    if problems:
        raise UserError("; ".join(problems))


def _heads(width: int, row: dict, given: dict) -> dict | None:
    """head_size and n_kv_head for a width, or None where it has no sensible ones; typed fields are kept."""
    wanted = row.get("head_size") or HEAD_SIZES[width >= 1024]
    sizes = [wanted, *HEAD_SIZES]
    if "n_head" in given:
        sizes = [width / given["n_head"]]
    elif "head_size" in given:
        sizes = [wanted]
    size = next((int(s) for s in sizes if s == int(s) and width % s == 0), None)
    if size is None or size < LEAST_HEAD_SIZE or size % 2:
        return None
    heads, shared = width // size, row.get("n_kv_head")
    if shared is None:
        return {"head_size": size}
    if "n_kv_head" in given:
        return {"head_size": size} if heads % shared == 0 else None
    groups = max(k for k in range(1, min(heads, shared) + 1) if heads % k == 0)
    if groups < min(LEAST_KV_HEADS, shared):
        return None
    return {"head_size": size, "n_kv_head": groups}
