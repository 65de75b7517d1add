"""Held-out prompts sent through the gateway to both variants, when users send too few."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from trainyard.rollout.gateway_client import verifies

CONCURRENCY = 4


class Replay:
    """Goes round `requests` (bodies of chat completions, without `model`) for ever."""

    def __init__(self, requests: Sequence[Mapping[str, Any]]) -> None:
        self._requests = requests
        self._at = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def pairs(self, endpoint: str, model: str, headers: Mapping[str, str], count: int) -> int:
        """Ask both variants `count` prompts each, in random order; returns the requests sent.

        What came of them is read from the gateway's records; here a failure is no error.
        """
        jobs = []
        for _ in range(count):
            body = {**self._requests[self._at % len(self._requests)], "model": model}
            self._at += 1
            arms = ["champion", "canary"]
            random.shuffle(arms)
            pair = f"{random.getrandbits(128):032x}"  # both answers are found by it
            jobs += [(body, {"x-trainyard-variant": arm, "x-request-id": pair}) for arm in arms]

        with httpx.Client(
            base_url=endpoint,
            headers=dict(headers),
            timeout=120,
            trust_env=False,
            verify=verifies(endpoint),
        ) as client:

            def ask(job: tuple[Mapping[str, Any], Mapping[str, str]]) -> None:
                body, marks = job
                try:
                    client.post("/v1/chat/completions", json=body, headers=dict(marks))
                except httpx.HTTPError:
                    return

            with ThreadPoolExecutor(CONCURRENCY) as pool:
                list(pool.map(ask, jobs))
        return len(jobs)
