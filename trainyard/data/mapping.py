"""How other tools describe a source, said as options of ours.

LLaMA-Factory: an entry of `dataset_info.json`. Axolotl: an entry of `datasets:`. What they say of
prompt formats is the chat template's to say here.
"""

from pathlib import Path
from typing import Any

import orjson

from trainyard.errors import InputError
from trainyard.recipe.data import AxolotlColumns, AxolotlSpec, Format, SourceSpec

INFO = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function",
}
FROM_HUB = "hf_hub_url"
FROM_FILE = ("file_name", "cloud_file_name")


def of_llama_factory(path: Path, spec: SourceSpec) -> SourceSpec:
    """The entry `spec.dataset` of a `dataset_info.json`. Raises InputError for what it lacks."""
    file = path / INFO if path.is_dir() else path
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
    columns = entry.get("columns")
    return SourceSpec(
        path=_place(file, entry, spec.dataset),
        format=_format(entry),
        columns=_columns(entry.get("formatting", "alpaca"), columns or {}),
        only_columns=columns is not None,
        tags={TAGS[k]: v for k, v in (entry.get("tags") or {}).items() if k in TAGS},
        subset=entry.get("subset"),
        split=entry.get("split", "train" if FROM_HUB in entry else None),
        rows=entry.get("num_samples"),
    )


def _place(file: Path, entry: dict[str, Any], name: str) -> str:
    if FROM_HUB in entry:
        revision = entry.get("revision")
        folder = f"/{entry['folder']}" if entry.get("folder") else ""
        return f"hf://{entry[FROM_HUB]}{f'@{revision}' if revision else ''}{folder}"
    named = next((entry[key] for key in FROM_FILE if key in entry), None)
    if named is None:
        raise InputError(
            f"{file}: {name} has neither {', '.join(FROM_FILE)} nor {FROM_HUB}: nothing to read"
        )
    return named if "://" in named else str(file.parent / named)


def _format(entry: dict[str, Any]) -> Any:
    columns = entry.get("columns") or {}
    if entry.get("ranking"):
        return "preference"
    if "kto_tag" in columns:
        return "kto"
    if entry.get("formatting", "alpaca") == "alpaca":
        return "text" if list(columns) == ["prompt"] else "alpaca"
    return "auto"  # messages or conversations, by what the rows have


def _columns(formatting: str, columns: dict[str, str]) -> dict[str, str]:
    if formatting == "alpaca":
        if list(columns) == ["prompt"]:
            return {"text": columns["prompt"]}
        return {ALPACA.get(key, key): column for key, column in columns.items()}
    talk = "messages" if formatting == "openai" else "conversations"
    return {talk if key == "messages" else key: column for key, column in columns.items()}


AXOLOTL: dict[str, Format] = {
    **dict.fromkeys(("alpaca", "gpteacher", "oasst", "reflection"), "alpaca"),
    **dict.fromkeys(
        (
            "jeopardy", "explainchoice", "concisechoice", "summarizetldr", "context_qa", "metharme",
            "alpaca_chat.load_qa", "alpaca_chat.load_camel_ai", "alpaca_w_system.load_open_orca",
        ),
        "prompt_completion",
    ),
    **dict.fromkeys(("completion", "pretrain"), "text"),
}  # fmt: skip
BY_COLUMNS = ("chat_template", "sharegpt", "chatml", "llama3", "gemma", "zephyr", "orpo")
"""Types whose rows say by their columns whether they are conversations, pairs or labelled."""
FIELDS = {
    "field_system": "system",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_label": "label",
}


def of_axolotl(spec: SourceSpec) -> SourceSpec:
    """`spec` with its Axolotl options said as ours. Raises InputError for what has no like here."""
    given = spec.axolotl
    if given is None:
        return spec
    columns = {
        "messages": given.field_messages,
        "tools": given.field_tools,
        "text": given.field,
    }
    if isinstance(given.type, AxolotlColumns):
        columns |= {FIELDS[key]: column for key, column in given.type.model_dump().items()}
    tags: dict[str, Any] = {
        key: given.message_property_mappings[key]
        for key in ("role", "content")
        if key in given.message_property_mappings
    }
    if given.message_field_training is not None:
        tags["train"] = given.message_field_training
    for role in given.roles_to_train:
        if role not in ("assistant", *given.roles.get("assistant", ())) and role != "gpt":
            raise InputError(f"{spec.path}: roles_to_train names {role}; only assistants learn")
    return spec.model_copy(
        update={
            "axolotl": None,
            "format": _axolotl_format(given, spec),
            "columns": {k: v for k, v in columns.items() if v is not None} | spec.columns,
            "tags": tags | given.roles | spec.tags,
        }
    )


def _axolotl_format(given: AxolotlSpec, spec: SourceSpec) -> Any:
    if spec.format != "auto" or not isinstance(given.type, str):
        return spec.format
    name = given.type.partition(":")[0]
    base = name.partition(".")[0]
    if base in BY_COLUMNS:
        return "auto"
    found = AXOLOTL.get(name, AXOLOTL.get(base))
    if found is None:
        known = ", ".join(sorted({*AXOLOTL, *BY_COLUMNS}))
        raise InputError(f"{spec.path}: the Axolotl type {given.type} is not known; known: {known}")
    return found
