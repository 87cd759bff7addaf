"""The gate before a small application: who comes in, by what, and how everybody else is turned away."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Scope
from starlette.websockets import WebSocket

from gateway.auth.authority import TICKET_SECONDS, Authority
from gateway.auth.caller import ANYBODY, CALLER, CORS, CREDENTIAL, Caller, caller_of
from gateway.auth.gate import COOKIE, Gate
from gateway.auth.origins import Origins
from gateway.auth.registry import Registry, StoredKey, new_key
from gateway.auth.sources import SharedKey
from gateway.auth.store import KEY, SqliteAccess
from gateway.auth.tokens import LEEWAY, MAX_TOKEN_BYTES
from gateway.problems import EXCEPTION_HANDLERS
from gateway.sqlite_consumers import SqliteConsumers
from tests.support.tokens import NOW, SECRET, spelled, token

APP: Final = "https://app.example.com"
EVIL: Final = "https://evil.example"
HOST: Final = "push.example.com"
STREAM: Final = ("accept", "text/event-stream")
UPGRADE: Final = (("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-key", "x"))
SAFETY: Final = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

REFUSED: Final = 'Bearer error="invalid_token"'
UNKNOWN: Final = "Bearer"

Given = tuple[str, str | bytes]


@dataclass
class Answer:
    """What came back: of an ASGI exchange, with header names in lower case and several values joined."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent: list[Message] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


# --- what is behind the gate


async def show(request: Request) -> JSONResponse:
    """Say who asks, and what can be seen of how they were let in."""
    caller: Caller | None = request.scope[CALLER]
    return JSONResponse(
        {
            "kind": None if caller is None else caller.kind.value,
            "subject": None if caller is None else caller.subject,
            "query": request.scope["query_string"].decode(),
            "credential": CREDENTIAL in request.scope,
            "cors": [name.decode() for name, _ in request.scope[CORS]],
        },
        headers={"vary": "accept"},
    )


async def talk(websocket: WebSocket) -> None:
    """Accept, and say who asks."""
    await websocket.accept()
    await websocket.send_json(
        {"subject": caller_of(websocket.scope).subject, "query": websocket.scope["query_string"].decode()}
    )
    await websocket.close()


