"""The sockets that are listened on, alone and shared."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from gateway.listening import Port, close_all, listen


@pytest.fixture
def port() -> Iterator[Port]:
    with contextlib.closing(Port("127.0.0.1", 0)) as reserved:
        yield reserved


def used(number: int) -> None:
    """Leave connections behind that the kernel remembers for a while (TIME_WAIT), on the server's side."""
    with socket.create_server(("127.0.0.1", number)) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", number)):
                server.accept()[0].close()


def test_everybody_with_a_share_gets_connections(port: Port) -> None:
    """Connections are spread over those who listen; nobody listens on the reservation itself."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(port.address)
    shares = [port.share() for _ in range(3)]
    for (each,) in shares:
        each.listen()
        each.settimeout(0)
    with contextlib.ExitStack() as clients:
        for _ in range(90):
            clients.enter_context(socket.create_connection(port.address))
        counts = [accepted(each) for (each,) in shares]
    assert sum(counts) == 90
    assert min(counts) > 0
    for share in shares:
        close_all(share)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(port.address)


def accepted(listener: socket.socket) -> int:
    """Return how many connections wait at a listener, and take them."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def test_a_share_that_is_closed_leaves_all_to_the_others(port: Port) -> None:
    """Nothing is sent to a worker that is not there."""
    (first,), (second,) = port.share(), port.share()
    first.listen()
    second.listen()
    first.close()
    second.settimeout(0)
    with contextlib.ExitStack() as clients:
        for _ in range(30):
            clients.enter_context(socket.create_connection(port.address))
        assert accepted(second) == 30
    second.close()


@pytest.mark.parametrize("listening", [False, True])
def test_a_reserved_port_is_nobody_elses(port: Port, listening: bool) -> None:
    """Another gateway is refused, of one process or of several, whether or not a worker listens."""
    (share,) = port.share()
    if listening:
        share.listen()
    with share:
        with pytest.raises(OSError, match="Address already in use"):
            Port(*port.address)
        with pytest.raises(OSError, match="Address already in use"):
            listen(*port.address, 65_536, 1_000)


def test_a_port_of_somebody_else_is_not_shared() -> None:
    """A port on which another program listens cannot be reserved, though that program would share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="Address already in use"):
            Port(*other.getsockname())


def test_what_is_left_of_earlier_connections_does_not_matter(port: Port) -> None:
    """A port is reserved and shared although the kernel remembers connections of an earlier process there."""
    number = port.address[1]
    port.close()
    used(number)
    with socket.socket() as plain, pytest.raises(OSError, match="Address already in use"):
        plain.bind(("127.0.0.1", number))  # so the kernel does remember
    with contextlib.closing(Port("127.0.0.1", number)) as again:
        (share,) = again.share()
        with share:
            share.listen()


def test_every_address_of_a_host_is_shared() -> None:
    """`localhost` is two addresses where there is IPv6, and a share has a socket for each."""
    found = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with contextlib.closing(Port("localhost", 0)) as reserved:
        share = reserved.share()
        assert {each.getsockname()[0] for each in share} == found
        close_all(share)


def test_a_host_that_is_not_ours_is_refused() -> None:
    """An address of another machine cannot be reserved, and an unknown name neither."""
    with pytest.raises(OSError, match="Cannot assign requested address"):
        Port("192.0.2.1", 0)
    with pytest.raises(OSError, match=r"not known|failure"):
        Port("nowhere.invalid", 0)
