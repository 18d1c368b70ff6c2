"""The best rate and batch by one's own runs: --hparams fit/hparams/fit.json, which fit.py --law_of hparams wrote.

Plain arithmetic, no torch, and nothing of isoflop.fit: a law in fit.json is a factor and powers of N, D or C.
"""

import functools
import math
import os
from dataclasses import dataclass

from isoflop.files import read_json
from isoflop.options import UserError

# N by the names of columns -> (count_params' entry, the name in hparams.measures())
COUNTS = {
    "n_params_matmul": ("matmul", "N"),
    "n_params_non_embedding": ("non_embedding", "non-embedding N"),
    "n_params": ("total", "total N"),
}
MADE_BY = "fit.py runs.csv --law_of hparams writes one to fit/hparams/fit.json"


@dataclass(frozen=True)
class Power:
    """k x product of (N, D or C)^exponent."""

    k: float
    exponents: tuple[tuple[str, float], ...]

    def at(self, n: float, d: float) -> float:
        values = {"N": n, "D": d, "C": 6.0 * n * d}
        out = self.k
        for letter, power in self.exponents:
            out *= values[letter] ** power
        return out

    def __str__(self):
        return " ".join([f"{self.k:.3g}", *(f"{letter}^{power:.3g}" for letter, power in self.exponents)])


@dataclass(frozen=True)
class FittedLaw:
    """What a fit.json says of rates and batches."""

    lr: Power
    batch: Power | None  # tokens per step; None where the runs had one batch each
    lr_of_batch: float  # the best rate goes as (B / B*)^this
    count: str  # N, an entry of count_params()
    measure: str  # the same in hparams.measures()
    guessed: str  # a line where what N counts is a guess, else ""
    sizes: tuple[float, float]  # N of the runs
    tokens: tuple[float, float]  # D of the runs
    most_lr: float  # the highest best rate among them

    def best(self, n: float, tokens: float, batch: float | None, default_batch: float) -> tuple[float, float]:
        """(rate, tokens per step) of n parameters on `tokens` tokens. batch : where it is decided."""
        lr, own = self.lr.at(n, tokens), default_batch
        if self.batch is not None:
            own = self.batch.at(n, tokens)
        if batch is None or self.batch is None:
            return lr, batch or own
        return lr * (batch / own) ** self.lr_of_batch, batch

    @property
    def source(self) -> str:
        text = f"own runs: rate {self.lr}"
        if self.batch is None:
            return f"{text}; B = 0.58 D^0.571 (Step Law), for these runs tell none"
        return f"{text} x (B / rule)^{self.lr_of_batch:.2g}; B = {self.batch} tokens"

    @property
    def measured(self) -> str:
        (n0, n1), (d0, d1) = self.sizes, self.tokens
        return f"N of {n0:.3g} to {n1:.3g}, D of {d0:.3g} to {d1:.3g}"


def read(path: str) -> FittedLaw:
    """The law in a fit.json; UserError, one line, where there is none such."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"--hparams {path} can't be read ({error.strerror}); {MADE_BY}") from None
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: str, changed: int, size: int) -> FittedLaw:
    try:
        section = read_json(path)["hparams"]
        unit, column = section["batch_unit"], section["n_convention"]
        batch = section["batch"] and _power(section["batch"])
        lr_of_batch = float(section["lr_of_batch"] or 0.0)
        rates = [float(cell["lr"]["point"]) for cell in section["cells"] if cell["status"] == "ok"]
        ends = []
        for letter in "nd":
            low, high = section["measured"][letter]
            ends.append((float(low), float(high)))
        law = FittedLaw(_power(section["lr"]), batch, lr_of_batch, *_count(column), *ends, max(rates))
        numbers = [law.lr_of_batch, law.most_lr, *law.sizes, *law.tokens]
        if not all(math.isfinite(value) for value in numbers) or min(numbers[1:]) <= 0:
            raise ValueError("a number is none")
    except OSError as error:
        raise UserError(f"--hparams {path} can't be read ({error.strerror}); {MADE_BY}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"--hparams {path} holds no law of rates and batches; {MADE_BY}") from None
    if batch is not None and unit != "tokens":
        raise UserError(
            f"--hparams {path}: its batches are in column {unit}, not in tokens per step; fit again with --batch_col "
            "naming a column of tokens per step"
        )
    return law


def _power(form) -> Power:
    """A form of fit.json; ValueError where it can give no rate."""
    exponents = tuple((letter, float(power)) for letter, power in form["exponents"].items())
    k = float(form["k"])
    if not (0 < k < math.inf) or not all(letter in "NDC" and abs(power) < 100 for letter, power in exponents):
        raise ValueError("no law")
    return Power(k, exponents)


def _count(column: str) -> tuple[str, str, str]:
    """(count, measure, guessed) of a column of N."""
    if column in COUNTS:
        return (*COUNTS[column], "")
    return "matmul", "N", f"its N, column {column}, is taken as every matrix's weights, the head among them"