async def page(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("page", headers={"x-frame-options": "SAMEORIGIN"})


def application() -> Starlette:
    """Return an application with endpoints of every kind of door, and one that nobody has thought about."""
    return Starlette(
        routes=[
            Route("/", page),
            *(
                Route(path, show, methods=["GET", "POST", "DELETE"])
                for path in (
                    "/healthz",
                    "/readyz",
                    "/v1/events",
                    "/v1/topics/{topic}",
                    "/v1/tickets",
                    "/v1/keys",
                    "/v1/requests/{name}:retry",
                    "/v1/requests/{name}",
                    "/metrics",
                    "/v1/new",
                )
            ),
            WebSocketRoute("/v1/events", talk),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )


class World:
    """
    A gate, and what it knows callers by.

    Attributes:
        now: what time it is.
        turned_away: how often, by status.
    """

    def __init__(self, store: SqliteAccess) -> None:
        self.now = NOW
        self.store = store
        self.authority = Authority([SharedKey(SECRET)], Registry(store), clock=lambda: self.now)
        self.turned_away: Counter[int] = Counter()
        self.gate = self.make(Origins((APP,), None))

    def make(self, origins: Origins, *, asks: bool = True) -> Gate:
        """Return a gate for other pages."""
        return Gate(application(), self.authority if asks else None, origins, self.turned_away)

    async def ask(
        self,
        path: str,
        *headers: Given,
        method: str = "GET",
        query: str = "",
        host: str | None = HOST,
        gate: Gate | None = None,
        root: str = "",
    ) -> Answer:
        """Make a request."""
        scope = scope_of(path, headers, query, host, root)
        scope.update({"type": "http", "method": method, "scheme": "http"})
        return answer_of(await exchange(gate or self.gate, scope, {"type": "http.request", "body": b""}))

    async def open(
        self,
        path: str,
        *headers: Given,
        query: str = "",
        host: str | None = HOST,
        responses: bool = True,
    ) -> Answer:
        """Open a WebSocket on a server that can, or cannot, answer a handshake with a response."""
        scope = scope_of(path, (*UPGRADE, *headers), query, host, "")
        scope.update({"type": "websocket", "scheme": "ws", "subprotocols": []})
        if responses:
            scope["extensions"] = {"websocket.http.response": {}}
        return answer_of(await exchange(self.gate, scope, {"type": "websocket.connect"}))


def scope_of(path: str, headers: Sequence[Given], query: str, host: str | None, root: str) -> Scope:
    given = [("host", host), *headers] if host is not None else headers
    return {
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "path": root + path,
        "raw_path": path.encode(),
        "root_path": root,
        "query_string": query.encode(),
        "headers": [
            (name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in given
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


async def exchange(gate: Gate, scope: Scope, first: Message) -> list[Message]:
    """Return what was sent to a client who says one thing and then leaves."""
    said, sent = [first], list[Message]()

    async def receive() -> Message:
        return said.pop() if said else {"type": f"{scope['type']}.disconnect", "code": 1001}

    async def send(message: Message) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    return sent


def answer_of(sent: list[Message]) -> Answer:
    start = next((each for each in sent if each["type"].endswith("response.start")), {})
    headers: dict[str, str] = {}
    for name, value in start.get("headers", ()):
        key, text = name.decode(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    body = b"".join(each.get("body", b"") for each in sent if each["type"].endswith("response.body"))
    return Answer(start.get("status", 0), headers, body, sent)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    file = SqliteConsumers(None)
    await file.start()
    made = World(SqliteAccess(file))
    await made.authority.start()
    yield made
    await file.close()


def bearer(claims: dict[str, Any] | None = None, scheme: str = "Bearer") -> Given:
    """Return the header of a good token."""
    return "authorization", f"{scheme} {token({'sub': 'ada', **(claims or {})})}"


def cookie(text: str | None = None) -> Given:
    """Return the header of a cookie with a good token, or with a text."""
    return "cookie", f"{COOKIE}={token({'sub': 'ada'}) if text is None else text}"


def check_refused(answer: Answer, status: int, challenge: str | None) -> None:
    """Check that nothing but a refusal came back, in the form of all others."""
    assert answer.status == status
    assert answer.headers.get("www-authenticate") == challenge
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["status"] == status
    assert SAFETY.items() <= answer.headers.items()


# --- tokens in the header


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_good_token_opens_the_door(world: World, scheme: str) -> None:
    """The scheme's name is spelled in any case (RFC 9110, 11.1); its caller is in the scope."""
    answer = await world.ask("/v1/events", bearer(scheme=scheme), query="topic=a")
    assert answer.status == 200
    assert answer.json == {
        "kind": "token",
        "subject": "ada",
        "query": "topic=a",
        "credential": True,
        "cors": [],
    }
    assert SAFETY.items() <= answer.headers.items()
    assert "content-security-policy" not in answer.headers
    assert world.turned_away == {}


async def test_spaces_around_a_token_do_no_harm(world: World) -> None:
    """One or more are between the scheme and it."""
    text = token({"sub": "ada"})
    assert (await world.ask("/v1/events", ("authorization", f"  Bearer   {text} "))).status == 200


async def test_an_api_key_opens_the_door(world: World) -> None:
    """It comes where a token does."""
    text, id, digest = new_key()
    stored = StoredKey(digest=digest, claims={"admin": True}, subject="service", created=NOW)
    await world.store.put(KEY, id, msgspec.json.encode(stored), 0)
    await world.authority.registry.follow()
    for path in ("/v1/events", "/metrics"):
        answer = await world.ask(path, ("authorization", f"Bearer {text}"))
        assert (answer.status, answer.json["kind"], answer.json["subject"]) == (200, "key", "service")
    check_refused(await world.ask("/v1/events", ("authorization", f"Bearer {text[:-1]}")), 401, REFUSED)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("authorization", "Basic YWRhOmh1c2g="),),
        (("authorization", "Digest username=ada"),),
        (("authorization", "Bearertoken"),),
        (("authorization", ""),),
        (("authorization", token()),),
        (("cookie", "a=b"),),
        (("cookie", f"{COOKIE}="),),
        (("cookie", COOKIE),),
        (("cookie", f"x{COOKIE}={token()}"),),
        (("x-authorization", f"Bearer {token()}"),),
    ],
    ids=[
        "nothing",
        "Basic",
        "Digest",
        "no space",
        "empty",
        "no scheme",
        "another cookie",
        "an empty cookie",
        "a cookie without a value",
        "a longer name",
        "another header",
    ],
)
async def test_who_does_not_say_who_they_are_is_asked(world: World, headers: Sequence[Given]) -> None:
    """Without an error code, as there was nothing that could be wrong (RFC 6750, 3.1)."""
    check_refused(await world.ask("/v1/events", *headers), 401, UNKNOWN)
    assert world.turned_away == {401: 1}


BAD: Final[dict[str, Sequence[Given]]] = {
    "no token": [("authorization", "Bearer")],
    "only spaces": [("authorization", "Bearer   ")],
    "two words": [("authorization", f"Bearer {token()} {token()}")],
    "garbage": [("authorization", "Bearer garbage")],
    "not ASCII": [("authorization", f"Bearer {token()}".encode() + b"\xe9")],
    "not UTF-8": [("authorization", b"Bearer \xff\xfe")],
    "a control character": [("authorization", f"Bearer {token()}\x00")],
    "too long": [("authorization", "Bearer " + token({"more": "x" * MAX_TOKEN_BYTES}))],
    "another secret": [("authorization", f"Bearer {token({}, 'x' * 32)}")],
    "expired": [("authorization", f"Bearer {token({'exp': NOW - LEEWAY})}")],
    "not yet": [("authorization", f"Bearer {token({'nbf': NOW + LEEWAY + 1})}")],
    "for somebody else": [("authorization", f"Bearer {token({'aud': 'other'})}")],
    "claims that are none": [("authorization", f"Bearer {token({'publish': 'a'})}")],
    "unsigned": [("authorization", f"Bearer {spelled({'alg': 'none'}, {'exp': NOW + 60})}")],
    "an unknown key": [("authorization", "Bearer sk_000000000000_x")],
    "the beginning of a key": [("authorization", "Bearer sk_")],
    "two": [bearer(), bearer()],
    "two, one of another scheme": [("authorization", "Basic x"), bearer()],
    "a cookie with garbage": [cookie("garbage")],
    "a cookie that is not ASCII": [cookie("%C3%A9")],
    "two cookies": [("cookie", f"{COOKIE}={token()}; {COOKIE}={token({'sub': 'eve'})}")],
}


@pytest.mark.parametrize("bad", BAD)
async def test_what_is_not_good_is_refused(world: World, bad: str) -> None:
    """Alike, whatever it is: who forges learns nothing, and what was sent is not repeated."""
    answer = await world.ask("/v1/events", *BAD[bad])
    check_refused(answer, 401, REFUSED)
    assert answer.json["detail"] == "the token is not good, or not good any more"
    assert world.turned_away == {401: 1}


# --- doors


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
@pytest.mark.parametrize("headers", [(), (("authorization", "Bearer garbage"),)], ids=["nobody", "garbage"])
async def test_what_is_open_is_open_to_everybody(world: World, path: str, headers: Sequence[Given]) -> None:
    """A bad token is not even looked at."""
    assert (await world.ask(path, *headers)).status == 200


async def test_readiness_tells_operators_more(world: World) -> None:
    """So it is told who asks, if they can be known; and nobody in particular is nobody, not anybody."""
    assert (await world.ask("/readyz", bearer())).json["subject"] == "ada"
    for headers in ([], [("authorization", "Bearer garbage")], [bearer(), bearer()]):
        answer = await world.ask("/readyz", *headers)
        assert (answer.status, answer.json["kind"]) == (200, None)


@pytest.mark.parametrize("path", ["/metrics", "/v1/keys", "/v1/requests/x:retry"])
async def test_operators_doors(world: World, path: str) -> None:
    """They open for the claim `admin`; others learn what is missing (RFC 6750, 3.1)."""
    answer = await world.ask(path, bearer({"publish": ["#"], "subscribe": ["#"]}), method="POST")
    check_refused(answer, 403, 'Bearer error="insufficient_scope"')
    assert (await world.ask(path, bearer({"admin": True}))).status == 200
    check_refused(await world.ask(path), 401, UNKNOWN)
    assert world.turned_away == {403: 1, 401: 1}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/new",
        "/v1/event",
        "/v1/events/",
        "//v1/events",
        "/V1/events",
        "/healthz/",
        "/v1",
        "",
        "*",
        "/metrics\n",
        "/v1/requests/x:retry\n",
        "/v1/events\n",
    ],
    ids=repr,
)
async def test_what_nobody_has_listed_is_not_there(world: World, path: str) -> None:
    """Also for operators, and also if it is; whoever is not known does not learn that."""
    check_refused(await world.ask(path, bearer({"admin": True}), method="POST"), 404, None)
    check_refused(await world.ask(path), 401, UNKNOWN)


async def test_the_doors_are_where_the_gateway_is_mounted(world: World) -> None:
    """A path is looked at without that under which the server, or another application, has put it."""
    assert (await world.ask("/healthz", root="/push")).status == 200
    check_refused(await world.ask("/metrics", root="/push"), 401, UNKNOWN)
    check_refused(
        await world.ask("/metrics", bearer(), root="/push"), 403, 'Bearer error="insufficient_scope"'
    )
    assert (await world.ask("/metrics", bearer({"admin": True}), root="/push")).status == 200
    check_refused(await world.ask("/push/healthz", root="/push"), 401, UNKNOWN)


async def test_a_gateway_that_asks_nobody(world: World) -> None:
    """Everybody may do anything, by any path that is there; a bad token is not looked at."""
    gate = world.make(Origins((), None), asks=False)
    for path in ("/v1/events", "/metrics", "/v1/new"):
        answer = await world.ask(path, ("authorization", "Bearer garbage"), gate=gate)
        assert (answer.status, answer.json["kind"]) == (200, ANYBODY.kind.value)
    assert (await world.ask("/none", gate=gate)).status == 404


# --- cookies


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 200),
        ((("sec-fetch-site", "same-origin"),), 200),
        ((("sec-fetch-site", "none"),), 200),
        ((("sec-fetch-site", "same-site"),), 401),
        ((("sec-fetch-site", "cross-site"),), 401),
        ((("origin", f"https://{HOST}"), ("sec-fetch-site", "same-origin")), 200),
        ((("origin", APP), ("sec-fetch-site", "cross-site")), 200),
        ((("origin", EVIL), ("sec-fetch-site", "cross-site")), 403),
        ((("origin", EVIL),), 403),
        ((("origin", "null"),), 403),
    ],
    ids=str,
)
async def test_a_cookie_counts_for_pages_of_ours(world: World, headers: Sequence[Given], status: int) -> None:
    """A browser sends it along for pages of everybody: those do not get in by it."""
    assert (await world.ask("/v1/events", cookie(), *headers)).status == status
    opened = await world.open("/v1/events", cookie(), *headers)
    assert (opened.sent[0]["type"] == "websocket.accept") == (status == 200)
    assert opened.status == (0 if status == 200 else status)


