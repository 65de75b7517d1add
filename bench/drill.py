"""Seven candidates and a killed controller, rolled out one after the other under live traffic.

Engines are stubs that misbehave as told; gateway, verdict and state machine are the real ones. For
each candidate: the decision, how long it took, what users lost.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from trainyard import rollout
from trainyard.recipe.deploy import Canary, DeploySpec
from trainyard.rollout.gateway_target import GatewayTarget, serving_folder
from trainyard.rollout.local import LocalEngines
from trainyard.rollout.target import ServedVersion

QUESTION = "Please tell me what you have done and what is left for the trip that we are planning."
ENGLISH = "This is the answer that you have asked for, and it will be what you want from the trip."
GERMAN = "Das ist die Antwort, und sie wird für die Reise nicht mit der Frage auf Deutsch sein."
HEALTHY = {"answer": ENGLISH, "delay_s": 0.05, "spread": 0.3}
RATE = 40.0

CANDIDATES: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({**HEALTHY, "delay_s": 0.045}, "done"),
    "identical": (HEALTHY, "done"),
    "20 % errors": ({**HEALTHY, "fail": 0.2}, "aborted"),
    "1.3 x slower": ({**HEALTHY, "delay_s": 0.065}, "aborted"),
    "empty answers": ({**HEALTHY, "answer": ""}, "aborted"),
    "wrong language": ({**HEALTHY, "answer": GERMAN}, "aborted"),
    "crashing": ({**HEALTHY, "crash_after": 60}, "aborted"),
}

STRATEGY = Canary(
    steps=(25, 50), min_requests=100, requests=300, margin=0.02, look_s=1, replay=False
)
SPEC = DeploySpec(port=0, strategy=STRATEGY, soak_s=3, lease_s=3)


@dataclass
class Users:
    """Live traffic from its own thread: one request after another, at random moments."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    codes: Counter[int] = field(default_factory=Counter)
    last_canary: float = 0.0

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            tasks = set()
            while not self.stop.is_set():
                task = asyncio.create_task(self._ask(session))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(random.expovariate(RATE))
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        body = {"messages": [{"role": "user", "content": QUESTION}]}
        try:
            async with session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                await answer.read()
                self.codes[answer.status] += 1
                if answer.headers.get("x-trainyard-variant") == "canary":
                    self.last_canary = time.monotonic()
        except aiohttp.ClientError:
            self.codes[0] += 1

    def lost(self) -> int:
        return sum(count for code, count in self.codes.items() if code != 200)


def stub(version: ServedVersion, port: int) -> list[str]:
    program = [sys.executable, "-m", "bench.stub_engine", str(port), "--model", version.model]
    return [*program, "--behaviour", str(version.adapter / "behaviour.json")]


def open_target(home: Path) -> GatewayTarget:
    return GatewayTarget(SPEC, "drill", home, LocalEngines(serving_folder(home, "drill"), stub))


def make(home: Path, number: int, behaviour: dict[str, Any]) -> ServedVersion:
    adapter = home / f"adapter-{number}"
    adapter.mkdir(parents=True)
    (adapter / "behaviour.json").write_text(json.dumps(behaviour))
    return ServedVersion(name="drill", digest=f"{number:02d}" * 32, adapter=adapter, base=home)


def control(home: Path, version: ServedVersion) -> None:
    """A controller that is going to be killed."""
    rollout.run(open_target(home), version, spec=SPEC)


def kill_controller(home: Path, target: GatewayTarget, users: Users) -> float:
    """Seconds from the kill to the canary's last answer."""
    slow = make(home, 90, HEALTHY)
    child = multiprocessing.get_context("spawn").Process(target=control, args=(home, slow))
    child.start()
    before = users.last_canary
    while users.last_canary == before:
        time.sleep(0.05)
    assert child.pid is not None
    child.kill()
    killed = time.monotonic()
    child.join()
    time.sleep(SPEC.lease_s + 2)
    print(
        f"{'controller killed':<16} {'champion':<12} {users.last_canary - killed:6.1f}  "
        f"by the lease of {SPEC.lease_s:g} s; exit {signal.Signals(-(child.exitcode or 0)).name}"
    )
    rollout.begin(target, slow, spec=SPEC).abort("the drill is over")
    return users.last_canary - killed


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    wrong, seconds, found = 0, {}, {}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        target = open_target(home)
        try:
            rollout.run(target, make(home, 0, HEALTHY), spec=SPEC)
            users = Users(target.endpoint())
            thread = threading.Thread(target=users.run)
            thread.start()
            time.sleep(5)  # the champion's cut-points come from its last answers
            print(f"{'candidate':<16} {'decision':<12} {'s':>6} {'lost':>5}  why")
            for number, (label, (behaviour, expected)) in enumerate(CANDIDATES.items(), 1):
                lost, began = users.lost(), time.monotonic()
                done = rollout.run(target, make(home, number, behaviour), spec=SPEC)
                seconds[label] = round(time.monotonic() - began, 1)
                found[label] = done.state.phase
                wrong += done.state.phase != expected
                print(
                    f"{label:<16} {done.state.phase:<12} {seconds[label]:6.1f} "
                    f"{users.lost() - lost:5d}  {done.state.reason}",
                    flush=True,
                )
            killed = kill_controller(home, target, users)
            users.stop.set()
            thread.join()
        finally:
            target.down()
    total = sum(users.codes.values())
    print(f"{total} requests of users, {users.lost()} lost: {dict(users.codes)}")
    print(
        json.dumps(
            {
                "wrong": wrong,
                "requests": total,
                "lost": users.lost(),
                "seconds": seconds,
                "decisions": found,
                "controller_killed_s": round(killed, 2),
            }
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
