"""A target made of a gateway process on this machine and of engines anywhere it can reach.

The gateway is detached and on record like the engines: see local.py.
"""

import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from trainyard import files, process
from trainyard.errors import InputError, NotFound, Unavailable
from trainyard.recipe.base import Frozen
from trainyard.recipe.deploy import DeploySpec
from trainyard.rollout.gateway_client import GatewayClient
from trainyard.rollout.local import last_line, spawn
from trainyard.rollout.target import (
    FOR_GOOD,
    Engine,
    Engines,
    Observation,
    Readiness,
    ServedVersion,
    Slot,
    Terms,
)
from trainyard.secrets import resolve
from trainyard.serving.engines import ENGINES, Probe, not_ready
from trainyard.serving.gateway_config import GatewayConfig, Routes, Variant

SPEC_FILE = "deploy.json"

SLOTS: tuple[Slot, ...] = ("blue", "green")

T = TypeVar("T")

_GATEWAY_START_S = 20


class Gateway(Frozen):
    """The gateway, as recorded on disk."""

    process: process.ProcessRecord
    url: str
    admin_url: str


class GatewayTarget:
    def __init__(self, spec: DeploySpec, name: str, home: Path, engines: Engines) -> None:
        self.name = name
        self.folder = serving_folder(home, name)
        self._spec = spec
        self._engines = engines
        self._client: GatewayClient | None = None
        self._proven: set[str] = set()

    # the gateway

    def _gateway(self) -> Gateway | None:
        """Return the gateway that runs, or None."""
        path = self.folder / "gateway.json"
        if not path.exists():
            return None
        found = Gateway.model_validate(files.read_json(path))
        return found if process.is_alive(found.process) else None

    def _config(self) -> GatewayConfig:
        """Config of the gateway: what the spec says, and tokens that are made once."""
        path = self.folder / "gateway.config.json"
        old = files.read_json(path) if path.exists() else {}
        spec = self._spec
        config = GatewayConfig(
            name=self.name,
            host=spec.host,
            port=spec.port,
            folder=self.folder,
            token=old.get("token") or secrets.token_urlsafe(24),
            replay_token=old.get("replay_token") or secrets.token_urlsafe(24),
            api_keys=tuple(
                hashlib.sha256(resolve(key).encode()).hexdigest() for key in spec.api_keys
            ),
            answers=spec.answers,
            max_inflight=spec.max_inflight,
            max_body_mib=spec.max_body_mib,
            log_fraction=spec.log_fraction,
            tls_cert=spec.tls.cert.absolute() if spec.tls else None,
            tls_key=spec.tls.key.absolute() if spec.tls else None,
            log_pairs=getattr(spec.strategy, "judged", None) is not None,
        )
        files.write_json(path, config.model_dump(mode="json"), mode=0o600)
        return config

    def ensure_gateway(self) -> Gateway:
        """Start the gateway unless it runs with this very config.

        Raises InputError when it cannot listen, for instance because the port is taken.
        """
        path = self.folder / "gateway.config.json"
        before = files.read_json(path) if path.exists() else None
        config = self._config()
        files.write_json(self.folder / SPEC_FILE, self._spec.model_dump(mode="json"))
        running = self._gateway()
        if running is not None and before == config.model_dump(mode="json"):
            return running
        if running is not None:
            process.stop(running.process)
        ready = self.folder / "gateway.ready.json"
        ready.unlink(missing_ok=True)
        program = [sys.executable, "-m", "trainyard.serving.gateway", "--config", str(path)]
        log = self.folder / "logs" / "gateway.log"
        child = spawn(program, log)
        _wait(lambda: ready.exists() or child.poll() is not None, _GATEWAY_START_S)
        if not ready.exists():
            raise InputError(last_line(log) or f"the gateway did not start; see {log}")
        found = files.read_json(ready)
        gateway = Gateway(
            process=process.record(child.pid, "gateway"),
            url=found["url"],
            admin_url=found["admin_url"],
        )
        files.write_json(self.folder / "gateway.json", gateway.model_dump(mode="json"))
        self._client = None
        return gateway

    def _admin(self) -> GatewayClient:
        if self._client is None:
            gateway = self.ensure_gateway()
            token = files.read_json(self.folder / "gateway.config.json")["token"]
            self._client = GatewayClient(gateway.admin_url, token)
        return self._client

    def _ask(self, question: Callable[[GatewayClient], T]) -> T:
        """Ask the gateway; one that has died is started again with the routes it had."""
        try:
            return question(self._admin())
        except Unavailable:
            self._client = None
            return question(self._admin())

    # the engines

    def engine(self, slot: Slot) -> Engine | None:
        """Return what was last started in `slot` and not stopped, alive or not."""
        return self._engines.find(slot)

    def start(self, version: ServedVersion, slot: Slot) -> None:
        self.ensure_gateway()
        found = self.engine(slot)
        if found is not None:
            if found.version == version and found.alive:
                return
            self.stop(slot)
        self._proven.discard(version.digest)
        self._engines.start(version, slot)

    def ready(self, slot: Slot) -> Readiness:
        engine = self.engine(slot)
        if engine is None:
            return Readiness(ready=False, alive=False, why=f"nothing was started in {slot}")
        if not engine.alive:
            last = engine.last_words or "without a word"
            return Readiness(ready=False, alive=False, why=f"the engine ended: {last}")
        version = engine.version
        proven = version.digest in self._proven
        why = not_ready(
            engine.url,
            ENGINES[self._spec.engine],
            version.model,
            base_name=version.base_name,
            # the exact answer once, alone; later, among users' requests, one token tells enough
            probe=Probe(
                messages=version.probe.messages,
                max_tokens=1 if proven else version.probe.max_tokens,
                answer=None if proven else version.probe.answer,
            ),
        )
        if why is None:
            self._proven.add(version.digest)
        return Readiness(ready=why is None, alive=True, why=why or "", restarts=engine.restarts)

    def stop(self, slot: Slot) -> None:
        self._engines.stop(slot)

    # the traffic

    def endpoint(self) -> str:
        gateway = self._gateway()
        if gateway is None:
            raise NotFound(f"no gateway runs for {self.name}")
        return gateway.url

    def _variant(self, slot: Slot) -> Variant:
        engine = self.engine(slot)
        if engine is None:
            raise InputError(f"slot {slot} of {self.name} has no engine to give traffic to")
        version = engine.version
        asked = ENGINES[self._spec.engine].request_model(version.base_name, version.model)
        return Variant(url=engine.url, model=asked, digest=version.digest)

    def set_weights(
        self, weights: Mapping[Slot, float], champion: Slot, terms: Terms = FOR_GOOD
    ) -> None:
        check_weights(weights, champion)
        others = [slot for slot in weights if slot != champion]
        weight = weights[others[0]] if others else 0.0
        routes = Routes(
            champion=self._variant(champion),
            canary=self._variant(others[0]) if others else None,
            weight=weight,
            shadow=terms.shadow_pct,
            salt=terms.salt,
            lease_until=None if terms.lease_s is None else time.time() + terms.lease_s,
        )
        self._ask(lambda gateway: gateway.replace(routes))

    def renew(self, lease_s: float) -> bool:
        return self._ask(lambda gateway: gateway.renew(lease_s))

    def observe(self, since: int) -> Observation:
        return self._ask(lambda gateway: gateway.records(since))

    def replay_headers(self) -> Mapping[str, str]:
        token = files.read_json(self.folder / "gateway.config.json")["replay_token"]
        return {"x-trainyard-replay": token}

    def down(self) -> None:
        gateway = self._gateway()
        if gateway is not None:
            process.stop(gateway.process)
        (self.folder / "gateway.json").unlink(missing_ok=True)
        for slot in SLOTS:
            self.stop(slot)


def check_weights(weights: Mapping[Slot, float], champion: Slot) -> None:
    if abs(sum(weights.values()) - 100) > 1e-9 or min(weights.values()) < 0:
        shown = ", ".join(f"{slot} {weight:g}" for slot, weight in weights.items())
        raise InputError(f"weights ({shown}) must be percentages that add up to 100")
    if champion not in weights:
        raise InputError(f"the champion's slot {champion} is not among {', '.join(weights)}")


def _wait(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)


def serving_folder(home: Path, name: str) -> Path:
    return home.absolute() / "serving" / name
