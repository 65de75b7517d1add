"""Create or update the automations of `deployments/automations/`; doing it twice changes nothing.

Those that notify post to the address in TRAINYARD_ALERTS_URL, which Prefect keeps in a block;
without it they are left out. Works on any server that PREFECT_API_URL names.
"""

import os
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore

FOLDER = Path(__file__).parent / "automations"
ADDRESS = "TRAINYARD_ALERTS_URL"
BLOCK = "trainyard-alerts"
ALERTS = "alerts"
"""What stands for the block in a file: only the server knows its id."""


def read_automations(folder: Path = FOLDER) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]


def notifies(automation: dict[str, Any]) -> bool:
    return any(action.get("block_document_id") == ALERTS for action in automation["actions"])


def with_block(automation: dict[str, Any], block: UUID) -> AutomationCore:
    """Raises ValidationError for a key or a value that Prefect would not take."""
    actions = [
        action | ({"block_document_id": block} if notifies({"actions": [action]}) else {})
        for action in automation["actions"]
    ]
    return AutomationCore.model_validate(automation | {"actions": actions})


def apply(automations: list[dict[str, Any]], address: str | None) -> None:
    block = _save_block(address) if address else None
    with get_client(sync_client=True) as client:
        for automation in automations:
            if notifies(automation) and block is None:
                print(f"automation {automation['name']} left out: {ADDRESS} is not set")
                continue
            done = _apply(client, automation, block or UUID(int=0))
            print(f"automation {automation['name']} {done}")


def _apply(client: SyncPrefectClient, automation: dict[str, Any], block: UUID) -> str:
    wanted = with_block(automation, block)
    found = client.read_automations_by_name(wanted.name)
    for twin in found[1:]:
        client.delete_automation(twin.id)
    if not found:
        client.create_automation(wanted)
        return "created"
    if AutomationCore.model_validate(found[0].model_dump(exclude={"id"})) == wanted:
        return "as it was"
    client.update_automation(found[0].id, wanted)
    return "updated"


def _save_block(address: str) -> UUID:
    """Keep the address as a secret of a block, which notifications are sent by."""
    block = CustomWebhookNotificationBlock.model_validate(
        {
            "name": BLOCK,
            "url": "{{url}}",
            "json_data": {"title": "{{subject}}", "message": "{{body}}"},
            "secrets": {"url": address},
        }
    )
    saved = block.save(BLOCK, overwrite=True)
    assert isinstance(saved, UUID)
    return saved


if __name__ == "__main__":
    apply(read_automations(), os.environ.get(ADDRESS))
    sys.exit(0)
