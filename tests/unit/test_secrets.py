import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from trainyard import secrets
from trainyard.errors import InputError, Unavailable


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


def _refused(key: str) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/", headers={"Authorization": f"Bearer {key}"})
    return httpx.HTTPStatusError("401", request=request, response=httpx.Response(401))


KEY = "pl4nted-key-in-an-error"
LEAKS = {
    "in its words": lambda: ValueError(f"no answer from http://127.0.0.1/?key={KEY}"),
    "in what it carries": lambda: _refused(KEY),
    "in an error of ours": lambda: Unavailable(f"no answer with {KEY}"),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS.keys())
def test_an_error_leaves_without_the_secret_and_with_its_traceback(
    leak: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    secrets.resolve("env:SOME_KEY")

    def fails() -> None:
        try:
            raise OSError(f"a cause with {KEY}")
        except OSError:
            raise leak() from None

    with pytest.raises(Exception) as caught:  # noqa: PT011
        secrets.kept_from_errors(fails)()
    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)  # tblib has both pickled as well
    shown = "".join(traceback.format_exception(error))
    assert KEY.encode() not in pickle.dumps(error)
    assert KEY not in shown + repr(error.args)
    assert "in fails" in shown
    assert type(error) in (secrets.MaskedError, Unavailable)


def test_an_error_without_a_secret_leaves_as_it_is() -> None:
    def fails() -> None:
        raise KeyError("rank") from ValueError("a reason")

    with pytest.raises(KeyError) as caught:
        secrets.kept_from_errors(fails)()
    assert isinstance(caught.value.__cause__, ValueError)
