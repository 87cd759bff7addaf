"""
Attacks on a gateway that asks who its callers are: a table of what somebody might try, and the refusal.

Each is refused by the status that is due, in words that tell nothing: not why a token is bad, not what is
there for others. At the end all that a victim has is as it was, and the log has no token in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
import pytest_asyncio

from tests.support.bearer import ENVIRON, JSON, bearer, call
from tests.support.clients import Address, Refused, Response, fetch, open_subscriber, until
from tests.support.host import address_of
from tests.support.server import GatewayProcess
from tests.support.tokens import SECRET, b64, key_set, pair, spelled, token
from webhooks.signature import Scheme, new_secret

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

AUDIENCE, ISSUER = "gateway", "https://issuer.example"
EVENTS: Final = "/v1/events?topic=mine.a"
UNKNOWN: Final = "the token is not good, or not good any more"
NOBODY: Final = "say who you are, by a token"
GRANTS: Final[dict[str, Any]] = {
    "publish": ["mine.#"],
    "subscribe": ["mine.*", "mine.*.*"],
    "requests": ["reports"],
    "webhooks": True,
}


def claims(seconds: float = 600, **more: Any) -> dict[str, Any]:
    """Return the claims of the attacker's own token, which is good."""
    now = time.time()
    return {
        "sub": "mallory",
        "aud": AUDIENCE,
        "iss": ISSUER,
        "iat": int(now),
        "exp": now + seconds,
        **GRANTS,
        **more,
    }


def good(**more: Any) -> str:
    """Return a good token."""
    return token(claims(**more))


def without(name: str) -> str:
    """Return a token that lacks a claim."""
    return jwt.encode({key: value for key, value in claims().items() if key != name}, SECRET, "HS256")


def changed(**more: Any) -> str:
    """Return a good token with other claims behind the same signature."""
    head, _, signature = good().split(".")
    return f"{head}.{b64(json.dumps(claims(**more)))}.{signature}"


def signed(
    key: bytes, header: dict[str, Any], algorithm: str = "HS256", claimed: dict[str, Any] | None = None
) -> str:
    """Return a token signed by some bytes, as a forger's own code would."""
    head = b64(json.dumps({"typ": "JWT", "alg": algorithm, **header}))
    text = f"{head}.{b64(json.dumps(claimed or claims(admin=True)))}"
    return f"{text}.{b64(hmac.new(key, text.encode(), hashlib.sha256).digest())}"


RSA, EC, ED = pair("RS256", "rsa"), pair("ES256", "ec"), pair("EdDSA", "ed")
OTHER: Final = pair("RS256", "stranger")
HEAD: Final = {"alg": "HS256", "typ": "JWT"}

