"""What follows a delivery: releases for a push, a plan for a merge request, statuses for both."""

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from trainyard import secrets
from trainyard.against import parse_recipe
from trainyard.errors import InputError, Refused, TrainyardError, Unavailable
from trainyard.recipe import Recipe
from trainyard.webhook import checkout
from trainyard.webhook.comment import render
from trainyard.webhook.config import Hook, RepositorySpec, WebhookConfig
from trainyard.webhook.confined import Answer, Order, Planned
from trainyard.webhook.forge import STATES, Forge, open_forge
from trainyard.webhook.mirror import Mirror
from trainyard.webhook.payload import Proposal, Push
from trainyard.webhook.runs import Runs
from trainyard.webhook.store import RunRow, Store, Work
from trainyard.webhook.touched import THE_RECIPE, why_touched

logger = logging.getLogger(__name__)

PLAN_S = 120.0
"""Longest time for the plan of a merge request."""
QUIET_S, QUIET_ROUNDS = 0.25, 20
"""Work begins after so long without a delivery, and in any case after as many rounds."""
PACKAGE = Path(__file__).parents[2]
TREATED = 5000
"""Parsed recipes that are remembered, by blob."""


class RepositoryWork:
    """The work of one repository, one thing after the other."""

    def __init__(
        self,
        name: str,
        hook: Hook,
        spec: RepositorySpec,
        *,
        config: WebhookConfig,
        session: aiohttp.ClientSession,
        store: Store,
        home: Path,
    ) -> None:
        self.name = name
        self.spec = spec
        self._hook = hook
        self._config = config
        self._store = store
        self._home = home
        self._runs = Runs(session, config)
        self._forge: Forge = open_forge(session, hook)
        folder = home / "webhook" / "mirrors" / name / f"{spec.name.replace('/', '--')}.git"
        token = secrets.resolve(hook.api_token) if spec.url.startswith("https://") else None
        self._mirror = Mirror(folder, spec.url, token)
        self._parsed: dict[str, Recipe | str] = {}
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def wake(self) -> None:
        self._wake.set()

    async def work(self) -> None:
        """Do what waits, for ever; whatever goes wrong with one thing does not stop the next."""
        while True:
            self._wake.clear()
            while (work := await asyncio.to_thread(self._next)) is not None:
                await self._attempt(work)
            try:
                await asyncio.wait_for(self._wake.wait(), timeout=2)  # work that is due again
            except TimeoutError:
                continue
            await self._until_quiet()

    async def _until_quiet(self) -> None:
        """Let a burst arrive first: what comes together is fetched and compared once."""
        for _ in range(QUIET_ROUNDS):
            self._wake.clear()
            await asyncio.sleep(QUIET_S)
            if not self._wake.is_set():
                break

    def _next(self) -> Work | None:
        return self._store.next(self.name, self.spec.name)

    async def _attempt(self, work: Work) -> None:
        try:
            async with self._one_at_a_time:
                said = await self._do(work.event)
        except Unavailable as error:
            self._store.failed(work, str(error), again=True)
            logger.warning("%s: %s; it is tried again", self.spec.name, error)
        except TrainyardError as error:
            self._store.failed(work, str(error), again=False)
            logger.warning("%s: %s", self.spec.name, error)
        except Exception as error:  # one delivery must not end the service for all others
            self._store.failed(work, f"{type(error).__name__}: {error}", again=True)
            logger.exception("%s: %s", self.spec.name, work.event)
        else:
            self._store.done(work, said)
            logger.info("%s: %s", self.spec.name, said)

    async def _do(self, event: Push | Proposal) -> str:
        return await (self.push(event) if isinstance(event, Push) else self.plan(event))

    async def push(self, push: Push) -> str:
        """Release what the push touches. What is released already, or gone, starts nothing."""
        branch, head = push.branch, self._store.head(self.name, self.spec.name, push.branch)
        if push.after and head and await self._mirror.is_ancestor(push.after, head):
            return f"{branch}: {push.after[:12]} is covered by {head[:12]}"
        await self._mirror.fetch()
        tip = (await self._mirror.branches()).get(branch)
        if tip is None:
            self._store.set_head(self.name, self.spec.name, branch, None)
            return f"{branch} is deleted"
        after = push.after
        if after is None or (after != tip and not await self._mirror.is_ancestor(after, tip)):
            return f"{branch}: {after and after[:12]} is not on the branch any more"
        before = head or await self._base(push, after)
        started = await self._release(branch, before, after)
        self._store.set_head(self.name, self.spec.name, branch, after)
        return f"{branch} at {after[:12]}: {', '.join(started) or 'touches no recipe'}"

    async def _base(self, push: Push, after: str) -> str | None:
        """For a branch that is seen for the first time: what it had before, or grew from."""
        if push.before and await self._mirror.has(push.before):
            return push.before
        others = await self._mirror.branches()
        for branch, sha in others.items():
            if branch != push.branch and self.spec.protects(branch):
                return await self._mirror.merge_base(sha, after)
        return None

    async def _release(self, branch: str, before: str | None, sha: str) -> list[str]:
        changed = await self._mirror.changed(before, sha)
        started = []
        for path, blob in (await self._mirror.files(sha, self.spec.recipes)).items():
            recipe = await self._parse(path, blob)
            if why_touched(path, recipe if isinstance(recipe, Recipe) else None, changed):
                await self._start(branch, sha, path, recipe)
                started.append(path)
        return started

    async def _parse(self, path: str, blob: str) -> Recipe | str:
        """Return the recipe, or why it is none."""
        if blob not in self._parsed:
            text = await self._mirror.blob(blob)
            try:
                found: Recipe | str = await asyncio.to_thread(parse_recipe, path, text)
            except InputError as error:
                return str(error)
            if len(self._parsed) >= TREATED:
                self._parsed.clear()
            self._parsed[blob] = found
        return self._parsed[blob]

    async def _start(self, branch: str, sha: str, path: str, recipe: Recipe | str) -> None:
        key = f"{self.spec.name}:{sha}:{path}"
        run = RunRow(key, self.name, self.spec.name, branch, sha, path, None, "REFUSED", None,
                     str(recipe), None, 0)  # fmt: skip
        if isinstance(recipe, Recipe):
            try:
                id_ = await self._run(key, branch, sha, path)
                run = RunRow(key, self.name, self.spec.name, branch, sha, path, id_, "SCHEDULED",
                             None, "waits for a worker", None, 0)  # fmt: skip
            except InputError as error:
                run = RunRow(key, self.name, self.spec.name, branch, sha, path, None, "REFUSED",
                             None, str(error), None, 0)  # fmt: skip
        for older in self._store.superseded(run):
            if older.flow_run:
                await self._runs.cancel(older.flow_run, f"superseded by {sha}")
        self._store.add_run(run)

    async def _run(self, key: str, branch: str, sha: str, path: str) -> str:
        return await self._runs.start(
            self.spec.deployment,
            parameters={
                "recipe": path,
                "environment": self.spec.environment,
                "dry_run": self.spec.dry_run,
            },
            key=key,
            name=f"{Path(path).stem} {sha[:12]}",
            tags=["pushed", self.spec.name, f"branch:{branch}"],
            env={
                checkout.COMMIT: sha,
                checkout.SOURCE: str(self._mirror.folder.absolute()),
                checkout.ADDRESS: self.spec.url,
            },
        )

    async def plan(self, proposal: Proposal) -> str:
        """Answer a merge request with a comment. Nothing of it runs, here or in a work pool."""
        number = proposal.number
        known = self._store.comment(self.name, self.spec.name, number)
        await self._mirror.fetch()
        head = await self._mirror.fetch_proposal(self._hook.provider, number)
        if known and known[1] == head:
            return f"#{number} at {head[:12]} is planned already"
        tip = (await self._mirror.branches()).get(proposal.base)
        if tip is None:
            return f"#{number}: there is no branch {proposal.base}"
        base = await self._mirror.merge_base(tip, head) or tip
        changed = await self._mirror.changed(base, head)
        recipes = await self._mirror.files(head, self.spec.recipes)
        try:
            answer = await self._plans(proposal, base, head, changed, list(recipes))
        except (InputError, Refused) as error:
            answer = Answer(planned=[Planned(recipe="the plan", why=THE_RECIPE, error=str(error))])
        lines = await self._mirror.line_changes(base, head)
        pointed_at = {file for one in answer.planned for file in one.files}
        data = {p: n for p, n in lines.items() if p in pointed_at}
        body, blocked = render(answer, head, fork=proposal.fork, data=data)
        comment = await self._forge.comment(
            self.spec.name, number, body, known[0] if known else None
        )
        self._store.set_comment(self.name, self.spec.name, number, comment, head)
        await self._forge.set_status(
            self.spec.name,
            head,
            context="trainyard/plan",
            state="failure" if blocked else "success",
            said="something would block: see the comment" if blocked else "the plan is a comment",
            link=None,
        )
        return f"#{number} at {head[:12]}: planned {len(answer.planned)} recipes"

    async def _plans(
        self,
        proposal: Proposal,
        base: str,
        head: str,
        changed: Mapping[str, str],
        recipes: list[str],
    ) -> Answer:
        with tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
            folders = {name: Path(scratch) / name for name in ("head", "base", "home", "tmp")}
            for folder in folders.values():
                folder.mkdir()
            await self._mirror.extract(head, folders["head"])
            for path, blob in (await self._mirror.files(base, self.spec.recipes)).items():
                file = folders["base"] / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(await self._mirror.blob(blob))
            home = folders["home"] if proposal.fork else self._home
            order = Order(
                recipes=recipes, changed=dict(changed), base=str(folders["base"]), home=str(home)
            )
            return await _confined(order, folders["head"], folders["tmp"])

    async def poll(self) -> None:
        """Find what no delivery told: moved branches, and merge requests with a new head."""
        async with self._one_at_a_time:
            await self._find_lost()
        self.wake()

    async def _find_lost(self) -> None:
        await self._mirror.fetch()
        for branch, tip in (await self._mirror.branches()).items():
            if not self.spec.protects(branch):
                continue
            head = self._store.head(self.name, self.spec.name, branch)
            if self._store.waits(self.name, self.spec.name, branch):
                continue
            if head is None:
                self._store.set_head(self.name, self.spec.name, branch, tip)  # from here on
            elif head != tip:
                found = Push(repository=self.spec.name, branch=branch, before=head, after=tip)
                self._store.add(self.name, found)
        for proposal in await self._forge.open_proposals(self.spec.name):
            known = self._store.comment(self.name, self.spec.name, proposal.number)
            if self.spec.protects(proposal.base) and (known is None or known[1] != proposal.head):
                self._store.add(self.name, proposal)

    async def tell(self, run: RunRow, state: str, said: str) -> None:
        """Show the run's state at its commit. A status that cannot be set stops nothing."""
        if run.told and STATES.get(state) == STATES.get(run.told):
            self._store.set_told(run.key, state)
            return
        newer = await asyncio.to_thread(self._store.superseded_by, run.key)
        if newer and state not in ("COMPLETED", "FAILED"):
            said = f"superseded by {newer[:12]}"
        try:
            await self._forge.set_status(
                run.repository,
                run.sha,
                context=f"trainyard/{run.recipe}",
                state=STATES.get(state, "pending"),
                said=said,
                link=self._runs.link(run.flow_run) if run.flow_run else None,
            )
            self._store.set_told(run.key, state)
        except TrainyardError as error:
            logger.warning("%s: no status at %s: %s", run.repository, run.sha[:12], error)
            self._store.not_told(run)

    async def clean_up(self, sha: str) -> None:
        """Remove the checkout of a commit whose runs have all ended, unless it is served from.

        That one goes with a sweep, when it has been replaced.
        """
        folder = self._home / "checkouts" / sha
        if self._store.needs_checkout(sha):
            return
        if not await asyncio.to_thread(checkout.is_served, folder, self._home):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def states(self, runs: list[RunRow]) -> dict[str, tuple[str, str]]:
        return await self._runs.states([run.flow_run for run in runs if run.flow_run])


async def _confined(order: Order, folder: Path, tmp: Path) -> Answer:
    """Run `confined` in `folder` with an environment that holds nothing to lose."""
    path = os.environ.get("PATH", os.defpath)
    env = {
        "PATH": path,
        "PYTHONPATH": str(PACKAGE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp),
        "TMPDIR": str(tmp),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "trainyard.webhook.confined", cwd=folder, env=env,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(
            process.communicate(order.model_dump_json().encode()), PLAN_S
        )
    except TimeoutError:
        raise InputError(f"the plan took more than {PLAN_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode("utf-8", "replace").strip().splitlines()
        raise InputError(f"no plan could be made: {said[-1] if said else process.returncode}")
    return Answer.model_validate_json(out)
