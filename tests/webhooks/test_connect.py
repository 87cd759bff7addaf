"""On the way to a receiver: names, connections, the guard on real sockets, certificates."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.receiver import (
    OK,
    TASK_NAME,
    FixedNames,
    Peer,
    always,
    answers,
    full_backlog,
    receiver,
    sockets_to,
    until,
    with_status,
)
from tests.support.sender import BODY, HEADERS, TRUST, open_sender
from webhooks.dial import NEXT_SECONDS
from webhooks.guard import Guard, parse_networks
from webhooks.target import parse_target
from webhooks.trust import client_context

# --- no connection ------------------------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    """A port at which nobody listens is refused."""
    async with receiver(always) as found:
        pass
    async with open_sender() as sender:
        outcome = await sender.send(parse_target(found.url), HEADERS, BODY)
    assert outcome.error == "refused"
    assert outcome.detail == f"nobody listens at port {found.port}"
    assert sockets_to(found.port) == 0


async def test_a_name_that_does_not_exist() -> None:
    """A name without an address is a fault of its own."""
    async with open_sender() as sender:
        outcome = await sender.send(parse_target("http://nowhere.test/"), HEADERS, BODY)
    assert (outcome.error, outcome.detail) == ("dns", "the name does not exist, or has no address")


async def test_a_network_that_cannot_be_reached() -> None:
    """An address to which there is no way is a fault of the connection; the sentence does not name it."""
    guard = Guard(parse_networks("255.255.255.255"))
    names = FixedNames(far_test=[("255.255.255.255",)])
    async with open_sender(guard, names) as sender:
        outcome = await sender.send(parse_target("http://far.test/"), HEADERS, BODY)
    assert outcome.error == "connect"
    assert outcome.detail.startswith("no connection could be made: ")
    assert "255" not in outcome.detail


async def test_the_next_address_is_tried() -> None:
    """Of several addresses the one that takes a connection is used, also if others swallow packets."""
    with full_backlog() as port:
        names = FixedNames(three_test=[("127.0.0.1", "127.0.0.2", "127.0.0.3")])
        server = await asyncio.start_server(accepting := Accepting(), "127.0.0.3", port)
        async with server, open_sender(names=names) as sender:
            outcome = await sender.send(parse_target(f"http://three.test:{port}/"), HEADERS, BODY)
            assert outcome.status == 200
            assert sockets_to(port) >= 1
        server.close()
        await accepting.ended()


class Accepting:
    """Answers whoever connects with 200 and keeps the connection."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(TASK_NAME)
        self._tasks.add(task)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()
        writer.close()

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_an_address_that_refuses_costs_no_time() -> None:
    """When an address refuses, the next one is tried at once."""
    names = FixedNames(two_test=[("127.0.0.2", "127.0.0.1")])
    async with receiver(always) as found, open_sender(names=names, timeout=NEXT_SECONDS) as sender:
        outcome = await sender.send(parse_target(found.named("two.test")), HEADERS, BODY)
    assert outcome.status == 200


async def test_all_addresses_refuse() -> None:
    """When no address takes a connection, what the first one said is what came of the attempt."""
    names = FixedNames(two_test=[("127.0.0.2", "255.255.255.255", "127.0.0.1")])
    guard = Guard(parse_networks("0.0.0.0/0"))
    async with receiver(always) as found:
        pass
    async with open_sender(guard, names) as sender:
        outcome = await sender.send(parse_target(found.named("two.test")), HEADERS, BODY)
    assert outcome.error == "refused"
    assert sockets_to(found.port) == 0


async def test_a_connection_by_ipv6() -> None:
    """An address of IPv6 is connected to by IPv6, here one that leads to this machine's IPv4."""
    names = FixedNames(six_test=[("::ffff:127.0.0.1",)])
    async with receiver(always) as found, open_sender(names=names) as sender:
        outcome = await sender.send(parse_target(found.named("six.test")), HEADERS, BODY)
        assert outcome.status == 200
        by_address = await sender.send(parse_target(found.named("[::ffff:127.0.0.1]")), HEADERS, BODY)
        assert by_address.status == 200


# --- the guard on real sockets ------------------------------------------------------------------------------


async def test_addresses_that_are_refused_are_not_connected_to() -> None:
    """Without leave for it, loopback is not even connected to, by address or by name."""
    async with receiver(always) as found:
        names = FixedNames(inside_test=[("127.0.0.1",)])
        async with open_sender(Guard(), names) as sender:
            by_address = await sender.send(parse_target(found.url), HEADERS, BODY)
            by_name = await sender.send(parse_target(found.named("inside.test")), HEADERS, BODY)
    assert found.connections == 0
    assert by_address.error == by_name.error == "blocked"
    assert by_address.detail.startswith("127.0.0.1 is a loopback address, which webhooks may reach only if")
    assert by_name.detail.startswith("the name leads to a loopback address, which webhooks may reach only if")
    assert "127" not in by_name.detail, "it tells about names of our network"


