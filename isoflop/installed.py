"""The first import of every script: there a package that is missing is one line, with the command that installs it.

A script's imports run before its main() can catch anything. Does nothing where a script is imported, not run.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def name_missing(kind, error, trace):
    """sys.excepthook: one line and status 2 for a package that is not installed; else a traceback as ever."""
    package = (getattr(error, "name", None) or "isoflop").partition(".")[0]
    if not issubclass(kind, ModuleNotFoundError) or package == "isoflop":
        sys.__excepthook__(kind, error, trace)
        return
    if os.environ.get("RANK", "0") == "0":
        script = Path(sys.argv[0]).name
        text = f"the package {package} is missing; pip install -e . installs all that isoflop needs"
        print(f"{script}: error: {text}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)  # an excepthook can't choose the exit status


started = getattr(sys.modules["__main__"], "__file__", None)
if started and Path(started).resolve().parent == ROOT:
    sys.excepthook = name_missing
