from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient


def in_file() -> list[tuple[str, str]]:
    """Entry point and name of each deployment of prefect.yaml."""
    rows = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    return sorted((one["entrypoint"], one["name"]) for one in rows)


def on_server(client: SyncPrefectClient) -> list[tuple[str, str]]:
    """The same of those on the server, without what other tests left there."""
    ours = {entrypoint for entrypoint, _ in in_file()}
    return sorted(
        (one.entrypoint, one.name) for one in client.read_deployments() if one.entrypoint in ours
    )
