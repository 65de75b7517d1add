"""What the gateway remembers of each request: a ring of records, metrics, a sampled log."""

import json
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trainyard.serving.answers import Flag, redact
from trainyard.serving.gateway_config import Role, Routes

RING = 50_000
LOG_BYTES = 64 << 20
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True, slots=True)
class Record:
    """One request as one variant answered it; a retried request leaves two."""

    seq: int
    at: float
    """Unix time at the end of the request, in seconds."""

    variant: Role
    digest: str
    code: int
    """HTTP status; 0 when the engine could not be reached, broke off, or went silent."""

    ok: bool
    """The client's own mistakes (4xx but 429) are ok: they say nothing about the variant."""

    source: str
    """`live`, `shadow` (a copy that no client sees), `replay`, `forced` (chosen by the client, so
    no fair comparison), or `feedback` (no request: what a user said of one)."""

    request_id: str
    seconds: float = 0.0
    ttft_s: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    flags: tuple[Flag, ...] = ()
    why: str = ""
    score: float | None = None
    """Of feedback: -1 bad, 1 good."""


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        many: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "gateway_requests", "Requests by variant and status", ["variant", "code"], **many
        )
        self.seconds = Histogram(
            "gateway_request_seconds", "End to end", ["variant"], buckets=_SECONDS, **many
        )
        self.ttft = Histogram(
            "gateway_ttft_seconds", "Until the first byte", ["variant"], buckets=_SECONDS, **many
        )
        self.tokens = Counter("gateway_tokens", "Tokens", ["variant", "kind"], **many)
        self.flags = Counter("gateway_flagged", "Answers flagged", ["variant", "flag"], **many)
        self.inflight = Gauge("gateway_inflight", "Requests in progress", **many)
        self.weight = Gauge("gateway_weight_pct", "Share of traffic", ["variant"], **many)
        self.info = Gauge("gateway_version_info", "Version served", ["variant", "version"], **many)
        self.shed = Counter("gateway_shed", "Requests refused under load", **many)
        self.retried = Counter("gateway_retried", "Requests the champion answered instead", **many)
        self.unseen = Counter("gateway_shadow_dropped", "Copies not made, under load", **many)
        self.aborted = Counter("gateway_client_gone", "Requests the client gave up", **many)
        self.lapsed = Counter("gateway_lease_lapsed", "Rollouts ended by a lapsed lease", **many)

        # looking a label up costs more than counting
        self._requests = cache(lambda variant, code: self.requests.labels(variant, str(code)))
        self._seconds = cache(self.seconds.labels)
        self._tokens = cache(self.tokens.labels)

    def count(self, record: Record) -> None:
        variant = record.variant
        self._requests(variant, record.code).inc()
        if record.ok:
            self._seconds(variant).observe(record.seconds)
        if record.ttft_s is not None:
            self.ttft.labels(variant).observe(record.ttft_s)
        if record.tokens_out:
            self._tokens(variant, "in").inc(record.tokens_in)
            self._tokens(variant, "out").inc(record.tokens_out)
        for flag in record.flags:
            self.flags.labels(variant, flag).inc()

    def show(self, routes: Routes) -> None:
        self.info.clear()
        for role, variant in (("champion", routes.champion), ("canary", routes.canary)):
            if variant is not None:
                self.info.labels(role, variant.digest).set(1)
        self.weight.labels("canary").set(routes.weight)
        self.weight.labels("champion").set(100 - routes.weight if routes.champion else 0)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Journal:
    """Ring of the newest records; `boot` tells a reader that the numbering began again."""

    def __init__(self) -> None:
        self.boot = uuid.uuid4().hex
        self.metrics = Metrics()
        self._next = 0
        self._ring: deque[Record] = deque()
        self._answers: dict[str, Record] = {}
        """By request id, what users were answered and nobody has voted on yet."""

    def add(self, **fields: Any) -> Record:
        record = self._keep(Record(seq=self._next, at=time.time(), **fields))
        if record.ok and record.source == "live":
            self._answers[record.request_id] = record
        self.metrics.count(record)
        return record

    def _keep(self, record: Record) -> Record:
        self._next += 1
        self._ring.append(record)
        if len(self._ring) > RING:
            old = self._ring.popleft()
            if self._answers.get(old.request_id) is old:
                del self._answers[old.request_id]
        return record

    def answer(self, request_id: str) -> Record | None:
        """What was answered, once; None for an unknown or forgotten request, or a second vote."""
        return self._answers.pop(request_id, None)

    def vote(self, answered: Record, score: float) -> None:
        """Note what a user said of an answer, for whoever compares variants."""
        said = replace(answered, seq=self._next, at=time.time(), source="feedback", score=score)
        self._keep(said)

    def since(self, seq: int, limit: int = 5000) -> dict[str, Any]:
        """Records numbered `seq` and later, oldest first, and how many were lost to the ring."""
        first = self._next - len(self._ring)
        start = max(0, seq - first)
        found = [asdict(record) for record in islice(self._ring, start, start + limit)]
        return {
            "boot": self.boot,
            "records": found,
            "next": max(seq, first) + len(found),
            "lost": max(0, first - seq),
        }


class RequestLog:
    """Append-only lines for drift and the next data set; one older file is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def write(self, record: Record, messages: Sequence[Any], answer: str) -> None:
        if self._file is None or self._file.tell() > LOG_BYTES:
            self._turn()
        assert self._file is not None
        row = {
            "at": record.at,
            "request_id": record.request_id,
            "version": record.digest,
            "variant": record.variant,
            "messages": json.loads(redact(json.dumps(messages, ensure_ascii=False))),
            "answer": redact(answer),
            "flags": record.flags,
        }
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def _turn(self) -> None:
        self.close()
        if self._path.exists() and self._path.stat().st_size > LOG_BYTES:
            self._path.replace(self._path.with_suffix(".old.jsonl"))
        self._path.touch(mode=0o600)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