FORGED: Final[dict[str, Callable[[], str]]] = {
    "no algorithm": lambda: spelled({"alg": "none", "typ": "JWT"}, claims()),
    "no algorithm, in capitals": lambda: spelled({"alg": "NONE"}, claims()),
    "no algorithm, mixed": lambda: spelled({"alg": "nOnE"}, claims(), b"x"),
    "an empty algorithm": lambda: spelled({"alg": ""}, claims()),
    "a null algorithm": lambda: spelled({"alg": None}, claims()),
    "a list of algorithms": lambda: spelled({"alg": ["HS256"]}, claims()),
    "no header member": lambda: spelled({}, claims()),
    "no signature": lambda: good().rpartition(".")[0] + ".",
    "two parts": lambda: good().rpartition(".")[0],
    "four parts": lambda: good() + ".e30",
    "a signature cut short": lambda: good()[:-6],
    "another signature": lambda: spelled(HEAD, claims(), b"x" * 32),
    "more rights behind the same signature": lambda: changed(admin=True, subscribe=["#"]),
    "another subject behind the same signature": lambda: changed(sub="victim"),
    "another secret": lambda: token(claims(), "some other secret of at least 32 bytes"),
    "the secret in other letters": lambda: token(claims(), SECRET.upper()),
    "another length of hash": lambda: jwt.encode(claims(), SECRET * 2, "HS512"),
    "garbage": lambda: "garbage",
    "dots": lambda: "..",
    "no base64": lambda: "!!!.???.***",
    "huge": lambda: "a" * 20_000,
    "claims that are no object": lambda: spelled(HEAD, [1, 2], b"x"),
    "claims that are no JSON": lambda: spelled(HEAD, "{", b"x"),
    "deep claims": lambda: spelled(HEAD, "[" * 3000, b"x"),
    "signed by the RSA key's PEM": lambda: signed(RSA.pem, {"kid": "rsa"}),
    "signed by the RSA key's JWK": lambda: signed(json.dumps(RSA.public).encode(), {"kid": "rsa"}),
    "signed by the RSA key's modulus": lambda: signed(RSA.public["n"].encode(), {"kid": "rsa"}),
    "signed by the EC key's PEM": lambda: signed(EC.pem, {"kid": "ec"}),
    "signed by the Ed25519 key": lambda: signed(ED.public["x"].encode(), {"kid": "ed"}),
    "signed by nothing": lambda: signed(b"", {}),
    "an HMAC said to be RS256": lambda: signed(RSA.pem, {"kid": "rsa"}, "RS256"),
    "a key in the header": lambda: jwt.encode(
        claims(), OTHER.private, "RS256", {"jwk": OTHER.public, "kid": "stranger"}
    ),
    "an address of keys in the header": lambda: jwt.encode(
        claims(), OTHER.private, "RS256", {"jku": "http://127.0.0.1:1/keys", "kid": "stranger"}
    ),
    "a certificate in the header": lambda: jwt.encode(
        claims(), OTHER.private, "RS256", {"x5c": ["MIIB"], "kid": "rsa"}
    ),
    "a stranger's key under our name": lambda: jwt.encode(claims(), OTHER.private, "RS256", {"kid": "rsa"}),
    "a key of another algorithm": lambda: jwt.encode(claims(), EC.private, "ES256", {"kid": "rsa"}),
    "a path as the key's name": lambda: signed(b"", {"kid": "../../../../dev/null"}),
    "SQL as the key's name": lambda: token(claims(), "x" * 32, kid="' OR 1=1 --"),
    "a key's name that is a number": lambda: spelled({**HEAD, "kid": 1}, claims(), b"x"),
    "extensions to be understood": lambda: token(claims(), crit=["exp"]),
    "an unencoded payload": lambda: token(claims(), b64=False, crit=["b64"]),
    "another type": lambda: token(claims(), typ="secevent+jwt"),
}
"""Texts in place of a token."""

TIMES: Final[dict[str, Callable[[], str]]] = {
    "expired": lambda: good(seconds=-11),
    "expired long ago": lambda: good(exp=1),
    "no end": lambda: without("exp"),
    "a null end": lambda: good(exp=None),
    "an end in words": lambda: good(exp="tomorrow"),
    "a negative end": lambda: good(exp=-1),
    "an end beyond numbers": lambda: good(exp=10**400),
    "an end that is true": lambda: good(exp=True),
    "not yet": lambda: good(nbf=time.time() + 60),
    "a begin in words": lambda: good(nbf="now"),
    "another audience": lambda: good(aud="somebody-else"),
    "no audience": lambda: without("aud"),
    "a null audience": lambda: good(aud=None),
    "an audience that begins like ours": lambda: good(aud="gateway2"),
    "audiences without ours": lambda: good(aud=["a", "b"]),
    "an audience in an object": lambda: good(aud={"gateway": 1}),
    "another issuer": lambda: good(iss="https://evil.example"),
    "no issuer": lambda: without("iss"),
    "issuers": lambda: signed(SECRET.encode(), {}, claimed=claims(iss=[ISSUER])),
    "topics that are a text": lambda: good(publish="#"),
    "topics that are null": lambda: good(subscribe=None),
    "a topic that is none": lambda: good(subscribe=["a..b"]),
    "an admin in words": lambda: good(admin="true"),
    "a null tenant": lambda: good(tenant=None),
    "an empty tenant": lambda: good(tenant=""),
    "a tenant with a dot": lambda: good(tenant="victim.x"),
    "a tenant that is all": lambda: good(tenant="#"),
    "a tenant with a dollar": lambda: good(tenant="$tenant"),
    "an operator of a tenant": lambda: good(tenant="acme", admin=True),
    "a worker of a tenant": lambda: good(tenant="acme", work=["reports"]),
    "a subject with a line break": lambda: good(sub="a\nb"),
    "limits that are none": lambda: good(limits={"polls": "many"}),
    "unknown limits": lambda: good(limits={"everything": 1}),
}
"""Tokens that are signed well and no good."""


