"""What several test files share. One section per subject."""

import json
from pathlib import Path

import pytest

from isoflop import laws

# ----- fits: reference data and simulated runs -----

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")


def reference_results():
    """reference_results.json: what is known of the reference data."""
    return json.loads((REFERENCE / "reference_results.json").read_text())


def reference_table(name, **options):
    """Table of the runs in a file of the reference folder; options as of isoflop.fit.table.read."""
    from isoflop.fit import table

    return table.read([str(REFERENCE / name)], **options)


def isoflop_runs(law, noise=0.003, seed=0, budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=7, span=30.0):
    """n, d, c, loss of runs drawn from a law on an isoFLOP grid about its own optima."""
    n, d, c = laws.isoflop_grid(law, budgets, sizes, span)
    return n, d, c, laws.simulate(law, n, d, noise, seed)
