"""What a place must offer so that a rollout can be driven there, and what it says in return."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from trainyard.recipe.base import Frozen

Slot = Literal["blue", "green"]


class Probe(Frozen):
    """A deterministic question whose answer shows that the right weights are loaded."""

    messages: tuple[dict[str, Any], ...]
    max_tokens: int = 8
    answer: str | None = None
    """What the evaluated model answered; None asks only that an answer comes."""


class ServedVersion(Frozen):
    """A registered version, as an engine needs it."""

    name: str
    digest: str
    """sha256, in hex, over the adapter's files."""

    adapter: Path
    base: Path
    probe: Probe = Probe(messages=({"role": "user", "content": "hello"},))

    @property
    def model(self) -> str:
        """Name under which an engine serves it; never reused for other weights."""
        return f"{self.name}@{self.digest[:12]}"

    @property
    def base_name(self) -> str:
        """Name under which the same engine serves the base model."""
        return f"{self.name}-base"


class Readiness(Frozen):
    ready: bool
    alive: bool
    """False once the engine has ended: waiting is of no use."""

    why: str = ""
    restarts: int = 0


class Engine(Frozen):
    """What was started in a slot and not stopped since."""

    version: ServedVersion
    url: str
    alive: bool
    last_words: str = ""
    """What it said last, once it has ended."""

    restarts: int = 0
    """How often it crashed and came back by itself."""


class Engines(Protocol):
    """Starts and stops engines behind a gateway; what runs is on record, not in memory."""

    def start(self, version: ServedVersion, slot: Slot) -> None: ...

    def find(self, slot: Slot) -> Engine | None: ...

    def stop(self, slot: Slot) -> None: ...


class Observation(Frozen):
    """Requests that the gateway has answered since the last look."""

    boot: str
    """Changes when the gateway restarts and its numbering begins again."""

    next: int
    lost: int
    """Records that were dropped before they were read."""

    records: tuple[dict[str, Any], ...]
    """See serving/gateway_log.py `Record`."""


class Terms(NamedTuple):
    """Of a split of the traffic."""

    lease_s: float | None = None
    """Seconds after the last call or `renew` at which the champion has everything again."""

    shadow_pct: float = 0
    """Percent of the champion's requests that are copied to the other slot, unseen by users."""

    salt: str = ""
    """Mixed into the sticky hash; one per rollout."""


FOR_GOOD = Terms()


class Target(Protocol):
    """The state machine in steps.py drives any of these."""

    name: str
    folder: Path
    """Where the rollout keeps its state, its lock and its commands."""

    def endpoint(self) -> str:
        """Root of the model's stable URL."""
        ...

    def start(self, version: ServedVersion, slot: Slot) -> None:
        """Begin to load `version`; a live slot with the same version is left as it is."""
        ...

    def ready(self, slot: Slot) -> Readiness: ...

    def set_weights(
        self, weights: Mapping[Slot, float], champion: Slot, terms: Terms = FOR_GOOD
    ) -> None:
        """Give every slot its percentage, all at once. Raises InputError unless they add up to 100.

        `terms` say how long that holds without another word.
        """
        ...

    def renew(self, lease_s: float) -> bool:
        """Extend the lease; False if it had run out, and the weights with it."""
        ...

    def observe(self, since: int) -> Observation: ...

    def replay_headers(self) -> Mapping[str, str]:
        """Headers that mark a request to `endpoint` as the rollout's own."""
        ...

    def stop(self, slot: Slot) -> None: ...

    def down(self) -> None:
        """Stop everything of this model."""
        ...
