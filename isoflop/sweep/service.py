"""A sweep within a service's constraints, and a look at the service that costs nothing: sweep.py --check.

python sweep.py --api http://HOST:8000 --api_key_file key.txt --check
"""

from dataclasses import replace

from isoflop.constraints import Constraints, read_constraints
from isoflop.options import UserError
from isoflop.sweep.config import DEFAULT_BUDGETS, SweepConfig


def under_constraints(sc: SweepConfig, flags: dict) -> tuple[SweepConfig, dict, Constraints | None]:
    """The sweep with what the file of --constraints fixes: its budgets where none were typed, its cap, its model.

    UserError where typed budgets or the cap are none of the file's.
    """
    if sc.constraints is None:
        return sc, flags, None
    limits = read_constraints(sc.constraints)
    if sc.total_flops and limits.total_flops and sc.total_flops > limits.total_flops * (1 + 1e-9):
        raise UserError(
            f"--total_flops {sc.total_flops:g} is above the {limits.total_flops:g} of {limits.path}; lower it"
        )
    total = sc.total_flops or limits.total_flops
    changes = {"total_flops": total, "vocab_size": sc.vocab_size or limits.vocab_size}
    if limits.block_size:
        flags = {"block_size": limits.block_size, **flags}
    if sc.flop_budgets != DEFAULT_BUDGETS:
        for flops in sc.flop_budgets:
            problem = limits.mistake("flop_budget", flops)
            if problem:
                raise UserError(f"--flop_budgets {flops:g}: {problem}")
    elif "flop_budget" in limits.allowed and not sc.design:
        if not total:
            raise UserError("--constraints without --flop_budgets needs what may be spent: --total_flops 2e18")
        changes["flop_budgets"] = limits.default_budgets(total, len(sc.n_embds or sc.depths or ()) or sc.sizes)
    return replace(sc, **changes), flags, limits


def check(service, total_flops: float | None) -> str:
    """What a service says without a run: that it answers, that it takes the key, what it has counted.

    UserError or OSError, in one line, where it does not.
    """
    used = service.flops_used()
    if used is None:
        return (
            f"{service.url} answers, and has no counter (total_flops_used): whether it takes the key is seen at the "
            "first run; nothing was asked for or spent"
        )
    left = ""
    if total_flops:
        left = f" of {total_flops:.4g}: {max(0.0, total_flops - used):.4g} are left"
    return f"{service.url} answers and takes the key; it has counted {used:.4g} FLOPs{left}; nothing was spent"
