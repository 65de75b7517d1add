"""The HTTP side: a delivery is checked, remembered and answered at once; the work comes after."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

from trainyard import secrets
from trainyard.errors import InputError, Refused, TrainyardError, Unavailable
from trainyard.webhook import payload, proof
from trainyard.webhook.config import Hook, WebhookConfig
from trainyard.webhook.payload import Nothing, Push
from trainyard.webhook.store import Arrival, RunRow, Store
from trainyard.webhook.work import RepositoryWork

logger = logging.getLogger(__name__)

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED", "REFUSED")
START_S = 60.0
HTTP_S = aiohttp.ClientTimeout(total=60, connect=10)


class Bucket:
    """Tokens that refill evenly; one delivery takes one."""

    def __init__(self, per_minute: int) -> None:
        self._rate, self._most = per_minute / 60, float(per_minute)
        self._left, self._at = self._most, time.monotonic()

    def take(self) -> float:
        """Return 0.0 and take one, or the seconds until there is one."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._rate
        self._left -= 1
        return 0.0


class Service:
    """The application and its background tasks."""

    def __init__(self, config: WebhookConfig, home: Path) -> None:
        self.config = config
        self._home = home
        self._store = Store(home / "webhook" / "state.db")
        self._secrets = {
            name: [secrets.resolve(reference) for reference in hook.secrets]
            for name, hook in config.hooks.items()
        }
        for hook in config.hooks.values():
            secrets.resolve(hook.api_token)  # a missing one is said now, not at the first push
        self._works: dict[tuple[str, str], RepositoryWork] = {}
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._arrived: list[tuple[Arrival, asyncio.Future[bool]]] = []
        self._disk = asyncio.Lock()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=int(self.config.max_body_mib * 1024**2))
        app.add_routes(
            [
                web.post("/hooks/{name}", self.receive),
                web.get("/health", self.health),
            ]
        )
        app.cleanup_ctx.append(self._background)
        return app

    async def receive(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        hook = self.config.hooks.get(name)
        if hook is None:
            return _say(404, f"no hook {name}")
        if (request.content_length or 0) > self.config.max_body_mib * 1024**2:
            return _say(413, f"larger than {self.config.max_body_mib:g} MiB")
        try:
            return await self._received(name, hook, request, await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _say(413, f"larger than {self.config.max_body_mib:g} MiB")
        except Refused as error:
            logger.warning("%s from %s: %s", name, request.remote, error)
            return _say(401, str(error))
        except InputError as error:
            return _say(400, str(error))
        except Unavailable as error:
            return _say(503, str(error))

    async def _received(
        self, name: str, hook: Hook, request: web.Request, body: bytes
    ) -> web.Response:
        delivery = proof.check(hook, request.headers, body, self._secrets[name], time.time())
        if request.content_type != "application/json":
            return _say(
                415, f"set the content type to application/json, not {request.content_type}"
            )
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            return _say(400, "the body is not JSON")
        if not isinstance(values, dict):
            return _say(400, "the body is not an object")
        event = payload.read(hook.provider, delivery.event, values)
        work = self._works.get((name, event.repository))
        if work is None and event.repository:
            return _say(403, f"{event.repository} is not a repository of hook {name}")
        if isinstance(event, Nothing) or work is None:
            return _say(200, event.why if isinstance(event, Nothing) else "nothing to do")
        wait_s = self._buckets[name, event.repository].take()
        if wait_s:
            seconds = f"{wait_s + 1:.0f}"
            return _say(429, f"too many deliveries; again in {seconds} s", {"Retry-After": seconds})
        branch = event.branch if isinstance(event, Push) else event.base
        if not work.spec.protects(branch):
            return _say(200, f"{branch} is not protected: nothing to do")
        if not await self._accept((name, delivery, event)):
            return _say(200, f"delivery {delivery.id} was here before")
        work.wake()
        return _say(202, f"accepted {delivery.id}")

    async def _accept(self, arrival: Arrival) -> bool:
        """Wait until it is on the disk, together with what else arrives meanwhile."""
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._arrived.append((arrival, taken))
        async with self._disk:
            if not taken.done():
                await self._write()
        return await taken

    async def _write(self) -> None:
        together, self._arrived = self._arrived, []
        arrivals = [arrival for arrival, _ in together]
        try:
            results = await asyncio.to_thread(self._store.accept, arrivals)
        except sqlite3.Error as error:
            for _, waiting in together:
                waiting.set_exception(Unavailable(f"the delivery could not be kept: {error}"))
            return
        for (_, waiting), result in zip(together, results, strict=True):
            waiting.set_result(result)

    async def health(self, request: web.Request) -> web.Response:
        """Tell this machine what there is, and others nothing."""
        if not _is_loopback(request.remote or ""):
            return _say(404, "nothing here")
        return web.json_response(await asyncio.to_thread(self._store.counts))

    async def _background(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=HTTP_S) as session:
            for name, hook in self.config.hooks.items():
                for spec in hook.repositories:
                    place = (name, spec.name)
                    self._works[place] = RepositoryWork(
                        name, hook, spec,
                        config=self.config, session=session, store=self._store, home=self._home,
                    )  # fmt: skip
                    self._buckets[place] = Bucket(self.config.deliveries_per_minute)
            with contextlib.suppress(TimeoutError):  # what is on the branches now was there before
                await asyncio.wait_for(self._poll(), START_S)
            tasks = [asyncio.create_task(work.work()) for work in self._works.values()]
            tasks += [
                asyncio.create_task(self._repeat(self._poll, self.config.poll_s)),
                asyncio.create_task(self._repeat(self._watch, self.config.watch_s)),
            ]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._store.close()

    async def _repeat(self, what: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await what()
            except TrainyardError as error:
                logger.warning("%s", error)
            except Exception:  # the service outlives whatever goes wrong in one round
                logger.exception("%s", what)

    async def _poll(self) -> None:
        works = list(self._works.values())
        results = await asyncio.gather(*(w.poll() for w in works), return_exceptions=True)
        for work, problem in zip(works, results, strict=True):
            if isinstance(problem, BaseException):
                logger.warning("poll of %s: %s", work.spec.name, problem)
        await asyncio.to_thread(self._store.forget)

    async def _watch(self) -> None:
        """Bring the runs' states to their commits."""
        waiting: dict[tuple[str, str], list[RunRow]] = {}
        for run in await asyncio.to_thread(self._store.to_watch):
            waiting.setdefault((run.hook, run.repository), []).append(run)
        for place, runs in waiting.items():
            if place not in self._works:
                continue
            states = await self._works[place].states([r for r in runs if r.state not in ENDED])
            for run in runs:
                state, said = states.get(run.flow_run or "", (run.state, run.said))
                if run.flow_run and run.state not in ENDED and run.flow_run not in states:
                    state, said = "CANCELLED", "its run was deleted"
                if state != run.state:
                    await asyncio.to_thread(self._store.set_state, run.key, state, said)
                    if state in ENDED:
                        await self._works[place].clean_up(run.sha)
                if state != run.told:
                    await self._works[place].tell(run, state, said)


async def serve(config: WebhookConfig, home: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    _refuse_open_address(config)
    runner = web.AppRunner(Service(config, home).app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port, ssl_context=_tls(config))
        try:
            await site.start()
        except OSError as error:
            raise InputError(
                f"{config.host}:{config.port} cannot be listened on: {error.strerror}"
            ) from None
        scheme = "https" if config.tls_certificate else "http"
        for address in runner.addresses:
            print(f"webhook at {scheme}://{address[0]}:{address[1]}/hooks/", flush=True)
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await runner.cleanup()


def _refuse_open_address(config: WebhookConfig) -> None:
    if config.tls_certificate is None and not _is_loopback(config.host):
        if any(hook.proof == "token" for hook in config.hooks.values()):
            raise InputError(
                f"host {config.host} without TLS would carry a GitLab token in the clear: give "
                "tls_certificate and tls_key, or listen on 127.0.0.1 behind a proxy"
            )
        logger.warning("%s without TLS: put a proxy that ends TLS before it", config.host)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(config: WebhookConfig) -> ssl.SSLContext | None:
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"{config.tls_certificate} and {config.tls_key} are no certificate and key: {error}"
        ) from None
    return context


def _say(status: int, words: str, headers: dict[str, str] | None = None) -> web.Response:
    key = "message" if status < 300 else "error"
    return web.json_response({key: secrets.mask(words)}, status=status, headers=headers)