async def test_with_any_origin_cookies_do_not_count(world: World) -> None:
    """Where every page may ask, one brings a token of its own."""
    gate = world.make(Origins(("*",), None))
    check_refused(await world.ask("/v1/events", cookie(), ("origin", EVIL), gate=gate), 401, UNKNOWN)
    answer = await world.ask("/v1/events", bearer(), ("origin", EVIL), gate=gate)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "others",
    [
        "a=b; {}; c=d",
        "{};",
        '{{"json": [1]}}; {}',
        "a b; {}",
        "=; ; {}; é",
        'theirs="x; {}; y"',
        "a=b;{}",
        "{0}; {0}",
    ],
)
async def test_a_cookie_is_found_among_others(world: World, others: str) -> None:
    """Whatever else has cookies at this name, in whatever form."""
    header = others.format(f"{COOKIE}={token({'sub': 'ada'})}")
    answer = await world.ask("/v1/events", ("cookie", header))
    assert (answer.status, answer.json["subject"]) == (200, "ada")


async def test_a_header_goes_before_a_cookie(world: World) -> None:
    """Who says it in both, means the header: also if that is not good."""
    answer = await world.ask("/v1/events", bearer({"sub": "eve"}), cookie())
    assert answer.json["subject"] == "eve"
    check_refused(await world.ask("/v1/events", ("authorization", "Bearer x"), cookie()), 401, REFUSED)
    answer = await world.ask("/v1/events", ("authorization", "Basic x"), cookie())
    assert answer.json["subject"] == "ada"


