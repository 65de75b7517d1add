"""A git server's API on loopback: strict about paths, tokens and fields, and it remembers."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from aiohttp import web

TOKEN = "forge-token-of-the-service"
STATES = {
    "github": {"error", "failure", "pending", "success"},
    "gitea": {"error", "failure", "pending", "success", "warning"},
    "gitlab": {"pending", "running", "success", "failed", "canceled", "skipped"},
}


class StubForge:
    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.statuses: dict[str, list[dict[str, Any]]] = defaultdict(list)
        """Commit -> statuses in order."""
        self.comments: dict[int, dict[str, Any]] = {}
        """Id -> comment, with the `number` it is on and how often it was `written`."""
        self.open: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.surprises: list[str] = []
        self.down = False
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._checked])
        if self.provider == "gitlab":
            base = "/projects/{project}"
            app.router.add_post(base + "/statuses/{sha}", self._status)
            app.router.add_get(base + "/merge_requests", self._list)
            app.router.add_get(base + "/merge_requests/{number}/notes", self._comments)
            app.router.add_post(base + "/merge_requests/{number}/notes", self._write)
            app.router.add_put(base + "/merge_requests/{number}/notes/{id}", self._rewrite)
        else:
            base = "/repos/{owner}/{name}"
            app.router.add_post(base + "/statuses/{sha}", self._status)
            app.router.add_get(base + "/pulls", self._list)
            app.router.add_get(base + "/issues/{number}/comments", self._comments)
            app.router.add_post(base + "/issues/{number}/comments", self._write)
            app.router.add_patch(base + "/issues/comments/{id}", self._rewrite)
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.down:
            return web.json_response({"message": "down"}, status=503)
        proof = {
            "github": request.headers.get("Authorization") == f"Bearer {TOKEN}",
            "gitea": request.headers.get("Authorization") == f"token {TOKEN}",
            "gitlab": request.headers.get("PRIVATE-TOKEN") == TOKEN,
        }[self.provider]
        if not proof:
            self.surprises.append(f"{request.method} {request.path} without its token")
            return web.json_response({"message": "401"}, status=401)
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPNotFound:
            self.surprises.append(f"{request.method} {request.path}")
            raise
        return answer

    def _repository(self, request: web.Request) -> str:
        found = request.match_info
        return (
            unquote(found["project"]) if "project" in found else f"{found['owner']}/{found['name']}"
        )

    async def _status(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = "name" if self.provider == "gitlab" else "context"
        known = {"state", "description", "target_url", name}
        if set(body) - known or body["state"] not in STATES[self.provider]:
            self.surprises.append(f"status {body}")
            return web.json_response({"message": "422"}, status=422)
        if len(body["description"]) > 140:
            self.surprises.append("a description of more than 140 characters")
        self.statuses[request.match_info["sha"]].append(
            body | {"context": body[name], "repository": self._repository(request)}
        )
        return web.json_response({"id": 1}, status=201)

    async def _list(self, request: web.Request) -> web.Response:
        first = request.query.get("page", "1") == "1"
        return web.json_response(self.open[self._repository(request)] if first else [])

    async def _comments(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        found = [c for c in self.comments.values() if c["number"] == number]
        return web.json_response(found if request.query.get("page", "1") == "1" else [])

    async def _write(self, request: web.Request) -> web.Response:
        id_ = len(self.comments) + 1
        self.comments[id_] = {
            "id": id_,
            "number": int(request.match_info["number"]),
            "body": (await request.json())["body"],
            "written": 1,
        }
        return web.json_response(self.comments[id_], status=201)

    async def _rewrite(self, request: web.Request) -> web.Response:
        found = self.comments.get(int(request.match_info["id"]))
        if found is None:
            return web.json_response({"message": "404"}, status=404)
        found["body"] = (await request.json())["body"]
        found["written"] += 1
        return web.json_response(found)


@contextmanager
def running(provider: str) -> Iterator[StubForge]:
    forge, loop, ready = StubForge(provider), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(forge.app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        forge.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait(10)
    try:
        yield forge
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
