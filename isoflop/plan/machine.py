"""The machine that a run is planned for: speed, price, memory, and what a run takes of them."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from isoflop import gpus
from isoflop.config import ModelConfig
from isoflop.files import read_csv, read_json
from isoflop.flops import flops_per_token_exact
from isoflop.options import UserError
from isoflop.plan.memory import Memory, estimate_memory

ASSUMED_MFU = 0.40  # of a well-tuned run on one node; said beside every time that rests on it


@dataclass(frozen=True)
class Speed:
    """FLOP/s of all devices together, by which exact FLOPs are divided, and where the figure comes from."""

    flops_per_s: float
    source: str


@dataclass(frozen=True)
class Bill:
    """What a run takes; None where the speed or the price is unknown."""

    seconds: float | None = None
    dollars: float | None = None
    gpu_hours: float | None = None
    tokens_per_s: float | None = None  # of all devices together
    mfu: float | None = None  # exact FLOP/s over the peak; None where that is unknown
    source: str = ""  # of the speed


@dataclass(frozen=True)
class Machine:
    """What a run is planned for; every field may be unknown. make_machine() fills it in."""

    gpu: str | None = None
    n_gpus: int = 1
    speed: Speed | None = None
    price_per_hour: float | None = None  # dollars, of one device
    price_source: str = ""
    memory: float | None = None  # bytes of one device
    peak: float | None = None  # FLOP/s of one device

    def stated(
        self, cfg: ModelConfig, mfu: float | None = None, tokens_per_s: float | None = None, measured: str | None = None
    ) -> "Machine":
        """This machine at the speed that is stated, or was measured, for one model; without any, as it is.

        mfu : share of the peak. tokens_per_s : of all devices together. measured : as in make_machine().
        UserError where the peak that a share needs is unknown.
        """
        if measured:
            speed = read_speed(measured, self.n_gpus)
        elif tokens_per_s:
            speed = Speed(tokens_per_s * flops_per_token_exact(cfg), f"{tokens_per_s:,.6g} tokens/s, as stated")
        elif mfu:
            if self.peak is None:
                raise UserError(f"mfu={mfu:g} is a share of a peak: add --gpu NAME, as a6000, or --peak_flops")
            peak = self.n_gpus * self.peak
            speed = Speed(mfu * peak, f"{mfu:.1%} of {self.n_gpus} x {self.peak / 1e12:,.1f} TFLOP/s, as stated")
        else:
            return self
        return dataclasses.replace(self, speed=speed)

    def bill(self, cfg: ModelConfig, tokens: float) -> Bill:
        """Time and cost of `tokens` training tokens, from exact FLOPs (with attention)."""
        if self.speed is None:
            return Bill()
        seconds = flops_per_token_exact(cfg) * tokens / self.speed.flops_per_s
        gpu_hours = seconds * self.n_gpus / 3600
        dollars = None
        if self.price_per_hour is not None:
            dollars = gpu_hours * self.price_per_hour
        mfu = None
        if self.peak is not None:
            mfu = self.speed.flops_per_s / (self.n_gpus * self.peak)
        return Bill(seconds, dollars, gpu_hours, tokens / seconds, mfu, self.speed.source)

    def memory_of(self, cfg: ModelConfig, micro_batch_size: int, **settings) -> Memory:
        """estimate_memory() of one device, and whether it holds that; settings are its further arguments."""
        needed = estimate_memory(cfg, micro_batch_size, n_gpus=self.n_gpus, **settings)
        if self.memory is None:
            return needed
        fits_shard = self.n_gpus > 1 and needed.peak_shard <= self.memory
        return dataclasses.replace(needed, fits=needed.peak <= self.memory, fits_shard=fits_shard)

    def find_micro_batch(self, cfg: ModelConfig, batch_size: int, shard: bool = False, **settings) -> tuple[int, bool]:
        """(sequences of a forward pass, whether it takes --shard) that one device holds.

        batch_size, or the largest power of two below it; with --shard where that is requested, or where without it not
        even one sequence fits; one sequence where none does.
        """
        if self.memory is None:
            return batch_size, shard
        sizes = [batch_size]
        while sizes[-1] > 1:
            sizes.append(2 ** ((sizes[-1] - 1).bit_length() - 1))
        needed = [self.memory_of(cfg, size, **settings) for size in sizes]
        for size, memory in zip(sizes, needed, strict=True):
            if memory.fits and not shard:
                return size, False
        for size, memory in zip(sizes, needed, strict=True):
            if memory.peak_shard <= self.memory and (shard or self.n_gpus > 1):
                return size, True
        return 1, shard


def make_machine(
    gpu: str | None = None, n_gpus: int = 1, mfu: float | None = None, peak_flops: float | None = None,
    measured: str | None = None, price_per_hour: float | None = None,
) -> Machine:  # fmt: skip
    """A machine from names and numbers.

    Parameters
    ----------
    gpu : a name of gpus.GPUS, which gives peak, memory and a first idea of the price; any name with peak_flops.
    n_gpus : devices, one process each.
    mfu : share of the peak that is reached, in exact FLOPs; 0.4 is assumed where neither this nor `measured` is given.
    peak_flops : peak FLOP/s of one device, where gpu is not known.
    measured : run.json or runs.csv of finished runs, whose speed is taken instead.
    price_per_hour : dollars for one device.

    Raises
    ------
    UserError : an unknown gpu, an mfu outside (0, 1], a file that holds no finished run.
    """
    known = None
    if gpu:
        # The peak of a card that is not in the table may be typed; its memory and price are then unknown.
        known = gpus.find(gpu) if peak_flops or measured else gpus.named(gpu)
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g} must be above 0 and at most 1, as 0.4")
    speed, price_source, memory = None, "", None
    if known is not None:
        peak_flops, memory = peak_flops or known.peak, known.memory
    if measured:
        speed = read_speed(measured, n_gpus)
    elif peak_flops is not None:
        share = mfu or ASSUMED_MFU
        assumed = "" if mfu else ", an assumed MFU (--mfu, --measured)"
        source = f"{share:.1%} of {n_gpus} x {peak_flops / 1e12:,.1f} TFLOP/s{assumed}"
        speed = Speed(n_gpus * peak_flops * share, source)
    if price_per_hour is not None:
        price_source = "--price_per_hour"
    elif known is not None:
        price_per_hour, price_source = known.price, known.price_source
    return Machine(gpu, n_gpus, speed, price_per_hour, price_source, memory, peak_flops)


def read_speed(path, n_gpus: int) -> Speed:
    """Exact FLOP/s per device of the largest finished run in run.json or runs.csv, times n_gpus."""
    try:
        finished = [row for row in _rows(Path(path)) if row.get("status", "ok") == "ok"]
        largest = max(finished, key=lambda row: float(row["n_params_matmul"]))
        rate = float(largest["flops_exact"]) / float(largest["train_s"]) / int(largest["world_size"])
        if not 0 < rate < math.inf:
            raise ValueError(f"a speed of {rate:g} FLOP/s")
        return Speed(
            rate * n_gpus, f"{rate:.3g} FLOP/s a device, measured on {largest['device']} (run {largest['run_id']})"
        )
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--measured {path} holds no finished run with flops_exact, train_s and world_size ({reason}); "
            "give the run.json or runs.csv that train.py or sweep.py wrote"
        ) from None


def _rows(path: Path) -> list[dict]:
    if path.suffix != ".csv":
        row = read_json(path)
        if not isinstance(row, dict):
            raise ValueError("not a record")
        return [row]
    return read_csv(path)[1]
