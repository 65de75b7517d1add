"""From a recipe's path to local files: paths, globs, folders, hub layouts, S3, DVC pointers."""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt")
PACKED = tuple(s + z for s in SUFFIXES for z in (".gz", ".zst"))
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Located:
    path: Path
    name: str
    """As the recipe names it, with the file appended for folders and remote places."""
    spec: SourceSpec
    dvc_md5: str | None = None


def locate(spec: SourceSpec, cache: Path) -> list[Located]:
    """Files of one source, sorted by name. Raises InputError when there is none."""
    path = spec.path
    if path.startswith("s3://"):
        from trainyard.data.s3 import fetch  # noqa: PLC0415  (only when used)

        return [Located(file, name, spec) for file, name in fetch(path, cache / "s3")]
    if path.startswith("hf://"):
        from trainyard.data.hub import fetch_dataset  # noqa: PLC0415  (only when used)

        folder = fetch_dataset(path.removeprefix("hf://"))
        return [Located(file, f"{path}/{name}", spec) for file, name in _in_folder(folder, path)]
    if "://" in path and not path.startswith("file://"):
        raise InputError(f"{path}: data are read from local paths, s3:// and hf://")
    local = Path(path.removeprefix("file://")).expanduser()
    if local.name.endswith(".dvc"):
        return _dvc(local, spec)
    if local.name == "dataset_info.json" or spec.dataset is not None:
        return _llama_factory(local, spec)
    if local.is_dir():
        folder = _snapshot(local)
        return [Located(f, f"{path.rstrip('/')}/{n}", spec) for f, n in _in_folder(folder, path)]
    if local.is_file():
        return [Located(local, path, spec)]
    if pointer := _pointer(local):
        return _dvc(pointer, spec)
    if any(c in path for c in "*?["):
        return [Located(file, str(file), spec) for file in _glob(path)]
    near = f"; did you mean {found}?" if (found := _nearest(local)) else ""
    raise InputError(f"{path} does not exist{near}")


def _glob(pattern: str) -> list[Path]:
    absolute = Path(pattern).is_absolute()
    root = Path(Path(pattern).anchor) if absolute else Path()
    found = root.glob(str(Path(pattern).relative_to(root)) if absolute else pattern)
    files = sorted(f for f in found if f.is_file())
    if not files:
        raise InputError(f"{pattern} matches no file")
    return files


def _in_folder(folder: Path, shown: str) -> list[tuple[Path, str]]:
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            lower = name.lower()
            if lower.endswith(SUFFIXES + PACKED) and name not in NOT_ROWS:
                file = Path(root) / name
                found.append((file, file.relative_to(folder).as_posix()))
    if not found:
        raise InputError(f"{shown} is a folder without a data file ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda pair: pair[1])


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


def _pointer(path: Path) -> Path | None:
    pointer = path.with_name(path.name + ".dvc")
    return pointer if pointer.is_file() else None


def _dvc(pointer: Path, spec: SourceSpec) -> list[Located]:
    """The file a DVC pointer stands for: in the work tree, or in the local DVC cache."""
    if not pointer.is_file():
        raise InputError(f"{pointer} does not exist")
    try:
        out = yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]
        name, md5 = str(out["path"]), str(out["md5"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{pointer} is not a DVC pointer with outs, path and md5") from error
    target = pointer.parent / name
    if target.is_file():
        return [Located(target, str(target), spec, md5)]
    for cache in _dvc_caches(pointer):
        stored = cache / "files" / "md5" / md5[:2] / md5[2:]
        if stored.is_file():
            return [Located(stored, str(target), spec, md5)]
    raise InputError(
        f"{pointer} points at {name} (md5 {md5}), which is neither beside it nor in the DVC cache: "
        "run `dvc pull`"
    )


def _dvc_caches(pointer: Path) -> Iterator[Path]:
    for folder in pointer.resolve().parents:
        if (folder / ".dvc").is_dir():
            yield folder / ".dvc" / "cache"
            return


def _nearest(path: Path) -> Path | None:
    if not path.parent.is_dir():
        return None
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    return path.parent / close[0] if close else None


def _llama_factory(path: Path, spec: SourceSpec) -> list[Located]:
    """Read an entry of LLaMA-Factory's `dataset_info.json` as options of a source."""
    file = path / "dataset_info.json" if path.is_dir() else path
    try:
        entries = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{file} does not exist, so `dataset: {spec.dataset}` means nothing"
        ) from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    names = sorted(entries) if isinstance(entries, dict) else []
    if spec.dataset is None or spec.dataset not in names:
        raise InputError(
            f"{file}: say which with `dataset`; it has {', '.join(names[:10]) or 'none'}"
        )
    entry: dict[str, Any] = entries[spec.dataset]
    if "file_name" not in entry:
        raise InputError(f"{file}: {spec.dataset} has no file_name; only local files are followed")
    mapped = _mapped(entry, spec)
    return locate(mapped.model_copy(update={"path": str(file.parent / entry["file_name"])}), Path())


FIELDS = {"prompt": "instruction", "query": "input", "response": "output"}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
}


def _mapped(entry: dict[str, Any], spec: SourceSpec) -> SourceSpec:
    formatting = entry.get("formatting", "alpaca")
    columns = dict(entry.get("columns") or {})
    given: dict[str, str] = {}
    talks = formatting in ("sharegpt", "openai")
    for key, column in columns.items():
        key = str(key)
        if key == "prompt" and not talks and len(columns) == 1:
            given["text"] = column
        elif key == "messages" and talks:
            given["messages" if formatting == "openai" else "conversations"] = column
        else:
            given[FIELDS.get(key, key) if not talks else key] = column
    tags = {TAGS[k]: v for k, v in (entry.get("tags") or {}).items() if k in TAGS}
    return SourceSpec(path=spec.path, format="auto", columns=given, tags=tags)
