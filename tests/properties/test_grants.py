"""
Random walks of tenants, and of tokens without one, over one index: nobody sees or names what is another's.

The model knows nothing of prefixes: each event has a space, the tenant of who published it, and a topic in
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fanout.containment import covers
from fanout.errors import TopicError
from fanout.grants import Grants
from fanout.topics import PatternIndex, check_topic, matches

WORDS = ("a", "aa", "b", "tenant", "$tenant", "$a", "$")
"""Words that are tenants' names, parts of the prefix, or look like it."""
TENANTS = ("a", "aa", "tenant", "a-a")

words = st.sampled_from(WORDS)
# Behind another tenant's prefix, which an attacker knows.
aimed = st.tuples(st.sampled_from(("$tenant.a", "$tenant.aa", "a", "tenant.a")), words).map(".".join)
topics = st.lists(words, min_size=1, max_size=4).map(".".join) | aimed
patterns = (
    st.lists(words | st.sampled_from("*#"), min_size=1, max_size=4).map(".".join)
    | aimed.map(lambda topic: f"{topic}.#")
    | st.sampled_from(("#", "*.#", "$tenant.#", "$tenant.*.#", "#.#"))
)
granted = st.lists(patterns, max_size=3) | st.just(["#"])


def reserved(topic: str) -> bool:
    return topic.startswith("$")


def grants_topic(claimed: tuple[str, ...], topic: str, tenant: str | None = None) -> bool:
    """Tell, by the words of the documentation, whether claimed patterns grant a topic."""
    if tenant is not None:
        return not reserved(topic) and any(matches(pattern, topic) for pattern in claimed)
    return any(matches(pattern, topic) and reserved(pattern) == reserved(topic) for pattern in claimed)


@dataclass(frozen=True)
class Bearer:
    """Who has a token."""

    tenant: str | None
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    grants: Grants

    def knows(self, space: str | None, topic: str) -> str | None:
        """Return what this one calls the topic of a space, if it can be called at all."""
        if self.tenant == space:
            return topic
        return f"$tenant.{space}.{topic}" if self.tenant is None else None


class Walk(RuleBasedStateMachine):
    """Tokens come, listen, stop and publish, by what the grants say."""

    def __init__(self) -> None:
        super().__init__()
        self.index: PatternIndex[tuple[int, str]] = PatternIndex()
        self.bearers: list[Bearer] = []
        self.listening: dict[tuple[int, str], str] = {}

    @rule(tenant=st.sampled_from((None, *TENANTS)), publish=granted, subscribe=granted)
    def come(self, tenant: str | None, publish: list[str], subscribe: list[str]) -> None:
        grants = Grants.of(
            {"publish": publish, "subscribe": subscribe} | ({"tenant": tenant} if tenant else {})
        )
        self.bearers.append(Bearer(tenant, tuple(publish), tuple(subscribe), grants))

    @rule(
        who=st.integers(0, 20),
        claim=st.integers(0, 3),
        at=st.integers(0, 3),
        word=words | st.sampled_from("*#"),
    )
    def listen_to_something_like_it(self, who: int, claim: int, at: int, word: str) -> None:
        """Ask for what is claimed, but for one word."""
        if self.bearers and (claimed := self.bearers[who % len(self.bearers)].subscribe):
            asked = claimed[claim % len(claimed)].split(".")
            asked[at % len(asked)] = word
            self.listen(who, ".".join(asked))

    @rule(who=st.integers(0, 20), pattern=patterns)
    def listen(self, who: int, pattern: str) -> None:
        if not self.bearers:
            return
        who %= len(self.bearers)
        bearer = self.bearers[who]
        subscription = bearer.grants.subscribing(pattern)
        alone = (bearer.tenant is None or not reserved(pattern)) and any(
            covers(mine, pattern) and reserved(mine) == reserved(pattern) for mine in bearer.subscribe
        )
        assert subscription is not None or not alone
        if subscription is not None:
            self.listening[who, pattern] = subscription
            self.index.add(subscription, (who, subscription))

    @rule(at=st.integers(0, 30))
    def stop(self, at: int) -> None:
        if at < len(self.listening):
            (who, pattern), subscription = list(self.listening.items())[at]
            same = [
                each for (other, _), each in self.listening.items() if other == who and each == subscription
            ]
            del self.listening[who, pattern]
            if len(same) == 1:
                self.index.discard(subscription, (who, subscription))

    @rule(who=st.integers(0, 20), topic=topics)
    def publish(self, who: int, topic: str) -> None:
        if not self.bearers:
            return
        bearer = self.bearers[who % len(self.bearers)]
        stored = bearer.grants.publishing(topic)
        assert (stored is not None) == grants_topic(bearer.publish, topic, bearer.tenant)
        if stored is None:
            return
        check_topic(stored)
        space, inside = bearer.tenant, topic
        if space is None and topic.startswith("$tenant."):
            # Only a token without a tenant that is granted this spelling gets here: it acts in that space.
            tenant, dot, behind = topic.removeprefix("$tenant.").partition(".")
            if dot and tenant in TENANTS:
                space, inside = tenant, behind
        self.deliver(stored, space, inside)

    @rule(space=st.sampled_from((None, *TENANTS)), topic=topics)
    def arrive(self, space: str | None, topic: str) -> None:
        """An event comes from the broker, where no grant is asked for."""
        if space is not None:
            self.deliver(f"$tenant.{space}.{topic}", space, topic)
        elif not topic.startswith("$tenant."):
            self.deliver(topic, None, topic)

    @rule(at=st.integers(0, 30), fill=st.lists(words, max_size=2), word=words)
    def arrive_for(self, at: int, fill: list[str], word: str) -> None:
        """An event comes that somebody listens to."""
        if at < len(self.listening):
            who, pattern = list(self.listening)[at]
            made = [{"*": [word], "#": fill}.get(each, [each]) for each in pattern.split(".")]
            topic = ".".join(each for part in made for each in part)
            if topic:
                self.arrive(self.bearers[who].tenant, topic)  # also what nobody publishes by a token

    @rule(space=st.sampled_from(TENANTS))
    def arrive_at_the_bare_prefix(self, space: str) -> None:
        """An event comes whose topic is a tenant's prefix and nothing more: it is in no tenant's space."""
        self.deliver(f"$tenant.{space}", None, f"$tenant.{space}")

    def deliver(self, stored: str, space: str | None, topic: str) -> None:
        """Compare who gets an event with who should, and under which name."""
        got = {(who, self.bearers[who].grants.outward(stored)) for who, _ in self.index.match(stored)}
        expected = set()
        for who, pattern in self.listening:
            known = self.bearers[who].knows(space, topic)
            if known is None:
                continue
            # In a tenant's space nothing is reserved; what begins with `$` there, only the broker brings.
            of_tenant = self.bearers[who].tenant is not None
            if matches(pattern, known) or (of_tenant and matches(f"x.{pattern}", f"x.{known}")):
                expected.add((who, known))
        assert got == expected
        for who, known in got:
            bearer = self.bearers[who]
            assert bearer.tenant in (None, space), "a tenant got what is another's"
            assert known is not None
            tenant = bearer.tenant is not None
            assert grants_topic(bearer.subscribe, known) or (tenant and reserved(known)), "more than granted"
            if bearer.tenant != space:
                assert known.startswith("$tenant."), "a wildcard brought a tenant's event"


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