async def test_what_changes_something_comes_from_our_own_pages(world: World) -> None:
    """Also from browsers that do not say of which origin a page is, only that it is another."""
    answer = await world.ask("/v1/topics/a", bearer(), ("sec-fetch-site", "cross-site"), method="POST")
    check_refused(answer, 403, None)
    answer = await world.ask("/v1/topics/a", bearer(), ("sec-fetch-site", "cross-site"))
    assert answer.status == 200


# --- tickets


async def ticket_of(world: World) -> str:
    return await world.authority.ticket(token({"sub": "ada"}))


@pytest.mark.parametrize("before", ["", "topic=a&"])
@pytest.mark.parametrize("after", ["", "&cursor=%2D1", "&=&"])
async def test_a_ticket_opens_a_stream_once(world: World, before: str, after: str) -> None:
    """For an EventSource, that cannot say more; nothing behind the gate sees it."""
    ticket = await ticket_of(world)
    query = f"{before}ticket={ticket}{after}"
    answer = await world.ask("/v1/events", STREAM, query=query)
    assert (answer.status, answer.json["subject"]) == (200, "ada")
    assert answer.json["query"] == "&".join(filter(None, [before[:-1], after[1:]]))
    check_refused(await world.ask("/v1/events", STREAM, query=query), 401, REFUSED)


