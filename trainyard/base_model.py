"""The model that is fine-tuned: found, refused or accepted, and pinned by revision and digest."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import BaseModel as Record
from pydantic import ConfigDict

from trainyard.errors import InputError, Unavailable
from trainyard.files import digest_file, digest_json, write_json

HUB = re.compile(r"(?:hf://)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
S3 = re.compile(r"(?P<url>s3://[\w.-]+(?:/[^@]+)?)(?:@sha256:(?P<pin>[0-9a-f]{12,64}))?")
COUNTED = (".json", ".safetensors", ".jinja", ".txt", ".model", ".py")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class BaseModel(Record):
    """A base model in a folder of this machine."""

    model_config = ConfigDict(frozen=True)

    ref: str
    """As the recipe names it."""
    path: Path
    revision: str
    """The hub's commit; `sha256:` and the start of the digest for a folder."""
    digest: str
    """sha256 over the names and contents of configuration, tokenizer and weights."""
    config: dict[str, Any]
    """Its `config.json`."""


def resolve(
    ref: str, cache: Path, *, trust_remote_code: bool = False, download: bool = True
) -> BaseModel:
    """Find the base model `ref`, downloading it when it is on the hub, and prove that it is usable.

    `ref` is a folder, `owner/name[@revision]`, `hf://owner/name[@revision]` or
    `s3://bucket/prefix[@sha256:digest]`. `cache` remembers digests of large files, and keeps what
    comes from S3. Raises InputError for what cannot be used, Unavailable for a silent hub
    and, without `download`, for a model that is not on this machine.
    """
    bucket = S3.fullmatch(ref)
    if bucket:
        path, revision = _from_s3(bucket["url"], cache, trust_remote_code, download), None
    else:
        path, revision = _find(ref, trust_remote_code, download)
    config = _read_config(path)
    if "auto_map" in config and not trust_remote_code:
        raise InputError(
            f"{ref} runs code of its own ({', '.join(sorted(config['auto_map']))} in config.json): "
            "read it, then set trust_remote_code: true"
        )
    _check_weights(path)
    if not (path / "tokenizer.json").is_file():
        raise InputError(f"{path} has no tokenizer.json: only fast tokenizers can be used")
    digest = _digest(path, cache)
    if bucket and bucket["pin"] and not digest.startswith(bucket["pin"]):
        raise InputError(
            f"{bucket['url']} has the digest {digest[:12]} and base_model pins "
            f"{bucket['pin'][:12]}: somebody changed it; restore those files, or pin the new digest"
        )
    revision = revision or f"sha256:{digest[:12]}"
    return BaseModel(ref=ref, path=path, revision=revision, digest=digest, config=config)


def _find(ref: str, with_code: bool, download: bool) -> tuple[Path, str | None]:
    folder = Path(ref)
    if (folder / "snapshots").is_dir():
        return _in_hub_layout(folder)
    if folder.is_dir():
        return folder.resolve(), None
    hub = HUB.fullmatch(ref)
    if hub is None or ref.startswith((".", "/")):
        raise InputError(
            f"base_model {ref}: no such folder; name a folder, owner/name@revision, "
            "hf://owner/name@revision or s3://bucket/prefix@sha256:digest"
        )
    return _from_hub(hub["repository"], hub["revision"], with_code, download)


def _from_s3(url: str, cache: Path, with_code: bool, download: bool) -> Path:
    """Return the folder of `cache` with the objects below `url`; the last one without `download`.

    Endpoint and keys come from the AWS_* variables, as for data.
    """
    folder = cache / "base_models" / "s3" / digest_json([url, with_code])[:16]
    latest = folder / "latest.json"
    if not download:
        if not latest.is_file():
            raise Unavailable(f"{url} is not on this machine")
        return folder / str(json.loads(latest.read_text(encoding="utf-8")))
    from trainyard.data import s3  # noqa: PLC0415  (only a bucket needs its client)

    suffixes = tuple(suffix for suffix in COUNTED if with_code or suffix != ".py")
    found = s3.fetch_folder(url, folder, lambda name: name.endswith(suffixes))
    write_json(latest, found.name)
    return found.resolve()


def _in_hub_layout(folder: Path) -> tuple[Path, str | None]:
    main = folder / "refs" / "main"
    if not main.is_file():
        raise InputError(f"{folder} is a hub cache without refs/main: name one of its snapshots")
    revision = main.read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / revision
    if not snapshot.is_dir():
        raise InputError(f"{folder}: refs/main names snapshot {revision}, which is not there")
    return snapshot.resolve(), revision


def _from_hub(
    repository: str, revision: str | None, with_code: bool, download: bool
) -> tuple[Path, str]:
    named = f"{repository}@{revision}" if revision else repository
    wanted = [f"*{suffix}" for suffix in COUNTED if with_code or suffix != ".py"]
    try:
        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=["*/*"],
            local_files_only=not download,
        )
    except GatedRepoError:
        raise InputError(f"{named} is gated: accept its terms and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise InputError(f"{repository} has no revision {revision}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"base_model {named}: no such folder here and no such model on the hub (a private one "
            "needs HF_TOKEN)"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if not download:
            raise Unavailable(f"{named} is not on this machine") from None
        if constants.HF_HUB_OFFLINE:
            raise InputError(
                f"base_model {named}: no such folder here, not in the hub's cache, and "
                "HF_HUB_OFFLINE=1 forbids to download it"
            ) from None
        raise Unavailable(f"{named} cannot be downloaded: {_cause(error)}") from None
    except (OSError, httpx.HTTPError) as error:
        raise Unavailable(f"{named} cannot be downloaded: {_cause(error)}") from None
    path = Path(found)
    return path, path.name


def _cause(error: BaseException) -> str:
    return str(error.__cause__ or error).splitlines()[0]


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        adapter = (path / "adapter_config.json").is_file()
        what = "is an adapter, not a base model" if adapter else "has no config.json"
        raise InputError(f"{path} {what}: name the folder of a whole model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{file} names no model_type, so nothing can load it")
    return config


def _check_weights(path: Path) -> None:
    """Every shard is there, is safetensors, and is as long as its own header says."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise InputError(
                f"{path} holds pickled weights ({', '.join(pickled)}), which can run any code when "
                "loaded: convert them to safetensors"
            )
        raise InputError(f"{path} lacks {', '.join(missing)}")
    for name in shards:
        _check_shard(path / name)


def _check_shard(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as shard:
        length = int.from_bytes(shard.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(f"{file} is not a whole safetensors file: {size} bytes")
        try:
            header = json.loads(shard.read(length))
            data = max((t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"))
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{file} is not a safetensors file: its header is not readable"
            ) from None
    if size != 8 + length + data:
        raise InputError(f"{file} is cut: {size} bytes, its header says {8 + length + data}")


def _digest(path: Path, cache: Path) -> str:
    """Digest of the folder's own files; one that has not changed since is not read again."""
    memory = cache / "base_models" / f"{digest_json(str(path))[:16]}.json"
    known: dict[str, list[Any]] = {}
    if memory.is_file():
        known = json.loads(memory.read_text(encoding="utf-8"))
    found: dict[str, list[Any]] = {}
    for file in sorted(p for p in path.iterdir() if p.suffix in COUNTED and p.is_file()):
        status = file.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        before = known.get(file.name)
        digest = before[1] if before and before[0] == stamp else digest_file(file)
        found[file.name] = [stamp, digest]
    if found != known:
        write_json(memory, found)
    return digest_json(sorted((name, digest) for name, (_, digest) in found.items()))
