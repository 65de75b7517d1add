"""The rollout's hand on a gateway: its admin port, spoken to over loopback."""

from typing import Any

import httpx

from trainyard.errors import InputError, Unavailable
from trainyard.rollout.target import Observation
from trainyard.serving.gateway_config import Routes


def verifies(endpoint: str) -> bool:
    """Whether to ask who answers: not our own gateway here, certified for its public name."""
    return not endpoint.startswith("https://127.0.0.1:")


class GatewayClient:
    def __init__(self, admin_url: str, token: str) -> None:
        self._url = admin_url
        # no kept-alive connections: there is nothing to close when this is forgotten
        self._client = httpx.Client(
            base_url=admin_url,
            headers={"Authorization": f"Bearer {token}"},
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=5,
            trust_env=False,
        )

    def _call(self, method: str, path: str, **given: Any) -> Any:
        try:
            answer = self._client.request(method, path, **given)
        except httpx.HTTPError as error:
            raise Unavailable(f"the gateway at {self._url} did not answer: {error}") from error
        if answer.status_code >= 400:
            raise InputError(f"the gateway refused {method} {path}: {answer.text}")
        return answer.json()

    def routes(self) -> Routes:
        return Routes.model_validate(self._call("GET", "/-/routes"))

    def replace(self, routes: Routes) -> None:
        self._call("PUT", "/-/routes", content=routes.model_dump_json())

    def renew(self, lease_s: float) -> bool:
        found = self._call("POST", "/-/weight", json={"lease_s": lease_s})
        return found["lease_until"] is not None

    def records(self, since: int) -> Observation:
        found = self._call("GET", "/-/records", params={"since": since})
        found.pop("routes")
        return Observation.model_validate(found)