async def test_a_ticket_opens_a_websocket_once(world: World) -> None:
    """The same, on servers that open WebSockets themselves and on those that do not."""
    ticket = await ticket_of(world)
    opened = await world.open("/v1/events", query=f"ticket={ticket}&topic=a")
    assert [each["type"] for each in opened.sent] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]
    assert json.loads(opened.sent[1]["text"]) == {"subject": "ada", "query": "topic=a"}
    check_refused(await world.open("/v1/events", query=f"ticket={ticket}&topic=a"), 401, REFUSED)
    ticket = await ticket_of(world)
    assert (await world.ask("/v1/events", *UPGRADE, query=f"ticket={ticket}")).json["subject"] == "ada"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/events", ()),
        ("/v1/events", (("accept", "application/x-ndjson"),)),
        ("/v1/events", (("accept", "*/*"),)),
        ("/v1/tickets", (STREAM,)),
        ("/metrics", (STREAM,)),
    ],
    ids=["poll", "NDJSON", "anything", "another path", "operators"],
)
async def test_a_ticket_opens_nothing_else(world: World, path: str, headers: Sequence[Given]) -> None:
    """What can send a header sends one. The ticket is good afterwards: nobody has taken it."""
    ticket = await ticket_of(world)
    check_refused(await world.ask(path, *headers, query=f"ticket={ticket}"), 401, UNKNOWN)
    assert (await world.ask("/v1/events", STREAM, query=f"ticket={ticket}")).status == 200


async def test_two_tickets_are_none(world: World) -> None:
    """It would not be clear who asks; and both can be used afterwards."""
    one, two = await ticket_of(world), await ticket_of(world)
    for query in (f"ticket={one}&ticket={two}", f"ticket={one}&ticket={one}", f"ticket=&ticket={one}"):
        check_refused(await world.ask("/v1/events", STREAM, query=query), 401, REFUSED)
    for each in (one, two):
        assert (await world.ask("/v1/events", STREAM, query=f"ticket={each}")).status == 200


