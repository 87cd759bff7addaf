"""
The composition root: makes the parts of a gateway from the settings, and runs them.

`gateway.serving` runs it as a server. `create_app` returns the same gateway as a Starlette application, to be
mounted in somebody else's: its lifespan starts and stops the gateway, and where a host does not run it, the
first request starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from fanout.catchup import CatchUp
from fanout.event import Event
from fanout.hub import Hub
from fanout.window import Window
from gateway import demo
from gateway.auth.gate import Gate
from gateway.auth.wiring import origins
from gateway.consumers import Consumers
from gateway.dedup import Dedup
from gateway.drain import Drain, Waiting
from gateway.feeder import Feeder
from gateway.files import room_for_connections
from gateway.intake import Intake
from gateway.keepalive import Keepalive
from gateway.members.replicas import GROUP, Replicas
from gateway.members.sticky import Sticky
from gateway.members.wire import Facts
from gateway.mint import Mint, random_prefix
from gateway.openapi import served
from gateway.operate import Operate
from gateway.polling import Poller
from gateway.problems import EXCEPTION_HANDLERS, Problem, method_not_allowed
from gateway.publish import TOPIC_PATH, PublishEvents, PublishTopic
from gateway.quotas import Limits, Quotas
from gateway.requests.api import RequestsApi
from gateway.requests.door import SERVICES, Door, no_services
from gateway.requests.options import Options
from gateway.requests.service import Requests, Shared
from gateway.session import Services
from gateway.setting import SettingsError
from gateway.settings import Settings
from gateway.sqlite_consumers import SqliteConsumers
from gateway.sqlite_log import SqliteLog
from gateway.starts import Locator
from gateway.streams import Streams
from gateway.subscribe import Subscribe, SubscribeLimits
from gateway.webhooks_api import WebhooksApi
from gateway.webhooks_wiring import CONNECTIONS, webhooks
from webhooks.service import Webhooks

if TYPE_CHECKING:
    from gateway.auth.access import Access
    from gateway.doorkeeper import Doorkeeper
    from gateway.postgres.database import Database
    from gateway.stream_log import StreamLog
    from gateway.tls import Tls
    from gateway.workers.worker import Worker

LEAVE_SECONDS: Final = 2.0
"""How long saying goodbye to the other replicas may take; they notice without it."""

OPEN_EARLY: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""What is answered while a start waits for the broker or the store."""


