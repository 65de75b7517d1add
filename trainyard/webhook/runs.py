"""Prefect runs, over its REST API: the domain does not import Prefect."""

from collections.abc import Collection
from typing import Any
from urllib.parse import quote

import aiohttp

from trainyard import secrets
from trainyard.errors import InputError, Unavailable
from trainyard.webhook.config import WebhookConfig

PAGE = 200
"""Most rows that Prefect's API gives at once."""


class Runs:
    def __init__(self, session: aiohttp.ClientSession, config: WebhookConfig) -> None:
        self._session = session
        self._config = config
        self._api = config.prefect_api.rstrip("/")
        self._deployments: dict[str, str] = {}

    async def start(
        self,
        deployment: str,
        *,
        parameters: dict[str, Any],
        key: str,
        name: str,
        tags: Collection[str],
        env: dict[str, str],
    ) -> str:
        """Return the id of the run; with the same key always of the same one.

        Raises InputError without that deployment or when it refuses the parameters, Unavailable.
        """
        body = {
            "parameters": parameters,
            "idempotency_key": key,
            "name": name,
            "tags": list(tags),
            "job_variables": {"env": env},
            "enforce_parameter_schema": True,
        }
        id_ = await self._deployment(deployment)
        try:
            made = await self._call("POST", f"deployments/{id_}/create_flow_run", body)
        except _Missing:  # deployed anew under another id
            self._deployments.pop(deployment)
            id_ = await self._deployment(deployment)
            made = await self._call("POST", f"deployments/{id_}/create_flow_run", body)
        return str(made["id"])

    async def states(self, ids: Collection[str]) -> dict[str, tuple[str, str]]:
        """Run -> type of its state, and what it says."""
        found = {}
        wanted = list(ids)
        for begin in range(0, len(wanted), PAGE):
            some = wanted[begin : begin + PAGE]
            body = {"flow_runs": {"id": {"any_": some}}, "limit": PAGE}
            for row in await self._call("POST", "flow_runs/filter", body):
                state = row.get("state") or {}
                said = state.get("message") or state.get("name") or ""
                found[str(row["id"])] = (str(row["state_type"]), said)
        return found

    async def cancel(self, id_: str, why: str) -> None:
        """Ask for it; a run that ended meanwhile stays as it is."""
        state = {"type": "CANCELLING", "name": "Cancelling", "message": why}
        try:
            await self._call("POST", f"flow_runs/{id_}/set_state", {"state": state})
        except _Missing:
            return

    def link(self, id_: str) -> str:
        return f"{self._config.prefect_ui.rstrip('/')}/runs/flow-run/{id_}"

    async def _deployment(self, name: str) -> str:
        if name not in self._deployments:
            flow, _, deployment = name.partition("/")
            path = f"deployments/name/{quote(flow, safe='')}/{quote(deployment, safe='')}"
            try:
                self._deployments[name] = str((await self._call("GET", path))["id"])
            except _Missing:
                raise InputError(
                    f"no deployment {name} on {self._api}: `make up` makes it"
                ) from None
        return self._deployments[name]

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        url = f"{self._api}/{path}"
        headers, auth = {}, None
        if self._config.prefect_token:
            headers["Authorization"] = f"Bearer {secrets.resolve(self._config.prefect_token)}"
        if self._config.prefect_auth:
            user, _, password = secrets.resolve(self._config.prefect_auth).partition(":")
            auth = aiohttp.BasicAuth(user, password)
        try:
            async with self._session.request(
                method, url, json=body, headers=headers, auth=auth
            ) as reply:
                if reply.status == 404:
                    raise _Missing(f"{url} is not there")
                if reply.status == 429 or reply.status >= 500:
                    raise Unavailable(f"Prefect answered {reply.status} at {url}")
                if reply.status >= 400:
                    said = secrets.mask((await reply.text())[:500])
                    raise InputError(f"Prefect refuses {path}: {reply.status}: {said}")
                return await reply.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"Prefect did not answer at {url}: {error}") from None


class _Missing(InputError):
    """The server does not know that id."""
