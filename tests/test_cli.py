"""Flags: what is typed, what is read, what --help shows, and how a mistake ends."""

import errno
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from isoflop.cli import ALIASES, Parser, UserError, check, explain, option, run_main

NORMS = ("rmsnorm", "layernorm")
RULES = ("default", "mup", "fixed", "sqrt_batch", "nanochat", "depth", "steplaw", "deepseek", "porian")


@dataclass(frozen=True)
class Model:
    n_layer: int = option(2, "transformer blocks", group="model", above=0)
    vocab_size: int = option(5, "rows of the embedding", flag=False, above=0)
    norm: str = option("rmsnorm", "normalisation", choices=NORMS, rare=True)
    norm_eps: float = option(1e-6, "added to the mean square", rare=True, above=0)
    softcap: float | None = option(None, "5% of the logits", rare=True, above=0)
    bias: bool = option(False, "biases", rare=True)
    made_by: str = "Model"

    @classmethod
    def add_flags(cls, parser):
        parser.flag("preset", "str | None", None, "architecture and sizes", choices=("small", "large"), group="model")

    @classmethod
    def from_flags(cls, args, **given):
        return cls(**{"made_by": args.preset or "fields", **given})


@dataclass(frozen=True)
class Train:
    flop_budget: float | None = option(None, "stop at this many FLOPs", group="run", above=0)
    n_layer: int = option(9, "a field that another configuration has, too")
    rates: tuple[float, ...] | None = option(None, "peak rates", above=0)
    rule: str = option("default", "rule for rate and batch", choices=RULES)
    split: str = option("train", "train: the most of it; val: the rest", choices=("train", "val"))
    compile: bool = option(False, "compile the model", group="device", aliases=("jit",))
    cache: bool = option(True, "keep keys and values")
    resume: str | None = option(None, "checkpoint", const="auto", aliases=("go_on",))
    where: tuple[str, ...] = option((), "keep rows where this holds", repeat=True)
    source: str | tuple[str, ...] = option("a", "source of text (default: what is there)")
    secret: int = option(0, "not for everybody", hidden=True)

    def __post_init__(self):
        check(self)


def parser(**more):
    return Parser("t.py", "What it does.", Model, Train, **more)


@dataclass(frozen=True)
class Swept:
    flop_budgets: tuple[float, ...] | None = option(None, "budgets", above=0)
    n_embds: tuple[int, ...] | None = option(None, "widths", min=8)
    lr: float | None = option(None, "peak rate", above=0)
    out_dir: str = option("sweep", "folder")

    def __post_init__(self):
        check(self)


def sweep_parser():
    return Parser("s.py", "What it does.", Swept)