class Gateway:
    """
    One replica: all its parts, made from the settings.

    Args:
        settings: see `gateway.settings`.
        worker: which of several workers this process is; None if it is the only one.
    """

    def __init__(self, settings: Settings, worker: Worker | None = None) -> None:
        self.settings = settings
        self.worker = worker
        self.tls: Tls | None = None  # where it is a server of its own, and that one encrypts
        self.doorkeeper: Doorkeeper | None = None  # where it is a server of its own
        folder = settings.data_folder
        self.log: SqliteLog | StreamLog = (
            _stream_log(settings)
            if settings.backbone
            else SqliteLog(
                folder,
                retention_seconds=settings.retention_seconds,
                retention_bytes=settings.retention_bytes,
                retention_events=settings.retention_events,
                queue_bytes=settings.queue_bytes,
                queue_events=settings.queue_events,
                tail_bytes=settings.window_bytes,
            )
        )
        self.store: Database | None = None
        self.consumers: Consumers = (
            SqliteConsumers(folder) if worker is None else SqliteConsumers(worker.store, shared=True)
        )
        if settings.store:
            self.store, self.consumers = _store(settings)
        self.dedup = Dedup(settings.dedup_seconds, settings.dedup_events)
        self.intake = Intake(self.log, self.dedup, settings)
        window = Window(
            "", settings.window_bytes, settings.window_events, int(settings.window_seconds * 1000)
        )
        self.hub = Hub(window, settings.buffer_bytes)
        self.catchup = CatchUp(self.hub, lambda: self.log.first)
        self.feeder = Feeder(self.catchup, self.log)
        self.streams = Streams(self.hub, self.catchup, self.feeder)
        self.quotas = Quotas(Limits.of(settings))
        self.streams.left = self.quotas.left
        name = "poll" if worker is None else f"poll-{worker.index}"
        self.poller = Poller(self.streams, self.log, settings.poll_retry_after, name)
        self.replicas = _replicas(self)
        self.requests: Requests | None = _requests(self) if settings.services else None
        waiting: list[Waiting] = [self.poller]
        if self.requests is not None:
            waiting.append(self.requests)
        self.sticky = Sticky(self.replicas, self.streams) if settings.sticky == "redirect" else None
        self.access: Access | None = _access(self) if settings.asks else None
        self.drain = Drain(self.streams, waiting, settings.drain_seconds, self.replicas.drain)
        self.keepalive = Keepalive(self.streams, settings.heartbeat_seconds, settings.stall_timeout)
        self.webhooks: Webhooks | None = webhooks(self) if settings.webhooks else None
        self.turned_away: Counter[int] = Counter()  # status -> how often, by the gate
        self.tasks = asyncio.TaskGroup()
        self._starting = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Open the log, fill the window from its tail, and begin. Idempotent.

        Raises:
            LogError: the log or the store cannot be used.
        """
        if self._running is not None:
            return
        async with self._starting:
            if self._running is None:
                await self._open()
                ready = asyncio.Event()
                self._running = asyncio.create_task(self._run(ready))
                await ready.wait()

    @property
    def waits(self) -> bool:
        """Whether a start is under way that waits for the broker or the store."""
        return self._starting.locked() and bool(self.settings.backbone or self.settings.store)

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._running is not None

    async def stop(self) -> None:
        """End what runs, make everything durable, close the log. Idempotent."""
        running, self._running = self._running, None
        if running is not None:
            self._stopping.set()
            await running
            await self.close()

    async def close(self) -> None:
        """Close the log and what is kept beside it, also when the start was not finished. Idempotent."""
        if self.webhooks is not None:
            await self.webhooks.close()
        await self.log.close()
        await self.consumers.close()
        if self.store is not None:
            await self.store.close()

    async def _open(self) -> None:
        if self.store is not None:
            await self.store.start()
        if isinstance(self.log, SqliteLog):
            await self._open_embedded(self.log)
        else:
            await self._open_backbone(self.log)

    async def _open_stores(self) -> None:
        """Open what is kept beside the log, and read who may come in."""
        await self.consumers.start()
        if self.access is not None:
            await self.access.authority.start()

    async def _open_embedded(self, log: SqliteLog) -> None:
        """Open the log in the data folder, and fill the window from its tail."""
        await log.start(self.deliver)
        await self._open_stores()
        window = self.hub.window
        window.epoch = log.epoch
        window.begin(log.head, log.head_tag)
        window.preload(await log.tail())
        await self.intake.restore()
        if self.webhooks is not None:
            await self.webhooks.start()

    async def _open_backbone(self, log: StreamLog) -> None:
        """Wait for the broker as long as it takes, and begin where its stream ends."""
        from gateway.backbone import Taking, begin, takes, topology  # noqa: PLC0415  (nobody else pays for it)

        self.intake.mint.takes = takes(topology(self.settings))
        await self._open_stores()
        if self.webhooks is not None:
            await self.webhooks.start()  # what is due is sent whether the broker is there or not
        log.on_begin = lambda: begin(self, log)
        await log.start(Taking(self))

    def deliver(self, batch: list[Event]) -> None:
        """Take the next events of the log."""
        self.hub.publish(batch)
        if self.webhooks is not None:
            self.webhooks.wake()
        if self.requests is not None:
            self.requests.take(batch)

    async def _run(self, ready: asyncio.Event) -> None:
        """Own every task of the gateway until it is told to stop."""
        async with self.tasks:
            running = [self.feeder.run(), self.keepalive.run()]
            if self.requests is not None:
                running.append(self.requests.run())
            if self.sticky is not None:
                running.append(self.sticky.run())
            if self.access is not None:
                running.append(self.access.run())
            member = self.replicas.member
            taking_part = None if member is None else self.tasks.create_task(member.run())
            helpers = [self.tasks.create_task(each) for each in running]
            ready.set()
            await self._stopping.wait()
            if member is not None and taking_part is not None:
                member.leave()
                await asyncio.wait([taking_part], timeout=LEAVE_SECONDS)
                taking_part.cancel()
            for task in helpers:
                task.cancel()

    def not_ready(self) -> list[str]:
        """Return why clients should not be sent here; empty when they should."""
        reasons = []
        if self._running is None:
            reasons.append("starting")
        if self.drain.draining and not (self.worker is not None and self.worker.leaving):
            reasons.append("draining")  # for a worker that leaves, another is ready on the same port
        if (trouble := self.log.trouble()) is not None:
            reasons.append(trouble)
        if self.access is not None and (trouble := self.access.authority.trouble()) is not None:
            reasons.append(trouble)
        trouble = None if self.store is None else self.store.trouble()
        if trouble is None and self.webhooks is not None and self._running is not None:
            trouble = self.webhooks.ready
        if trouble is not None:
            reasons.append(trouble)
        if self.doorkeeper is not None and (trouble := self.doorkeeper.guard.memory.trouble()) is not None:
            reasons.append(trouble)
        return reasons

    def locator(self) -> Locator:
        """Return what finds the place where a client begins."""
        if isinstance(self.log, SqliteLog):
            return Locator(self.hub.window, self.log)
        from gateway.backbone import StreamLocator  # noqa: PLC0415  (nobody else pays for it)

        return StreamLocator(self.hub.window, self.log)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Run the gateway as long as a Starlette application runs."""
        await self.start()
        try:
            yield
        finally:
            await self.drain()
            await self.stop()

    # --- the application ------------------------------------------------------------------------------------

    def application(self, *, mounted: bool = False) -> Starlette:
        """
        Return the gateway as an ASGI application.

        Args:
            mounted: whether it is for a server of somebody else's.
        """
        settings = self.settings
        services = Services(
            streams=self.streams,
            locator=self.locator(),
            intake=self.intake,
            consumers=self.consumers,
            tasks=self.tasks,
            max_topics=settings.max_topics,
            access=self.access,
            quotas=self.quotas,
        )
        limits = SubscribeLimits(
            settings.max_topics,
            settings.max_connections or room_for_connections(),
            settings.max_message_bytes,
            settings.websocket_deflate,
        )
        # Only if they have a store in common do other replicas take them.
        tickets = self.access.authority if self.access is not None and settings.store else None
        events = Events(
            Subscribe(services, self.poller, self.consumers, limits, self.sticky, tickets),
            PublishEvents(self.intake, settings, self.quotas),
        )
        routes: list[BaseRoute] = [
            Route("/v1/events", events),
            WebSocketRoute("/v1/events", events),  # on a server that opens WebSockets itself
            Route(TOPIC_PATH, PublishTopic(self.intake, settings, self.quotas)),
            *self._operate().routes(),
            *served.routes(settings, auth=settings.asks),
        ]
        if self.access is not None:
            routes += self.access.routes(self.intake, settings)
        if self.webhooks is not None:
            routes += WebhooksApi(self.webhooks, self.intake, settings).routes()
        if self.requests is not None:
            routes += RequestsApi(self.requests, self.intake, settings, self.quotas).routes()
            routes += Door(self.requests, self.intake, settings).routes()
        else:
            routes.append(Route(SERVICES, no_services))
        routes += demo.routes(settings, self.intake, webhooks=self.webhooks is not None)
        application = Starlette(
            routes=routes,
            middleware=[
                Middleware(Started, gateway=self),
                Middleware(
                    Gate,
                    authority=None if self.access is None else self.access.authority,
                    origins=origins(settings, self.sticky, mounted=mounted),
                    turned_away=self.turned_away,
                ),
            ],
            exception_handlers=EXCEPTION_HANDLERS,
            lifespan=self.lifespan,
        )
        application.state.gateway = self
        return application

    def alone(self) -> Starlette:
        """Return what operators see of this worker alone, as an ASGI application for its siblings."""
        return Starlette(routes=Operate(self).routes(), exception_handlers=EXCEPTION_HANDLERS)

    def _operate(self) -> Operate:
        """Return the endpoints for operators: of this process, or of all workers."""
        if self.worker is None:
            return Operate(self)
        from gateway.workers.together import Together  # noqa: PLC0415  (nobody else pays for it)

        return Together(self, self.worker)


