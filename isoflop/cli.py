"""Command-line flags from dataclass fields: one line for a mistake, exit status 2."""

import argparse
import functools
import os
import re
from dataclasses import fields

from isoflop.config import PRESETS, ModelConfig, configure
from isoflop.train.plan import TrainConfig

# ----- configurations as flags: shared by plan.py, train.py and sweep.py -----


def number(text: str) -> int:
    """An integer, which may be written 5e3."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake, and no abbreviations: --n_embd must not pass for --n_embds."""

    def __init__(self, prog: str, doc: str, *configs, skip=()):
        super().__init__(
            prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.I)  # -1e12 is no flag either
        taken = set(skip)
        for config in configs:
            for f in fields(config):
                if f.name not in taken and f.metadata.get("flag", True):
                    taken.add(f.name)
                    self._add(f)
        if ModelConfig in configs:
            known = ", ".join(PRESETS)
            self.add_argument("--preset", metavar="NAME", help=f"architecture and sizes; flags go on top: {known}")
            self.add_argument(
                "--depth", type=number, metavar="N", help="one knob: N layers, width 64 N, --hparams depth"
            )

    def _add(self, f):
        """The flag of a field. Only flags that were typed appear in the namespace: defaults stay in the dataclass."""
        options = {"help": f.metadata["help"], "default": argparse.SUPPRESS}
        if "bool" in str(f.type):
            options["action"] = argparse.BooleanOptionalAction
        else:
            kind = next(k for name, k in (("int", number), ("float", float), ("str", str)) if name in str(f.type))
            options |= {"type": kind, "choices": f.metadata.get("choices")}
            options |= {"nargs": "+"} if "tuple" in str(f.type) else {}
            options |= {"nargs": "?", "const": f.metadata["const"]} if "const" in f.metadata else {}
            options |= {} if options["choices"] else {"metavar": {number: "N", float: "X", str: "TEXT"}[kind]}
            if f.default is not None:
                default = " ".join(f"{x:g}" for x in f.default) if isinstance(f.default, tuple) else f.default
                options["help"] += f" (default: {default})"
        self.add_argument(f"--{f.name}", **options)

    def error(self, message: str):
        self.fail(f"{message}; --help lists the flags")

    def fail(self, problem):
        """One line and exit status 2, from one of the processes."""
        alone = os.environ.get("RANK", "0") == "0"
        self.exit(2, f"{self.prog}: error: {' '.join(str(problem).split())}\n" if alone else None)

    def read(self, config, args: argparse.Namespace, **more):
        """The configuration that the typed flags (and `more`) make."""
        given = {f.name: getattr(args, f.name) for f in fields(config) if hasattr(args, f.name)}
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        make = config
        if config is ModelConfig:
            make = functools.partial(configure, getattr(args, "preset", None), getattr(args, "depth", None))
        elif config is TrainConfig and getattr(args, "depth", None) is not None:
            given = {"hparams": "depth"} | given
        return make(**{**more, **given})
