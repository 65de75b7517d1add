"""Push to release to status, merge request to plan, and everything that must start nothing."""

import hashlib
import hmac
import json
import os
import time
from pathlib import Path

import httpx
import pytest

from tests.services.webhook import payloads
from tests.services.webhook.conftest import (
    PROVIDERS,
    RECIPE,
    SECOND,
    SECRET,
    Repository,
    World,
    eventually,
    git,
)


@pytest.mark.usefixtures("worker")
def test_a_push_becomes_a_run_at_its_commit_and_a_status_with_a_link(world: World) -> None:
    pushed = {}
    for provider in PROVIDERS:
        where = world.repositories[f"{provider}:{provider}/models"]
        before = where.tip
        after = where.commit({"recipes/second.yaml": SECOND.replace("rank: 16", "rank: 8")})
        where.push()
        assert world.pushed(where, before, after).status_code == 202
        pushed[provider] = after
    for provider, sha in pushed.items():
        forge = world.forges[provider]
        done = eventually(lambda: _told(forge.statuses[sha], "success"), 200)  # noqa: B023
        first = forge.statuses[sha][0]
        assert first["state"] == "pending"
        assert done["context"] == "trainyard/recipes/second.yaml"
        assert "/runs/flow-run/" in done["target_url"]
        runs = world.runs(world.repositories[f"{provider}:{provider}/models"])
        assert [run["parameters"]["recipe"] for run in runs] == ["recipes/second.yaml"]
        assert runs[0]["idempotency_key"] == f"{provider}/models:{sha}:recipes/second.yaml"
        assert not forge.surprises
    plans = [json.loads(p.read_text()) for p in world.home.glob("runs/second-*/recipe.json")]
    assert [plan["train"]["rank"] for plan in plans] == [8, 8, 8]  # what was pushed, not what was


def _told(statuses: list[dict[str, str]], state: str) -> dict[str, str] | None:
    ended = [s for s in statuses if s["state"] not in ("pending", "running")]
    if ended and ended[-1]["state"] != state:
        raise AssertionError(ended[-1])
    return ended[-1] if ended else None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_merge_request_is_answered_with_a_plan_that_is_updated_in_place(
    world: World, provider: str
) -> None:
    where, forge = world.repositories[f"{provider}:{provider}/proposals"], world.forges[provider]
    rows = Path("recipes/quickstart/train.jsonl").read_text(errors="surrogateescape")
    head = where.commit(
        {
            "recipes/quickstart.yaml": RECIPE.replace("rank: 16", "rank: 8"),
            "recipes/quickstart/train.jsonl": rows + rows.splitlines(keepends=True)[0],
        }
    )
    deliver(world, where, 1, head, action="opened")
    comment = eventually(lambda: next(iter(forge.comments.values()), None))
    assert "train.rank: 16 → 8 (0.5 times)" in comment["body"]
    for said in ("| train | run |", "GiB", "GPU-hours", "exact_match", "8 times of 10"):
        assert said in comment["body"]
    assert "`recipes/quickstart/train.jsonl`: 1 lines added, 0 removed" in comment["body"]
    eventually(lambda: _told(forge.statuses[head], "success"))

    impossible = RECIPE.replace('exact_match: ">= 0.9"', 'exact_match: ">= 0.9999"')
    head = where.commit({"recipes/quickstart.yaml": impossible})
    deliver(world, where, 1, head, action="synchronize")
    eventually(lambda: "This would block" in comment["body"])
    blocked = "failed" if provider == "gitlab" else "failure"
    eventually(lambda: _told(forge.statuses[head], blocked))
    assert len(forge.comments) == 1
    assert world.runs(where) == []
    assert not forge.surprises


def test_a_fork_is_planned_and_reaches_no_run_no_secret_and_no_file(world: World) -> None:
    where, forge = world.repositories["github:github/proposals"], world.forges["github"]
    git(where.work, "checkout", "-q", "-B", "evil", "origin/main")
    hostile = RECIPE.replace(
        "recipes/quickstart/train.jsonl", str(world.home.parent / "token")
    ).replace("allow_dirty: true", "registry: {kind: mlflow, uri: https://192.0.2.1/}")
    (where.work / "recipes/link.yaml").symlink_to(world.home.parent / "token")
    code = "raise SystemExit('executed')\n"
    head = where.commit(
        {
            "recipes/quickstart.yaml": hostile,
            "recipes/broken.yaml": "name: x\n@all: [click](http://evil.example)\n",
            "trainyard/__init__.py": code,
            "sitecustomize.py": code,
        }
    )
    deliver(world, where, 2, head, action="opened", fork=True)
    comment = eventually(
        lambda: next((c for c in forge.comments.values() if c["number"] == 2), None)
    )
    git(where.work, "checkout", "-q", "main")
    assert "is outside the repository" in comment["body"]
    assert "From a fork" in comment["body"]
    assert "executed" not in comment["body"]
    assert "forge-token" not in comment["body"]
    assert "](http" not in comment["body"]
    assert "link.yaml" not in comment["body"]  # a symbolic link is no recipe
    eventually(lambda: _told(forge.statuses[head], "failure"))
    assert world.runs(where) == []