class Events:
    """
    `/v1/events`: subscribe with GET, publish with POST.

    Args:
        subscribe: answers GET, HEAD and WebSocket.
        publish: answers POST.
    """

    def __init__(self, subscribe: Subscribe, publish: PublishEvents) -> None:
        self._subscribe = subscribe
        self._publish = publish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method = scope.get("method", "GET")
        if method == "POST":
            await self._publish(scope, receive, send)
        elif method in ("GET", "HEAD"):
            await self._subscribe(scope, receive, send)
        else:
            raise method_not_allowed("GET", "HEAD", "POST")


def _access(gateway: Gateway) -> Access:
    """Return who may come in; its modules are imported only now."""
    from gateway.auth.access import Access  # noqa: PLC0415  (nobody else pays for it)

    return Access(gateway)


def _replicas(gateway: Gateway) -> Replicas:
    """Return what a gateway knows of the replicas it shares a stream with; alone it is the only one."""
    settings, worker = gateway.settings, gateway.worker
    name = settings.name or f"{socket.gethostname()}:{settings.port}"
    if worker is not None:
        name = f"{name}/{worker.index}"

    def facts() -> Facts:
        return Facts(settings.advertise.rstrip("/"), version("sluicegate"), len(gateway.streams.sinks))

    if not settings.backbone:
        return Replicas(name, facts, None)
    from gateway.backbone import address  # noqa: PLC0415  (nobody else pays for it)
    from gateway.members.member import Member  # noqa: PLC0415

    def changed() -> None:
        if gateway.sticky is not None:
            gateway.sticky.changed()

    member = Member(address(settings), settings.stream, GROUP, name, facts, changed=changed, observe=True)
    return Replicas(name, facts, member)


