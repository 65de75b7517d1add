from pathlib import Path

import pytest

from trainyard.errors import InputError
from trainyard.recipe import parse_override, read_recipe

QUICKSTART = Path("recipes/quickstart.yaml")


def error_of(path: Path, text: str | None = None, **overrides: object) -> str:
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as found:
        read_recipe(path, overrides)
    return str(found.value)


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_that_is_shipped_is_valid(path: Path) -> None:
    assert read_recipe(path).name


def test_a_typo_names_file_line_key_and_the_nearest_known_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    lines = QUICKSTART.read_text().replace("learning_rate:", "learning_rat:")
    line = 1 + lines.splitlines().index("  learning_rat: 4.0e-3")
    expected = f"{path}:{line}: train.learning_rat: unknown key; did you mean `learning_rate`?"
    assert error_of(path, lines) == expected


def test_a_batch_that_does_not_divide_says_both_numbers(tmp_path: Path) -> None:
    text = QUICKSTART.read_text().replace("  batch_size: 16", "  batch_size: 10")
    text = text.replace("device_batch_size: 16", "device_batch_size: 4")
    message = error_of(tmp_path / "r.yaml", text)
    assert "batch_size (10) must be a multiple of device_batch_size (4)" in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a: [", "not YAML"),
        ("- 1", "holds no keys"),
        ("just words", "holds no keys"),
        ("name: a\nname: b\n", ":2: the key `name` is there twice"),
        ("name: a\nbase_model: b\n", "data: missing"),
        ("\x00", "not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    assert said in error_of(tmp_path / "r.yaml", text)


def test_a_missing_file_suggests_its_neighbour() -> None:
    assert "did you mean recipes/quickstart.yaml?" in error_of(Path("recipes/quickstrat.yaml"))


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    assert "is a folder" in error_of(tmp_path)


def test_bytes_are_not_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in error_of(tmp_path / "r.yaml")


def test_overrides_win_and_are_checked_like_the_file() -> None:
    assert read_recipe(QUICKSTART, {"train.rank": 4}).train.rank == 4
    assert error_of(QUICKSTART, **{"train.rnk": 4}).startswith("override train.rnk: unknown key")


def test_an_override_from_a_command_line_is_yaml() -> None:
    assert parse_override("train.rank=8") == ("train.rank", 8)
    assert parse_override("name=a=b") == ("name", "a=b")
    with pytest.raises(InputError, match="is not KEY=VALUE"):
        parse_override("train.rank")


def test_a_gate_on_a_suite_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    text = QUICKSTART.read_text().replace(
        '  exact_match: ">= 0.9"', '  exact_match: {limit: ">= 0.9", suite: tikets}'
    )
    assert "reads the suite tikets; evaluate.suites has corpus, tickets" in error_of(
        tmp_path / "r.yaml", text
    )
