"""
The API about who may come in: API keys, revocations, tickets, the cookie of a page, and new tokens for
connections.
"""

from __future__ import annotations

import re
import time
from base64 import urlsafe_b64decode
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from fanout.cursor import Since, parse_start
from fanout.errors import ClaimError, CursorError, TopicError
from fanout.grants import Grants
from fanout.topics import check_pattern
from gateway.auth.authority import TICKET_SECONDS, Authority
from gateway.auth.caller import Caller, Kind
from gateway.auth.gate import COOKIE
from gateway.auth.registry import PREFIX, ApiKey, Revocation, StoredKey, new_key
from gateway.auth.store import KEY, REVOCATION, EntriesFull
from gateway.auth.tokens import MAX_NAME, MAX_TOKEN_BYTES
from gateway.auth.watch import Watch
from gateway.intake import Intake
from gateway.mint import time_text
from gateway.operate import json_response
from gateway.pages import read_limit
from gateway.problems import Problem
from gateway.resources import BodyLimits, Call, Handler, Resource
from gateway.settings import Settings
from webhooks.description import decoded

MAX_BODY_BYTES: Final = 64 * 1024
MAX_COOKIE_BYTES: Final = 3900
"""What browsers keep of one cookie, 4096 bytes, with its name and attributes (RFC 6265, 6.1)."""
MAX_TEXT: Final = 200
MAX_SECONDS: Final = 315_360_000.0
"""Ten years."""
_NAME: Final = re.compile(r"rv_[0-9a-f]{24}|[0-9a-f]{12}")


class WantedKey(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is said of an API key that is to be made."""

    subject: str
    claims: dict[str, Any] = {}
    description: str = ""
    seconds: float | None = None


class WantedRevocation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to be revoked."""

    subject: str | None = None
    token: str | None = None
    tenant: str | None = None
    topic: str | None = None
    before: str | None = None
    seconds: float | None = None
    reason: str = ""


class WantedToken(msgspec.Struct, forbid_unknown_fields=True):
    """A new token for a connection."""

    token: str


class AccessApi:
    """
    The endpoints.

    Args:
        authority: knows callers, has keys and revocations.
        watch: has the connections.
        intake: whose budget bodies are accounted to.
        settings: bound how long a body may take; say whether others share the store.
    """

    def __init__(self, authority: Authority, watch: Watch, intake: Intake, settings: Settings) -> None:
        self._authority = authority
        self._registry = authority.registry
        self._watch = watch
        self._intake = intake
        self._limits = BodyLimits(settings, MAX_BODY_BYTES)
        self._shared = bool(settings.store) or settings.workers > 1

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/keys", self._resource(GET=self._keys, POST=self._make_key)),
            Route("/v1/keys/{key}", self._resource(GET=self._key, DELETE=self._remove_key)),
            Route("/v1/revocations", self._resource(GET=self._revocations, POST=self._revoke)),
            Route("/v1/revocations/{revocation}", self._resource(GET=self._revocation, DELETE=self._forgive)),
            Route("/v1/tickets", self._resource(POST=self._ticket)),
            Route("/v1/session", self._resource(POST=self._enter, DELETE=self._leave)),
            Route("/v1/connections/{name}/token", self._resource(POST=self._renew)),
        ]

    def _resource(self, **methods: Handler) -> Resource:
        return Resource(self._intake, self._limits, "keys and revocations", **methods)

    # --- API keys -------------------------------------------------------------------------------------------

    async def _keys(self, call: Call) -> Response:
        """Return API keys, without what makes them work."""
        limit, after = _page(call)
        names = sorted(name for name in self._registry.keys if name > after)
        shown: dict[str, Any] = {"keys": [_shown_key(self._registry.keys[name]) for name in names[:limit]]}
        if len(names) > limit:
            shown["next"] = names[limit - 1]
        return json_response(shown)

    async def _key(self, call: Call) -> Response:
        """Return one API key."""
        call.query()
        known = self._registry.keys.get(call.part("key"))
        if known is None:
            raise Problem(404, "there is no such API key")
        return json_response(_shown_key(known))

    async def _make_key(self, call: Call) -> Response:
        """Make an API key; the answer is the only one with its text."""
        call.query()
        wanted = decoded(call.members(), WantedKey)
        _check_name(wanted.subject, "/subject")
        _check_text(wanted.description, "/description")
        try:
            Grants.of(wanted.claims)
        except ClaimError as error:
            raise Problem(422, str(error), members={"pointer": "/claims"}) from None
        now = time.time()
        text, name, digest = new_key()
        stored = StoredKey(
            digest=digest,
            claims=wanted.claims,
            subject=wanted.subject,
            created=now,
            description=wanted.description,
        )
        await self._put(KEY, name, msgspec.json.encode(stored), _until(wanted.seconds, now))
        known = self._registry.keys.get(name)
        shown = {"id": name} if known is None else _shown_key(known)
        answer = json_response({**shown, "key": text}, 201)
        answer.headers["location"] = call.url(f"/v1/keys/{name}")
        return answer

    async def _remove_key(self, call: Call) -> Response:
        """Have an API key open nothing any more; removing it again is as good."""
        return await self._remove(call, KEY, call.part("key"))

    # --- revocations ----------------------------------------------------------------------------------------

    async def _revocations(self, call: Call) -> Response:
        """Return what was revoked."""
        limit, after = _page(call)
        known = self._registry.revocations
        names = sorted(name for name in known if name > after)
        shown: dict[str, Any] = {
            "revocations": [_shown_revocation(name, *known[name]) for name in names[:limit]]
        }
        if len(names) > limit:
            shown["next"] = names[limit - 1]
        return json_response(shown)

    async def _revocation(self, call: Call) -> Response:
        """Return one revocation."""
        call.query()
        name = call.part("revocation")
        known = self._registry.revocations.get(name)
        if known is None:
            raise Problem(404, "there is no such revocation")
        return json_response(_shown_revocation(name, *known))

    async def _revoke(self, call: Call) -> Response:
        """Revoke tokens, or their right to topics: here at once, on all replicas within a second."""
        call.query()
        wanted = decoded(call.members(), WantedRevocation)
        if (wanted.subject, wanted.token, wanted.tenant, wanted.topic) == (None, None, None, None):
            raise Problem(422, "say what is revoked: a subject, token, tenant or topic")
        for member in ("subject", "token", "tenant"):
            if (name := getattr(wanted, member)) is not None:
                _check_name(name, f"/{member}")
        if wanted.topic is not None:
            try:
                check_pattern(wanted.topic)
            except TopicError as error:
                raise Problem(422, str(error), members={"pointer": "/topic"}) from None
        _check_text(wanted.reason, "/reason")
        now = time.time()
        revocation = Revocation(
            before=now if wanted.before is None else _moment(wanted.before, now),
            subject=wanted.subject,
            token=wanted.token,
            tenant=wanted.tenant,
            topic=wanted.topic,
            reason=wanted.reason,
        )
        name = revocation.name
        expires = _until(wanted.seconds, now)
        await self._put(REVOCATION, name, msgspec.json.encode(revocation), expires)
        answer = json_response(_shown_revocation(name, revocation, expires), 201)
        answer.headers["location"] = call.url(f"/v1/revocations/{name}")
        return answer

    async def _forgive(self, call: Call) -> Response:
        """Take a revocation back; taking it back again is as good."""
        return await self._remove(call, REVOCATION, call.part("revocation"))

    # --- who is asking --------------------------------------------------------------------------------------

    async def _ticket(self, call: Call) -> Response:
        """Return a ticket, by which an EventSource or a WebSocket of this caller can be opened once."""
        call.check_bare()
        ticket = await self._authority.ticket(call.credential())
        return json_response({"ticket": ticket, "seconds": TICKET_SECONDS}, 201)

    async def _enter(self, call: Call) -> Response:
        """Put the caller's token into a cookie that scripts cannot read."""
        call.check_bare()
        text = call.credential()
        if len(text) > MAX_COOKIE_BYTES:
            raise Problem(422, f"a cookie holds a token of {MAX_COOKIE_BYTES} bytes; this one is longer")
        answer = Response(status_code=204, headers={"cache-control": "no-store"})
        _set_cookie(answer, call, text, call.caller)
        return answer

    async def _leave(self, call: Call) -> Response:
        """Take the cookie back."""
        call.check_bare()
        answer = Response(status_code=204, headers={"cache-control": "no-store"})
        _set_cookie(answer, call, "", None)
        return answer

    async def _renew(self, call: Call) -> Response:
        """
        Take a newer token for a connection.

        Whose connection another replica has, is known there only: its answer is not waited for.
        """
        call.query()
        wanted = decoded(call.members(), WantedToken)
        if not 0 < len(wanted.token) <= MAX_TOKEN_BYTES:
            detail = f"a token has 1 to {MAX_TOKEN_BYTES} characters"
            raise Problem(422, detail, members={"pointer": "/token"})
        caller = await self._authority.known(wanted.token)
        name = call.part("name")
        _check_text(name, "")
        connection = self._watch.find(name)
        if connection is not None:
            before = connection.caller
            if not caller.owner or not isinstance(before, Caller) or before.owner != caller.owner:
                raise _missing(name)
            self._watch.renew(connection, caller)
            return json_response({"connection": name, "expires": caller.ends})
        if not self._shared or not caller.owner:
            raise _missing(name)
        try:
            await self._watch.hand_on(name, caller, self._claims(wanted.token, caller))
        except EntriesFull:
            raise _full() from None
        return json_response({"connection": name, "expires": caller.ends}, 202)

    def _claims(self, text: str, caller: Caller) -> dict[str, Any]:
        """Return the claims of a token, or API key, that was just seen to be good."""
        if caller.kind is Kind.KEY:
            return self._registry.keys[caller.id or ""].stored.claims
        payload = text.split(".")[1]
        claims: dict[str, Any] = msgspec.json.decode(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims

    # --- the store ------------------------------------------------------------------------------------------

    async def _put(self, kind: str, name: str, value: bytes, expires: int) -> None:
        try:
            await self._registry.store.put(kind, name, value, expires)
        except EntriesFull:
            raise _full() from None
        await self._registry.follow()

    async def _remove(self, call: Call, kind: str, name: str) -> Response:
        call.check_bare()
        if _NAME.fullmatch(name):
            await self._registry.store.remove(kind, name)
            await self._registry.follow()
        return Response(status_code=204)


def _page(call: Call) -> tuple[int, str]:
    """Return how many names are asked for, and behind which."""
    asked = call.query("limit", "page")
    after = asked.get("page", "")
    if after and not _NAME.fullmatch(after):
        raise Problem(422, "page is what an earlier answer had as next")
    return read_limit(asked.get("limit")), after


def _shown_key(known: ApiKey) -> dict[str, Any]:
    stored = known.stored
    return {
        "id": known.id,
        "begins": f"{PREFIX}{known.id}_",
        "subject": stored.subject,
        "claims": stored.claims,
        "description": stored.description,
        "created": _time(stored.created),
        "expires": _time(known.expires / 1000) if known.expires else None,
    }


def _shown_revocation(name: str, revocation: Revocation, expires: int) -> dict[str, Any]:
    return {
        "id": name,
        "subject": revocation.subject,
        "token": revocation.token,
        "tenant": revocation.tenant,
        "topic": revocation.topic,
        "before": _time(revocation.before),
        "expires": _time(expires / 1000) if expires else None,
        "reason": revocation.reason,
    }


def _time(seconds: float) -> str:
    return time_text(round(seconds * 1000)).decode()


def _until(seconds: float | None, now: float) -> int:
    """Return when something is over that lasts so long, in milliseconds since the Unix epoch; 0 is never."""
    if seconds is None:
        return 0
    if not 1 <= seconds <= MAX_SECONDS:
        raise Problem(422, f"seconds is from 1 to {MAX_SECONDS:.0f}", members={"pointer": "/seconds"})
    return round((now + seconds) * 1000)


def _moment(text: str, now: float) -> float:
    """Return a time that has come, in seconds since the Unix epoch."""
    try:
        start = parse_start(text)
    except CursorError:
        start = None
    if not isinstance(start, Since) or start.time_ms > (now + 1) * 1000:
        raise Problem(422, "before is an RFC 3339 time that has come", members={"pointer": "/before"})
    return start.time_ms / 1000


def _check_name(text: str, pointer: str) -> None:
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        detail = f"it is no name: 1 to {MAX_NAME} characters, none of them for control"
        raise Problem(422, detail, members={"pointer": pointer})


def _check_text(text: str, pointer: str) -> None:
    if len(text) > MAX_TEXT or not (text == "" or text.isprintable()):
        detail = f"at most {MAX_TEXT} characters, none of them for control"
        raise Problem(422, detail, members={"pointer": pointer} if pointer else {})


def _missing(name: str) -> Problem:
    return Problem(404, f"there is no connection {name[:60]!a}")


def _full() -> Problem:
    return Problem(409, "there are as many as there may be: remove some that are over")


def _set_cookie(answer: Response, call: Call, text: str, caller: Caller | None) -> None:
    """
    Set the cookie, or take it back.

    Scripts cannot read it, and browsers send it only along with what pages of this site ask for (RFC 6265bis,
    4.1.2.7). It says nothing about a domain, so it is for this host alone.
    """
    seconds = 0 if caller is None else max(0, round(caller.expires - time.time()))
    answer.set_cookie(
        COOKIE,
        text,
        max_age=None if caller is not None and caller.expires == float("inf") else seconds,
        path=call.url("/"),
        secure=call.is_encrypted,
        httponly=True,
        samesite="strict",
    )
