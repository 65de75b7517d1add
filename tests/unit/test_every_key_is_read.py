"""No key of a recipe is decoration: each one's name is read by code outside the schema."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from trainyard.recipe import Recipe

CODE = [path for package in ("trainyard", "tasks", "flows") for path in Path(package).rglob("*.py")]


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for nested in models_in(field.annotation):
            yield from sections(nested)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


@cache
def names_read() -> set[str]:
    """Attributes that are loaded, and texts of the data check: its keys are the codes it finds."""
    found: set[str] = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            if path.parent.name == "data" and isinstance(node, ast.Constant):
                found.add(str(node.value))
    return found


KEYS = sorted(
    {
        (section.__name__, key)
        for section in sections(Recipe)
        for key in section.model_fields
        if key != "kind"  # the tag of a union: reading it is choosing the class
    }
)


def test_the_walk_sees_the_whole_recipe() -> None:
    assert len(KEYS) > 80
    assert {"Recipe", "DataSpec", "TrainSpec", "EvaluateSpec", "GateSpec", "DeploySpec"} <= {
        section for section, _ in KEYS
    }


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda part: part)
def test_every_key_is_read_by_some_code(section: str, key: str) -> None:
    assert key in names_read(), f"{section}.{key} is read nowhere"
