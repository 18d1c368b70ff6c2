"""Flags from dataclass fields (options.py), grouped help, and one line for a mistake.

    def run(parser, args):
        config = parser.read(SampleConfig, args)
        print(...)
        return 0

    def main(argv=None):
        return run_main(Parser("sample.py", __doc__, SampleConfig), run, argv, "what was printed is all there is")

A dataclass that is made of more flags than its fields (ModelConfig: --preset, --depth) has two class methods:

    @classmethod
    def add_flags(cls, parser):
        parser.flag("preset", "str | None", None, "architecture and sizes", choices=tuple(PRESETS))

    @classmethod
    def from_flags(cls, args, **given):  # what parser.read() calls in place of cls(**given)
        return configure(args.preset, **given)
"""

import argparse
import codecs
import os
import re
import sys
import time
import warnings

from isoflop.options import (
    FULL,
    UserError,
    check,
    default_text,
    explain,
    integer,
    is_many,
    mistake_in,
    option,
    options_of,
    parse_value,
    real,
    type_of,
)

__all__ = ["Parser", "UserError", "check", "explain", "integer", "option", "real", "run_main"]

LONGEST = 1000  # characters of a message, of which the middle is left out
NEGATIVE = re.compile(r"-(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$|-(inf|nan)$", re.I)  # -1e12 is a value, not a flag
# What people type for a flag of ours; the first that the script has is meant. Only where it has no flag of that name.
ALIASES = {
    "batch": ("batch_size",), "block": ("block_size",), "budget": ("flop_budget", "flop_budgets"),
    "budgets": ("flop_budgets", "flop_budget"), "checkpoint": ("ckpt",), "clip_grad": ("grad_clip",),
    "context_length": ("block_size",), "d_model": ("n_embd", "n_embds"), "data": ("data_dir",),
    "data_path": ("data_dir",), "depth": ("depths",), "depths": ("depth",), "flop_budget": ("flop_budgets",),
    "flop_budgets": ("flop_budget",), "flops": ("flop_budget", "flop_budgets"), "gradient_clip": ("grad_clip",),
    "heads": ("n_head", "n_heads"), "hidden_size": ("n_embd", "n_embds"), "iters": ("max_iters",),
    "layers": ("n_layer", "n_layers"), "learning_rate": ("lr",), "learning_rates": ("lrs", "lr"),
    "max_length": ("max_new_tokens", "block_size"), "max_lr": ("lr",), "max_seq_len": ("block_size",),
    "max_steps": ("max_iters",), "max_tokens": ("max_new_tokens", "num_tokens"), "n_boot": ("bootstrap",),
    "n_bootstrap": ("bootstrap",), "n_ctx": ("block_size",), "n_embd": ("n_embds",), "n_embds": ("n_embd",),
    "n_head": ("n_heads",), "n_heads": ("n_head",), "n_layer": ("n_layers",), "n_layers": ("n_layer",),
    "n_samples": ("num_samples",), "num_gpus": ("n_gpus",), "num_heads": ("n_head", "n_heads"),
    "num_iters": ("max_iters",), "num_layers": ("n_layer", "n_layers"), "num_steps": ("max_iters",),
    "out": ("out_dir",), "out_dir": ("out",), "output": ("out_dir", "out"), "output_dir": ("out_dir", "out"),
    "peak_lr": ("lr",), "resamples": ("bootstrap",), "seq_len": ("block_size",), "seq_length": ("block_size",),
    "sequence_length": ("block_size",), "steps": ("max_iters",), "temp": ("temperature",),
    "tokens_per_param": ("tokens_per_params",), "tokens_per_parameter": ("tokens_per_param", "tokens_per_params"),
    "tokens_per_params": ("tokens_per_param",), "total_steps": ("max_iters",),
    "warmup_iters": ("warmup_steps",), "warmup_ratio": ("warmup_frac",), "wd": ("weight_decay",),
}  # fmt: skip
FILES = ("input", "input_file", "csv", "runs", "file")  # what people type before the files that need no flag
ELSEWHERE = {  # no flag of this script -> where it is
    "dry_run": "plan.py prints what a run will be, and sweep.py has --dry_run",
    "mlflow_experiment": "--tracker mlflow logs to the experiment of MLFLOW_EXPERIMENT_NAME",
    "mlflow_uri": "--tracker mlflow logs to MLFLOW_TRACKING_URI",
    "price_per_hour": "sweep.py fills the column cost by it, and plan.py plans with it",
}
RANK0_SPEAKS_S = 30  # seconds for rank 0 to start and say what is wrong
METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """argparse for dataclasses made of option(). No abbreviations; hyphens are underscores (--n-layer is --n_layer).

    The ALIASES are accepted, too. Messages name a flag as it was typed.

    The namespace holds the flags that were typed and no others: defaults stay in the dataclasses. Of flag()s it holds
    the default, too.

    Parameters
    ----------
    prog : name of the script.
    doc : its docstring, shown above the flags.
    configs : dataclasses; where two have a field of one name, the first one's is the flag.
    skip : names of fields that are no flags here.
    usage : what follows the name in the usage line.
    """

    def __init__(self, prog: str, doc: str, *configs, skip=(), usage: str = "[flags]"):
        super().__init__(prog, usage=f"{prog} {usage}", description=doc, formatter_class=_Formatter, allow_abbrev=False)
        self._negative_number_matcher = NEGATIVE
        self._groups = {}  # title -> argument group
        self.rare = {}  # key of --model -> field
        self.typed = {}  # flag -> how it was typed, where that differs
        taken = set(skip)
        for config in configs:
            title = None
            for f in options_of(config):
                title = f.metadata["group"] or title
                if f.name in taken or not f.metadata["flag"]:
                    continue
                taken.add(f.name)
                if f.metadata["rare"]:
                    self._add_key(f, title)
                self._add_flag(f, title, argparse.SUPPRESS)
            if hasattr(config, "add_flags"):
                config.add_flags(self)

    def flag(self, name: str, kind, default, help: str, **metadata):
        """Add a flag that is no field of a dataclass; `kind` is a type or an annotation, the rest is option()'s.

        parser.flag("json", bool, False, "print the record as the last line", group="logging")
        """
        f = option(default, help, **metadata)
        f.name, f.type = name, kind
        self._add_flag(f, f.metadata["group"], default, _reader(f, bounds=True))  # no dataclass checks them

    def _group(self, title: str | None):
        """The group of help with this title; without one, the group of --help itself."""
        if title is None:
            return self
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def _add_flag(self, f, title, default, reader=None):
        m, kind = f.metadata, type_of(f)
        words = {"dest": f.name, "default": default, "help": _help(f).replace("%", "%%")}
        if kind is bool:
            words |= {"action": _Switch, "nargs": 0}
        else:
            name = "NAME" if m["choices"] else METAVARS[kind]
            words |= {"type": reader or _reader(f), "metavar": m["metavar"] or name}
            if m["repeat"]:
                words["action"] = "append"
            elif is_many(f):
                words["nargs"] = "+"
            elif m["const"] is not None:
                words |= {"nargs": "?", "const": m["const"]}
        if m["hidden"] or m["rare"]:
            words["help"] = argparse.SUPPRESS
        group = self._group(title)
        for name in (f.name, *m["aliases"]):
            spellings = [f"--{name}"]
            if kind is bool:
                spellings.append(f"--no-{name}")
            group.add_argument(*spellings, **words)
            words["help"] = argparse.SUPPRESS  # of the aliases

    def _add_key(self, f, title):
        """A rare field as a key of --model."""
        self.rare[f.name] = f
        if "--model" not in self._option_string_actions:
            text = "rare fields, as norm_eps=1e-5; --model help lists them"
            self._group(title).add_argument(
                "--model", nargs="+", metavar="KEY=VALUE", action=_Keys, default=argparse.SUPPRESS, help=text
            )

    def flags(self) -> list[str]:
        """Every flag that --help shows, as typed."""
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        return [name for action in shown for name in action.option_strings if name.startswith("--")]

    # ----- reading -----

    def parse_args(self, args=None, namespace=None):
        """The namespace of the typed flags; one line and exit status 2 for a flag that is unknown or malformed."""
        if args is None:
            args = sys.argv[1:]
        found, unknown = self.parse_known_args(self._with_underscores(list(args)), namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._suggestion(unknown)}")
        return found

    @property
    def _takes_files(self) -> bool:
        """Whether files are named without a flag."""
        return any(action.dest == "paths" for action in self._actions)

    def _with_underscores(self, words: list[str]) -> list[str]:
        """The words, with flags spelled as they were defined: --n-layer=4 becomes --n_layer=4."""
        known = {name.replace("-", "_"): name for name in self._option_string_actions if name.startswith("--")}
        out, self.typed = [], {}
        for i, word in enumerate(words):
            if word == "--":
                return out + words[i:]
            if word.startswith("--"):
                typed, sign, value = word.partition("=")
                plain = typed.replace("-", "_")
                name = known.get(plain, typed)
                if plain not in known and plain[2:] in FILES and self._takes_files:
                    out += [value] if sign else []
                    continue
                if plain not in known:
                    meant = [known["__" + alias] for alias in ALIASES.get(plain[2:], ()) if "__" + alias in known]
                    name = meant[0] if meant else typed
                if name != typed:
                    self.typed[name] = typed
                word = name + sign + value
            out.append(word)
        return out

    def _suggestion(self, unknown: list[str]) -> str:
        """The known flag that is nearest to the first unknown one; empty where none is near."""
        import difflib

        known = {name.replace("-", "_"): name for name in self.flags()}
        for word in unknown:
            if word.startswith("--"):
                plain = word.partition("=")[0].replace("-", "_")
                if plain[2:] in ELSEWHERE:
                    return f"; {ELSEWHERE[plain[2:]]}"
                near = difflib.get_close_matches(word.partition("=")[0].replace("-", "_"), known, 1)
                return f"; the nearest is {known[near[0]]}" if near else ""
        return ""

    def read(self, config, args: argparse.Namespace, **more):
        """The configuration that the typed flags make; `more` gives fields that no flag was typed for.

        Raises what the configuration raises, UserError as a rule: the caller is within run_main().
        """
        given = {}
        for f in options_of(config):
            if hasattr(args, f.name):
                value = getattr(args, f.name)
                if isinstance(value, list):
                    single = len(value) == 1 and re.search(r"\bstr \|", str(f.type))  # str | tuple[str, ...]
                    value = value[0] if single else tuple(value)
                given[f.name] = value
        make = getattr(config, "from_flags", None)
        if make is None:
            return config(**{**more, **given})
        return make(args, **{**more, **given})

    # ----- failing -----

    def error(self, message: str):
        """For argparse's own complaints: "argument --x: expected one argument" loses its first word."""
        self.fail(re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1 ", message) + "; --help lists the flags")

    def fail(self, problem):
        """One line and exit status 2; of several processes only rank 0 speaks."""
        text = " ".join(explain(problem).split())
        for flag, typed in self.typed.items():
            text = re.sub(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", lambda _, typed=typed: typed, text)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}"
        self.stop(2, f"{self.prog}: error: {text}\n")

    def stop(self, status: int, message: str):
        """Exit; of several processes only rank 0 speaks. The others wait for it: torchrun ends all with the first."""
        if os.environ.get("RANK", "0") != "0":
            message = None
            if "TORCHELASTIC_RUN_ID" in os.environ:
                time.sleep(RANK0_SPEAKS_S)
        self.exit(status, message)


def run_main(parser: Parser, function, argv=None, interrupted="nothing more was written") -> int:
    """Parse argv (sys.argv), call function(parser, args) and return the exit status: its own, or 0 for None.

    A UserError or other ValueError, an OSError and a missing package become one line and status 2; Ctrl-C says
    `interrupted` (a text, or a function that returns one) with status 130; a closed pipe (`| head`) is a quiet 1. Where
    stdout is a file on a full disk, that is the line.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            encoding = stream.encoding
            if codecs.lookup(encoding).name == "ascii":  # of the C locale, where no text of ours would survive
                encoding = "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")  # names of files need not be UTF-8
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # NumPy's: results that matter are checked
    args = parser.parse_args(argv)
    try:
        status = function(parser, args)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 1
    except KeyboardInterrupt:
        text = interrupted() if callable(interrupted) else interrupted
        parser.stop(130, f"{parser.prog}: interrupted; {text}\n")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "isoflop").partition(".")[0] == "isoflop":
            raise
        parser.fail(_stdout_problem(error) or error)
    return status or 0


def _stdout_problem(error) -> OSError | None:
    """The error of a write to stdout, named so, or None; what was printed is dropped, or Python complains at its end.

    Every file of ours is named in its errors: a full disk without a name is that under a redirected stdout.
    """
    error = error.__cause__ or error
    full = getattr(error, "errno", None) in FULL and error.filename is None and not sys.stdout.isatty()
    try:
        sys.stdout.flush()
    except OSError as again:
        full, error = True, again
    if not full:
        return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OSError(error.errno, error.strerror, "standard output")


# ----- argparse's parts -----


def _reader(f, bounds: bool = False):
    """The function that reads one word of a flag; argparse puts the flag's name before its complaint."""

    def read(text):
        try:
            value = parse_value(f, text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        mistake = mistake_in(f, value) if bounds else None
        if mistake:
            raise argparse.ArgumentTypeError(f"{text} must be {mistake}")
        return value

    return read


def _help(f) -> str:
    """The field's help, its choices where it does not name them, and its default."""
    m = f.metadata
    text = m["help"]
    if m["choices"] and not all(str(choice) in text for choice in m["choices"]):
        text += ": " + ", ".join(map(str, m["choices"]))
    if default_text(f) and "(default" not in text and f.default is not False:
        text += f" (default: {default_text(f)})"
    return text


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of 80 columns."""

    def __init__(self, prog, **more):
        super().__init__(prog, **{**more, "max_help_position": 26, "width": 80})

    def _format_action_invocation(self, action):
        if isinstance(action, _Switch):
            return " / ".join(action.option_strings)
        return super()._format_action_invocation(action)


class _Switch(argparse.Action):
    """--x / --no-x."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no-"))


class _Keys(argparse.Action):
    """--model key=value ..., for the rare fields; `--model help` lists them."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values == ["help"]:
            for f in parser.rare.values():
                print(f"{f.name:<16}{_help(f)}")
            parser.exit()
        for word in values:
            key, sign, text = word.partition("=")
            key = key.replace("-", "_")
            if not sign or key not in parser.rare:
                known = ", ".join(parser.rare)
                own = f"it is a flag of its own, --{key}; " if f"--{key}" in parser.flags() else ""
                raise argparse.ArgumentError(self, f"{word} must be KEY=VALUE; {own}keys: {known}")
            try:
                value = parse_value(parser.rare[key], text, may_be_none=True)
            except UserError as error:
                raise argparse.ArgumentError(self, f"{key}={error}") from None
            setattr(namespace, key, value)
