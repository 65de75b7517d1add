"""Read a recipe from YAML. Errors name the file, the line, the key and what to write instead."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainyard.errors import InputError

Loc = tuple[int | str, ...]
M = TypeVar("M", bound=BaseModel)


def load(path: Path, model: type[M], overrides: Mapping[str, Any] | None = None) -> M:
    """Read `path` as a `model`; `overrides` maps dotted keys to values and wins over the file.

    Raises InputError for a file that cannot be read, is not YAML, repeats a key, or does not fit.
    """
    tree = _compose(path)
    value = _plain(path, tree)
    for dotted, replacement in (overrides or {}).items():
        _override(value, dotted, replacement)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError("\n".join(_explain(path, tree, model, error, overrides or {}))) from None


def _compose(path: Path) -> yaml.MappingNode:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}{_yaml_place(error)}") from None
    if tree is None:
        raise InputError(f"{path} is empty; recipes/quickstart.yaml shows what a recipe holds")
    if not isinstance(tree, yaml.MappingNode):
        raise InputError(f"{path} holds no keys at its top level; a recipe begins with `name: ...`")
    return tree


def _yaml_place(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f":{error.problem_mark.line + 1}: not YAML: {error.problem or error.context}"
    return f" is not YAML: {' '.join(str(error).split())}"


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [found.name for found in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _plain(path: Path, tree: yaml.Node) -> Any:
    for node in _mappings(tree):
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                line = key.start_mark.line + 1
                raise InputError(f"{path}:{line}: the key `{key.value}` is there twice")
            keys.add(key.value)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(tree)
    except yaml.YAMLError as error:
        raise InputError(f"{path}{_yaml_place(error)}") from None
    finally:
        loader.dispose()


def _mappings(node: yaml.Node) -> Iterable[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _mappings(item)


def _override(value: Any, dotted: str, replacement: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(value.setdefault(parent, {}), dict):
            raise InputError(f"override {dotted}: `{parent}` is not a section")
        value = value[parent]
    value[last] = replacement


def _explain(
    path: Path,
    tree: yaml.Node,
    model: type[BaseModel],
    error: ValidationError,
    overrides: Mapping[str, Any],
) -> Iterable[str]:
    for detail in error.errors():
        loc = detail["loc"]
        key = ".".join(str(part) for part in _written(tree, loc))
        if any(key == dotted or key.startswith(f"{dotted}.") for dotted in overrides):
            place = f"override {key}"
        else:
            place = f"{path}:{_line(tree, loc)}: {key}" if key else str(path)
        yield f"{place}: {_message(model, detail)}"


def _message(model: type[BaseModel], detail: ErrorDetails) -> str:
    loc = detail["loc"]
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _known_keys(model, loc[:-1]), n=1)
        return "unknown key" + (f"; did you mean `{near[0]}`?" if near else "")
    if detail["type"] == "missing":
        return "missing"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    given = detail["input"]
    shown = f", found {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return message if detail["type"] == "value_error" else message + shown


def _written(tree: yaml.Node, loc: Loc) -> Loc:
    """Return `loc` without the parts that pydantic adds for the branches of a union."""
    kept: list[int | str] = []
    node: yaml.Node | None = tree
    for index, part in enumerate(loc):
        child = _child(node, part)
        if child is None and index < len(loc) - 1 and _child(node, loc[index + 1]) is not None:
            continue
        if child is None and index < len(loc) - 1:
            continue
        kept.append(part)
        node = child
    return tuple(kept)


def _line(tree: yaml.Node, loc: Loc) -> int:
    line = tree.start_mark.line + 1
    node: yaml.Node | None = tree
    for part in loc:
        child = _child(node, part)
        if child is None:
            continue
        line = _key_line(node, part) or child.start_mark.line + 1
        node = child
    return line


def _key_line(node: yaml.Node | None, part: int | str) -> int | None:
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if key.value == str(part):
                return int(key.start_mark.line) + 1
    return None


def _child(node: yaml.Node | None, part: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        found: yaml.Node = node.value[part]
        return found
    return None


def _known_keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """Return the keys of the section at `loc`, over all branches of a union on the way."""
    models = {model}
    for part in loc:
        nested: set[type[BaseModel]] = set()
        for owner in models:
            field = owner.model_fields.get(str(part))
            nested |= _models_in(field.annotation) if field else set()
        models = nested or models
    return sorted({name for owner in models for name in owner.model_fields})


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*(_models_in(argument) for argument in get_args(annotation)))
