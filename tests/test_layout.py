"""The layout: who may import whom, what importing a file costs, and that the commands of README and docs/ parse."""

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
FILES = [*ROOT.glob("*.py"), *ROOT.glob("isoflop/**/*.py")]
MODULES = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES if p.name != "__init__.py")

FLOORS = {"kernels": 1, "optim": 1, "data": 1, "fit": 1, "train": 2, "plan": 3, "hf": 3, "eval": 3, "sweep": 3}
BESIDE = {("eval", "hf")}  # the one folder that may import another of its floor
BETWEEN_SCRIPTS = {
    "train": {"model"},
    "sweep": {"data", "fit", "train"},
    "sample": {"model"},
    "eval": {"model"},
    "export": {"model"},
}
NO_TORCH = (
    "cli files options display config flops gpus laws fit plan data optim.hparams optim.schedule train.plan".split()
)
LIGHT = ["datasets", "matplotlib", "tiktoken", "pyarrow", "scipy"]


def imports(name: str) -> set[str]:
    """Modules that a file imports, anywhere in it; `from isoflop import x` is isoflop.x."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "isoflop":
            found |= {f"isoflop.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def folder(name: str) -> str:
    return name.split(".")[1]


def test_nine_scripts_on_top_and_the_rest_in_the_package():
    assert {p.stem for p in FILES if p.parent == ROOT} == SCRIPTS
    assert len(MODULES) >= 80


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    """Base modules < kernels, optim, data, fit < train < plan, hf, eval, sweep < scripts."""
    theirs = imports(name)
    if name in SCRIPTS:
        assert theirs & SCRIPTS <= BETWEEN_SCRIPTS.get(name, set())
        return
    assert not theirs & SCRIPTS, "the package imports a script"
    own = folder(name)
    for other in {folder(module) for module in theirs if module.startswith("isoflop.")}:
        below = FLOORS.get(other, 0) < FLOORS.get(own, 0)
        both_base = other not in FLOORS and own not in FLOORS
        assert below or both_base or other == own or (own, other) in BESIDE, f"{name} imports isoflop.{other}"


def needs_no_torch(name: str) -> bool:
    return name in ("data", "fit", "plan") or any(f"{name}.".startswith(f"isoflop.{light}.") for light in NO_TORCH)


def first_to_load(names: list[str], heavy: list[str]) -> str:
    """What a fresh Python prints that imports these modules in turn: the first that brings heavy packages along."""
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    came = [package for package in {heavy!r} if package in sys.modules]\n"
        "    if came:\n"
        "        sys.exit(f'{name} loads {came}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_modules_that_need_no_torch_load_none():
    names = [name for name in MODULES if needs_no_torch(name)]
    assert len(names) >= 60
    assert first_to_load(names, [*LIGHT, "torch"]) == ""


def test_importing_does_nothing_and_stays_light():
    assert first_to_load(MODULES, LIGHT) == ""


def documented_commands():
    """(page and command, script, flags) of every ```bash line of README and docs/ that calls a script."""
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                at = next((i for i, word in enumerate(words) if word.removesuffix(".py") in SCRIPTS), None)
                if at is not None:
                    end = words.index(">") if ">" in words else len(words)
                    yield pytest.param(
                        words[at].removesuffix(".py"), words[at + 1 : end], id=f"{page.name}: {line.strip()}"
                    )


@pytest.mark.parametrize("script, flags", list(documented_commands()))
def test_documented_commands_parse(script, flags, monkeypatch):
    parsed = []
    module = importlib.import_module(script)
    monkeypatch.setattr(
        module, "run_main", lambda parser, run, argv=None, *more: parsed.append(parser.parse_args(argv))
    )
    module.main(flags)
    assert len(parsed) == 1


def test_there_are_documented_commands():
    assert len(list(documented_commands())) > 50
