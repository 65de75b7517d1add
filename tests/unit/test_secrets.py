from pathlib import Path

import pytest

from trainyard import secrets
from trainyard.errors import InputError


def test_a_secret_comes_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_KEY", "planted-in-env")
    (tmp_path / "key").write_text("planted-in-file\n")
    assert secrets.resolve("env:SOME_KEY") == "planted-in-env"
    assert secrets.resolve(f"file:{tmp_path / 'key'}") == "planted-in-file"
    assert secrets.mask("log: planted-in-env, planted-in-file") == "log: ***, ***"


@pytest.mark.parametrize("reference", ["env:NOT_SET_ANYWHERE", "file:/does/not/exist", "plain"])
def test_a_secret_that_is_not_there_is_named_by_its_reference(reference: str) -> None:
    with pytest.raises(InputError, match=reference.split(":")[0]):
        secrets.resolve(reference)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("hf_" + "a" * 30, "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("password = 'hunter22'", "password = '***'"),
        ("api_key: env:WANDB_API_KEY", "api_key: env:WANDB_API_KEY"),  # a reference is no secret
        ("https://u:p4ss@host/x", "https://***@host/x"),
        ("max_tokens: 256", "max_tokens: 256"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert secrets.mask(text) == masked
