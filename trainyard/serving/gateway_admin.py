"""The gateway's second port, loopback only and behind a token: routes, weight, lease, records."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from pydantic import Field, PositiveFloat, ValidationError

from trainyard.recipe.base import Frozen
from trainyard.serving.gateway_config import Routes, save_routes
from trainyard.serving.gateway_proxy import NO_KEY, Proxy, problem


class Change(Frozen):
    """What POST /-/weight takes."""

    weight: float | None = Field(default=None, ge=0, le=100)
    lease_s: PositiveFloat | None = None


class Admin:
    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._turn = asyncio.Lock()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/-/routes", self.read)
        app.router.add_put("/-/routes", self.replace)
        app.router.add_post("/-/weight", self.change)
        app.router.add_get("/-/records", self.records)
        app.router.add_get("/metrics", self.metrics)
        return app

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        # figures without a secret in them: Prometheus may scrape them without the token
        if request.path != "/metrics":
            given = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._proxy.config.token.encode()):
                return problem(401, "the admin port wants its token")
        try:
            return await handler(request)
        except ValidationError as error:
            return problem(400, str(error))

    async def _set(self, routes: Routes) -> web.Response:
        """Take `routes` at once; they are on disk before the answer goes out."""
        self._proxy.routes = routes
        self._proxy.journal.metrics.show(routes)
        async with self._turn:
            await asyncio.to_thread(_save_newest, self._proxy)
        return web.json_response(routes.model_dump(mode="json"))

    async def read(self, _request: web.Request) -> web.Response:
        return web.json_response(self._proxy.current().model_dump(mode="json"))

    async def replace(self, request: web.Request) -> web.Response:
        """Replace all routes: promotion and rollback are one such call."""
        routes = Routes.model_validate_json(await request.read())
        if (routes.weight or routes.shadow) and routes.canary is None:
            return problem(400, f"weight {routes.weight:g} for a canary that is not there")
        if routes.canary is not None and routes.champion is None:
            return problem(400, "a canary needs a champion beside it")
        return await self._set(routes)

    async def change(self, request: web.Request) -> web.Response:
        """Change the canary's weight, or only renew the lease that lets it keep its traffic.

        A lease that has run out is not renewed: the answer then has no `lease_until`.
        """
        change = Change.model_validate_json(await request.read())
        routes = self._proxy.current()
        if change.weight is None and routes.lease_until is None:
            return web.json_response(routes.model_dump(mode="json"))
        weight = routes.weight if change.weight is None else change.weight
        if weight and routes.canary is None:
            return problem(409, "there is no canary to give traffic to")
        lease = None if change.lease_s is None else time.time() + change.lease_s
        return await self._set(routes.model_copy(update={"weight": weight, "lease_until": lease}))

    async def records(self, request: web.Request) -> web.Response:
        try:
            since = int(request.query.get("since", "0"))
        except ValueError:
            return problem(400, "since must be a whole number")
        found: dict[str, Any] = self._proxy.journal.since(since)
        found["routes"] = self._proxy.current().model_dump(mode="json")
        return web.json_response(found)

    async def metrics(self, _request: web.Request) -> web.Response:
        self._proxy.current()
        return web.Response(
            body=self._proxy.journal.metrics.text(),
            headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"},
        )


def _save_newest(proxy: Proxy) -> None:
    save_routes(proxy.config.routes_file, proxy.routes)


class Feedback:
    """POST /v1/feedback: what a user thought of an answer, one line each in feedback.jsonl.

    The first word on each answer also counts in an A/B test, as long as the gateway remembers which
    version gave it; `counts` in the reply says so.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._path = proxy.config.folder / "feedback.jsonl"

    async def take(self, request: web.BaseRequest) -> web.Response:
        if not self._proxy.admits(request.headers):
            return problem(401, NO_KEY)
        try:
            row = _Feedback.model_validate_json(await request.read())
        except ValidationError as error:
            return problem(400, str(error))
        journal = self._proxy.journal
        answered = journal.answer(row.request_id)
        if answered is not None:
            journal.vote(answered, row.score)
        told = {
            "at": time.time(),
            **row.model_dump(),
            "version": answered and answered.digest,
            "variant": answered and answered.variant,
        }
        await asyncio.to_thread(self._append, json.dumps(told, ensure_ascii=False))
        return web.json_response({"taken": True, "counts": answered is not None}, status=202)

    def _append(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class _Feedback(Frozen):
    request_id: str = Field(max_length=200)
    """`x-request-id` of the answer."""

    score: float = Field(ge=-1, le=1)
    """-1 bad, 1 good."""

    comment: str = Field(default="", max_length=4000)
    correction: str | None = Field(default=None, max_length=100_000)
    """The answer that should have been given."""