@settings(max_examples=500)
@given(st.sampled_from(TENANTS), st.sampled_from((None, *TENANTS)), granted, patterns, topics, st.booleans())
def test_no_pattern_reaches_another_space(
    mine: str, other: str | None, claimed: list[str], asked: str, topic: str, everything: bool
) -> None:
    """Whatever a tenant's token claims and asks for, what it gets matches no topic of another space."""
    claimed = [*claimed, "#", "$tenant.#", "$a.#"] if everything else claimed
    subscription = Grants(subscribe=claimed, tenant=mine).subscribing(asked)
    stored = Grants(publish=["#", "$tenant.#", "$a.#", "$"], tenant=other).publishing(topic)
    if subscription is None or stored is None:
        return
    if other is None and stored.startswith(f"$tenant.{mine}."):
        return  # the operator published into this space, by its full name
    if mine != other:
        assert not matches(subscription, stored)
        assert Grants(tenant=mine).outward(stored) is None


@settings(max_examples=1000)
@given(
    st.sampled_from((None, "a")),
    st.lists(st.sampled_from(("a", "$a", "*", "#")), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from(("a", "*", "#")),
    st.lists(st.sampled_from(("a", "b", "$a")), max_size=2),
)
def test_nothing_more_than_granted(
    tenant: str | None, claimed: list[str], at: int, word: str, fill: list[str]
) -> None:
    """What is asked for differs from the claim in one word; every event it brings is granted."""
    asked = list(claimed)
    asked[at % len(asked)] = word
    claim = ".".join(claimed)
    subscription = Grants(subscribe=[claim], tenant=tenant).subscribing(".".join(asked))
    parts = [{"*": ["b"], "#": fill}.get(each, [each]) for each in asked]
    topic = ".".join(each for part in parts for each in part)
    stored = topic if tenant is None else f"$tenant.{tenant}.{topic}"
    if topic and subscription is not None and matches(subscription, stored):
        assert grants_topic((claim,), topic) or (tenant is not None and reserved(topic))


@given(
    st.text(max_size=40) | st.lists(st.text(max_size=3) | st.sampled_from("*#$"), max_size=5).map(".".join)
)
def test_whatever_is_asked_for(text: str) -> None:
    """Any text is refused as no topic, denied, or becomes a topic behind the prefix: never anything else."""
    grants = Grants(publish=["#", "$tenant.#"], subscribe=["#", "$tenant.#"], tenant="a")
    try:
        stored = grants.publishing(text)
        assert stored is None or stored == f"$tenant.a.{text}"
        assert stored is None or grants.outward(check_topic(stored)) == text
    except TopicError:
        pass
    try:
        subscription = grants.subscribing(text)
        assert subscription is None or subscription.startswith("$tenant.a.")
    except TopicError:
        pass
