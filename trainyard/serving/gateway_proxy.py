"""The public side of the gateway: one stable URL, one champion, perhaps a canary."""

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import aiohttp
import orjson
from aiohttp import hdrs, web
from multidict import CIMultiDict, istr

from trainyard.serving.answers import Answer, Events, Flag, question
from trainyard.serving.gateway_client import Client, Post
from trainyard.serving.gateway_config import GatewayConfig, Role, Routes, Variant
from trainyard.serving.gateway_log import Journal, Record, RequestLog

VARIANT = istr("x-trainyard-variant")
VERSION = istr("x-trainyard-version")
REPLAY = istr("x-trainyard-replay")
SHADOW = istr("x-trainyard-shadow")
SESSION = istr("x-session-id")
REQUEST_ID = istr("x-request-id")

# everything else an engine offers (adapters, weights, sleep, metrics) stays out of reach
PATHS = ("/v1/chat/completions", "/v1/completions")
NO_KEY = "no accepted API key in the Authorization header"

# path, model name and credentials are the gateway's doing, so these are not the client's mistakes
_OURS = (401, 403, 404, 429)


@dataclass(slots=True)
class Call:
    """One client request, read and checked."""

    path: str
    body: dict[str, Any]
    source: str
    forced: Role | None
    request_id: str
    stream: bool
    headers: Mapping[str, str]
    copied: bool = False
    """Whether the canary answers it too, unseen."""


@dataclass(slots=True)
class Attempt:
    """One try of one variant, until it is written to the journal."""

    role: Role
    variant: Variant
    began: float = field(default_factory=time.perf_counter)
    code: int = 0
    ttft_s: float | None = None
    answer: Answer = field(default_factory=Answer)
    why: str = ""


class EngineFailed(Exception):
    """The engine gave nothing that the client could use, and no byte has gone to the client."""


def problem(status: int, message: str, **headers: str) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "code": status}}
    return web.json_response(body, status=status, headers=headers)


def _last(answer: web.Response) -> web.Response:
    """End the connection after `answer`: the rest of the request's body is still on its way."""
    answer.force_close()
    return answer


