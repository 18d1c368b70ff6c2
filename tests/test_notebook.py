"""docs/notebook.md: its Python runs, one block after the other as in a notebook, without torch and from any folder."""

import re

from helpers import ROOT, run_python

NUMBERED = re.compile(r"# ([-\d.]+) \(([-\d.]+), ([-\d.]+)\)")


def test_the_page_runs_as_it_stands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notebook.md").read_text(), re.S)
    assert len(blocks) >= 6
    code = "import sys; sys.modules['torch'] = None  # importing it fails\n" + "\n".join(blocks)
    done = run_python(f"import os; os.chdir({str(tmp_path)!r})\n{code}", PYTHONPATH=str(ROOT))
    assert done.stdout.count("\n") >= 6 and "refusals" not in done.stderr
    assert not list(tmp_path.iterdir())
    promised = [float(number) for number in NUMBERED.search("\n".join(blocks)).groups()]
    shown = [float(number) for number in re.findall(r"[-\d.e+]+", done.stdout.splitlines()[0])]
    assert [round(number, 3) for number in shown] == promised


def test_every_function_of_the_package_is_shown():
    import isoflop.fit

    page = (ROOT / "docs" / "notebook.md").read_text()
    functions = [name for name in isoflop.fit.__all__ if name.startswith("fit_")]
    assert len(functions) == 5 and all(f"from isoflop.fit import {name}" in page for name in functions)
    for name in isoflop.fit.__all__:
        assert getattr(isoflop.fit, name).__doc__
