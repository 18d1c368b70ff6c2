"""installed.py: what is seen to before any code of a script runs: missing packages, closed standard streams."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("script", ["model", "train", "sweep", "sample", "eval", "export"])
def test_a_missing_package_is_one_line(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    run = [sys.executable, ROOT / f"{script}.py", "--help"]
    done = subprocess.run(run, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    said = f"{script}.py: error: the package torch is missing; pip install -e . installs all that isoflop needs\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_other_errors_keep_their_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('of ours', name='isoflop.x')\n")
    run = [sys.executable, ROOT / "train.py"]
    done = subprocess.run(run, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_script_that_is_imported_changes_nothing():
    code = "import sys, fit; sys.exit(sys.excepthook is not sys.__excepthook__)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-"])
def test_closed_standard_streams_are_dev_null(closed):
    """Python has None in their place, and the next file that is opened takes their number."""
    plan = f"{sys.executable} {ROOT / 'plan.py'} --n_layer 1 --n_embd 8 --tokens"
    done = subprocess.run(f"{plan} 1e9 {closed}; echo $?; {plan} 0 {closed}; echo $?", shell=True, capture_output=True)
    assert done.stdout == b"0\n2\n" and b"Traceback" not in done.stderr
    assert done.stderr.count(b"--tokens 0 must be") == ("2>&-" not in closed)
