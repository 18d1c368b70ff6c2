"""The layout: who may import whom, what importing a file costs, and that README's commands parse."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"model", "data", "train", "sweep", "fit", "plan", "sample", "eval", "export"}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] == "isoflop" or p.parent == ROOT)
MODULES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES if p.name != "__init__.py"]
BETWEEN_SCRIPTS = {  # model <- train <- sweep; data <- train, sweep, sample, eval; fit <- sweep
    "train": {"model", "data"},
    "sweep": {"model", "data", "train", "fit"},
    "sample": {"model", "data"},
    "eval": {"model", "data"},
    "export": {"model"},
}
NO_TORCH = ("cli files display config flops gpus laws fit plan data optim.hparams optim.schedule train.plan").split()
TORCH_FREE = {"data", "fit", "plan"} | {
    m for m in MODULES if any(f"{m}.".startswith(f"isoflop.{light}.") for light in NO_TORCH)
}


def imports(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_the_files_are_where_the_layout_says():
    assert {p.stem for p in FILES if p.parent == ROOT} == SCRIPTS
    assert len(MODULES) >= 65


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    scripts = imports(name) & SCRIPTS
    allowed = BETWEEN_SCRIPTS.get(name, set())
    assert scripts <= allowed or name.startswith("isoflop."), f"{name} imports {scripts - allowed}"


@pytest.mark.parametrize("name", MODULES)
def test_importing_does_nothing_and_stays_light(name):
    heavy = ["datasets", "matplotlib", "tiktoken", "pyarrow", "scipy"] + (["torch"] if name in TORCH_FREE else [])
    code = f"import sys, {name}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def readme_commands():
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            at = next((i for i, w in enumerate(words) if w.endswith(".py")), None)
            if at is not None and "[" not in line:
                yield line.split("#")[0].strip(), words[at], words[at + 1 :]


@pytest.mark.parametrize("line, name, flags", [pytest.param(*c, id=c[0]) for c in readme_commands()])
def test_readme_commands_parse(line, name, flags):
    import data
    import fit
    import model
    import plan
    from isoflop.cli import Parser
    from isoflop.config import ModelConfig
    from isoflop.plan.config import PlanConfig
    from isoflop.train.plan import TrainConfig
    from sweep import SWEPT, SweepConfig

    if name == "data.py":
        data.parse(flags)
    elif name == "fit.py":
        fit.make_parser().parse_args(flags)
    elif name == "sweep.py":
        Parser(name, "", SweepConfig, ModelConfig, TrainConfig, skip=SWEPT).parse_args(flags)
    elif name == "model.py":
        model.make_parser().parse_args(flags)
    elif name == "plan.py":
        parser = plan.make_parser()
        args = parser.parse_args(flags)
        assert plan.answer(parser, args, parser.read(PlanConfig, args))
    elif name in ("sample.py", "eval.py", "export.py"):
        stem = name.removesuffix(".py")
        config = getattr(importlib.import_module(stem), f"{stem.capitalize()}Config")
        parser = Parser(name, "", config)
        parser.read(config, parser.parse_args(flags))
    else:
        assert name == "train.py"
        parser = Parser(name, "", ModelConfig, TrainConfig)
        args = parser.parse_args(flags)
        parser.read(ModelConfig, args), parser.read(TrainConfig, args)
