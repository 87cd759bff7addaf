"""
Scans: reading older parts of the stream, apart from the live consumer, so that live delivery never waits.

All scans share one connection that is opened when it is needed. A scan is a consumer that stays where it
stopped: whoever reads on costs nothing but the messages. An offset goes to the broker only after it was
checked against what is known to be there, for beyond the end the broker answers with silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Final

from pamqp import commands
from pamqp.common import FieldValue

from gateway.amqp.frames import Confirm, Delivery, ack
from gateway.amqp.link import Link, LinkError

PREFETCH: Final = 500
"""Messages on the way to a scan; one with old brokers gets whole chunks, so it may be a few thousand."""

NEXT_SECONDS: Final = 15.0
"""How long a message that must be there may take to come."""

MAX_SCANS: Final = 4
"""Beyond that those that nobody uses are ended."""

MAX_READERS: Final = 8
"""How many may read at a time; a crowd at a thousand places takes turns."""

IDLE_SECONDS: Final = 30.0

Open = Callable[["Scans"], Awaitable[Link]]


class Scan:
    """
    One consumer.

    Args:
        link: its connection.
        channel: its channel.
    """

    def __init__(self, link: Link, channel: int) -> None:
        self.link = link
        self.channel = channel
        self.used = 0.0
        self.offset = 0  # of the message that comes next
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()

    async def begin(self, stream: str, offset: int | str, prefetch: int) -> None:
        """Begin at an offset, or at `first`."""
        await self.link.call(commands.Basic.Qos(prefetch_count=prefetch), self.channel)
        arguments: dict[str, FieldValue] = {"x-stream-offset": offset}
        await self.link.call(commands.Basic.Consume(queue=stream, arguments=arguments), self.channel)
        if isinstance(offset, int):
            self.offset = offset

    def arrived(self, delivery: Delivery) -> None:
        """Take a message."""
        self._waiting.append(delivery)
        self._arrived.set()

    def lost(self) -> None:
        """The link is gone."""
        self._arrived.set()

    async def next(self) -> Delivery:
        """
        Return the next message.

        Raises:
            LinkError: the connection is gone, or nothing comes.
        """
        while not self._waiting:
            if self.link.lost is not None:
                raise self.link.lost
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), NEXT_SECONDS)
            except TimeoutError:
                raise LinkError("the broker does not send what the stream should hold") from None
        delivery = self._waiting.popleft()
        if delivery.tag % (PREFETCH // 4) == 0 or not self._waiting:
            self.link.write(ack(self.channel, delivery.tag))
        return delivery


class Scans:
    """
    The scans of one log.

    Args:
        stream: the stream's name.
        opener: opens a connection that this object listens to.
    """

    def __init__(self, stream: str, opener: Open) -> None:
        self._stream = stream
        self._open = opener
        self._link: Link | None = None
        self._scans: dict[int, Scan] = {}  # by channel
        self._opening = asyncio.Lock()
        self._turns = asyncio.Semaphore(MAX_READERS)

    @asynccontextmanager
    async def at(self, offset: int | str, *, keep: bool = True) -> AsyncIterator[Scan]:
        """
        Lend a scan whose next message is the one at `offset`.

        Args:
            offset: where; or `first`.
            keep: whether somebody may want to read on.

        Raises:
            LinkError: the broker cannot be reached.
        """
        # Whoever looks for the first message does so in the middle of a turn, or to know where to begin.
        async with self._turns if isinstance(offset, int) else nullcontext():
            scan = await self._take(offset)
            try:
                yield scan
            except BaseException:
                keep = False
                raise
            finally:
                if keep:
                    scan.used = asyncio.get_running_loop().time()
                else:
                    await self._drop(scan)

    async def _take(self, offset: int | str) -> Scan:
        async with self._opening:
            for channel, scan in self._scans.items():
                if scan.offset == offset and scan.used and scan.link.lost is None:
                    del self._scans[channel]
                    scan.used = 0.0
                    self._scans[channel] = scan
                    return scan
            link = self._link
            if link is None or link.lost is not None:
                self._scans.clear()
                link = self._link = await self._open(self)
            idle = [each for each in self._scans.values() if each.used]
            if len(self._scans) >= MAX_SCANS and idle:
                await self._drop(min(idle, key=lambda each: each.used))
            scan = Scan(link, await link.channel())
            self._scans[scan.channel] = scan
        try:
            await scan.begin(self._stream, offset, 1 if offset == "first" else PREFETCH)
        except BaseException:
            await self._drop(scan)
            raise
        return scan

    async def _drop(self, scan: Scan) -> None:
        """End a scan; one of an earlier connection is ended already."""
        if self._scans.get(scan.channel) is scan:
            del self._scans[scan.channel]
            with suppress(LinkError):  # the link ended
                await scan.link.close_channel(scan.channel)

    async def tidy(self, now: float) -> None:
        """Close the connection if nobody used it for a while."""
        idle = all(scan.used and now - scan.used > IDLE_SECONDS for scan in self._scans.values())
        if self._link is not None and idle and not self._opening.locked():
            await self.close()

    async def close(self) -> None:
        """End all. Idempotent."""
        self._scans.clear()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    # What the link reports.

    def delivered(self, deliveries: list[Delivery]) -> None:
        """Sort messages to their scans; those of a scan that ended are nobody's."""
        for delivery in deliveries:
            scan = self._scans.get(delivery.channel)
            if scan is not None:
                scan.arrived(delivery)

    def confirmed(self, confirms: list[Confirm]) -> None:
        """Nothing is published here."""

    def returned(self, reason: str) -> None:
        """Nothing is published here."""

    def blocked(self, reason: str | None) -> None:
        """Reading goes on."""

    def ended(self, error: LinkError) -> None:
        """All scans fail."""
        for scan in self._scans.values():
            scan.lost()
