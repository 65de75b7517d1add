"""What a process leaves out of what its libraries import."""

import sys


def leave_out(*libraries: str) -> None:
    """Call before transformers, peft or trl: they import these wherever they are installed.

    They are for quantised weights and kinds of generation that the process does not have, and cost
    its start up to two seconds. One that is loaded already stays.
    """
    for name in libraries:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
