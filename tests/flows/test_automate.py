from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from deployments import automate

FOUND = automate.read_automations()


@pytest.mark.parametrize("automation", FOUND, ids=lambda a: a["name"])
def test_every_file_is_an_automation_without_a_key_that_prefect_ignores(
    automation: dict[str, object],
) -> None:
    made = automate.with_block(automation, UUID(int=1))
    kept = made.model_dump(mode="json", exclude_unset=True)
    assert set(automation) <= set(kept)
    assert set(automation["trigger"]) <= set(kept["trigger"])  # type: ignore[call-overload]
    assert made.enabled


@pytest.mark.usefixtures("prefect_server")
def test_applying_twice_changes_nothing_and_the_address_is_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = "http://127.0.0.1:9/hook-with-a-secret"
    automate.apply(FOUND, None)
    assert capsys.readouterr().out.count("left out") == 2
    automate.apply(FOUND, address)
    automate.apply(FOUND, address)
    assert capsys.readouterr().out.count("as it was") == 4  # one before, three after
    with get_client(sync_client=True) as client:
        names = [found.name for found in client.read_automations()]
        block = client.read_block_document_by_name(
            automate.BLOCK, "custom-webhook", include_secrets=False
        )
    assert sorted(names) == sorted(a["name"] for a in FOUND)
    assert "hook-with-a-secret" not in str(block)
