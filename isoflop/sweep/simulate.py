"""Losses drawn from a law, for sweep.py --simulate: the whole pipeline without training.

    python sweep.py --simulate hoffmann --noise 0.005 --flop_budgets 1e18 3e18 1e19 --vocab_size 32000

The column `source` of the results file names the law and the noise.
"""

from isoflop import laws
from isoflop.sweep.cells import Cell, Planner


class Simulation:
    """Draws losses at each cell's N (matmul) and D; the noise of a cell is the same whenever it is drawn.

    law : published name, or E=..,A=..,B=..,alpha=..,beta=..; UserError where it is unknown.
    noise : standard deviation of ln L.
    """

    def __init__(self, law: str, noise: float):
        self.law, self.noise = laws.parse_law(law), noise
        self.source = f"simulated {law}, noise {noise:g}"

    def __call__(self, planner: Planner, cell: Cell) -> dict:
        """The row of a planned cell, without the columns that only a sweep knows."""
        n, d, seed = cell.plan.n_params_matmul, cell.plan.tokens, int(cell.run_id, 16)
        loss = float(laws.simulate(self.law, [n], [d], self.noise, seed)[0])
        return planner.record(cell, "ok", val_loss=loss, flops_exact_over_6nd=1.0, device="none", dtype="none")
