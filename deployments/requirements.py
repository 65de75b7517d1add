"""What the project and some of its extras need, one requirement a line, for an image's layer.

`python requirements.py PYPROJECT EXTRA...`; the layer then only changes with these, not with code.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found: list[str] = [*project["dependencies"]]
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return found


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
