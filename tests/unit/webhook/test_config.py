from pathlib import Path

import pytest

from trainyard import cli
from trainyard.errors import InputError
from trainyard.recipe.load import load
from trainyard.webhook.config import WebhookConfig

SHIPPED = Path("deployments/webhook.yaml")


def test_the_configuration_that_is_shipped_is_valid_and_on_loopback() -> None:
    config = load(SHIPPED, WebhookConfig)
    assert config.host == "127.0.0.1"
    assert {hook.provider for hook in config.hooks.values()} == {"github", "gitlab", "forgejo"}


def test_a_secret_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(SHIPPED.read_text().replace("env:GITHUB_TOKEN", "ghp_0123456789"))
    with pytest.raises(InputError, match="api_token"):
        load(path, WebhookConfig)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("hooks:", "tls_key: k.pem\nhooks:", "give both or neither"),
        ("proof: signature", "proof: hmac", "gitlab proves a delivery by token or signature"),
        ("    provider: github", "    providr: github", "did you mean `provider`"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(SHIPPED.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=said):
        load(path, WebhookConfig)


def test_a_missing_secret_ends_the_service_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GITHUB_WEBHOOK_SECRET", "GITLAB_SIGNING_TOKEN", "FORGEJO_WEBHOOK_SECRET"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["webhook", "--home", str(tmp_path)]) == 2
    assert "GITHUB_WEBHOOK_SECRET is not set" in capsys.readouterr().err


def test_a_plain_token_is_not_carried_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.yaml"
    text = SHIPPED.read_text().replace("proof: signature", "proof: token")
    path.write_text("host: 0.0.0.0\n" + text)
    assert cli.main(["webhook", "--config", str(path), "--home", str(tmp_path)]) == 2
    assert "token in the clear" in capsys.readouterr().err
