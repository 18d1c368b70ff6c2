"""Numbers and tables for people."""

import math


def human_time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "never"
    for unit, size in (("y", 365.25 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 if unit == "y" else 1.5 if unit == "d" else 1) * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
