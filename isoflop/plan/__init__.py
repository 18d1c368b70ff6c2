"""Planning from Python: the best size for a compute, architectures, memory, time and cost. No torch.

docs/notebook.md has an example. What a function takes and returns is in its docstring.
"""

from isoflop.config import ModelConfig, configure
from isoflop.plan.estimate import BestSize, best_size
from isoflop.plan.law import RangedLaw, load_law
from isoflop.plan.machine import Bill, Machine, make_machine
from isoflop.plan.memory import Memory, estimate_memory
from isoflop.plan.search import Candidate, SearchResult, search_architectures

__all__ = [
    "best_size", "BestSize", "load_law", "RangedLaw", "search_architectures", "SearchResult", "Candidate",
    "estimate_memory", "Memory", "make_machine", "Machine", "Bill", "configure", "ModelConfig",
]  # fmt: skip