def deliver(
    world: World, where: Repository, number: int, head: str, *, action: str, fork: bool = False
) -> None:
    ref = "merge-requests" if where.provider == "gitlab" else "pull"
    where.push(f"{head}:refs/{ref}/{number}/head", "--force")
    payload = payloads.proposal(where.provider, where.name, number, head, fork=fork, action=action)
    event = payloads.EVENTS[where.provider][1]
    assert world.deliver(where.provider, event, payload).status_code == 202


def test_what_is_forged_malformed_or_not_for_us_has_its_code_and_starts_nothing(
    world: World,
) -> None:
    where = world.repositories["github:github/models"]
    before = httpx.get(f"{world.url}/health", timeout=30).json()
    push = payloads.push("github", where.name, "main", where.tip, where.tip)

    def signed(payload: bytes, event: str = "push") -> dict[str, str]:
        return payloads.signed("github", event, payload, SECRET)

    body = payloads.encode(push)
    assert world.post("github", body + b" ", signed(body)).status_code == 401  # altered
    assert world.post("github", body, {"X-GitHub-Event": "push"}).status_code == 401
    sha1 = hmac.new(SECRET.encode(), body, hashlib.sha1).hexdigest()
    assert world.post("github", body, {"X-Hub-Signature": f"sha1={sha1}"}).status_code == 401
    assert world.post("gitlab", body, {"X-Gitlab-Token": SECRET}).status_code == 401  # weaker
    assert world.post("nowhere", body, signed(body)).status_code == 404
    assert httpx.get(f"{world.url}/hooks/github", timeout=30).status_code == 405
    form = signed(body) | {"Content-Type": "application/x-www-form-urlencoded"}
    assert world.post("github", body, form).status_code == 415
    for broken in (b"{", b"[]", b"\xff", b'{"ref": 1}', b"[" * 100_000):
        assert world.post("github", broken, signed(broken)).status_code == 400
    for wrong in ({"after": "--upload-pack=x"}, {"ref": "refs/heads/-x"}, {"before": None}):
        body = payloads.encode(push | wrong)
        assert world.post("github", body, signed(body)).status_code == 400
    other = payloads.encode(payloads.push("github", "acme/other", "main", where.tip, where.tip))
    assert world.post("github", other, signed(other)).status_code == 403
    for ref in ("refs/heads/topic", "refs/tags/v1"):
        body = payloads.encode(push | {"ref": ref})
        assert world.post("github", body, signed(body)).status_code == 200
    for event in ("ping", "star", "workflow_run"):
        body = payloads.encode(push)
        assert world.post("github", body, signed(body, event)).status_code == 200
    after = httpx.get(f"{world.url}/health", timeout=30).json()
    assert after["deliveries"] == before["deliveries"]
    assert after["runs"] == before["runs"]


@pytest.mark.parametrize("told", [True, False])
def test_fifty_megabytes_are_refused_unread(world: World, told: bool) -> None:
    begin = time.monotonic()

    def chunks() -> "object":
        for _ in range(50):
            yield b"x" * (1 << 20)

    content = b"x" * (50 << 20) if told else chunks()
    try:
        reply = httpx.post(f"{world.url}/hooks/github", content=content, timeout=30)  # type: ignore[arg-type]
        assert reply.status_code == 413
    except httpx.WriteError:  # it hung up while we were sending
        pass
    assert time.monotonic() - begin < 20
    assert httpx.get(f"{world.url}/health", timeout=5).is_success


def test_a_replayed_delivery_is_answered_and_does_nothing(world: World) -> None:
    where = world.repositories["github:acme/newer"]
    body = payloads.encode(payloads.push("github", where.name, "main", where.tip, where.tip))
    headers = payloads.signed("github", "push", body, SECRET)
    assert world.post("github", body, headers).status_code == 202
    assert world.post("github", body, headers).status_code == 200
    renamed = headers | {"X-GitHub-Delivery": "another"}  # the id is not signed
    assert world.post("github", body, renamed).status_code == 200
    eventually(world.idle)
    assert world.runs(where) == []


