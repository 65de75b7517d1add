"""Plan the recipes of a merge request in a process that can do nothing else.

Run as `python -P -m trainyard.webhook.confined` in a checkout, with an `Order` on stdin; prints one
`Answer` as JSON. Nothing of the checkout is executed. What its recipes point at is read only inside
the checkout and our own folders; there is no network, no other program and no secret.
"""

import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainyard.errors import Refused, TrainyardError, Unavailable

CPU_S = 60
ADDRESSES = 16 << 30
MOST = 10
"""Recipes of one merge request that are planned."""
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/proc", "/sys", "/dev", "/etc/ld.so.cache")
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
             "os.forkpty", "pty.spawn")  # fmt: skip
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname",
           "socket.sendto", "socket.sendmsg")  # fmt: skip


class Order(BaseModel):
    recipes: list[str]
    """Paths that match the patterns, at the head of the merge request."""
    changed: dict[str, str]
    """Path -> A, M, D or T, against the base."""
    base: str
    """Folder with the base's version of the recipes."""
    home: str


class Planned(BaseModel):
    recipe: str
    why: str
    """What touched it."""
    files: list[str] = []
    """Changed files that it points at."""
    plan: dict[str, Any] | None = None
    error: str | None = None
    changes: list[str] = []


class Answer(BaseModel):
    planned: list[Planned]
    left_out: int = 0


def main() -> None:
    order = Order.model_validate_json(sys.stdin.read())
    from trainyard import plan  # noqa: F401, PLC0415  (what it imports is read before the limits)

    code = [Path(entry) for entry in sys.path if entry]
    confine([Path(), Path(order.base), *code], Path(order.home))
    print(answer(order).model_dump_json())


def confine(readable: Iterable[Path], home: Path) -> None:
    """From here on: read below `readable` and the system's libraries, write below `home`.

    It holds our own code to what a stranger's recipe may ask of it; that code runs nothing of his.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    writable = (str(home.resolve()), os.path.realpath(tempfile.gettempdir()), "/dev/null")
    roots = [str(path.resolve()) for path in readable]
    allowed = (*writable, *roots, *SYSTEM, sys.prefix, sys.base_prefix)

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NETWORK:
            raise Unavailable("a merge request is planned without network")
        if event in FORBIDDEN:
            raise Refused("a merge request is planned without running programs")
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            below = writable if writes else allowed
            if not any(path == root or path.startswith(f"{root}/") for root in below):
                raise Refused(f"{os.fsdecode(arguments[0])} is outside the repository")

    sys.addaudithook(guard)


def answer(order: Order) -> Answer:
    from trainyard.webhook.touched import why_touched  # noqa: PLC0415

    found = []
    for path in order.recipes:
        recipe, error = _read(Path(path))
        why = why_touched(path, recipe, order.changed)
        if why is not None:
            found.append((path, why, recipe, error))
    planned = [_plan(order, *one) for one in found[:MOST]]
    gone = [
        p for p, how in order.changed.items() if how == "D" and (Path(order.base) / p).is_file()
    ]
    planned += [Planned(recipe=p, why="deleted") for p in gone]
    return Answer(planned=planned, left_out=max(len(found) - MOST, 0))


def _read(path: Path) -> tuple[Any, str | None]:
    from trainyard.recipe import read_recipe  # noqa: PLC0415

    try:
        return read_recipe(path), None
    except (TrainyardError, OSError) as error:
        return None, str(error)


def _plan(order: Order, path: str, why: str, recipe: Any, error: str | None) -> Planned:
    from trainyard import plan  # noqa: PLC0415
    from trainyard.release.job import Job  # noqa: PLC0415
    from trainyard.webhook.touched import touching  # noqa: PLC0415

    files = touching(recipe, order.changed)
    if recipe is None:
        return Planned(recipe=path, why=why, files=files, error=error)
    base = Path(order.base) / path
    before = _read(base)[0] if base.is_file() else None
    job = Job(recipe=recipe, recipe_path=path, run_id="plan", home=Path(order.home))
    try:
        made = plan.make(job, against=before, offline=True)
    except (TrainyardError, OSError) as problem:
        return Planned(recipe=path, why=why, files=files, error=str(problem))
    plain = made.model_dump(mode="json")
    return Planned(recipe=path, why=why, files=files, plan=plain, changes=made.changes)


if __name__ == "__main__":
    try:
        main()
    except TrainyardError as error:
        print(json.dumps({"planned": [], "left_out": 0}))
        sys.exit(f"{error}")
