"""What the gateway is told: its ports and limits (fixed) and its routes (changed while it runs)."""

import time
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from trainyard import files
from trainyard.errors import InputError
from trainyard.recipe.base import Fraction, Frozen

Role = Literal["champion", "canary"]


class Variant(Frozen):
    """One engine that answers for the model."""

    url: str
    """Root of the engine, without `/v1`."""

    model: str
    """Model name the engine knows, usually `<name>@<digest12>`."""

    digest: str
    """sha256 of the served version, in hex."""


class Routes(Frozen):
    """Who gets the traffic. Replaced as a whole, so no request sees half a change."""

    champion: Variant | None = None
    canary: Variant | None = None

    weight: Annotated[float, Field(ge=0, le=100)] = 0
    """Percent of the live requests that the canary answers."""

    shadow: Annotated[float, Field(ge=0, le=100)] = 0
    """Percent of the champion's live requests that are copied to the canary, unseen."""

    salt: str = ""
    """Mixed into the sticky hash: one per rollout, so that the same users are not always first."""

    lease_until: NonNegativeFloat | None = None
    """Unix time at which, without renewal, the canary loses its traffic. None: no lease."""

    def settled(self, now: float) -> "Routes":
        """These routes as they hold at `now`: a lapsed lease leaves everything to the champion."""
        if self.lease_until is not None and now >= self.lease_until:
            return self.model_copy(update={"weight": 0.0, "shadow": 0.0, "lease_until": None})
        return self


class GatewayConfig(Frozen):
    name: str
    """Model name that clients use; it never changes with the version behind it."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)]
    """0 takes any free port."""

    admin_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0 takes any free port."""

    admin_host: str = "127.0.0.1"
    """Loopback, except in a pod, where a NetworkPolicy decides who reaches it."""

    folder: Path
    """Holds routes.json, gateway.ready.json, requests.jsonl and feedback.jsonl."""

    token: Annotated[str, Field(min_length=16)]
    """Bearer token of the admin port."""

    replay_token: Annotated[str, Field(min_length=16)]
    """Value of `x-trainyard-replay` that marks a request as replayed, not a user's."""

    api_keys: tuple[str, ...] = ()
    """sha256, in hex, of each accepted bearer key. None: no key is asked for."""

    answers: Literal["text", "json"] = "text"
    """`json`: an answer that is not one JSON object or array counts as bad output."""

    max_body_mib: PositiveFloat = 8
    max_inflight: PositiveInt = 256
    """Requests in progress beyond which new ones get 429."""

    max_shadow: PositiveInt = 16
    """Copied requests in progress beyond which copies are dropped."""

    body_timeout_s: PositiveFloat = 30
    """A client that has not sent its body by then gets 408."""

    connect_timeout_s: PositiveFloat = 2
    idle_timeout_s: PositiveFloat = 120
    """Longest silence of an engine, before the first byte or between two."""

    log_fraction: Fraction = 0
    """Share of live requests written, redacted, to requests.jsonl."""

    log_pairs: bool = False
    """Write both answers to what is copied or replayed, redacted, to pairs.jsonl."""

    tls_cert: Path | None = None
    tls_key: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"gateway config {path}: {error.strerror}") from error
        except ValidationError as error:
            raise InputError(f"gateway config {path}: {error}") from error

    @property
    def routes_file(self) -> Path:
        return self.folder / "routes.json"


def load_routes(path: Path) -> Routes:
    """Routes saved by the last gateway, as they hold now; none yet is the empty routing."""
    if not path.exists():
        return Routes()
    return Routes.model_validate_json(path.read_bytes()).settled(time.time())


def save_routes(path: Path, routes: Routes) -> None:
    files.write_json(path, routes.model_dump(mode="json"), mode=0o600)