def test_reordered_pushes_are_released_once_at_the_newest_commit(world: World) -> None:
    where = world.repositories["github:acme/order"]
    first = where.tip
    second = where.commit({"recipes/quickstart.yaml": RECIPE + "# a\n"})
    third = where.commit({"recipes/second.yaml": SECOND + "# b\n"})
    where.push()
    assert world.pushed(where, second, third).status_code == 202
    eventually(lambda: len(world.runs(where)) == 2)
    assert world.pushed(where, first, second).status_code == 202
    eventually(world.idle)
    keys = sorted(run["idempotency_key"] for run in world.runs(where))
    recipes = ("recipes/quickstart.yaml", "recipes/second.yaml")
    assert keys == [f"acme/order:{third}:{recipe}" for recipe in recipes]


def test_a_force_push_releases_what_differs_and_forgets_the_lost_commits(world: World) -> None:
    where = world.repositories["github:acme/forced"]
    first = where.tip
    lost = where.commit({"recipes/second.yaml": SECOND + "# lost\n"})
    git(where.work, "reset", "-q", "--hard", first)
    kept = where.commit({"recipes/quickstart/train.jsonl": "{}\n"})  # a data pointer of both
    where.push("HEAD:refs/heads/main", "--force")
    assert world.pushed(where, first, lost).status_code == 202
    assert world.pushed(where, lost, kept).status_code == 202
    eventually(lambda: len(world.runs(where)) == 2)
    eventually(world.idle)
    assert {run["idempotency_key"].split(":")[1] for run in world.runs(where)} == {kept}


def test_deleted_recipes_and_branches_start_nothing(world: World) -> None:
    where = world.repositories["github:acme/gone"]
    before = where.tip
    after = where.commit({"recipes/second.yaml": None})
    where.push()
    assert world.pushed(where, before, after).status_code == 202
    eventually(world.idle)
    git(where.bare, "config", "receive.denyDeleteCurrent", "ignore")
    where.push(":refs/heads/main")
    assert world.pushed(where, after, payloads.ZERO).status_code == 202
    eventually(world.idle)
    assert world.runs(where) == []


def test_a_lost_delivery_is_found_by_the_poll(world: World) -> None:
    where = world.repositories["github:acme/lost"]
    after = where.commit({"recipes/second.yaml": SECOND + "# nobody tells\n"})
    where.push()
    run = eventually(lambda: next(iter(world.runs(where)), None))
    assert run["idempotency_key"] == f"acme/lost:{after}:recipes/second.yaml"


def test_a_newer_commit_cancels_the_run_of_the_older(world: World) -> None:
    where, forge = world.repositories["github:acme/newer"], world.forges["github"]
    first = where.tip
    older = where.commit({"recipes/second.yaml": SECOND + "# older\n"})
    where.push()
    world.pushed(where, first, older)
    eventually(lambda: len(world.runs(where)) == 1)
    newer = where.commit({"recipes/second.yaml": SECOND + "# newer\n"})
    where.push()
    world.pushed(where, older, newer)
    done = eventually(lambda: _told(forge.statuses[older], "error"))
    assert done["description"] == f"superseded by {newer[:12]}"
    states = {r["idempotency_key"].split(":")[1]: r["state_type"] for r in world.runs(where)}
    assert states == {older: "CANCELLED", newer: "SCHEDULED"}


def test_what_cannot_be_released_is_said_at_the_commit(world: World) -> None:
    where, forge = world.repositories["github:acme/refused"], world.forges["github"]
    before = where.tip
    broken = where.commit(
        {
            "recipes/quickstart.yaml": RECIPE.replace("rank: 16", "rnk: 16"),
            "recipes/second.yaml": SECOND + "# fine, and nothing deploys it\n",
        }
    )
    where.push()
    assert world.pushed(where, before, broken).status_code == 202
    eventually(lambda: len(forge.statuses[broken]) == 2)
    said = {s["context"]: s["description"] for s in forge.statuses[broken]}
    assert "did you mean `rank`" in said["trainyard/recipes/quickstart.yaml"]
    assert "no deployment release/nowhere" in said["trainyard/recipes/second.yaml"]


def test_too_many_deliveries_are_told_when_to_come_again(world: World) -> None:
    where = world.repositories["gitea:gitea/proposals"]
    codes = [202]
    while codes[-1] == 202 and len(codes) < 200:
        reply = world.pushed(where, where.tip, where.tip)
        codes.append(reply.status_code)
    assert codes[-1] == 429
    assert int(reply.headers["Retry-After"]) >= 1
    assert len(codes) > 15


def test_no_secret_is_in_the_state_or_the_log(world: World) -> None:
    written = [world.home.parent / "service.log", *world.home.glob("webhook/state.db*")]
    kept = b"".join(path.read_bytes() for path in written if os.access(path, os.R_OK))
    assert len(kept) > 1000
    assert SECRET.encode() not in kept
    assert b"forge-token" not in kept
    assert not [p for p in Path(world.home).glob("webhook/mirrors/*/*/config")
                if b"forge-token" in p.read_bytes()]  # fmt: skip
