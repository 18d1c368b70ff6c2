"""What plan.py is asked: its flags, and the models of --preset, single fields and --config."""

import argparse
import shlex
from dataclasses import dataclass

from isoflop.cli import Parser
from isoflop.config import ModelConfig
from isoflop.files import read_json
from isoflop.options import UserError, check, option

MOST = 1e29  # of FLOPs and tokens


@dataclass(frozen=True)
class PlanConfig:
    """What plan.py is asked, beyond the flags of a model and a training run."""

    tokens: float | None = option(None, "training tokens (D)", group="question", min=1, max=MOST)
    flop_budget: float | None = option(None, "training FLOPs, 6 N D of a run", above=0, max=MOST)
    tokens_per_param: float | None = option(None, "training tokens per parameter, D / N", above=0, max=1e12)
    days: float | None = option(None, "search what --gpu computes in this time", above=0, max=1e6)
    n_params: float | None = option(None, "how many tokens a model of this size wants", min=1, max=1e18)
    target_loss: float | None = option(None, "least compute for this loss, nats a token", above=0, max=100)
    unique_tokens: float | None = option(None, "how many of --tokens are different", min=1, max=MOST)
    inference_tokens: float | None = option(None, "tokens that the model will serve in its life", above=0, max=MOST)

    law: tuple[str, ...] = option(
        ("besiroglu", "hoffmann"), "first one ranks; also fit.json, E=..,A=..", group="laws and search"
    )
    data_law: str | None = option(None, "for --unique_tokens: fit.json of fit.py --law_of data", metavar="PATH")
    family: str = option("default", "preset whose sizes are searched")
    exact: bool = option(True, "count attention in the search's FLOPs, not just 6ND")
    top: int = option(6, "rows of the search's tables", above=0, max=1000)
    constraints: str | None = option(None, "search what a service allows: its JSON file", metavar="FILE")
    config: tuple[str, ...] = option(
        (), "'name=A preset=llama3 n_layer=18', or a .json file; repeat", group="model", repeat=True
    )
    vocab_size: int | None = option(None, "tokens in the vocabulary", above=0, max=2**24)

    gpu: str | None = option(None, "name of a device, as h100, a6000, rtx4090", group="machine")
    n_gpus: int = option(1, "devices, one process each", aliases=("world_size",), above=0, max=10**6)
    mfu: float | None = option(None, "share of the peak (default: 0.4, assumed)", above=0, max=1, hint="as 0.4")
    peak_flops: float | None = option(None, "peak FLOP/s of a device not in --gpu", min=1e6, max=1e20)
    measured: str | None = option(None, "run.json or runs.csv whose speed is taken")
    price_per_hour: float | None = option(None, "dollars for one device", above=0, max=1e6)

    rules: bool = option(False, "source and range of every rule of --hparams", group="output")
    markdown: bool = option(False, "tables in Markdown")
    json: bool = option(False, "every number, for programs")

    def __post_init__(self):
        more = []
        if self.days and not (self.gpu or self.peak_flops or self.measured):
            more.append(f"--days {self.days:g} needs a speed: --gpu, --peak_flops or --measured")
        if self.days and self.flop_budget:
            more.append("--days and --flop_budget both give the compute; leave one out")
        if self.n_params and self.flop_budget and self.tokens:
            more.append("--flop_budget, --n_params and --tokens are one too many; leave one out")
        for name in ("flop_budget", "days"):
            asked = getattr(self, name)
            if asked and self.target_loss:
                more.append(
                    f"--{name} {asked:g} and --target_loss {self.target_loss:g} ask for each other; leave one out"
                )
        if self.days and self.n_params:
            more.append(f"--days {self.days:g} is for a search or an architecture; with --n_params give --flop_budget")
        if self.constraints and not self.flop_budget:
            more.append(f"--constraints {self.constraints} is for a search: add --flop_budget, as 1e19")
        if self.data_law and not self.unique_tokens:
            more.append(f"--data_law {self.data_law} is for --unique_tokens; add it, or leave this out")
        check(self, more)