@pytest.mark.parametrize("text", ["", "made-up", "x" * 1000, "%C3%A9", "%ff", "%00", "%F0%9F%98%80", "a b"])
async def test_what_is_no_ticket(world: World, text: str) -> None:
    """Is refused, like a used one."""
    check_refused(await world.ask("/v1/events", STREAM, query=f"ticket={text}"), 401, REFUSED)


async def test_a_ticket_is_no_better_than_its_token(world: World) -> None:
    """It is over when that is."""
    ticket = await world.authority.ticket(token({"sub": "ada", "exp": NOW + 5}))
    world.now = NOW + 5 + LEEWAY
    assert world.now < NOW + TICKET_SECONDS
    check_refused(await world.ask("/v1/events", STREAM, query=f"ticket={ticket}"), 401, REFUSED)


async def test_a_header_goes_before_a_ticket(world: World) -> None:
    """The ticket is not shown to anybody behind the gate, and not used up."""
    ticket = await ticket_of(world)
    answer = await world.ask("/v1/events", STREAM, bearer({"sub": "eve"}), query=f"topic=a&ticket={ticket}")
    assert (answer.json["subject"], answer.json["query"]) == ("eve", "topic=a")
    assert (await world.ask("/v1/events", STREAM, query=f"ticket={ticket}")).json["subject"] == "ada"


async def test_what_only_ends_like_a_ticket_is_something_else(world: World) -> None:
    """A parameter of another name, or a value with that text in it."""
    query = "mticket=1&topic=ticket=2"
    answer = await world.ask("/v1/events", STREAM, bearer(), query=query)
    assert (answer.status, answer.json["query"]) == (200, query)
    check_refused(await world.ask("/v1/events", STREAM, query=query), 401, UNKNOWN)


async def test_a_ticket_does_not_get_a_strangers_page_in(world: World) -> None:
    """Which page asks is looked at first."""
    ticket = await ticket_of(world)
    query = f"ticket={ticket}"
    check_refused(await world.ask("/v1/events", STREAM, ("origin", EVIL), query=query), 403, None)
    answer = await world.ask("/v1/events", STREAM, ("origin", APP), query=query)
    assert answer.status == 200


# --- WebSockets


async def test_a_handshake_is_refused_with_a_response(world: World) -> None:
    """On a server that can say so: the same as for any other request."""
    for answer, status, challenge in (
        (await world.open("/v1/events"), 401, UNKNOWN),
        (await world.open("/v1/events", ("authorization", "Bearer x")), 401, REFUSED),
        (await world.open("/v1/events", bearer(), ("origin", EVIL)), 403, None),
        (await world.open("/v1/new", bearer()), 404, None),
        (await world.open("/metrics", bearer()), 403, 'Bearer error="insufficient_scope"'),
    ):
        check_refused(answer, status, challenge)
        assert {each["type"] for each in answer.sent} == {
            "websocket.http.response.start",
            "websocket.http.response.body",
        }


async def test_a_handshake_is_refused_where_there_are_no_responses(world: World) -> None:
    """It is closed before it was opened, and the server answers 403."""
    answer = await world.open("/v1/events", responses=False)
    assert answer.sent == [{"type": "websocket.close", "code": 1008, "reason": "Unauthorized"}]
    answer = await world.open("/v1/events", bearer(), ("origin", EVIL), responses=False)
    assert answer.sent == [{"type": "websocket.close", "code": 1008, "reason": "Forbidden"}]


async def test_a_websocket_opens_for_a_token(world: World) -> None:
    """In the header, from a client that is no browser or from a listed page; what is sent is not touched."""
    for headers in ([bearer()], [bearer(), ("origin", APP)]):
        opened = await world.open("/v1/events", *headers)
        assert opened.sent[0]["type"] == "websocket.accept"
        assert opened.sent[0].get("headers", []) == []


# --- hosts, origins, and what is said to browsers


