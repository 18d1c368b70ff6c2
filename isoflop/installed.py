"""The first import of every script: a package that is missing is one line, closed standard streams are opened.

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


def open_closed_streams():
    """Let standard streams that the caller has closed (`>&-`) be /dev/null, or the next file that is opened is one.

    Python makes such a stream None. Before any import that keeps a file open, and in the workers of a sweep, too.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))


started = getattr(sys.modules["__main__"], "__file__", None)
if started and Path(started).resolve().parent == ROOT:
    sys.excepthook = name_missing
    open_closed_streams()