def test_aliases_of_the_field_are_taken_and_messages_name_what_was_typed(capsys):
    p = sweep_parser()
    args = p.parse_args("--flop-budget 1e11 3e11 --n_embd 32 --learning-rate=.1 --output_dir a".split())
    assert p.read(Swept, args) == Swept((1e11, 3e11), (32,), 0.1, "a")
    for line, says in (
        ("--n-embd 4", "--n-embd 4 must be at least 8"),
        ("--learning_rate 0", "--learning_rate 0 must be a positive"),
        ("--flop_budget x", "--flop_budget x must be"),
        ("--out-dir", "--out-dir expected one argument"),
    ):
        p = sweep_parser()
        with pytest.raises(SystemExit):
            try:
                p.read(Swept, p.parse_args(line.split()))
            except UserError as error:
                p.fail(error)
        assert says in capsys.readouterr().err
    for line, says in (("--dry-run", "plan.py prints what a run will be"), ("--n_embdd 3", "nearest is --n_embds")):
        with pytest.raises(SystemExit):
            sweep_parser().parse_args(line.split())
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "script, line, says",
    [
        ("sweep", "--flop_budget 1e11 x", "--flop_budget x must be"),
        ("sweep", "--n-embd x", "--n-embd x must be"),
        ("sweep", "--learning_rate x", "--learning_rate x must be"),
        ("sweep", "--max_length x", "--max_length x must be"),
        ("train", "--dry-run", "plan.py prints what a run will be"),
        ("train", "--data-dir", "--data-dir expected one argument"),
        ("train", "--total-steps x", "--total-steps x must be a whole number"),
        ("train", "--mlflow-experiment lab", "the experiment of MLFLOW_EXPERIMENT_NAME"),
        ("train", "--num_layers 2.5", "--num_layers 2.5 must be a whole number"),
        ("fit", "--resamples x", "--resamples x must be a whole number"),
        ("fit", "--out", "--out expected one argument"),
        ("fit", "--input no_such.csv --output fit.json", "no_such.csv"),
        ("plan", "--gpus x", "the nearest is --gpu"),
        ("plan", "--tokens_per_parameter x", "--tokens_per_parameter x must be"),
        ("data", "--out", "--out expected one argument"),
        ("sample", "--max-tokens x", "--max-tokens x must be a whole number"),
        ("sample", "--checkpoint", "--checkpoint expected one argument"),
        ("eval", "--out_dir", "--out_dir expected one argument"),
        ("export", "--output", "--output expected one argument"),
        ("model", "--d_model x", "--d_model x must be a whole number"),
    ],
)
def test_near_misses_in_the_nine_scripts(script, line, says, capsys):
    main = importlib.import_module(script).main
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count("\n") == 1


def test_a_flag_of_its_own_goes_before_an_alias():
    assert parser().parse_args("--n_layer 3".split()).n_layer == 3
    assert all(alias not in names for alias, names in ALIASES.items())


def read(line: str, config=Train, **more):
    p = parser()
    return p.read(config, p.parse_args(line.split()), **more)


