"""What a token grants: the claims it is read from, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fanout.errors import ClaimError, TopicError
from fanout.grants import MAX_PATTERNS, MAX_REMEMBERED, MAX_SERVICES, AllGrants, Grants, Limits
from fanout.topics import MAX_TOPIC_BYTES, matches


def test_no_claims_grant_nothing() -> None:
    """A token that says nothing may do nothing; other claims are passed over."""
    grants = Grants.of({"sub": "u", "exp": 1, "scope": "all", "Publish": ["#"]})
    assert grants.publishing("a") is None
    assert grants.subscribing("a") is None
    assert not grants.may_request("reports")
    assert not grants.admin
    assert grants.tenant is None
    assert grants.limits == Limits()


def test_all_claims() -> None:
    """Each claim is read."""
    grants = Grants.of(
        {
            "publish": ["a.*"],
            "subscribe": ["b.#", "c"],
            "requests": ["reports", "v1.mail-out"],
            "history": 60,
            "admin": False,
            "limits": {"connections": 3, "publish_rate": 0.5, "polls": 2},
            "tenant": "acme",
        }
    )
    assert grants.publishing("a.1") == "$tenant.acme.a.1"
    assert grants.subscribing("b.*.x") == "$tenant.acme.b.*.x"
    assert grants.may_request("v1.mail-out")
    assert grants.history == 60.0
    assert grants.limits == Limits(connections=3, publish_rate=0.5, polls=2)
    assert grants.tenant == "acme"
    assert Grants.of({"admin": True}).admin


@pytest.mark.parametrize(
    ("claims", "claim", "said"),
    [
        ([], "", "object"),
        ("publish", "", "object"),
        ({1: 2}, "", "str"),
        ({"\ud800": 1}, "", "surrogate"),
        ({"limits": {"\ud800": 1}}, "", "surrogate"),
        ({"limits": {"polls": "\ud800"}}, "", "surrogate"),
        ({"publish": "a"}, "publish", "array"),
        ({"publish": None}, "publish", "null"),
        ({"publish": [1]}, "publish[0]", "str"),
        ({"publish": {"a": 1}}, "publish", "array"),
        ({"publish": ["a", ""]}, "publish[1]", "is empty"),
        ({"publish": ["a."]}, "publish[0]", "empty word"),
        ({"subscribe": ["a", "b*"]}, "subscribe[1]", "wildcard"),
        ({"subscribe": ["a\nb"]}, "subscribe[0]", "U+000A"),
        ({"subscribe": ["a\ud800"]}, "subscribe[0]", "U+D800"),
        ({"subscribe": ["a" * 256]}, "subscribe[0]", "255"),
        ({"subscribe": ["a"] * (MAX_PATTERNS + 1)}, "subscribe", str(MAX_PATTERNS)),
        ({"publish": ["a"] * (MAX_PATTERNS + 1)}, "publish", str(MAX_PATTERNS)),
        ({"requests": ["a"] * (MAX_SERVICES + 1)}, "requests", str(MAX_SERVICES)),
        ({"requests": ["a/b"]}, "requests[0]", "no name of a service"),
        ({"requests": ["a*"]}, "requests[0]", "no name of a service"),
        ({"requests": ["a\n"]}, "requests[0]", "no name of a service"),
        ({"history": -1}, "history", "seconds"),
        ({"history": 10**12}, "history", "seconds"),
        ({"history": 10**400}, "history", "out of range"),
        ({"history": math.nan}, "history", "seconds"),
        ({"history": math.inf}, "history", "seconds"),
        ({"history": "60"}, "history", "float"),
        ({"history": True}, "history", "float"),
        ({"history": None}, "history", "null"),
        ({"admin": 1}, "admin", "bool"),
        ({"admin": "true"}, "admin", "bool"),
        ({"admin": True, "tenant": "acme"}, "admin", "tenant"),
        ({"work": ["a"], "tenant": "acme"}, "work", "tenant"),
        ({"work": ["a/b"]}, "work[0]", "no name of a service"),
        ({"work": "a"}, "work", "array"),
        ({"webhooks": 1}, "webhooks", "bool"),
        ({"limits": []}, "limits", "object"),
        ({"limits": {"conections": 3}}, "limits", "conections"),
        ({"limits": {"connections": 0}}, "limits.connections", ">= 1"),
        ({"limits": {"connections": 1.5}}, "limits.connections", "int"),
        ({"limits": {"connections": True}}, "limits.connections", "int"),
        ({"limits": {"connections": 2**63}}, "limits.connections", "<="),
        ({"limits": {"connections": None}}, "limits.connections", "null"),
        ({"limits": {"polls": 0}}, "limits.polls", "> 0"),
        ({"limits": {"polls": math.nan}}, "limits.polls", "> 0"),
        ({"limits": {"polls": math.inf}}, "limits.polls", "<="),
        ({"limits": {"x\r\n\u2028" * 100: 1}}, "limits", "unknown"),
        ({"tenant": None}, "tenant", "null"),
        ({"tenant": 5}, "tenant", "str"),
        *(
            ({"tenant": name}, "tenant", "no name")
            for name in ("", ".", "a.b", "*", "#", "a b", "é", "a\n", "-a", "$a", "a" * 65, "a\x1fb")
        ),
    ],
)
def test_what_is_no_claim(claims: Any, claim: str, said: str) -> None:
    """A claim of another form is refused with its name, in one short line of plain ASCII."""
    with pytest.raises(ClaimError) as refused:
        Grants.of(claims)
    assert refused.value.claim == claim
    assert claim in str(refused.value)
    assert said in str(refused.value)
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("granted", "asked", "given"),
    [
        (["a.*"], "a.*", True),
        (["a.*"], "a.b", True),
        (["a.*"], "a.#", False),
        (["a.*"], "*.b", False),
        (["a.*"], "#", False),
        (["a.#"], "a", True),
        (["*", "*.*.#"], "#", True),
        (["#"], "*.a.#", True),
        # reserved topics
        (["#"], "$webhooks.#", False),
        (["*.#"], "$webhooks.endpoint.gone", False),
        (["*"], "$x", False),
        (["$webhooks.#"], "$webhooks.*", True),
        (["$webhooks.#"], "$webhooks.#", True),
        (["$webhooks.#"], "$tenant.acme.a", False),
        (["$webhooks.#"], "#", False),
        (["#", "$webhooks.#"], "$tenant.#", False),
        (["$a.b", "#"], "$a.*", False),
        (["#"], "a.$b", True),
    ],
)
@pytest.mark.parametrize("tenant", [None, "acme"])
def test_what_is_granted(granted: list[str], asked: str, given: bool, tenant: str | None) -> None:
    """A pattern is granted as a whole or not at all, and reserved topics by their spelling only."""
    grants = Grants(subscribe=granted, publish=granted, tenant=tenant)
    given = given and not (tenant and asked.startswith("$"))
    assert (grants.subscribing(asked) is not None) == given
    if "*" not in asked and "#" not in asked:
        assert (grants.publishing(asked) is not None) == given


def test_reserved_topics_are_not_for_tenants() -> None:
    """A tenant neither publishes to nor names what begins with `$`, whatever its token says."""
    grants = Grants(publish=["#", "$a.#"], subscribe=["#", "$a.#"], tenant="acme")
    assert grants.publishing("$a.b") is None
    assert grants.subscribing("$a.#") is None
    assert grants.subscribing("$a") is None
    assert grants.publishing("a.$b") == "$tenant.acme.a.$b"


def test_the_prefix_comes_and_goes() -> None:
    """A tenant's topics have its prefix inside and never outside; those of others have no name there."""
    grants = Grants(tenant="acme")
    assert grants.outward("$tenant.acme.a.b") == "a.b"
    for foreign in (
        "a",
        "$tenant.acme",
        "$tenant.acme.",
        "$tenant.acme2.a",
        "$tenant.acm.a",
        "$webhooks.x",
        "acme.a",
    ):
        assert grants.outward(foreign) is None
    assert Grants().outward("$tenant.acme.a") == "$tenant.acme.a"