def _requests(gateway: Gateway) -> Requests:
    """Return the requests on the log of a gateway."""
    settings = gateway.settings
    mint = Mint(settings.max_event_bytes, random_prefix(), own=True)
    options = Options.of(settings)
    shared: Shared | None = None
    if settings.backbone:
        from gateway.backbone import request_consumer  # noqa: PLC0415  (nobody else pays for it)

        stream = cast("StreamLog", gateway.log)
        make = request_consumer(settings, gateway.replicas.name)
        shared = Shared(gateway.replicas.bucket, gateway.replicas.owned, make, stream.catch_up)
    return Requests(gateway.intake, mint, gateway.log, gateway.hub.window, options, shared)


def _stream_log(settings: Settings) -> StreamLog:
    """Return the log on the broker; its modules are imported only now."""
    from gateway.backbone import stream_log  # noqa: PLC0415  (nobody else pays for it)

    return stream_log(settings)


def _store(settings: Settings) -> tuple[Database, Consumers]:
    """Return the store in PostgreSQL, and the cursors in it; their modules are imported only now."""
    from gateway.postgres.address import Address  # noqa: PLC0415  (nobody else pays for it)
    from gateway.postgres.consumers import PostgresConsumers  # noqa: PLC0415
    from gateway.postgres.database import Database  # noqa: PLC0415
    from gateway.store_parts import parts_of  # noqa: PLC0415

    address, parts = Address.parse(settings.store), parts_of(settings)
    if settings.webhooks:
        database = Database(address, parts, connections=CONNECTIONS)
    else:
        database = Database(address, parts)
    return database, PostgresConsumers(database)


class Started:
    """
    Middleware: the first request starts the gateway if no lifespan did, because it is mounted in another
    application.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request."""
        if not self._gateway.running and scope["type"] == "http" and self._gateway.waits:
            if scope["path"] not in OPEN_EARLY:
                reasons = "" if self._gateway.access else f": {'; '.join(self._gateway.not_ready())}"
                await Problem(503, f"not ready{reasons}", retry_after=2)(scope, receive, send)
                return
        elif not self._gateway.running and scope["type"] != "lifespan":
            await self._gateway.start()
        await self._app(scope, receive, send)


def create_app(settings: Settings | None = None) -> Starlette:
    """
    Return a gateway as an ASGI application, to run or to mount.

    Args:
        settings: the defaults if None, with `data="memory:"` being the one for trying things out.

    A host that mounts it should run its lifespan (`app.router.lifespan_context(app)`) in its own, so that it
    drains and closes in an orderly way.

    Raises:
        SettingsError: several workers are asked for; how many processes there are, is the host's affair.
    """
    settings = settings or Settings()
    if settings.workers > 1:
        raise SettingsError(
            "workers", "an application has no processes of its own; only sluice serve starts them"
        )
    return Gateway(settings).application(mounted=True)
