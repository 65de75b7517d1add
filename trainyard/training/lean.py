"""Imported before the libraries that train, it takes a quarter off the time that they need to load.

Garbage is collected again when the program begins.
"""

import gc

from trainyard.lean import leave_out

leave_out("sklearn", "torchao")
gc.disable()


def loaded() -> None:
    gc.freeze()
    gc.enable()
