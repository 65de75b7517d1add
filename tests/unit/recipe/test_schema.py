import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from trainyard.recipe import Recipe

CHECKED_IN = Path("recipes/recipe.schema.json")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CHECKED_IN.read_text(encoding="utf-8"))
    return found


def test_the_schema_that_is_checked_in_is_current(schema: dict[str, Any]) -> None:
    assert schema == Recipe.model_json_schema(), "run `make schema`"


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_editors_complete_and_accept_every_recipe(path: Path, schema: dict[str, Any]) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json")
    jsonschema.validate(yaml.safe_load(text), schema)


def test_every_key_says_what_it_means(schema: dict[str, Any]) -> None:
    silent = [
        f"{section}.{key}"
        for section, definition in schema["$defs"].items()
        for key, field in definition.get("properties", {}).items()
        if key != "kind" and "description" not in field
    ]
    assert not silent