@dataclass
class Owned:
    """
    What somebody else has.

    Attributes:
        text: their token.
        request: handed in, and waiting.
        webhook: with a delivery that was made.
        removed: another webhook, which they removed.
        receiver: of the demo page.
    """

    text: str
    request: str = ""
    webhook: str = ""
    delivery: str = ""
    removed: str = ""
    receiver: str = ""

    async def make(self, gateway: Address) -> None:
        """Have all of it made."""
        self.receiver = f"/demo/receiver/of-{secrets.token_hex(8)}"
        wanted: dict[str, Any] = {
            "url": f"http://{gateway.host}:{gateway.port}{self.receiver}",
            "topics": ["victim.never"],
        }
        hook = (await call(gateway, "POST", "/v1/webhooks", self.text, wanted)).json
        self.webhook = hook["id"]
        assert (
            await call(gateway, "PUT", self.receiver, self.text, {"secret": hook["secret"]})
        ).status == 200
        wanted["topics"] = ["victim.removed"]
        removed = (await call(gateway, "POST", "/v1/webhooks", self.text, wanted)).json
        self.removed = removed["id"]
        assert (await call(gateway, "DELETE", f"/v1/webhooks/{self.removed}", self.text)).status == 204
        tested = await call(gateway, "POST", f"/v1/webhooks/{self.webhook}/test", self.text, {})
        self.delivery = tested.json["id"]
        await until(lambda: self._is_delivered(gateway), "the delivery arrived")
        asked = await call(gateway, "POST", "/v1/requests/reports", self.text, {"secret": "data"})
        self.request = asked.json["token"]

    async def _is_delivered(self, gateway: Address) -> bool:
        answer = await call(gateway, "GET", f"/v1/deliveries/{self.delivery}", self.text)
        return bool(answer.json["state"] == "delivered")

    async def all(self, gateway: Address) -> list[Any]:
        """Return all of it as its owner sees it now."""
        return [
            (await call(gateway, "GET", path, self.text)).json
            for path in (
                "/v1/webhooks",
                f"/v1/webhooks/{self.webhook}",
                f"/v1/webhooks/{self.webhook}/deliveries",
                f"/v1/webhooks/{self.webhook}/jobs",
                f"/v1/deliveries/{self.delivery}",
                f"/v1/deliveries/{self.delivery}/attempts",
                f"/v1/requests/{self.request}",
                "/v1/services",
                self.receiver,
            )
        ]


@dataclass
class Victim(Owned):
    """
    Somebody in the common space, and their neighbour.

    Attributes:
        key: of an API key.
        connection: an open one.
        tenant: what somebody has in the tenant `victim`.
    """

    key: dict[str, Any] = field(default_factory=dict)
    connection: str = ""
    tenant: Owned = field(default_factory=lambda: Owned(""))


@dataclass(frozen=True)
class Attack:
    """
    A request, and its refusal.

    Attributes:
        status: of that.
        method: of the request.
        path: of it; `{request}` and the like are the victim's, `{tenant.request}` its neighbour's.
        body: as JSON; None is none.
        grants: what the attacker's token grants; None is no token.
        headers: further ones.
    """

    status: int
    method: str
    path: str
    body: Any = None
    grants: dict[str, Any] | None = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()


def get(status: int, path: str, **more: Any) -> Attack:
    return Attack(status, "GET", path, **more)


def post(status: int, path: str, body: Any = None, **more: Any) -> Attack:
    return Attack(status, "POST", path, body, **more)


ALL: Final[dict[str, Any]] = {"publish": ["#"], "subscribe": ["#"], "requests": ["*"]}
ACME: Final[dict[str, Any]] = {**ALL, "tenant": "acme"}
HOOK: Final = {"url": "http://127.0.0.1:8080/", "topics": ["mine.a"]}
COOKIE: Final = ("Cookie", "sluice_token={good}")
STREAM: Final = ("Accept", "text/event-stream")
FOREIGN: Final = ("Origin", "https://evil.example")