async def test_of_several_addresses_those_refused_are_left_out() -> None:
    """A name that leads outside and inside is connected to outside only."""
    names = FixedNames(both_test=[("10.0.0.1", "169.254.169.254", "127.0.0.1", "::ffff:10.0.0.1")])
    async with receiver(always) as found, open_sender(names=names) as sender:
        outcome = await sender.send(parse_target(found.named("both.test")), HEADERS, BODY)
    assert outcome.status == 200


async def test_a_name_that_is_bound_again() -> None:
    """DNS rebinding: the address that was checked is connected to, and a second look-up is checked too."""
    outside, inside = "127.0.0.1", "127.0.0.2"
    guard = Guard(parse_networks(outside))
    names = FixedNames(evil_test=[(outside,), (inside,)])
    async with receiver(answers(with_status(200, "Connection: close")), host=outside) as found:
        async with receiver(always, host=inside) as victim, open_sender(guard, names) as sender:
            target = parse_target(found.named("evil.test"))
            first = await sender.send(target, HEADERS, BODY)
            assert names.asked == ["evil.test"], "a second look-up for one connection"
            second = await sender.send(target, HEADERS, BODY)
    assert (first.status, second.error) == (200, "blocked")
    assert (found.connections, victim.connections) == (1, 0)


async def test_a_redirect_leads_nowhere() -> None:
    """A redirect to a private address is an outcome, and nothing is sent there."""
    async with receiver(always, host="127.0.0.2") as victim:
        location = f"Location: http://127.0.0.2:{victim.port}/hook"
        async with receiver(*[answers(with_status(status, location)) for status in (301, 307)]) as found:
            async with open_sender(Guard(parse_networks("127.0.0.1"))) as sender:
                first = await sender.send(parse_target(found.url), HEADERS, BODY)
                async with open_sender(Guard(parse_networks("127.0.0.1"))) as other:
                    second = await other.send(parse_target(found.url), HEADERS, BODY)
    assert (first.status, second.status) == (301, 307)
    assert victim.connections == 0


async def test_where_a_socket_really_leads_is_checked() -> None:
    """An address that leads elsewhere once it is connected is noticed: 0.0.0.0 is this machine."""
    async with receiver(always) as found, open_sender(Guard(parse_networks("0.0.0.0"))) as sender:
        outcome = await sender.send(parse_target(f"http://0.0.0.0:{found.port}/"), HEADERS, BODY)
        assert sockets_to(found.port) == 0
    assert (outcome.error, outcome.detail) == ("blocked", "the connection led to a loopback address")
    assert not found.requests


@pytest.mark.parametrize("url", ["http://127.0.0.1:25/", "http://127.0.0.1/"])
async def test_the_guard_of_today_decides(url: str) -> None:
    """A target that was admitted by another guard is checked again: settings change, endpoints stay."""
    guard = Guard(parse_networks("127.0.0.0/8"), https_only=True)
    async with open_sender(guard) as sender:
        outcome = await sender.send(parse_target(url), HEADERS, BODY)
    assert (outcome.error, outcome.detail) == ("blocked", "webhooks are sent to https:// only")


# --- TLS ----------------------------------------------------------------------------------------------------


@dataclass
class Authority:
    """An authority, and what trusts it besides those that the system trusts."""

    ca: trustme.CA
    trust: ssl.SSLContext

    def server(self, *names: str, **options: Any) -> ssl.SSLContext:
        """Return what a receiver with these names encrypts with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, **options).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority whose certificate lies in a file, as an operator would give it."""
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return Authority(ca, client_context(path))


NAMES: dict[str, list[tuple[str, ...]]] = {"hooks_test": [("127.0.0.1",)]}


async def test_tls_with_an_authority_of_ones_own(authority: Authority) -> None:
    """A certificate of an authority that the operator added is trusted; the name is that of the URL."""
    asked: list[str] = []
    server = authority.server("hooks.test")
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with receiver(always, tls=server) as found:
        async with open_sender(names=FixedNames(**NAMES), trust=authority.trust) as sender:
            for _ in range(3):
                outcome = await sender.send(parse_target(found.named("hooks.test")), HEADERS, BODY)
                assert outcome.status == 200
        assert sockets_to(found.port) == 0
    assert (asked, found.connections) == (["hooks.test"], 1)
    assert found.requests[0].headers["Host"] == f"hooks.test:{found.port}"


