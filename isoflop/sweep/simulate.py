"""Losses drawn from a law instead of trained."""

from isoflop import laws
from isoflop.sweep.cells import Cell, Planner


class Simulation:
    """Losses drawn from a law at each cell's N (matmul) and D, the noise of a cell being the same in every run."""

    def __init__(self, law: str, noise: float):
        self.law, self.noise = laws.parse_law(law), noise
        self.source = f"simulated {law}, noise {noise:g}"

    def __call__(self, planner: Planner, cell: Cell) -> dict:
        n, d = cell.plan.n_params_matmul, cell.plan.tokens
        loss = float(laws.simulate(self.law, [n], [d], self.noise, int(cell.run_id, 16))[0])
        return planner.record(cell, "ok", val_loss=loss, flops_exact_over_6nd=1.0, device="none", dtype="none")