def test_the_prefix_alone_is_nobodys() -> None:
    """`#` of a tenant does not match its bare prefix, which is no topic of the tenant."""
    for asked in ("#", "#.#"):
        subscription = Grants(subscribe=["#"], tenant="acme").subscribing(asked)
        assert subscription is not None
        assert not matches(subscription, "$tenant.acme")
        assert matches(subscription, "$tenant.acme.a")


def test_the_prefix_counts() -> None:
    """Topics and patterns of a tenant are shorter by the prefix, and the refusal says by how much."""
    grants = Grants(publish=["#"], subscribe=["#"], tenant="acme")
    most = MAX_TOPIC_BYTES - len("$tenant.acme.")
    assert grants.publishing("é" * (most // 2)) is not None
    assert grants.subscribing("a" * most) is not None
    for ask in (grants.publishing, grants.subscribing):
        with pytest.raises(TopicError, match=f"more than {most} bytes") as refused:
            ask("a" * (most + 1))
        assert "$tenant" not in str(refused.value)


def test_what_is_no_topic_is_refused_before_it_is_looked_up() -> None:
    """Neither a wildcard nor an empty word gets into a topic by way of a grant or what is remembered."""
    grants = Grants(publish=["#"], subscribe=["#"])
    for text in ("", "a..b", "*", "a.#", "a\nb", "a" * 256):
        for _ in range(2):
            with pytest.raises(TopicError):
                grants.publishing(text)
    for text in ("", "a..b", "a*", ".#"):
        with pytest.raises(TopicError):
            grants.subscribing(text)


def test_few_topics_are_remembered() -> None:
    """What a token costs in memory is bounded, and what is not granted is not remembered at all."""
    grants = Grants(publish=["a.*"])
    for number in range(3 * MAX_REMEMBERED):
        assert grants.publishing(f"a.{number}") == f"a.{number}"
        assert grants.publishing(f"b.{number}") is None
        assert len(grants._publishable) <= MAX_REMEMBERED
    assert not any(topic.startswith("b") for topic in grants._publishable)


def test_services() -> None:
    """Services are granted by name, and all of them by `*`."""
    assert Grants(requests=["reports"]).may_request("reports")
    assert not Grants(requests=["reports"]).may_request("report")
    assert not Grants(requests=["reports"]).may_request("*")
    assert Grants(requests=["*"]).may_request("anything")
    assert not Grants(requests=["*"]).may_work("reports")
    assert Grants(work=["reports"]).may_work("reports")
    assert not Grants(work=["reports"]).may_work("report")
    assert not Grants(work=["reports"]).may_request("reports")
    assert Grants(work=["*"]).may_work("anything")


def test_everything() -> None:
    """Where nobody is asked who they are, anything goes, reserved topics included."""
    grants = AllGrants()
    assert grants.publishing("$a.b") == "$a.b"
    assert grants.subscribing("$tenant.#") == "$tenant.#"
    assert grants.may_request("x")
    assert grants.may_work("x")
    assert grants.admin
    assert grants.webhooks


def test_history() -> None:
    """A cursor may reach back so many seconds, or to the beginning if the token does not say."""
    assert Grants(history=1.5).reaches_back_to(10_000) == 8_500
    assert Grants(history=0).reaches_back_to(10_000) == 10_000
    assert Grants(history=60).reaches_back_to(10_000) == 0
    assert Grants().reaches_back_to(10_000) == 0


def test_what_is_made_without_a_token_is_checked_too() -> None:
    """An API key's grants are made by name, by the same rules."""
    with pytest.raises(ClaimError, match="the claim history is wrong"):
        Grants(history=math.nan)
    with pytest.raises(ClaimError, match=r"the claim publish\[0\] is wrong"):
        Grants(publish=["a..b"])
    with pytest.raises(ClaimError, match="the claim subscribe is wrong"):
        Grants(subscribe=["a"] * (MAX_PATTERNS + 1))