def at_what_is_of(whose: str, of: str, grants: dict[str, Any], who: str) -> dict[str, Attack]:
    """Return attacks at all that somebody has by somebody who may not know of it, whatever their name is."""
    hook, delivery = f"/v1/webhooks/{{{of}webhook}}", f"/v1/deliveries/{{{of}delivery}}"
    attacks = [
        get(404, hook),
        Attack(404, "PATCH", hook, {"topics": ["mine.a"]}),
        Attack(404, "PATCH", hook, {"url": "http://127.0.0.1:8080/mine"}),
        Attack(404, "DELETE", hook),
        Attack(404, "DELETE", f"/v1/webhooks/{{{of}removed}}"),
        get(404, f"{hook}/deliveries"),
        get(404, f"{hook}/jobs"),
        post(404, f"{hook}/secret:rotate", {}),
        post(404, f"{hook}/test", {}),
        post(404, f"{hook}:pause"),
        post(404, f"{hook}:resume"),
        post(404, f"{hook}:enable", {"held": "skip"}),
        post(404, f"{hook}/recover", {"since": "2020-01-01T00:00:00Z"}),
        get(404, delivery),
        get(404, f"{delivery}/attempts"),
        post(404, f"{delivery}:retry"),
        get(404, f"{{{of}receiver}}"),
        Attack(409, "PUT", f"{{{of}receiver}}", {"secret": new_secret(Scheme.V1).text}),
    ]
    if "tenant" in grants or of:
        path = f"/v1/requests/{{{of}request}}"
        attacks += [get(404, path), Attack(404, "DELETE", path)]
    return {
        f"{whose}: {number} {each.method} {each.path.partition('}')[2] or 'itself'} by {who}": replace(
            each, grants=grants
        )
        for number, each in enumerate(attacks)
    }


def table(*parts: dict[str, Attack]) -> dict[str, Attack]:
    """Return one table; no attack of a part is lost behind one of the same name."""
    whole = {name: attack for part in parts for name, attack in part.items()}
    assert len(whole) == sum(map(len, parts))
    return whole