def refusal(capsys, line: str, p=None) -> str:
    """The one line that a mistake leaves; exit status 2, nothing on stdout."""

    def run(p, args):
        p.read(Model, args)
        p.read(Train, args)

    with pytest.raises(SystemExit) as stop:
        run_main(p or parser(), run, line.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("t.py: error: "), err
    return err.removeprefix("t.py: error: ").strip()


# ----- reading -----


def test_only_typed_flags_are_in_the_namespace():
    args = parser().parse_args(["--rates", "1e-3", "-2", "-1e-3", "--resume", "--no-cache"])
    assert vars(args) == {"preset": None, "rates": [1e-3, -2.0, -1e-3], "resume": "auto", "cache": False}


def test_typed_flags_become_a_configuration():
    line = "--flop_budget 1e12 --rates 1e-3 2 --compile --where a --where b --resume x --secret 5e3"
    expected = Train(1e12, rates=(1e-3, 2.0), compile=True, where=("a", "b"), resume="x", secret=5000)
    assert read(line) == expected
    assert read("") == Train()
    assert read("--compile --no-compile").compile is False


def test_more_is_a_default_that_flags_override():
    assert read("", rule="depth").rule == "depth"
    assert read("--rule mup", rule="depth").rule == "mup"


def test_one_word_or_several():
    assert read("--source a.txt").source == "a.txt"
    assert read("--source a.txt b.txt").source == ("a.txt", "b.txt")
    assert read("--rates 3").rates == (3.0,)


@pytest.mark.parametrize(
    "line, field, value",
    [
        ("--flop-budget 5", "flop_budget", 5.0),
        ("--flop-budget=5", "flop_budget", 5.0),
        ("--no_cache", "cache", False),
        ("--jit", "compile", True),
        ("--compile --no-jit", "compile", False),
        ("--go-on", "resume", "auto"),
        ("--resume=a-b", "resume", "a-b"),
        ("--where __flop_budget", "where", ("__flop_budget",)),
    ],
)
def test_spellings(line, field, value):
    assert getattr(read(line), field) == value


def test_the_first_configuration_owns_a_name_and_skip_takes_it_away(capsys):
    assert read("--n_layer 3", Train).n_layer == 3 and read("--n_layer 3", Model).n_layer == 3
    assert "unrecognized arguments: --n_layer" in refusal(capsys, "--n_layer 3", parser(skip=("n_layer",)))
    assert "unrecognized arguments: --vocab_size" in refusal(capsys, "--vocab_size 3")


def test_a_configuration_may_be_made_of_more_than_its_fields():
    assert read("--preset small --n_layer 4", Model) == Model(4, made_by="small")
    assert read("", Model, vocab_size=7) == Model(vocab_size=7, made_by="fields")


def test_rare_fields_are_keys_of_model_and_hidden_flags():
    made = read("--model norm=layernorm norm-eps=1e-5 --model bias=true", Model)
    assert made == Model(norm="layernorm", norm_eps=1e-5, bias=True, made_by="fields")
    assert read("--norm layernorm --norm_eps 1e-5 --bias", Model) == made
    assert read("--softcap 3 --model softcap=none", Model).softcap is None


def test_model_help_lists_the_keys(capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--model", "help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert [line.split()[0] for line in lines] == ["norm", "norm_eps", "softcap", "bias"]
    assert "normalisation: rmsnorm, layernorm (default: rmsnorm)" in lines[0] and "5% of the logits" in lines[2]


def test_flags_of_a_script_itself():
    p = parser()
    p.flag("json", bool, False, "for programs", group="output")
    p.flag("top", int, 6, "rows", aliases=("rows",))
    assert p.parse_args([]).json is False and p.parse_args([]).top == 6
    args = p.parse_args(["--json", "--rows", "5e3"])
    assert args.json is True and args.top == 5000


# ----- help -----


def test_help_is_grouped_and_80_columns_wide(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "usage: t.py [flags]" and "What it does." in lines
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options:", "model:", "run:", "device:"]
    assert "  --n_layer N             transformer blocks (default: 2)" in lines
    assert "  --compile / --no-compile" in lines and "compile the model\n" in text, (
        "no default: off is what one expects"
    )
    assert "keep keys and values (default: true)" in text
    assert "source of text (default: what is there)\n" in text, "a default that the help tells is not told twice"
    assert "train: the most of it; val: the rest (default: train)" in " ".join(text.split())
    assert "rule for rate and batch: default, mup, fixed," in " ".join(text.split())
    for hidden in ("--secret", "--jit", "--go_on", "--norm", "--bias", "--vocab_size"):
        assert hidden not in text, hidden


# ----- mistakes -----


@pytest.mark.parametrize(
    "line, says",
    [
        ("--n_layerr 3", "unrecognized arguments: --n_layerr 3; the nearest is --n_layer; --help lists the flags"),
        ("--no-cash", "unrecognized arguments: --no-cash; the nearest is --no-cache; --help lists the flags"),
        ("--zzz", "unrecognized arguments: --zzz; --help lists the flags"),
        ("--flop 3", "unrecognized arguments: --flop 3"),
        ("stray", "unrecognized arguments: stray"),
        ("--n_layer", "--n_layer expected one argument; --help lists the flags"),
        ("--n_layer 2.5", "--n_layer 2.5 must be a whole number, as 5000, 5_000 or 5e3"),
        ("--n_layer nan", "--n_layer nan must be a whole number"),
        ("--flop_budget -inf", "--flop_budget -inf must be a positive finite number"),
        ("--flop_budget 1e12x", "--flop_budget 1e12x must be a positive finite number"),
        ("--flop_budget -1e20 --rates 1 0", "--flop_budget -1e+20 must be a positive finite number; --rates 0 must be"),
        ("--rule best", "--rule best must be one of default, mup, fixed"),
        ("--model", "--model expected at least one argument"),
        ("--model norm=x", "--model norm=x must be one of rmsnorm, layernorm"),
        ("--model norm", "--model norm must be KEY=VALUE; keys: norm, norm_eps, softcap, bias"),
        ("--model width=3", "--model width=3 must be KEY=VALUE; keys: norm, norm_eps, softcap, bias"),
        ("--model n_layer=3", "it is a flag of its own, --n_layer"),
        ("--model norm_eps=none", "--model norm_eps=none must be a positive finite number"),
        ("--norm_eps x", "--norm_eps x must be a positive finite number"),
        ("--preset huge", "--preset huge must be one of small, large"),
    ],
)
def test_mistakes_are_one_line_that_names_flag_and_value(capsys, line, says):
    assert says in refusal(capsys, line)


def test_only_rank_0_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        parser().fail("bad")
    assert stop.value.code == 2 and capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        parser().fail(ValueError("two\n  lines"))
    assert capsys.readouterr().err == "t.py: error: two lines\n"


# ----- run_main -----


def run_with(error):
    def run(p, args):
        raise error

    return lambda: run_main(parser(), run, [], "finished rows are kept")


@pytest.mark.parametrize(
    "error, says",
    [
        (UserError("--x 1 must be 2"), "--x 1 must be 2"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "runs.csv"),
         "runs.csv: No such file or directory; check the path"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"),
         "a.csv: No space left on device; make room and run the same command again"),
        (OSError("torn"), "torn"),
        (ModuleNotFoundError("no", name="lm_eval.api"),
         "the package lm_eval is missing; install it: pip install lm_eval"),
    ],
)  # fmt: skip
def test_expected_errors_are_one_line_and_status_2(capsys, error, says):
    with pytest.raises(SystemExit) as stop:
        run_with(error)()
    assert stop.value.code == 2 and capsys.readouterr().err == f"t.py: error: {says}\n"


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), ModuleNotFoundError("x", name="isoflop.x")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_with(error)()


def test_interruption(capsys):
    with pytest.raises(SystemExit) as stop:
        run_with(KeyboardInterrupt())()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "t.py: interrupted; finished rows are kept\n"


def test_what_an_interruption_says_may_be_found_out_then(capsys):
    def run(p, args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_main(parser(), run, [], lambda: "step 7 is saved")
    assert capsys.readouterr().err == "t.py: interrupted; step 7 is saved\n"


def test_status_is_the_functions_own():
    assert run_main(parser(), lambda p, args: None, []) == 0
    assert run_main(parser(), lambda p, args: 3, []) == 3


def test_a_closed_pipe_is_quiet():
    code = "import sys; from isoflop.cli import Parser, run_main\n"
    code += "def run(p, args):\n    for i in range(100_000): print(i)\n"
    code += "sys.exit(run_main(Parser('t.py', ''), run, []))"
    read_end, write_end = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    os.close(read_end)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 1


def test_a_c_locale_prints_utf_8_and_says_why_it_reads_none():
    code = "import sys; from isoflop.cli import Parser, run_main; p = Parser('t.py', '')\n"
    code += "p.flag('text', str, '', 'a text')\n"
    code += "sys.exit(run_main(p, lambda p, args: print('caf\\xe9'), sys.argv[1:]))"
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=env, capture_output=True).stdout.decode() == "café\n"
    done = subprocess.run([*command, "--text", "é".encode()], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "must be text in UTF-8; set PYTHONUTF8=1, or rename it" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_one_line(unbuffered):
    code = "import sys; from isoflop.cli import Parser, run_main\n"
    code += "sys.exit(run_main(Parser('t.py', ''), lambda p, args: print(1), []))"
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    says = "t.py: error: standard output: No space left on device; make room and run the same command again\n"
    assert (done.returncode, done.stderr) == (2, says)


def test_explain_of_a_real_error(tmp_path):
    with pytest.raises(OSError) as error:
        open(tmp_path)
    assert explain(error.value) == f"{tmp_path}: Is a directory; name a file, not a folder"
