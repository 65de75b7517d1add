"""Loops over bytes compiled by numba, once and cached on disk; and where JSON arrays divide.

Import this module only where rows are processed: numba takes a second to load.
"""

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Modules that are not loaded yet are not found, if no other thread could want them."""
    alone = threading.active_count() == 1
    hidden = [name for name in names if alone and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _absent("scipy", "cffi", "coverage"):  # numba would load them: a quarter of a second
    import numba
    import numba.np.arraymath
    from numba.core import cgutils, types
    from numba.extending import intrinsic

Bytes = NDArray[np.uint8]
F = TypeVar("F", bound=Callable[..., Any])


def _stamp() -> str:
    files = (Path(__file__).with_name(f"{name}.py") for name in KERNELS)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


KERNELS = (
    "kernels", "characters", "units", "grams", "scan", "shingles", "lay", "lanes", "needed",
    "duplicates",
)  # fmt: skip
STAMP = _stamp()


def compiled(function: F) -> F:
    """Compiled code is kept on disk as long as no file with kernels changes.

    Numba looks at the file of the function alone, and so would keep what was inlined from others.
    """
    made: Any = numba.njit(cache=True, nogil=True)(function)
    made._cache._cache_file._source_stamp = STAMP
    return made  # type: ignore[no-any-return]


def _ownerless(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.BaseTuple):  # type: ignore[attr-defined]
        items = [(k, builder.extract_value(value, i)) for i, k in enumerate(kind)]
        parts = [_ownerless(context, builder, *item) for item in items]
        return context.make_tuple(builder, kind, parts)
    if not isinstance(kind, types.Array):
        return value
    made = context.make_array(kind)(context, builder, value)
    made.meminfo = cgutils.get_null_value(made.meminfo.type)
    return made._getvalue()


@intrinsic  # type: ignore[untyped-decorator]
def lent(_context: Any, argument: Any) -> Any:
    """An array, or a tuple of them, without owners: slices of it count no references.

    Only for arguments of a function, which its caller holds until it returns.
    """

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return _ownerless(context, builder, argument, values[0])

    return argument(argument), generate


@compiled
def _elements(content: Any, start: int, found: Any) -> int:
    """Fill [start, length, line] of each element of the outermost array; returns how many.

    A line end inside a string ends the string: JSON forbids it, and the next rows stay readable.
    """
    n, count, depth, line = len(content), 0, 0, 1
    quoted = escaped = False
    begin, last, begun = -1, -1, 1
    closed = False
    for i in range(start, n):
        c = content[i]
        if c == 10:
            line += 1
            quoted = escaped = False
            continue
        if quoted:
            last = i
            if escaped:
                escaped = False
            elif c == 92:
                escaped = True
            elif c == 34:
                quoted = False
            continue
        if c == 32 or c == 13 or c == 9:
            continue
        if depth == 0 and not closed and c == 91:
            depth = 1
            continue
        if depth == 1 and (c == 44 or c == 93):
            if begin >= 0:
                if count < len(found):
                    found[count, 0], found[count, 1] = begin, last + 1 - begin
                    found[count, 2] = begun
                count += 1
                begin = -1
            if c == 93:
                depth, closed = 0, True
            continue
        if begin < 0:
            begin, begun = i, line
        last = i
        if c == 34:
            quoted = True
        elif c == 123 or c == 91:
            depth += 1
        elif (c == 125 or c == 93) and depth > 1:
            depth -= 1
    if begin >= 0:
        if count < len(found):
            found[count, 0], found[count, 1], found[count, 2] = begin, last + 1 - begin, begun
        count += 1
    return count


def array_elements(content: Bytes, start: int) -> NDArray[np.int64]:
    """[n, 3]: start, length and line of each element of the JSON array that begins at `start`."""
    found = np.empty((1024, 3), np.int64)
    count = _elements(content, start, found)
    if count > len(found):
        found = np.empty((count, 3), np.int64)
        _elements(content, start, found)
    return found[:count]
