"""What a git server is told: commit statuses, and one comment per merge request."""

from typing import Any, Protocol
from urllib.parse import quote

import aiohttp

from trainyard import secrets
from trainyard.errors import InputError, NotFound, Refused, Unavailable
from trainyard.webhook.config import Hook
from trainyard.webhook.payload import Proposal

MARK = "<!-- trainyard plan -->"
LONGEST = {"description": 140, "comment": 60_000}
STATES = {
    "SCHEDULED": "pending",
    "PENDING": "pending",
    "PAUSED": "pending",
    "RUNNING": "pending",
    "CANCELLING": "pending",
    "COMPLETED": "success",
    "FAILED": "failure",
    "CRASHED": "error",
    "CANCELLED": "error",
    "REFUSED": "failure",
}
GITLAB_STATES = {"failure": "failed", "error": "failed"}


class Forge(Protocol):
    async def set_status(
        self, repository: str, sha: str, *, context: str, state: str, said: str, link: str | None
    ) -> None:
        """`state` is one of pending, success, failure, error. Once more with the same is fine."""

    async def comment(self, repository: str, number: int, body: str, known: str | None) -> str:
        """Write the plan's comment, or write over it, and return its id."""

    async def open_proposals(self, repository: str) -> list[Proposal]: ...


class _Api:
    _rewrite = "PATCH"
    """Method that writes over a comment."""

    def _comments(self, repository: str, number: int) -> tuple[str, str]:
        """Paths of a merge request's comments, and of the folder that one is changed in."""
        raise NotImplementedError

    def __init__(self, session: aiohttp.ClientSession, hook: Hook) -> None:
        self._session = session
        self._hook = hook
        self._base = hook.api.rstrip("/")

    def _headers(self) -> dict[str, str]:
        token = secrets.resolve(self._hook.api_token)
        match self._hook.provider:
            case "github":
                return {
                    "Authorization": f"Bearer {token}",
                    "Accept": "application/vnd.github+json",
                    "X-GitHub-Api-Version": "2022-11-28",
                }
            case "gitlab":
                return {"PRIVATE-TOKEN": token}
            case _:
                return {"Authorization": f"token {token}"}

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Raises Unavailable for what may work later, NotFound, or Refused."""
        url = f"{self._base}/{path}"
        try:
            async with self._session.request(
                method, url, json=body, headers=self._headers(), allow_redirects=False
            ) as reply:
                said = (await reply.text())[:300]
                if reply.status == 404:
                    raise NotFound(f"{url} does not exist, or the token may not see it")
                if reply.status == 429 or reply.status >= 500 or "rate limit" in said:
                    raise Unavailable(f"{url} answered {reply.status}")
                if reply.status >= 300:
                    raise Refused(f"{url} answered {reply.status}: {secrets.mask(said)}")
                return await reply.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise Unavailable(f"{url} did not answer: {secrets.mask(str(error))}") from None

    async def _pages(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for page in range(1, 11):
            rows = await self._call("GET", f"{path}page={page}&per_page=100&limit=50")
            found += rows
            if not rows:
                break
        return found

    async def comment(self, repository: str, number: int, body: str, known: str | None) -> str:
        text = {"body": _marked(body)}
        all_of_it, one_of_them = self._comments(repository, number)
        known = known or await self._find(all_of_it)
        if known:
            try:
                await self._call(self._rewrite, f"{one_of_them}/{known}", text)
                return known
            except (NotFound, Refused):  # deleted, or somebody else wrote it
                pass
        made = await self._call("POST", all_of_it, text)
        return str(made["id"])

    async def _find(self, path: str) -> str | None:
        rows = await self._pages(f"{path}?")
        return next((str(row["id"]) for row in rows if _is_ours(row)), None)


class GitHub(_Api):
    """GitHub, Gitea and Forgejo: the latter two have the same paths and fields."""

    async def set_status(
        self, repository: str, sha: str, *, context: str, state: str, said: str, link: str | None
    ) -> None:
        body = {"state": state, "context": context, "description": _short(said)}
        body |= {"target_url": link} if link else {}
        await self._call("POST", f"repos/{repository}/statuses/{sha}", body)

    def _comments(self, repository: str, number: int) -> tuple[str, str]:
        comments = f"repos/{repository}/issues"
        return f"{comments}/{number}/comments", f"{comments}/comments"

    async def open_proposals(self, repository: str) -> list[Proposal]:
        rows = await self._pages(f"repos/{repository}/pulls?state=open&")
        return [
            Proposal(
                repository=repository,
                number=row["number"],
                base=row["base"]["ref"],
                head=row["head"]["sha"],
                fork=(row["head"].get("repo") or {}).get("full_name") != repository,
            )
            for row in rows
        ]


class GitLab(_Api):
    _rewrite = "PUT"

    async def set_status(
        self, repository: str, sha: str, *, context: str, state: str, said: str, link: str | None
    ) -> None:
        state = GITLAB_STATES.get(state, state)
        body = {"state": state, "name": context, "description": _short(said)}
        body |= {"target_url": link} if link else {}
        try:
            await self._call("POST", f"{_project(repository)}/statuses/{sha}", body)
        except Refused as error:
            if "Cannot transition status" not in str(error):  # it has that state already
                raise

    def _comments(self, repository: str, number: int) -> tuple[str, str]:
        notes = f"{_project(repository)}/merge_requests/{number}/notes"
        return notes, notes

    async def open_proposals(self, repository: str) -> list[Proposal]:
        rows = await self._pages(f"{_project(repository)}/merge_requests?state=opened&")
        return [
            Proposal(
                repository=repository,
                number=row["iid"],
                base=row["target_branch"],
                head=row["sha"],
                fork=row["source_project_id"] != row["target_project_id"],
            )
            for row in rows
            if row.get("sha")
        ]


def open_forge(session: aiohttp.ClientSession, hook: Hook) -> Forge:
    return GitLab(session, hook) if hook.provider == "gitlab" else GitHub(session, hook)


def _project(repository: str) -> str:
    return f"projects/{quote(repository, safe='')}"


def _short(said: str) -> str:
    line = " ".join(secrets.mask(said).split())
    longest = LONGEST["description"]
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _marked(body: str) -> str:
    return f"{MARK}\n{secrets.mask(body)[: LONGEST['comment']]}"


def _is_ours(row: dict[str, Any]) -> bool:
    return str(row.get("body", "")).startswith(MARK)
