"""
The API of webhooks: endpoints, and what their owners can have done with them.

`gateway.webhooks_deliveries` is its other half. Whatever changes an endpoint goes through `_changed`: read,
decide, write if nobody else has written meanwhile. What is decided is not said here but in `webhooks`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth.caller import Caller
from gateway.intake import Intake
from gateway.mint import Mint, now_ms, random_prefix
from gateway.operate import json_response
from gateway.pages import MAX_LISTED, read_limit, read_page, write_page
from gateway.problems import Problem
from gateway.resources import BodyLimits, Call, Handler, Resource
from gateway.settings import Settings
from gateway.webhooks_deliveries import Deliveries
from gateway.webhooks_found import check_match, check_open, etag, find_endpoint, is_visible, missing, read
from gateway.webhooks_keys import KeySet
from gateway.webhooks_shown import shown_endpoint, shown_secret
from webhooks import records
from webhooks.description import Description, changed, created, decoded, rotation
from webhooks.endpoint import Endpoint, Signal
from webhooks.errors import Invalid
from webhooks.keys import Keys
from webhooks.operations import HIGHEST
from webhooks.records import Status
from webhooks.service import Webhooks
from webhooks.signature import Ed25519Secret, Scheme, new_secret
from webhooks.stored import endpoint_name, health_of, left_of, settings_of, since_of, status_of

PATH: Final = "/v1/webhooks"
STORE: Final = "webhooks"
MAX_BODY_BYTES: Final = 64 * 1024
"""The longest description that is allowed has less than half of it."""
MAX_ENDPOINTS: Final = 10_000
"""Each costs every replica some memory, and each event a look."""
MAX_COUNTED: Final = 100_000
"""So many pending deliveries are counted: how many more there are would cost the store too much."""
TEST_TOPIC: Final = "webhook.test"

_TRIES: Final = 5

Alter = Callable[[Endpoint], Awaitable[None]]
"""Changes an endpoint that was read; what it raises leaves it as it was."""


class WebhooksApi:
    """
    Everything under `/v1/webhooks`, `/v1/deliveries` and `/.well-known/jwks.json`.

    Args:
        webhooks: what it looks into and has things done by.
        intake: whose budget bodies are accounted to.
        settings: bound how long a body may take.
    """

    def __init__(self, webhooks: Webhooks, intake: Intake, settings: Settings) -> None:
        self._webhooks = webhooks
        self._deliveries = Deliveries(webhooks)
        self._keys = KeySet(webhooks.store)
        self._intake = intake
        self._limits = BodyLimits(settings, MAX_BODY_BYTES)
        self._mint = Mint(MAX_BODY_BYTES, random_prefix())

    def routes(self) -> list[Route]:
        """Return the routes."""
        one, deliveries = PATH + "/{webhook}", self._deliveries
        return [
            Route(PATH, self._resource(GET=self._list, POST=self._create)),
            *(
                Route(f"{one}:{verb}", self._resource(POST=handler))
                for verb, handler in {
                    "pause": self._asking(Signal.PAUSED),
                    "resume": self._asking(Signal.RESUMED),
                    "enable": self._enable,
                }.items()
            ),
            Route(one, self._resource(GET=self._show, PATCH=self._patch, DELETE=self._remove)),
            Route(one + "/secret:rotate", self._resource(POST=self._rotate)),
            Route(one + "/test", self._resource(POST=self._test)),
            Route(one + "/deliveries", self._resource(GET=deliveries.listed)),
            Route(one + "/recover", self._resource(POST=deliveries.recover)),
            Route(one + "/jobs", self._resource(GET=deliveries.jobs)),
            Route(one + "/jobs/{job}", self._resource(GET=deliveries.job)),
            Route("/v1/deliveries/{delivery}:retry", self._resource(POST=deliveries.retry)),
            Route("/v1/deliveries/{delivery}", self._resource(GET=deliveries.show)),
            Route("/v1/deliveries/{delivery}/attempts", self._resource(GET=deliveries.attempts)),
            Route("/.well-known/jwks.json", self._resource(GET=self._keys.show)),
        ]

    def _resource(self, **methods: Handler) -> Resource:
        return Resource(self._intake, self._limits, STORE, **methods)

    # --- reading --------------------------------------------------------------------------------------------

    async def _list(self, call: Call) -> Response:
        """Return the endpoints, in the order in which they were made."""
        asked = call.query("limit", "page")
        limit = read_limit(asked.get("limit"))
        (after,) = read_page(asked.get("page"), "webhooks", (0,), (HIGHEST,))
        call.caller.check_webhooks()
        rows = await self._visible(call.caller, after, limit + 1)
        listed = []
        for row in rows[:limit]:
            listed.append(_shown(row, call.caller))
            await asyncio.sleep(0)  # reading one takes a while: keys, filter
        shown: dict[str, Any] = {"webhooks": listed}
        if len(rows) > limit:
            shown["next"] = write_page("webhooks", rows[limit - 1].id)
        return json_response(shown)

    async def _visible(self, caller: Caller, after: int, most: int) -> list[records.Endpoint]:
        """Return the next endpoints that somebody may know of; of those between nothing tells them."""
        found: list[records.Endpoint] = []
        size = most  # which is enough for whoever may know of all
        while True:
            rows = await self._webhooks.store.list_endpoints(after, size)
            for number, row in enumerate(rows):
                if is_visible(caller, row):
                    found.append(row)
                    if len(found) == most:
                        return found
                if number % 20 == 0:
                    await asyncio.sleep(0)  # there may be thousands
            if len(rows) < size:
                return found
            after, size = rows[-1].id, MAX_LISTED

    async def _show(self, call: Call) -> Response:
        """Return one endpoint, and how much is pending for it."""
        call.query()
        row = await find_endpoint(self._webhooks.store, call)
        pending = await self._webhooks.store.backlog(row.id, MAX_COUNTED)
        return _answer({**_shown(row, call.caller), "pending": pending}, row)

    # --- making, changing, removing -------------------------------------------------------------------------

    async def _create(self, call: Call) -> Response:
        """Make an endpoint; the answer is the only one with its secret."""
        call.query()
        call.caller.check_webhooks()
        description, secret = created(call.members(), self._webhooks.guard.admit)
        description = _stored(description, call.caller)
        if await self._webhooks.store.count_endpoints() >= MAX_ENDPOINTS:
            raise Problem(409, f"there are {MAX_ENDPOINTS} webhooks, which is all that may be")
        if description.origin is not None:
            description = await self._webhooks.agreed(description)
        now = now_ms()
        keys = Keys() if secret is None else Keys().rotated(secret, now)
        keys = keys.completed(description.signatures, now)
        row = await self._webhooks.add(description, keys)
        shown = {**_shown(row, call.caller), **_secrets(keys, description)}
        answer = _answer(shown, row, 201)
        answer.headers["location"] = call.url(f"{PATH}/{endpoint_name(row.id)}")
        return answer

    async def _patch(self, call: Call) -> Response:
        """Change what is given, member by member; a secret that this makes necessary is in the answer."""
        call.query()
        given = call.members()
        made: dict[str, Any] = {}

        async def alter(endpoint: Endpoint) -> None:
            before, keys = endpoint.description, endpoint.keys
            description = changed(before, given, self._webhooks.guard.admit)
            if "topics" in given:
                description = _stored(description, call.caller)
            if _has_to_ask(description, before):
                description = await self._webhooks.agreed(description)
            endpoint.change(description, now_ms())
            new = Keys(tuple(key for key in endpoint.keys.all if key not in keys.all))
            made.clear()
            made.update(_secrets(new, description))

        row = await self._changed(call, alter)
        return _answer({**_shown(row, call.caller), **made}, row)

    async def _remove(self, call: Call) -> Response:
        """Remove an endpoint and all that belongs to it. Removing it again is as good, for a day."""
        call.query()
        for _ in range(_TRIES):
            row = await find_endpoint(self._webhooks.store, call, removed=True)
            if row.status is Status.REMOVED:
                return Response(status_code=204)
            check_match(call, row)
            # What remains for a while has no secret in it, but tells who may know that it was there.
            removed = await self._webhooks.store.change_endpoint(
                row.id, row.revision, Status.REMOVED, left_of(row), b""
            )
            if removed is not None:
                self._webhooks.look()
                return Response(status_code=204)
        raise _contended()

    async def _rotate(self, call: Call) -> Response:
        """Replace a secret by a new one, which is in the answer."""
        call.query()
        scheme, secret, overlap = rotation(call.members())
        secret = secret or new_secret(scheme)

        async def alter(endpoint: Endpoint) -> None:
            if scheme not in endpoint.description.signatures:
                raise Invalid(f"the webhook does not sign by {scheme.value}", "/scheme")
            endpoint.keys = endpoint.keys.rotated(secret, now_ms(), overlap)

        row = await self._changed(call, alter)
        shown: dict[str, Any] = {"id": endpoint_name(row.id), "scheme": scheme.value}
        if isinstance(secret, Ed25519Secret):
            shown["public_key"] = secret.public_text
        else:
            shown["secret"] = secret.text
        return _answer({**shown, "keys": _shown(row, call.caller)["keys"]}, row)

    # --- states ---------------------------------------------------------------------------------------------

    def _asking(self, signal: Signal) -> Handler:
        """Return the handler of a verb without members."""

        async def handler(call: Call) -> Response:
            call.check_bare()
            return await self._ask(call, signal)

        return handler

    async def _enable(self, call: Call) -> Response:
        """
        Open an endpoint that was closed, and send what was held; or begin a job that gives that up, and opens
        the endpoint then.
        """
        call.query()
        skip = decoded(call.members(), _Enabling).held == "skip"
        if skip and (await find_endpoint(self._webhooks.store, call)).status in (
            Status.DISABLED,
            Status.GONE,
        ):
            return await self._deliveries.skip(call)
        return await self._ask(call, Signal.ENABLED)

    async def _ask(self, call: Call, signal: Signal) -> Response:
        async def alter(endpoint: Endpoint) -> None:
            try:
                endpoint.ask(signal)
            except Invalid as invalid:
                raise Problem(409, invalid.detail) from None

        row = await self._changed(call, alter)
        return _answer(_shown(row, call.caller), row)

    async def _changed(self, call: Call, alter: Alter) -> records.Endpoint:
        """
        Change an endpoint and return it as it is now.

        Args:
            call: names the endpoint, and may say (`If-Match`) as which it is to be changed and as no other.
            alter: what is done to it.

        Raises:
            Problem: 404, 412, or 409 if others change it all the time.
        """
        for _ in range(_TRIES):
            row = await find_endpoint(self._webhooks.store, call)
            check_match(call, row)
            endpoint = read(row)
            await alter(endpoint)
            status, settings = status_of(endpoint), settings_of(endpoint, since_of(row))
            if (status, settings) == (row.status, row.settings):
                return row
            new = await self._webhooks.store.change_endpoint(
                row.id, row.revision, status, settings, health_of(endpoint)
            )
            if new is not None:
                self._webhooks.look()
                return new
        raise _contended()

    # --- trying it out --------------------------------------------------------------------------------------

    async def _test(self, call: Call) -> Response:
        """Send an event that is in no log, and that no filter keeps back; answer with its delivery."""
        call.query()
        wanted = decoded(call.members(), _Test)
        row = await find_endpoint(self._webhooks.store, call)
        check_open(row)
        data = bytes(wanted.data) or msgspec.json.encode({"webhook": endpoint_name(row.id)})
        id, now = secrets.token_hex(8), now_ms()
        event = self._mint.event(now, wanted.topic, data, f"test-{id}", wanted.type)
        assert event.given_id is not None
        message = records.Message(0, event.topic, event.given_id, wanted.type, now, 0, event.body)
        number = await self._webhooks.store.enqueue(row.id, message)
        if number is None:
            raise missing(call)
        self._webhooks.look()
        return await self._deliveries.accepted(call, row, number)


class _Enabling(msgspec.Struct, forbid_unknown_fields=True):
    """What becomes of the deliveries that were held."""

    held: Literal["replay", "skip"] = "replay"


class _Test(msgspec.Struct, forbid_unknown_fields=True):
    """The event of a test; with data of ours unless its sender gives some."""

    topic: str = TEST_TOPIC
    type: str = TEST_TOPIC
    data: msgspec.Raw = msgspec.Raw(b"")


def _shown(row: records.Endpoint, caller: Caller) -> dict[str, Any]:
    shown = shown_endpoint(row, read(row), now_ms())
    return {**shown, "topics": [caller.shown(topic) for topic in shown["topics"]]}


def _stored(description: Description, caller: Caller) -> Description:
    """
    Return a description with the topics as they are stored.

    Raises:
        Problem: 403, one of them is not granted.
    """
    topics = tuple(dict.fromkeys(caller.listen(description.topics)))
    return msgspec.structs.replace(description, topics=topics)


def _secrets(keys: Keys, description: Description) -> dict[str, Any]:
    """Return the secret among keys, if the endpoint signs by it."""
    return shown_secret(keys.current(Scheme.V1)) if Scheme.V1 in description.signatures else {}


def _answer(shown: dict[str, Any], row: records.Endpoint, status: int = 200) -> Response:
    """Return an answer about an endpoint, with the tag of its revision."""
    answer = json_response(shown, status)
    answer.headers["etag"] = etag(row)
    return answer


def _has_to_ask(after: Description, before: Description) -> bool:
    """Tell whether a receiver agreed to something else."""
    return after.origin is not None and any(
        getattr(after, name) != getattr(before, name) for name in ("origin", "url", "rate")
    )


def _contended() -> Problem:
    return Problem(409, "others are changing the webhook at the same time: try again")
