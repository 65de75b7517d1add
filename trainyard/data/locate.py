"""From a recipe's path to local files: paths, globs, folders, hub layouts, S3, DVC pointers."""

import difflib
import os
import re
from pathlib import Path

from trainyard.data.dvc import follow
from trainyard.data.located import Located
from trainyard.data.mapping import INFO, of_axolotl, of_llama_factory
from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt")
PACKED = tuple(s + z for s in SUFFIXES for z in (".gz", ".zst"))
SPLITS = frozenset(("train", "test", "validation", "valid", "val", "dev"))
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")


def locate(spec: SourceSpec, cache: Path) -> list[Located]:
    """Files of one source, sorted by name. Raises InputError when there is none."""
    spec = of_axolotl(spec)
    path = spec.path
    if path.startswith("s3://"):
        from trainyard.data.s3 import fetch  # noqa: PLC0415  (only when used)

        def wanted(names: list[str]) -> list[str]:
            return _of_split([n for n in names if _holds_rows(n)], spec, path)

        return [Located(file, name, spec) for file, name in fetch(path, cache / "s3", wanted)]
    if path.startswith("hf://"):
        from trainyard.data.hub import fetch_dataset  # noqa: PLC0415  (only when used)

        folder, inside = fetch_dataset(path.removeprefix("hf://"))
        return _in_snapshot(folder, inside, spec)
    if "://" in path and not path.startswith("file://"):
        raise InputError(f"{path}: data are read from local paths, s3:// and hf://")
    local = Path(path.removeprefix("file://")).expanduser()
    if local.name.endswith(".dvc"):
        return _tracked(local, spec)
    if local.name == INFO or spec.dataset is not None:
        return locate(of_llama_factory(local, spec), cache)
    if local.is_dir():
        return _in_folder(_snapshot(local), path.rstrip("/"), spec)
    if local.is_file():
        return [Located(local, path, spec)]
    pointer = local.with_name(local.name + ".dvc")
    if pointer.is_file():
        return _tracked(pointer, spec)
    if any(c in path for c in "*?["):
        return [Located(file, str(file), spec) for file in _glob(path)]
    near = f"; did you mean {found}?" if (found := _nearest(local)) else ""
    raise InputError(f"{path} does not exist{near}")


def _holds_rows(name: str) -> bool:
    return name.lower().endswith(SUFFIXES + PACKED) and Path(name).name not in NOT_ROWS


def _tracked(pointer: Path, spec: SourceSpec) -> list[Located]:
    """What a DVC pointer stands for; of a folder, the files that hold rows."""
    found = follow(pointer, spec)
    if len(found) == 1:
        return found
    chosen = {*_of_split([f.name for f in found if _holds_rows(f.name)], spec, str(pointer))}
    if not chosen:
        raise InputError(f"{pointer} stands for a folder without a data file")
    return [file for file in found if file.name in chosen]


def _in_snapshot(folder: Path, inside: str, spec: SourceSpec) -> list[Located]:
    """Files of a hub data set, or of the file, folder or glob in it that the path goes on to."""
    shown = spec.path
    if not inside:
        return _in_folder(folder, shown, spec)
    found = sorted(folder.glob(inside))
    if len(found) == 1 and found[0].is_dir():
        return _in_folder(found[0], shown, spec)
    files = [f for f in found if f.is_file()]
    if not files:
        raise InputError(f"{shown}: no such file in the data set")
    base = shown.removesuffix(f"/{inside}")
    return [Located(f, f"{base}/{f.relative_to(folder).as_posix()}", spec) for f in files]


def _glob(pattern: str) -> list[Path]:
    absolute = Path(pattern).is_absolute()
    root = Path(Path(pattern).anchor) if absolute else Path()
    found = root.glob(str(Path(pattern).relative_to(root)) if absolute else pattern)
    files = sorted(f for f in found if f.is_file())
    if not files:
        raise InputError(f"{pattern} matches no file")
    return files


def _in_folder(folder: Path, shown: str, spec: SourceSpec) -> list[Located]:
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        places = (Path(root, name).relative_to(folder).as_posix() for name in names)
        found += [place for place in places if _holds_rows(place)]
    if not found:
        raise InputError(f"{shown} is a folder without a data file ({', '.join(SUFFIXES)})")
    chosen = _of_split(sorted(found), spec, shown)
    return [Located(folder / place, f"{shown}/{place}", spec) for place in chosen]


def _of_split(names: list[str], spec: SourceSpec, shown: str) -> list[str]:
    """Those of the source's subset and split. Raises InputError where several splits lie mixed."""
    words = {name: set(re.split(r"[-_./]", name.lower())) for name in names}
    for option in ("subset", "split"):
        wanted = getattr(spec, option)
        if wanted is not None:
            chosen = [n for n in names if wanted.lower() in words[n] or wanted in n.split("/")]
            if not chosen:
                raise InputError(f"{shown} has no {option} {wanted}: it has {', '.join(names[:5])}")
            names = chosen
    splits = sorted({word for name in names for word in words[name] & SPLITS})
    if spec.split is None and len(splits) > 1:
        raise InputError(
            f"{shown} has the splits {', '.join(splits)}: say which with `split`, or name the files"
        )
    return names


def _snapshot(folder: Path) -> Path:
    """In the hub cache's layout (refs, snapshots), the revision that `main` names."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        return snapshots / main.read_text(encoding="utf-8").strip()
    found = sorted(snapshots.iterdir())
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} snapshots and no refs/main: name one of them"
        )
    return found[0]


def _nearest(path: Path) -> Path | None:
    if not path.parent.is_dir():
        return None
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    return path.parent / close[0] if close else None
