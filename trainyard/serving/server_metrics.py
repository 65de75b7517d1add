"""Prometheus metrics under vLLM's names, so that its dashboards and alert rules work unchanged.

Unlike vLLM, `model_name` is the adapter that answered.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from trainyard.serving.server_sequence import Reason, Sequence

_LABELS = ("model_name", "engine")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    def __init__(self, base_name: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._base = base_name
        self._running = self._gauge("num_requests_running", "Sequences that are being decoded")
        self._waiting = self._gauge("num_requests_waiting", "Sequences in the queue")
        self._rejected = Counter(
            "vllm:admission_rejections",
            "Requests refused because the queue was full",
            _LABELS,
            registry=self.registry,
        )
        self._success = Counter(
            "vllm:request_success",
            "Sequences that ended, by reason",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of ended sequences")
        self._generated = self._counter("generation_tokens", "Generated tokens of ended sequences")
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token")
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token")
        self._queued = self._histogram("request_queue_time_seconds", "Arrival to start")
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first",
            _PER_TOKEN,
        )
        self.show_load(0, 0)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"vllm:{name}", text, _LABELS, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, _LABELS, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self.registry)

    def show_load(self, running: int, waiting: int) -> None:
        self._running.labels(self._base, "0").set(running)
        self._waiting.labels(self._base, "0").set(waiting)

    def reject(self) -> None:
        self._rejected.labels(self._base, "0").inc()

    def count(self, row: Sequence, reason: str) -> None:
        self._success.labels(row.model, "0", reason).inc()

    def observe(self, row: Sequence, reason: Reason, now: float) -> None:
        self.count(row, reason)
        if reason is Reason.ABORT:
            return
        labels = (row.model, "0")
        self._prompt.labels(*labels).inc(len(row.prompt_ids))
        self._generated.labels(*labels).inc(len(row.output_ids))
        self._e2e.labels(*labels).observe(now - row.arrived)
        if row.started is not None:
            self._queued.labels(*labels).observe(row.started - row.arrived)
        if row.first_token is not None:
            self._ttft.labels(*labels).observe(row.first_token - row.arrived)
            if len(row.output_ids) > 1:
                each = (now - row.first_token) / (len(row.output_ids) - 1)
                self._per_token.labels(*labels).observe(each)

    def forget(self, model: str) -> None:
        """Drop the series of an adapter that is gone, so that their number stays bounded."""
        for metric in (
            self._prompt,
            self._generated,
            self._e2e,
            self._ttft,
            self._queued,
            self._per_token,
            self._success,
        ):
            metric.remove_by_labels({"model_name": model})

    def text(self) -> bytes:
        return generate_latest(self.registry)
