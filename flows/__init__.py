"""The order of steps. Importing this package settles where Prefect keeps its state.

That must happen before the first `import prefect`: it reads its settings once.
"""

import os
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (the check is for whoever runs an older one)
    sys.exit(f"Python {sys.version.split()[0]} found, 3.11 or later needed")

if "PREFECT_HOME" not in os.environ:
    _home = Path(".trainyard/prefect").absolute()
    try:
        _home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"{_home} cannot be made: {error.strerror}; run from a folder you may write to",
            file=sys.stderr,
        )
        sys.exit(2)
    os.environ["PREFECT_HOME"] = str(_home)
