"""plan.py: tables that fit, mistakes in one line, and what must be installed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import FOUR_MODELS, FOUR_RUNS, plan_answer

import plan


@pytest.fixture
def show(capsys):
    """show("--flag", ...) -> the text that plan.py prints."""

    def call(*argv):
        assert plan.main([str(a) for a in argv]) == 0
        return capsys.readouterr().out

    return call


# ----- tables -----


@pytest.mark.parametrize("form", [[], ["--markdown"]], ids=["text", "markdown"])
def test_tables_fit_a_terminal(show, form):
    out = show(*FOUR_RUNS, "--gpu", "a6000", "--n_gpus", 2, *form)
    for word in ("1.405B", "heavily under-trained", "84,805", "--shard", "a6000", "Verda"):
        assert word in out
    if not form:
        assert max(len(line) for line in out.splitlines() if "python" not in line and "torchrun" not in line) <= 100
        return
    blocks = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    for lines in blocks:
        assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--n_params 1.4e9 --tokens 13e9", ["Tokens for 1.4B parameters", "under-trained", "Predicted loss", "2.551"]),
        ("--n_params 1.4e9 --flop_budget 1.092e20", ["13B", "under-trained", "Predicted loss", "2.551"]),
        ("--target_loss 2.5 --inference_tokens 1e12", ["Least compute for a loss of 2.5", "whole life", "54.9%"]),
        ("--tokens 10e9 --unique_tokens 5e9", ["Repeated data", "epochs", "2.00"]),
        ("--flop_budget 1e20 --gpu h100", ["1e20 FLOPs (with attention): least loss by besiroglu", "D = 20 N (to 5%)"]),
        ("--preset llama3 --tokens 15e12 --total_batch_size 4194304 --law hoffmann kaplan",
         ["outside: hoffmann: D = 1.5e13 is 30x above its largest run (5e11)",
          "outside: kaplan: N = 6.98e9 is 4.65x above its largest run (1.5e9)"]),
        ("--preset gpt2 --tokens 2.5e9 --rules --hparams steplaw", ["steplaw *", "porian: ", "Measured: "]),
        ("--n_embd 32 --n_layer 1 --vocab_size 512 --flop_budget 1e10 --law hoffmann",
         ["hoffmann does not reach N = 4.506e4", "above ln V = 6.24", "hoffmann > ln V"]),
    ],
)  # fmt: skip
def test_answers(show, argv, words):
    out = " ".join(show(*argv.split()).split())
    for word in words:
        assert word in out
    assert "nan" not in out.split()


def test_a_law_inside_its_range_says_nothing(show):
    assert "outside: hoffmann" not in show("--preset", "gpt2", "--tokens", "1e10", "--law", "hoffmann")


def test_a_json_file_of_configurations(tmp_path):
    settings = {name: dict(word.split("=") for word in text.split()) for name, text in FOUR_MODELS.items()}
    settings["LLaMA-2 1.36B"]["tied"] = True
    (tmp_path / "four.json").write_text(json.dumps(settings))
    found = plan_answer("--config", tmp_path / "four.json", *FOUR_RUNS[-6:])["configurations"]
    assert [run["name"] for run in found] == list(FOUR_MODELS)
    assert found[1]["shape"]["tied"] and found[0]["parameters"]["total"] > 1.4e9


def test_a_configuration_may_have_its_own_tokens_and_depth_its_own_rule():
    found = plan_answer("--config", "n_layer=2 n_embd=64 tokens=1e7", "--config", "depth=3", "--tokens", "2e7")
    assert [round(run["run"]["tokens"] / 1e7) for run in found["configurations"]] == [1, 2]
    alone = plan_answer("--depth", 3, "--tokens", "2e7")["configurations"][0]
    assert found["configurations"][1]["run"] == alone["run"]


def test_heads_that_do_not_divide_the_width_are_counted(show):
    """18 at 2432, as a published table has it: the counts of 19, and a note."""
    sizes = "--preset gpt2 --n_layer 18 --n_embd 2432 --tokens 1e9 --n_head".split()
    assert "18 heads do not divide the width 2,432: counted as 19 of 128" in show(*sizes, "18")
    published, near = (plan_answer(*sizes, heads)["configurations"][0] for heads in ("18", "19"))
    assert published["parameters"] == near["parameters"] and published["run"] == near["run"]


# ----- mistakes -----

RUN = "--preset gpt2 --tokens 1e9"
MISTAKES = [
    ("--preset llama4 --tokens 1e9", "--preset llama4 is unknown; known: default, gpt2"),
    ("--flop_budget 1e20 --family llama4", "--family llama4 is unknown; known: default"),
    ("--preset llama3 --n_embd 2432 --n_head 18 --tokens 1e9", "--n_head 18 into heads of even size"),
    ("--preset llama3 --n_embd 2432 --n_head 18 --tokens 1e9", "or --n_head 16 or 19"),
    (f"{RUN} --gpu h300", "--gpu h300 is unknown; known: a100-40gb"),
    ("--flop_budget -1e20", "--flop_budget -1e+20 must be above 0"),
    ("--flop_budget nan", "--flop_budget nan must be a number above 0"),
    ("--n_layer 2 --n_embd 64 --tokens -5", "--tokens -5 must be at least 1"),
    ("--n_layer 2 --n_embd 64 --tokens 1e8 --max_iters 5", "exactly one of --tokens"),
    ("", "exactly one of --tokens"),
    ("--days 7", "--days 7 needs a speed"),
    ("--days 7 --gpu h100 --flop_budget 1e20", "leave one out"),
    (f"{RUN} --mfu 40 --gpu h100", "--mfu 40 must be above 0 and at most 1"),
    (f"{RUN} --law chinchila", "law 'chinchila' is not known; known: hoffmann"),
    (f"{RUN} --law none.json", "--law none.json can't be read"),
    (f"{RUN} --measured none.csv", "--measured none.csv holds no finished run"),
    ("--target_loss 1.5 --law besiroglu", "no model reaches 1.5; its floor is E = 1.817"),
    ("--target_loss 20", "--target_loss 20 is above ln V"),
    ("--inference_tokens 1e12 --tokens 1e9 --unique_tokens 1e8", "--inference_tokens needs a loss to reach"),
    ("--config n_layer --tokens 1e9", "'n_layer' is not key=value"),
    ("--config none.json --tokens 1e9", "--config none.json can't be read"),
    ("--config n_layerz=3 --tokens 1e9", "--n_layerz"),
    ("--config n_layer=2,tokens=0 --tokens 1e9", "n_layer"),
    ("--config tokens=0 --tokens 1e9", "--tokens 0 must be at least 1"),
    ("--n_gpus 0 --preset gpt2 --tokens 1e9", "--n_gpus 0 must be"),
    ("--flop_budget 1e3", "nothing near that size"),
    ("--hparams best --preset gpt2 --tokens 1e9", "best"),
    # numbers without an upper end
    ("--flop_budget 1e20 --tokens_per_param 0", "--tokens_per_param 0 must be above 0"),
    ("--flop_budget 1e20 --tokens_per_param nan", "--tokens_per_param nan must be"),
    ("--flop_budget 1e300", "--flop_budget 1e+300 must be above 0 and at most"),
    ("--flop_budget 1e20 --head_size 0", "--head_size 0 must be"),
    ("--flop_budget 1e20 --n_head 0", "--n_head 0 must be"),
    ("--n_embd 1e10 --n_layer 2 --tokens 1e9", "--n_embd 10000000000 must be"),
    ("--depth 1e29 --tokens 1e9", "must be"),
    ("--n_layer 1e29 --n_embd 64 --tokens 1e9", "--n_layer 1"),
    (f"{RUN} --block_size 1e12", "--block_size 1000000000000 must be"),
    (f"{RUN} --n_gpus 1e12", "--n_gpus 1000000000000 must be"),
    ("--n_params 1e9 --days 2 --gpu h100", "--days 2 is for a search"),
    ("--target_loss 2.5 --flop_budget 1e20", "--flop_budget 1e+20 and --target_loss 2.5 ask for each other"),
    ("--n_params 1e300", "--n_params 1e+300 must be"),
    ("--n_params 1e9 --inference_tokens 1e300", "--inference_tokens 1e+300 must be"),
    ("--flop_budget 1e20 --top 1e9", "--top 1000000000 must be"),
    ("--flop_budget 3e13 --vocab_size 512", "above that of a uniform guess"),
]


@pytest.mark.parametrize("argv, words", MISTAKES)
def test_mistakes_are_one_line(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        plan.main(argv.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and words in err and err.count("\n") == 1 and not out, err


@pytest.mark.parametrize("content", ["[1, 2]", '{"n_layer": 3}', '"text"', "null", "{", '[{"n_layer": null}]',
                                     '[{"n_layer": {}}]', "[" * 100_000])  # fmt: skip
def test_a_json_file_of_something_else(capsys, tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        plan.main(["--tokens", "1e9", "--config", str(tmp_path / "c.json")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and err.startswith("plan.py")


# ----- what must be installed -----

BLOCKER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = ["plan.py", *{argv!r}]
import runpy
runpy.run_path("plan.py", run_name="__main__")
"""


@pytest.mark.parametrize("argv", ["--n_params 1e9", "--flop_budget 1e20 --inference_tokens 1e12",
                                  "--preset gpt2 --tokens 1e9 --gpu h100 --json"])  # fmt: skip
def test_it_runs_where_only_numpy_is_installed(argv):
    blocked = "torch datasets tiktoken tqdm safetensors pyarrow regex transformers scipy matplotlib".split()
    code = BLOCKER.format(blocked=blocked, argv=argv.split())
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr
