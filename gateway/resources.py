"""
Resources: paths with a handler for each of their methods, which take and give JSON objects.

A resource is a plain ASGI application, like the publishing endpoints, so that a body is refused as soon as it
is known to be too long. Whatever goes wrong in a handler becomes a problem here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth.caller import CREDENTIAL, Caller, caller_of
from gateway.intake import Intake, Limits
from gateway.log import StoreUnavailable
from gateway.payloads import FORM, check_utf8, content_type, decode_json
from gateway.polling import disconnected
from gateway.problems import ClientGone, Problem, method_not_allowed
from gateway.publish import Body, refuse
from gateway.query import read_query
from webhooks.description import MEMBERS
from webhooks.errors import Invalid

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
"""RFC 7396: members that are not given stay, `null` takes one back."""
_KINDS: Final = ("", FORM, JSON, "text/json", MERGE_PATCH)  # the first two are what says nothing

_SAFE: Final = ("GET", "HEAD")


class Call:
    """
    One request, as the handler of its method sees it.

    Args:
        scope: its ASGI scope.
        headers: names in lower case; of several with one name the last.
        body: the whole body.
        receive: its ASGI channel, behind the body.
    """

    def __init__(
        self, scope: Scope, headers: Mapping[bytes, bytes], body: bytes = b"", receive: Receive | None = None
    ) -> None:
        self.headers = headers
        self.body = body
        self._scope = scope
        self._receive = receive

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[asyncio.Future[None]]:
        """While this is open the future is done once the client is gone: nobody need wait for an answer."""
        assert self._receive is not None, "the call was made without its channel"
        gone = asyncio.ensure_future(disconnected(self._receive))
        try:
            yield gone
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return caller_of(self._scope)

    def credential(self) -> str:
        """Return the token, or API key, by which it is known who asks."""
        credential: str = self._scope[CREDENTIAL]
        return credential

    @property
    def is_encrypted(self) -> bool:
        """Whether it came by https."""
        return self._scope.get("scheme") == "https"

    def part(self, name: str) -> str:
        """Return a parameter of the path."""
        part: str = self._scope["path_params"][name]
        return part

    def query(self, *known: str) -> dict[str, str]:
        """
        Return the parameters of the query.

        Raises:
            Problem: 422, there is another one than the known.
        """
        return read_query(self._scope["query_string"], known)

    def url(self, path: str) -> str:
        """Return a path of this application as the client has to write it."""
        return f"{self._scope.get('root_path', '')}{path}"

    def members(self) -> dict[str, msgspec.Raw]:
        """
        Return the members of the object in the body; none if there is no body.

        Raises:
            Problem: 400 no JSON, 415 another content type, 422 no object.
        """
        if not self.body:
            return {}
        if content_type(self.headers.get(b"content-type")).name not in _KINDS:
            detail = f"the body is {JSON}"
            raise Problem(415, detail, headers={"accept-patch": MERGE_PATCH, "accept-post": JSON})
        return decode_json(MEMBERS, check_utf8(self.body))

    def check_bare(self) -> None:
        """
        Check that neither query nor body say anything.

        Raises:
            Problem: 422, they do.
        """
        self.query()
        if self.members():
            raise Problem(422, "there is nothing to be said in the body here")


Handler = Callable[[Call], Awaitable[Response]]


class _Bounds(Protocol):
    """Of a gateway's settings, those that bound how a body comes."""

    @property
    def body_timeout(self) -> float: ...


class BodyLimits:
    """
    The limits of bodies that are no events.

    Args:
        settings: says how long one may take.
        max_body_bytes: how long one may be.
    """

    max_event_bytes = 0
    max_batch_events = 0

    def __init__(self, settings: _Bounds, max_body_bytes: int) -> None:
        self.body_timeout = settings.body_timeout
        self.max_body_bytes = max_body_bytes


class Resource:
    """
    One path.

    Args:
        intake: whose budget bodies are accounted to.
        limits: how long a body may be and take.
        store: what it is that cannot be read or stored when a `StoreUnavailable` is raised.
        methods: the handler of each method; that of GET answers HEAD as well.

    Attributes:
        methods: those that there are.
    """

    def __init__(self, intake: Intake, limits: Limits, store: str, **methods: Handler) -> None:
        self._intake = intake
        self._limits = limits
        self._store = store
        self._handlers = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}
        self.methods = tuple(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise method_not_allowed(*self.methods)
        headers = dict(scope["headers"])
        if scope["method"] in _SAFE:
            response = await self._answer(handler, Call(scope, headers, receive=receive))
            await response(scope, receive, send)
            return
        body = Body(receive, self._intake, self._limits, caller_of(scope))
        try:
            content = await body.read(headers)
            response = await self._answer(handler, Call(scope, headers, content, receive))
        except Problem as problem:
            await refuse(problem, body, send)
        except ClientGone:
            pass
        else:
            await response(scope, receive, send)
        finally:
            body.release()

    async def _answer(self, handler: Handler, call: Call) -> Response:
        """
        Return what a handler answers.

        Raises:
            Problem: it refuses.
        """
        try:
            return await handler(call)
        except Invalid as invalid:
            members = {"pointer": invalid.pointer} if invalid.pointer else {}
            raise Problem(422, invalid.detail, members=members) from None
        except StoreUnavailable as error:
            detail = f"{self._store} cannot be read or stored at the moment"
            raise Problem(503, detail, retry_after=error.retry_after) from None
