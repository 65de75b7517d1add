"""Imported before the libraries that train, it takes a quarter off the time that they need to load.

scikit-learn and torchao are imported wherever they are, for kinds of generation and of weights that
no training here has; and garbage is collected again when the program begins.
"""

import gc
import sys

for _unused in ("sklearn", "torchao"):
    sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]
gc.disable()


def loaded() -> None:
    gc.freeze()
    gc.enable()