async def test_tls_for_an_address(authority: Authority) -> None:
    """A URL with an address is trusted if the certificate is one for that address."""
    async with receiver(always, tls=authority.server("127.0.0.1")) as found:
        async with open_sender(trust=authority.trust) as sender:
            assert (await sender.send(parse_target(found.url), HEADERS, BODY)).status == 200


async def tls_fault(server: ssl.SSLContext | None, trust: ssl.SSLContext) -> str:
    """Return the detail of an attempt at a receiver that is not to be trusted, which gets no request."""
    async with receiver(always, tls=server) as found:
        target = parse_target(f"https://hooks.test:{found.port}/")
        async with open_sender(names=FixedNames(**NAMES), trust=trust) as sender:
            outcome = await sender.send(target, HEADERS, BODY)
            await until(lambda: sockets_to(found.port) == 0, "the socket stays")
    assert not found.requests
    assert outcome.error == "tls"
    return outcome.detail


async def test_an_unknown_authority(authority: Authority) -> None:
    """A certificate of an authority that nobody trusts is refused."""
    detail = await tls_fault(authority.server("hooks.test"), TRUST)
    assert detail == "the certificate is not trusted: unable to get local issuer certificate"


async def test_an_expired_certificate(authority: Authority) -> None:
    """A certificate that has expired is refused."""
    past = datetime(2020, 1, 1, tzinfo=UTC)
    server = authority.server("hooks.test", not_before=past - timedelta(days=90), not_after=past)
    detail = await tls_fault(server, authority.trust)
    assert detail == "the certificate is not trusted: certificate has expired"


async def test_a_certificate_for_another_host(authority: Authority) -> None:
    """A certificate for another name is refused."""
    detail = await tls_fault(authority.server("other.test"), authority.trust)
    assert "Hostname mismatch, certificate is not valid for 'hooks.test'" in detail


async def test_plain_http_on_a_tls_port(authority: Authority) -> None:
    """A receiver that does not encrypt is a fault of TLS, and nothing is sent in the clear."""

    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with receiver(script) as found:
        async with open_sender(names=FixedNames(**NAMES), trust=authority.trust) as sender:
            outcome = await sender.send(parse_target(f"https://hooks.test:{found.port}/"), HEADERS, BODY)
    assert outcome.error == "tls"
    assert outcome.detail.startswith("the TLS handshake failed: ")


async def test_a_receiver_that_closes_during_the_handshake(authority: Authority) -> None:
    """A receiver that closes instead of encrypting is a fault of TLS."""

    async def script(peer: Peer) -> None:
        await peer.reader.read(1)

    async with receiver(script) as found:
        async with open_sender(names=FixedNames(**NAMES), trust=authority.trust) as sender:
            outcome = await sender.send(parse_target(f"https://hooks.test:{found.port}/"), HEADERS, BODY)
    assert (outcome.error, outcome.detail) == ("tls", "the connection was closed during the TLS handshake")


async def test_old_tls_is_refused(authority: Authority) -> None:
    """TLS below 1.2 is not spoken."""
    server = authority.server("hooks.test")
    server.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server.minimum_version = server.maximum_version = ssl.TLSVersion.TLSv1_1
    assert "TLS" in await tls_fault(server, authority.trust)


async def test_a_receiver_that_wants_a_certificate_of_ours(authority: Authority) -> None:
    """A receiver that wants a client's certificate refuses us after the handshake: a fault of TLS."""
    server = authority.server("hooks.test")
    server.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(server)

    async def script(peer: Peer) -> None:
        # By hand: asyncio's own servers close before they have said why.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        encrypted = server.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                encrypted.do_handshake()
            except ssl.SSLWantReadError:
                await peer.send(outgoing.read())
                incoming.write(await peer.reader.read(65536))
            except ssl.SSLError:
                await peer.send(outgoing.read())
                await peer.reader.read()
                return

    async with receiver(script) as found:
        async with open_sender(names=FixedNames(**NAMES), trust=authority.trust) as sender:
            target = parse_target(f"https://hooks.test:{found.port}/")
            outcome = await sender.send(target, HEADERS, BODY)
    assert outcome.error == "tls"
    assert outcome.detail == (
        "the receiver ended the encrypted connection: TLSV13_ALERT_CERTIFICATE_REQUIRED"
    )


async def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    """An operator who names a wrong file of authorities is told so."""
    (tmp_path / "empty").write_text("nothing")
    with pytest.raises(ssl.SSLError):
        client_context(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        client_context(tmp_path / "missing")