SINGLE: Final[dict[str, Attack]] = {
    # Without a token, or with one where none is looked for.
    "nobody listens": get(401, EVENTS, grants=None),
    "nobody publishes": post(401, "/v1/events", {"topic": "mine.a"}, grants=None),
    "nobody publishes to a topic": post(401, "/v1/topics/mine.a", 1, grants=None),
    "nobody asks": post(401, "/v1/requests/reports", 1, grants=None),
    "nobody has webhooks": post(401, "/v1/webhooks", HOOK, grants=None),
    "nobody gets a ticket": post(401, "/v1/tickets", grants=None),
    "nobody gets a cookie": post(401, "/v1/session", grants=None),
    "a token in the query": get(401, EVENTS + "&token={good}", grants=None),
    "an access token in the query": get(401, EVENTS + "&access_token={good}", grants=None),
    "a token by Basic": get(401, EVENTS, grants=None, headers=(("Authorization", "Basic bWFsbG9yeTp4"),)),
    "a scheme alone": get(401, EVENTS, grants=None, headers=(("Authorization", "Bearer"),)),
    "two tokens": get(401, EVENTS, headers=(("Authorization", "Bearer x"),)),
    "a cookie of another name": get(401, EVENTS, grants=None, headers=(("Cookie", "token={good}"),)),
    "a token in a header of its own": get(401, EVENTS, grants=None, headers=(("X-Token", "{good}"),)),
    # Patterns that are wider than what is granted.
    "everything": get(403, "/v1/events?topic=%23"),
    "one more word": get(403, "/v1/events?topic=mine.*.*.*"),
    "any number of words": get(403, "/v1/events?topic=mine.%23"),
    "any first word": get(403, "/v1/events?topic=*.a"),
    "the word itself": get(403, "/v1/events?topic=mine"),
    "words around": get(403, "/v1/events?topic=%23.a"),
    "granted and not": get(403, "/v1/events?topic=mine.a&topic=victim.a"),
    "not and granted": get(403, "/v1/events?topic=victim.a&topic=mine.a"),
    "reserved": get(403, "/v1/events?topic=$sluice.a", grants=ALL),
    "reserved, all": get(403, "/v1/events?topic=$tenant.%23", grants=ALL),
    "a look-alike": get(403, "/v1/events?topic=m%D1%96ne.a"),
    "other letters": get(403, "/v1/events?topic=MINE.a"),
    "an empty word": get(422, "/v1/events?topic=mine..a"),
    "a line break": get(422, "/v1/events?topic=mine.a%0A"),
    "publish elsewhere": post(403, "/v1/events", {"topic": "victim.a", "data": "attack"}),
    "publish elsewhere, by path": post(403, "/v1/topics/victim.a", "attack"),
    "publish elsewhere, encoded": post(403, "/v1/topics/victim%2Ea", "attack"),
    "publish one of two elsewhere": post(
        403, "/v1/events", [{"topic": "mine.a"}, {"topic": "victim.a", "data": "attack"}]
    ),
    "publish what is reserved": post(403, "/v1/events", {"topic": "$sluice.a"}, grants=ALL),
    "publish as a request": post(
        403, "/v1/events", {"topic": "requests.rq_aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "data": {"state": "done"}}
    ),
    "publish a type of the gateway's own": post(
        422,
        "/v1/events",
        {"topic": "requests.rq_aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "type": "sluice.request"},
        grants=ALL,
    ),
    "a CloudEvent elsewhere": post(
        403,
        "/v1/events",
        {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "subject": "victim.a", "data": 1},
        headers=(("Content-Type", "application/cloudevents+json"),),
    ),
    # What is not granted at all.
    "no requests": post(403, "/v1/requests/reports", 1, grants={"requests": []}),
    "another service": post(403, "/v1/requests/mail", 1),
    "a service that is not there": post(403, "/v1/requests/nothing", 1),
    "no work": post(403, "/v1/services/reports:lease", {"worker": "w"}),
    "work for another": post(403, "/v1/services/reports:lease", {"worker": "w"}, grants={"work": ["mail"]}),
    "a lease made up": post(403, "/v1/leases/made-up:complete", {"result": 1}),
    "no webhooks": post(403, "/v1/webhooks", HOOK, grants={"webhooks": False}),
    "no webhooks to be seen": get(403, "/v1/webhooks", grants={"webhooks": False}),
    "a webhook for more": post(403, "/v1/webhooks", {**HOOK, "topics": ["mine.#"]}),
    "a webhook for all": post(403, "/v1/webhooks", {**HOOK, "topics": ["#"]}),
    "a webhook for the victim's": post(403, "/v1/webhooks", {**HOOK, "topics": ["mine.a", "victim.a"]}),
    # What is somebody else's.
    "a request without the right to any": get(404, "/v1/requests/{request}", grants={"requests": []}),
    "a request made up": get(404, "/v1/requests/rq_aaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    # Out of a tenant.
    "another tenant's topic": get(403, "/v1/events?topic=$tenant.victim.%23", grants=ACME),
    "its own, by the gateway's spelling": get(403, "/v1/events?topic=$tenant.acme.%23", grants=ACME),
    "another tenant published to": post(403, "/v1/events", {"topic": "$tenant.victim.a"}, grants=ACME),
    "up and out": get(422, "/v1/events?topic=..victim.a", grants=ACME),
    "a tenant's webhook outside": post(
        403, "/v1/webhooks", {**HOOK, "topics": ["$tenant.victim.#"]}, grants={**ACME, "webhooks": True}
    ),
    "everything is not the tenants'": get(403, "/v1/events?topic=$tenant.acme.a", grants=ALL),
    # From a page.
    "a page of another origin": get(403, EVENTS, headers=(FOREIGN,)),
    "a page publishes": post(403, "/v1/events", {"topic": "mine.a"}, headers=(FOREIGN,)),
    "no origin": get(403, EVENTS, headers=(("Origin", "null"),)),
    "an allowed origin as a prefix": get(403, EVENTS, headers=(("Origin", "https://app.example.evil"),)),
    "a part of an allowed origin": get(403, EVENTS, headers=(("Origin", "https://sub.app.example"),)),
    "an allowed origin by http": get(403, EVENTS, headers=(("Origin", "http://app.example"),)),
    "an allowed origin at a port": get(403, EVENTS, headers=(("Origin", "https://app.example:8443"),)),
    "our name at another port": get(403, EVENTS, headers=(("Origin", "http://localhost:1"),)),
    "a cookie from another site": get(
        401,
        EVENTS,
        grants=None,
        headers=(COOKIE, ("Sec-Fetch-Site", "cross-site")),
    ),
    "a cookie from a foreign page": post(
        403,
        "/v1/events",
        {"topic": "mine.a"},
        grants=None,
        headers=(COOKIE, FOREIGN),
    ),
    "a form with the cookie": post(
        403,
        "/v1/topics/mine.a",
        1,
        grants=None,
        headers=(COOKIE, ("Sec-Fetch-Site", "same-site")),
    ),
    "a preflight of a foreign page": Attack(
        403, "OPTIONS", "/v1/events", headers=(FOREIGN, ("Access-Control-Request-Method", "POST"))
    ),
    # Tickets and keys.
    "a ticket made up": get(401, EVENTS + "&ticket=made-up", grants=None, headers=(STREAM,)),
    "a ticket for a poll": get(401, EVENTS + "&ticket={ticket}", grants=None),
    "a ticket for another path": get(401, "/v1/requests/x?ticket={ticket}", grants=None, headers=(STREAM,)),
    "a ticket to publish": post(401, "/v1/events?ticket={ticket}", {"topic": "mine.a"}, grants=None),
    "a ticket twice": get(
        401,
        EVENTS + "&ticket={ticket}&ticket={ticket}",
        grants=None,
        headers=(STREAM,),
    ),
    "a ticket as a token": get(401, EVENTS, grants=None, headers=(("Authorization", "Bearer {ticket}"),)),
    "a key's name alone": get(401, EVENTS, grants=None, headers=(("Authorization", "Bearer sk_{key}"),)),
    "a key with another secret": get(
        401, EVENTS, grants=None, headers=(("Authorization", "Bearer sk_{key}_" + "x" * 43),)
    ),
    "a key that is none": get(401, EVENTS, grants=None, headers=(("Authorization", "Bearer sk_"),)),
    # The doors of operators.
    **{
        f"{method} {path} by {who}": Attack(status, method, path, body, grants)
        for method, path, body in (
            ("GET", "/metrics", None),
            ("GET", "/v1/connections", None),
            ("GET", "/v1/topics", None),
            ("GET", "/v1/replicas", None),
            ("GET", "/v1/ring", None),
            ("GET", "/v1/requests", None),
            ("POST", "/v1/requests/{request}:retry", None),
            ("GET", "/v1/keys", None),
            ("POST", "/v1/keys", {"subject": "mallory", "claims": {"admin": True}}),
            ("DELETE", "/v1/keys/{key}", None),
            ("GET", "/v1/revocations", None),
            ("POST", "/v1/revocations", {"subject": "victim"}),
        )
        for who, grants, status in (("nobody", None, 401), ("somebody", {}, 403), ("a tenant", ACME, 403))
    },
    "two slashes": get(404, "//v1/keys"),
    "a slash behind": get(403, "/v1/keys/"),
    "capitals": get(404, "/V1/KEYS"),
    "a dot": get(404, "/v1/./keys"),
    "an encoded slash": get(403, "/v1%2Fkeys"),
    "a semicolon": get(404, "/v1/keys;x"),
    "a line break behind": get(404, "/v1/keys%0A"),
    "retry behind a line break": post(404, "/v1/requests/{request}:retry%0A"),
    "HEAD": Attack(403, "HEAD", "/v1/keys"),
    "another method": Attack(403, "PUT", "/v1/keys"),
    "a path that is not there": get(404, "/v1/secrets"),
    "the victim's connection": post(404, "/v1/connections/{connection}/token", {"token": "{good}"}),
    "a page token of nobody's": get(422, "/v1/webhooks?page=made-up"),
}
TRIED: Final = table(
    at_what_is_of("the victim's", "", {}, "somebody"),
    at_what_is_of("the victim's", "", ACME, "a tenant"),
    at_what_is_of("a tenant's", "tenant.", ALL, "somebody"),
    at_what_is_of("a tenant's", "tenant.", ACME, "another tenant"),
    at_what_is_of("a tenant's", "tenant.", {**ACME, "tenant": "victim2"}, "a tenant of a like name"),
    SINGLE,
)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_bytes(key_set(RSA.public, EC.public, ED.public))
    with GatewayProcess(
        environ=ENVIRON,
        jwks=keys,
        jwt_audience=AUDIENCE,
        jwt_issuer=ISSUER,
        services="reports,mail",
        origins="https://app.example",
        webhooks_allow="127.0.0.0/8",
        log_level="debug",
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def gateway(process: GatewayProcess) -> Address:
    return address_of(process)


OPERATOR: Final = good(sub="operator", admin=True, subscribe=["#"], seconds=3600)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def victim(gateway: Address) -> AsyncIterator[Victim]:
    """Somebody with much, and a neighbour in a tenant; all of it is as it was at the end, and the log too."""
    one, neighbour = (
        good(sub="victim", publish=["victim.#"], subscribe=["victim.#"], seconds=3600, **more)
        for more in ({}, {"tenant": "victim"})
    )
    victim = Victim(one, tenant=Owned(neighbour))
    await victim.make(gateway)
    await victim.tenant.make(gateway)
    wanted = {"subject": "victim", "claims": {"subscribe": ["victim.#"]}}
    victim.key = (await call(gateway, "POST", "/v1/keys", OPERATOR, wanted)).json
    before = [await victim.all(gateway), await victim.tenant.all(gateway), await what_is_there(gateway)]
    async with open_subscriber(
        gateway, "websocket", "victim.#", headers=[bearer(one)], welcomed=False
    ) as reader:
        victim.connection = (await reader.control("welcome"))["connection"]
        yield victim
        after = [await victim.all(gateway), await victim.tenant.all(gateway), await what_is_there(gateway)]
        assert after == before
        published = await call(gateway, "POST", "/v1/events", one, {"topic": "victim.a", "data": "mine"})
        assert published.status == 202
        assert await reader.data(1) == ["mine"], "something of the attacker's came before"
        assert await what_is_there(gateway) != before[-1], "an event more would have been seen"
    assert (await call(gateway, "GET", "/v1/events?topic=victim.a", victim.key["key"])).status == 200


async def what_is_there(gateway: Address) -> list[Any]:
    """Return what operators see of everybody: the head of the log, and all that somebody could have made."""
    head = (await call(gateway, "GET", "/v1/events?topic=%23&cursor=latest", OPERATOR)).json["cursor"]
    lists = [
        (await call(gateway, "GET", path, OPERATOR)).json
        for path in ("/v1/webhooks?limit=1000", "/v1/requests", "/v1/services", "/v1/keys", "/v1/revocations")
    ]
    assert [len(each) for each in lists] == [1] * len(lists), "each is whole"
    return [head, *lists]


def check_says_nothing(answer: Response, *secrets: str) -> None:
    """Check that a refusal has nothing in it that its reader did not know."""
    text = answer.body.decode()
    for each in (*secrets, "Traceback", "signature", "kid", "/work", "sqlite"):
        assert each not in text, text
    if answer.status == 401:
        assert answer.problem["detail"] in (UNKNOWN, NOBODY)
        wanted = 'Bearer error="invalid_token"' if answer.problem["detail"] == UNKNOWN else "Bearer"
        assert answer.head["www-authenticate"] == wanted


async def test_there_are_enough(gateway: Address) -> None:
    """There are eighty and more; and with the secret, what the forger makes would be good."""
    answer = await fetch(gateway, EVENTS, headers=[bearer(signed(SECRET.encode(), {}, claimed=claims()))])
    assert answer.status == 200
    assert len(FORGED) + len(TIMES) + len(TRIED) >= 290


@pytest.mark.parametrize("made", [*FORGED, *TIMES])
async def test_what_is_no_token_opens_nothing(gateway: Address, victim: Victim, made: str) -> None:
    """Neither by a header, nor by a cookie, nor in a message; and all are refused in the same words."""
    text = {**FORGED, **TIMES}[made]()
    answers = [
        await fetch(gateway, EVENTS, headers=[bearer(text)]),
        await fetch(gateway, "/v1/keys", headers=[bearer(text)]),
        await fetch(gateway, EVENTS, headers=[("Cookie", f"sluice_token={text}")]),
    ]
    for answer in answers:
        assert answer.status == 401, answer
        assert answer.problem["detail"] == UNKNOWN
        check_says_nothing(answer, text)
    own = good()
    async with open_subscriber(gateway, "websocket", headers=[bearer(own)]) as reader:
        refused = await reader.ask({"op": "auth", "token": text})
        assert (refused["status"], refused["detail"]) == (401, UNKNOWN)


@pytest.mark.parametrize("tried", TRIED)
async def test_what_is_tried_is_refused(gateway: Address, victim: Victim, tried: str) -> None:
    """By the status that is due, and in words that tell nothing."""
    attack = TRIED[tried]
    own = good()
    ticket = ""
    if "{ticket}" in repr(attack):
        ticket = (await call(gateway, "POST", "/v1/tickets", own)).json["ticket"]

    def filled(text: str) -> str:
        for name, value in {"good": own, "ticket": ticket, "key": victim.key["id"]}.items():
            text = text.replace(f"{{{name}}}", value)
        for prefix, of in (("tenant.", victim.tenant), ("", victim)):
            for name in re.findall(rf"{{{prefix}([a-z]+)}}", text):
                text = text.replace(f"{{{prefix}{name}}}", getattr(of, name))
        return text

    headers = [(name, filled(value)) for name, value in attack.headers]
    if attack.grants is not None:
        headers.append(bearer(good(**attack.grants)))
    if attack.body is not None and not any(name == "Content-Type" for name, _ in headers):
        headers.append(JSON)
    body = None if attack.body is None else filled(json.dumps(attack.body)).encode()
    answer = await fetch(gateway, filled(attack.path), headers=headers, method=attack.method, body=body)
    assert answer.status == attack.status, answer
    if attack.method not in ("HEAD", "OPTIONS"):
        hidden = () if "$tenant" in repr(attack) else ("$tenant",)
        owned = [victim.text[:60], victim.tenant.text[:60], "secret", "victim.never", "victim.removed"]
        check_says_nothing(answer, own, *owned, *hidden)
    if FOREIGN in attack.headers:
        assert "access-control-allow-origin" not in answer.head


async def test_lists_have_nothing_of_others(gateway: Address, victim: Victim) -> None:
    """Not even that there is more; and whose name somebody has takes nothing away that is another's."""
    for grants in ({}, ALL, ACME, {**ACME, "tenant": "victim2"}):
        own = good(**grants)
        sees_victim = grants == ALL  # who may listen to everything in the common space
        listed = (await call(gateway, "GET", "/v1/webhooks?limit=1", own)).json
        assert [each["id"] for each in listed.pop("webhooks")] == ([victim.webhook] if sees_victim else [])
        assert listed == {}
        services = (await call(gateway, "GET", "/v1/services", own)).json["services"]
        assert {tuple(each) for each in services} == {("service",)}
        for receiver in (victim.receiver, victim.tenant.receiver):
            # As one that is not there: the check at the end finds that it was not.
            assert (await call(gateway, "DELETE", receiver, own)).status == 204


SAID: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "all": ({"op": "subscribe", "topic": "#"}, 403),
    "the victim's": ({"op": "subscribe", "topics": ["mine.a", "victim.a"]}, 403),
    "reserved": ({"op": "subscribe", "topic": "$tenant.#"}, 403),
    "take away what is not had": ({"op": "unsubscribe", "topic": "victim.a"}, 403),
    "publish elsewhere": ({"op": "publish", "topic": "victim.a", "data": "attack"}, 403),
    "publish what is reserved": ({"op": "publish", "topic": "$sluice.a"}, 403),
    "acknowledge": ({"op": "ack", "cursor": "aaaaaa-1-0000"}, 422),
    "nothing for a token": ({"op": "auth", "token": ""}, 401),
    "the victim's token": ({"op": "auth", "token": "{victim}"}, 403),
    "no operation": ({"op": "admin"}, 422),
}


@pytest.mark.parametrize("said", SAID)
async def test_what_is_said_on_a_websocket_is_refused(gateway: Address, victim: Victim, said: str) -> None:
    """The connection goes on as it was."""
    operation, status = SAID[said]
    operation = {name: victim.text if value == "{victim}" else value for name, value in operation.items()}
    async with open_subscriber(gateway, "websocket", "mine.a", headers=[bearer(good())]) as reader:
        answer = await reader.ask(operation)
        assert (answer["control"], answer["status"]) == ("error", status)
        assert (await reader.ask({"op": "ping"}))["control"] == "pong"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://app.example.evil", "http://localhost:1"]
)
async def test_a_foreign_page_opens_no_websocket(gateway: Address, victim: Victim, origin: str) -> None:
    """Whatever token it has."""
    with pytest.raises(Refused) as refused:
        async with open_subscriber(
            gateway, "websocket", "mine.a", headers=[bearer(good()), ("Origin", origin)]
        ):
            pass
    assert refused.value.response.status == 403


async def test_a_ticket_is_used_once(gateway: Address, victim: Victim) -> None:
    """Whoever saw it in a log comes too late, also at the same moment."""
    ticket = (await call(gateway, "POST", "/v1/tickets", good())).json["ticket"]
    async with open_subscriber(gateway, "sse", "mine.a", ticket=ticket):
        for transport in ("sse", "websocket"):
            with pytest.raises(Refused) as refused:
                async with open_subscriber(gateway, transport, "mine.a", ticket=ticket):
                    pass
            assert refused.value.response.status == 401


async def test_the_log_has_no_token_in_it(process: GatewayProcess, gateway: Address, victim: Victim) -> None:
    """Neither a good one nor a bad one, at any level."""
    own = good()
    await fetch(gateway, EVENTS, headers=[bearer(own)])
    await fetch(gateway, EVENTS, headers=[bearer(own[:-4] + "xxxx")])
    ticket = (await call(gateway, "POST", "/v1/tickets", own)).json["ticket"]
    async with open_subscriber(gateway, "sse", "mine.a", ticket=ticket):
        pass
    said = process.log_text()
    assert "auth.refused" in said
    for secret in (own[:60], ticket, victim.text[:60], victim.key["key"], SECRET, OPERATOR[-20:]):
        assert secret not in said