class Proxy:
    def __init__(self, config: GatewayConfig, routes: Routes, journal: Journal) -> None:
        self.config = config
        self.routes = routes
        self.journal = journal
        self.log = RequestLog(config.folder / "requests.jsonl")
        self.pairs = RequestLog(config.folder / "pairs.jsonl")
        self.inflight = 0
        journal.metrics.inflight.set_function(lambda: self.inflight)
        self._client: Client | None = None
        self._copies: set[asyncio.Task[None]] = set()
        self._keys = frozenset(config.api_keys)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._client = Client(
            connect_s=self.config.connect_timeout_s, idle_s=self.config.idle_timeout_s
        )
        yield
        for copy in self._copies:
            copy.cancel()
        await self._client.close()
        self.log.close()
        self.pairs.close()

    def current(self) -> Routes:
        """Return the routes as they hold now: each request judges the lease, no timer does."""
        settled = self.routes.settled(time.time())
        if settled is not self.routes:
            self.routes = settled
            self.journal.metrics.lapsed.inc()
            self.journal.metrics.show(settled)
        return self.routes

    async def complete(self, request: web.BaseRequest) -> web.StreamResponse:
        metrics = self.journal.metrics
        if self.inflight >= self.config.max_inflight:
            metrics.shed.inc()
            busy = f"{self.inflight} requests are in progress, the most this gateway takes"
            return _last(problem(429, busy, **{"Retry-After": "1"}))
        self.inflight += 1
        try:
            call = await self._read(request)
            return await self._answer(request, call) if isinstance(call, Call) else call
        except orjson.JSONEncodeError as error:
            return problem(400, f"the body cannot be passed on: {error}")
        except asyncio.CancelledError:
            metrics.aborted.inc()
            raise
        finally:
            self.inflight -= 1

    async def _read(self, request: web.BaseRequest) -> Call | web.Response:
        if not self.admits(request.headers):
            return problem(401, NO_KEY)
        limit = int(self.config.max_body_mib * 2**20)
        length = request.content_length
        if length is not None and length > limit:
            return _last(problem(413, f"the body has {length} bytes; at most {limit} are taken"))
        try:
            if length is not None and request.content.is_eof():  # it came with its headers
                raw = request.content.read_nowait()
            else:
                async with asyncio.timeout(self.config.body_timeout_s):
                    raw = await request.read()
        except TimeoutError:
            return _last(problem(408, f"no whole body within {self.config.body_timeout_s:g} s"))
        except web.HTTPRequestEntityTooLarge:
            return _last(problem(413, f"the body is too long; at most {limit} bytes are taken"))
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            return problem(400, f"the body is not JSON: {error}")
        if not isinstance(body, dict):
            return problem(400, f"the body must be a JSON object, not {type(body).__name__}")
        model = body.get("model", self.config.name)
        if model != self.config.name:
            return problem(404, f"model {model!r} is not here; this is {self.config.name!r}")
        return self._call(request, body)

    def _call(self, request: web.BaseRequest, body: dict[str, Any]) -> Call | web.Response:
        headers = request.headers
        forced = headers.get(VARIANT)
        if forced not in (None, "champion", "canary"):
            return problem(400, f"{VARIANT} is {forced!r}; it may be 'champion' or 'canary'")
        tag = headers.get(REPLAY)
        if tag is not None and not hmac.compare_digest(
            tag.encode(), self.config.replay_token.encode()
        ):
            return problem(403, f"{REPLAY} is for the rollout's own requests")
        source = "replay" if tag else "forced" if forced else "live"
        return Call(
            path=request.path,
            body=body,
            source=source,
            forced=cast("Role | None", forced),
            request_id=headers.get(REQUEST_ID) or f"{random.getrandbits(128):032x}",
            stream=bool(body.get("stream")),
            headers=headers,
        )

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a user brings an accepted key if one is asked for, or the rollout its token."""
        if not self._keys:
            return True
        if hmac.compare_digest(headers.get(REPLAY, "").encode(), self.config.replay_token.encode()):
            return True
        key = headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ").encode()
        return hashlib.sha256(key).hexdigest() in self._keys

    def _pick(self, call: Call, routes: Routes) -> Role:
        if call.forced:
            return call.forced
        if routes.canary is None or not routes.weight:
            return "champion"
        key = call.headers.get(SESSION) or call.body.get("user") or self._holder(call)
        if key:
            digest = hashlib.blake2b(f"{routes.salt}\0{key}".encode(), digest_size=8).digest()
            # the share of a session never changes, so a growing weight only adds sessions
            share = int.from_bytes(digest, "big") / 2**64
        else:
            share = random.random()
        return "canary" if share * 100 < routes.weight else "champion"

    def _holder(self, call: Call) -> str | None:
        """Whose request it is, by the API key that the gateway asks for."""
        return call.headers.get(hdrs.AUTHORIZATION) if self._keys else None

    async def _answer(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        routes = self.current()
        role = self._pick(call, routes)
        if role == "champion" and call.source == "live":
            self._copy(call, routes)
        tries: list[Role] = [role]
        if not call.forced:
            # the champion may repeat once: its kept-alive connection can have died unnoticed
            tries.append("champion")
        why = ""
        for count, role in enumerate(tries):
            variant = routes.champion if role == "champion" else routes.canary
            if variant is None:
                why = f"no {role} is being served"
                continue
            attempt = Attempt(role, variant)
            if count:
                self.journal.metrics.retried.inc()
            try:
                return await self._try(request, call, attempt, last=count == len(tries) - 1)
            except EngineFailed as error:
                why = f"{role} {variant.digest[:12]}: {error}"
                if role == "champion" and attempt.why != "connection":
                    break
        return problem(503, why, **{"Retry-After": "1", REQUEST_ID: call.request_id})

    async def _try(
        self, request: web.BaseRequest, call: Call, attempt: Attempt, *, last: bool
    ) -> web.StreamResponse:
        """Ask one variant. Raises EngineFailed as long as another may still answer."""
        try:
            async with self._post(call, attempt.variant) as engine:
                attempt.code = engine.status
                bad = engine.status >= 500 or engine.status in _OURS
                if bad and not (last or attempt.role == "champion"):
                    raise EngineFailed(f"answered {engine.status}")
                if engine.is_stream:
                    return await self._stream(request, call, attempt, engine)
                return await self._whole(call, attempt, engine)
        except (aiohttp.ClientError, TimeoutError) as error:
            attempt.code = 0
            attempt.why = "silence" if isinstance(error, TimeoutError) else "connection"
            self._record(call, attempt)
            raise EngineFailed(f"did not answer: {error or type(error).__name__}") from error
        except EngineFailed:
            self._record(call, attempt)
            raise

    def _post(self, call: Call, variant: Variant) -> Post:
        assert self._client is not None
        payload = orjson.dumps(call.body | {"model": variant.model})
        headers: dict[str, str] = {REQUEST_ID: call.request_id}
        if call.source == "shadow":
            headers[SHADOW] = "1"
        return Post(self._client, variant.url + call.path, payload, headers)

    def _copy(self, call: Call, routes: Routes) -> None:
        """Send the canary a copy that nobody waits for, unless there is other work to do."""
        if routes.canary is None or random.random() * 100 >= routes.shadow:
            return
        config = self.config
        if len(self._copies) >= config.max_shadow or self.inflight > config.max_inflight / 2:
            self.journal.metrics.unseen.inc()
            return
        call.copied = True
        task = asyncio.create_task(self._unseen(replace(call, source="shadow"), routes.canary))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _unseen(self, call: Call, variant: Variant) -> None:
        attempt = Attempt("canary", variant)
        try:
            async with self._post(call, variant) as engine:
                attempt.code = engine.status
                body = await engine.read()
                if engine.is_stream:
                    for event in Events().feed(body):
                        attempt.answer.take(event)
                elif engine.status == 200:
                    attempt.answer.take(orjson.loads(body))
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, AttributeError) as error:
            attempt.code, attempt.why = 0, str(error) or type(error).__name__
        self._record(call, attempt)

    def _headers(self, call: Call, attempt: Attempt) -> CIMultiDict[str]:
        return CIMultiDict(
            {
                VARIANT: attempt.role,
                VERSION: attempt.variant.digest,
                REQUEST_ID: call.request_id,
            }
        )

    async def _whole(self, call: Call, attempt: Attempt, engine: Post) -> web.Response:
        body = await engine.read()
        if engine.status == 200:
            try:
                attempt.answer.take(orjson.loads(body))
            except (ValueError, AttributeError):
                attempt.why = "not JSON"
                attempt.code = 0
                raise EngineFailed("answered 200 with something that is not JSON") from None
        # once the answer is on its way: nobody waits for its flags
        asyncio.get_running_loop().call_soon(self._record, call, attempt)
        headers = self._headers(call, attempt)
        headers[hdrs.CONTENT_TYPE] = engine.headers.get(hdrs.CONTENT_TYPE, "application/json")
        if hdrs.RETRY_AFTER in engine.headers:
            headers[hdrs.RETRY_AFTER] = engine.headers[hdrs.RETRY_AFTER]
        return web.Response(status=engine.status, body=body, headers=headers)

    async def _stream(
        self, request: web.BaseRequest, call: Call, attempt: Attempt, engine: Post
    ) -> web.StreamResponse:
        """Pass events on as they come; the client's first byte waits for the engine's."""
        chunks = engine.content.iter_any()
        first = await anext(chunks, b"")
        if not first:
            raise EngineFailed("closed the stream before its first byte")
        attempt.ttft_s = time.perf_counter() - attempt.began
        headers = self._headers(call, attempt)
        headers[hdrs.CONTENT_TYPE] = "text/event-stream"
        headers[hdrs.CACHE_CONTROL] = "no-cache"
        headers["X-Accel-Buffering"] = "no"
        out = web.StreamResponse(status=engine.status, headers=headers)
        events = Events()
        try:
            await out.prepare(request)
            await out.write(first)
            for body in events.feed(first):
                attempt.answer.take(body)
            async for chunk in chunks:
                await out.write(chunk)
                for body in events.feed(chunk):
                    attempt.answer.take(body)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            if request.transport is None or request.transport.is_closing():
                self.journal.metrics.aborted.inc()
                return out
            attempt.code, attempt.why = 0, "broke off"
            self._record(call, attempt)
            await self._break_off(request, out, f"the engine broke off: {error}")
            return out
        self._record(call, attempt)
        await out.write_eof()
        return out

    async def _break_off(
        self, request: web.BaseRequest, out: web.StreamResponse, message: str
    ) -> None:
        """End a half-told stream so that no client takes it for a whole one."""
        error = {"error": {"message": message, "type": "server_error", "code": 502}}
        try:
            await out.write(f"data: {json.dumps(error)}\n\n".encode())
        except ConnectionError:
            return
        if request.transport is not None:
            request.transport.close()

    def _record(self, call: Call, attempt: Attempt) -> Record:
        code, answer = attempt.code, attempt.answer
        ok = 0 < code < 500 and code not in _OURS and not answer.failed
        flags: tuple[Flag, ...] = ()
        if code == 200 and ok:
            flags = answer.flags(self.config.answers, question(call.body))
        record = self.journal.add(
            variant=attempt.role,
            digest=attempt.variant.digest,
            code=code,
            ok=ok,
            source=call.source,
            request_id=call.request_id,
            seconds=time.perf_counter() - attempt.began,
            ttft_s=attempt.ttft_s,
            tokens_in=answer.tokens_in,
            tokens_out=answer.tokens_out,
            flags=flags,
            why=attempt.why,
        )
        asked = call.body.get("messages") or [call.body.get("prompt")]
        fraction = self.config.log_fraction
        if fraction and call.source == "live" and code == 200 and random.random() < fraction:
            self.log.write(record, asked, "".join(answer.text))
        paired = call.copied or call.source in ("shadow", "replay")
        if self.config.log_pairs and paired and code == 200:
            self.pairs.write(record, asked, "".join(answer.text))
        return record
