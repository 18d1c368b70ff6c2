"""The lowest versions that pyproject.toml promises, as constraints for pip: one NAME==VERSION a line.

pip install -e '.[dev]' -c <(python .ci/lowest.py)
python .ci/lowest.py torch     # without torch
"""

import re
import sys
from pathlib import Path


def lowest(text: str, left_out) -> list[str]:
    """NAME==VERSION of every requirement NAME>=VERSION in the text of a pyproject.toml, each name once."""
    found = dict(re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', text.partition("[project]")[2]))
    return [f"{name}=={version}" for name, version in found.items() if name not in left_out]


if __name__ == "__main__":
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    print("\n".join(lowest(pyproject.read_text(), sys.argv[1:])))
