"""Opening links: a host may be a name with several addresses, and behind the first may be nobody."""

from __future__ import annotations

import asyncio
import socket

from gateway.amqp import tls
from gateway.amqp.address import Address
from gateway.amqp.link import (
    HEARTBEAT_SECONDS,
    MAX_BODY,
    OPEN_SECONDS,
    Link,
    LinkError,
    LinkRefused,
    Listener,
)


async def connect(
    address: Address,
    host: tuple[str, int],
    name: str,
    listener: Listener,
    *,
    at: tuple[str, int] | None = None,
    heartbeat: int = HEARTBEAT_SECONDS,
    max_body: int = MAX_BODY,
) -> Link:
    """
    Open a link, to the first of the host's addresses at which a broker answers.

    Args:
        address: where and who.
        host: which of its hosts.
        name: what the broker's lists call this connection.
        listener: hears what comes.
        at: `Link.at` of a link that this one is to be beside: a name may stand for several nodes.
        heartbeat: seconds.
        max_body: the longest body of a delivery that is kept.

    Raises:
        LinkRefused: wrong password, unknown virtual host, no trust by certificates or no files of them.
        LinkError: nobody answers there, or not in time.
    """
    problem: LinkError | None = None
    for place in [at] if at is not None else await _places(address, host):
        link = Link(address, host, name, listener, heartbeat, max_body)
        link.at = place
        try:
            return await _open(link, address)
        except LinkRefused:
            raise
        except LinkError as error:
            problem = problem or error
    assert problem is not None, "a name that is known stands for an address"
    raise problem


async def _places(address: Address, host: tuple[str, int]) -> list[tuple[str, int]]:
    """
    Return what a host stands for: a name may have several addresses, and behind the first may be nobody.

    With TLS it is the name, which must be in the certificate.
    """
    if address.tls:
        return [host]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            found = await loop.getaddrinfo(*host, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise LinkError(f"the name {host[0]!r} was not found in {OPEN_SECONDS:g} seconds") from None
    except OSError as error:
        raise LinkError(f"the name {host[0]!r} is not known: {error.strerror or error}") from None
    return list(dict.fromkeys((str(each[4][0]), int(each[4][1])) for each in found))


async def _open(link: Link, address: Address) -> Link:
    """Open a link to its place, and return it."""
    loop = asyncio.get_running_loop()
    where = f"the broker at {address.name(link.host)}"
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            context = await asyncio.to_thread(tls.context, address) if address.tls else None
            await loop.create_connection(lambda: link, *link.at, ssl=context)
            await link.opened()
    except TimeoutError:
        link.abort()
        raise LinkError(f"{where} did not answer in {OPEN_SECONDS:g} seconds") from None
    except tls.TlsError as error:
        raise LinkRefused(str(error)) from None
    except OSError as error:
        if (refusal := tls.refusal(where, error)) is not None:
            raise LinkRefused(refusal) from None
        raise LinkError(f"{where} cannot be reached: {error.strerror or error}") from None
    except BaseException:
        link.abort()
        raise
    return link
