from pathlib import Path

import pytest

from trainyard.recipe import Recipe, read_recipe
from trainyard.webhook.touched import touching, why_touched

PATH = "recipes/quickstart.yaml"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe(Path(PATH))


@pytest.mark.parametrize(
    ("changed", "touched"),
    [
        (PATH, True),
        ("recipes/quickstart/train.jsonl", True),
        ("recipes/quickstart/train.jsonl.dvc", True),  # its data pointer
        ("recipes/quickstart/eval.jsonl", True),
        ("recipes/quickstart/base/model.safetensors", True),  # a file in a folder it names
        ("recipes/quickstart/README.md", False),
        ("recipes/quickstart.yaml.bak", False),
        ("other/recipes/quickstart/train.jsonl", False),
        ("README.md", False),
    ],
)
def test_a_recipe_is_touched_by_its_file_and_by_what_it_points_at(
    recipe: Recipe, changed: str, touched: bool
) -> None:
    assert (why_touched(PATH, recipe, {changed}) is not None) is touched


def test_a_pattern_in_a_source_is_followed() -> None:
    recipe = read_recipe(Path(PATH), {"data.train": ["data/part-*.jsonl", "./more/x.csv"]})
    assert why_touched(PATH, recipe, {"data/part-7.jsonl"}) == "data/part-7.jsonl"
    assert why_touched(PATH, recipe, {"data/part-7.jsonl.dvc"})
    assert why_touched(PATH, recipe, {"more/x.csv"})
    assert why_touched(PATH, recipe, {"data/whole.jsonl"}) is None


def test_every_changed_file_that_it_points_at_is_listed(recipe: Recipe) -> None:
    files = ["recipes/quickstart/eval.jsonl", "recipes/quickstart/train.jsonl"]
    assert touching(recipe, {PATH, "README.md", *files}) == files


def test_a_broken_recipe_is_touched_only_by_itself() -> None:
    assert why_touched(PATH, None, {PATH})
    assert why_touched(PATH, None, {"recipes/quickstart/train.jsonl"}) is None