@dataclass(frozen=True)
class ConfigEntry:
    """What one --config holds beyond a model."""

    name: str | None = option(None, "title of its column")
    tokens: float | None = option(None, "training tokens", min=1, max=MOST)
    vocab_size: int | None = option(None, "tokens in the vocabulary", above=0, max=2**24)
    mfu: float | None = option(None, "share of the peak that it reaches", above=0, max=1)
    tokens_per_s: float | None = option(None, "its speed, of all devices together", above=0, max=1e12)
    measured: str | None = option(None, "run.json or runs.csv whose speed is taken")

    def __post_init__(self):
        given = [name for name in ("mfu", "tokens_per_s", "measured") if getattr(self, name) is not None]
        more = [f"{' and '.join(given)} all give the speed: leave all but one out"] if len(given) > 1 else []
        check(self, more)

    def speed(self) -> dict:
        """What is said of its speed, as Machine.stated() takes it."""
        return {"mfu": self.mfu, "tokens_per_s": self.tokens_per_s, "measured": self.measured}


# ----- models -----


def read_configs(entries) -> list[argparse.Namespace]:
    """The flags of each --config: 'key=value ...', or a JSON file with a list, or a dict by name, of such dicts.

    Without any, one that is empty.
    """
    parser, configs = Parser("plan.py --config", "", ConfigEntry, ModelConfig), []
    for entry in entries:
        for settings in settings_of(entry):
            words = []
            for key, value in settings.items():
                text = str(value).lower()
                if text in ("true", "false"):
                    words.append(f"--{key}" if text == "true" else f"--no-{key}")
                else:
                    words += [f"--{key}", str(value)]
            typed = parser.parse_args(words)
            parser.read(ConfigEntry, typed)  # its bounds
            if not hasattr(typed, "name") and typed.preset is None:
                typed.name = f"config {len(configs) + 1}"
            configs.append(typed)
    return configs or [parser.parse_args([])]


def settings_of(entry: str) -> list[dict]:
    """The dicts of one --config; UserError where it is neither key=value pairs nor a file of such dicts."""
    if not entry.endswith(".json"):
        pairs = [word.partition("=") for word in shlex.split(entry)]
        for key, sign, _ in pairs:
            if not sign:
                raise UserError(f"--config: {key!r} is not key=value, as n_layer=18; a file's name ends in .json")
        return [{key: value for key, _, value in pairs}]
    try:
        found = read_json(entry)
    except OSError as error:
        raise UserError(f"--config {entry} can't be read ({error.strerror}); check the path") from None
    if isinstance(found, dict) and all(isinstance(settings, dict) for settings in found.values()):
        found = [{"name": name, **settings} for name, settings in found.items()]
    if not isinstance(found, list) or not all(isinstance(settings, dict) for settings in found):
        raise UserError(f'--config {entry} must hold a list, or a dict by name, of objects like {{"n_layer": 18}}')
    return found


def with_entry(args, entry: argparse.Namespace) -> argparse.Namespace:
    """The typed flags with those of one --config on top; a --preset or --depth is replaced, never added to."""
    both = argparse.Namespace(**{**vars(args), **vars(entry)})
    if entry.preset is None and entry.depth is None:
        both.preset, both.depth = args.preset, args.depth
    return both


def read_model(parser, args, notes: list[str]) -> ModelConfig:
    """The model of the typed flags; heads that do not divide the width are counted as near ones that do, with a note.

    Published tables have such heads (18 at 2432). Weights and FLOPs are the same for any number of them, unless key
    heads are shared: then it is a UserError that names near ones.
    """
    try:
        return parser.read(ModelConfig, args)
    except UserError as error:
        width, heads = getattr(args, "n_embd", None), getattr(args, "n_head", None)
        if not (width and heads and width % heads) or "is not divisible" not in str(error):
            raise
        fitting = [h for h in range(1, width + 1) if width % (2 * h) == 0]
        near = sorted(fitting, key=lambda h: abs(h - heads))[:2]
        names = " or ".join(map(str, sorted(near)))
        try:
            cfg = parser.read(ModelConfig, argparse.Namespace(**{**vars(args), "n_head": near[0]}))
        except (UserError, IndexError):
            cfg = None
        if cfg is None or cfg.n_kv_head != cfg.n_head:
            raise UserError(f"{error}; or --n_head {names}") from None
    notes.append(
        f"{heads} heads do not divide the width {width:,}: counted as {cfg.n_head} of {cfg.head_size}, with the same "
        f"weights and 6ND if they fill the width; to train it, --n_head {names}"
    )
    return cfg