async def test_who_meant_somebody_else_is_misdirected(world: World) -> None:
    """A name that is not ours may be one that was made to lead here; nobody is asked who they are first."""
    gate = world.make(Origins((APP,), frozenset({HOST})), asks=False)
    check_refused(await world.ask("/v1/events", host="evil.example:8000", gate=gate), 421, None)
    check_refused(await world.ask("/healthz", host="evil.example", gate=gate), 421, None)
    for host in (HOST, f"{HOST}:8000", "127.0.0.1:8000", "[::1]:8000", "localhost", None):
        assert (await world.ask("/v1/events", host=host, gate=gate)).status == 200
    assert world.turned_away == {421: 2}


CROSS = {
    "access-control-allow-origin": APP,
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": "etag, location, retry-after",
}


async def test_a_listed_page_may_read_every_answer(world: World) -> None:
    """Also refusals, so that it can tell its user; caches keep the answers for pages apart."""
    answer = await world.ask("/v1/events", bearer(), ("origin", APP))
    assert answer.status == 200
    assert CROSS.items() <= answer.headers.items()
    assert answer.headers["vary"] == "accept, origin"
    assert set(answer.json["cors"]) == {*CROSS, "vary"}
    for refused, status in (
        (await world.ask("/v1/events", ("origin", APP)), 401),
        (await world.ask("/v1/events", ("authorization", "Bearer x"), ("origin", APP)), 401),
        (await world.ask("/metrics", bearer(), ("origin", APP)), 403),
        (await world.ask("/v1/none", bearer(), ("origin", APP)), 404),
        (await world.open("/v1/events", ("origin", APP)), 401),
    ):
        assert refused.status == status
        assert CROSS.items() <= refused.headers.items()
        assert refused.headers["vary"] == "origin"


async def test_a_strangers_page_may_read_nothing(world: World) -> None:
    """It is refused whoever its user is, and cannot even read that."""
    for method in ("GET", "POST", "OPTIONS"):
        for headers in ([], [bearer({"admin": True})], [cookie()]):
            answer = await world.ask("/v1/events", *headers, ("origin", EVIL), method=method)
            check_refused(answer, 403, None)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert EVIL not in str(answer.headers) + answer.body.decode()


async def test_a_preflight_needs_no_token(world: World) -> None:
    """A browser sends none with it. It is answered for every path, there or not."""
    ask = (("origin", APP), ("access-control-request-method", "POST"))
    more = ("access-control-request-headers", "authorization,content-type")
    for path in ("/v1/topics/a", "/metrics", "/v1/none"):
        answer = await world.ask(path, *ask, more, method="OPTIONS")
        assert (answer.status, answer.body) == (204, b"")
        assert CROSS.items() <= answer.headers.items()
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        assert answer.headers["vary"] == "origin"
        assert "content-length" not in answer.headers
    stranger = (("origin", EVIL), ask[1])
    check_refused(await world.ask("/v1/topics/a", *stranger, method="OPTIONS"), 403, None)


@pytest.mark.parametrize(
    "headers",
    [(("origin", APP),), (("access-control-request-method", "POST"),), ()],
    ids=["no method", "no origin", "neither"],
)
async def test_what_is_no_preflight_needs_one(world: World, headers: Sequence[Given]) -> None:
    """Only what a browser asks for a page is answered without knowing who asks."""
    check_refused(await world.ask("/v1/events", *headers, method="OPTIONS"), 401, UNKNOWN)


async def test_pages_are_kept_from_others(world: World) -> None:
    """A page loads nothing of strangers and is in no frame; what it says of itself is not overruled."""
    answer = await world.ask("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert SAFETY.items() <= answer.headers.items()
    assert "content-security-policy" in (await world.ask("/", root="/push")).headers
    assert "content-security-policy" not in (await world.ask("/healthz")).headers


async def test_what_is_no_request_passes(world: World) -> None:
    """The start and the end of the application have no caller."""
    seen = []

    async def app(scope: Scope, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    gate = Gate(app, world.authority, Origins((), None), Counter())
    await exchange(gate, {"type": "lifespan"}, {"type": "lifespan.startup"})
    assert seen == ["lifespan"]
