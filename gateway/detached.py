"""
Detached connections: the socket without the machinery that opened it.

The handshake runs through uvicorn and Starlette; then the endpoint puts one of these slim protocol objects in
the transport's hands and its task ends. From there on a connection costs this object, and a delivery one
`send()` straight to the non-blocking socket, where a transport's own write costs a queue and a turn of the
loop. (`send()` and not `os.write`: the kernel's way from a write to a socket is an eighth longer.)

Rules that keep the raw write safe:
- It is used only while the transport's buffer is empty: what the kernel does not take goes to
`transport.write`, and until
  the transport has drained nothing is written but control frames, through the transport and so in order.
- The socket is forgotten the moment `connection_lost` runs; the transport closes its descriptor only after
that.
- TLS connections have no usable socket and always go through the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import termios
from typing import TYPE_CHECKING, Final

import msgspec

from fanout.closing import CloseReason
from fanout.connection import Connection
from fanout.frames import LAST_CHUNK, Wire, control_frame

if TYPE_CHECKING:
    from gateway.streams import Streams

MAX_UNSOLICITED: Final = 64 * 1024
"""
Bytes a client may send behind a request that is answered by a stream; they can never be answered, so more is
abuse.
"""


class Detached(asyncio.Protocol):
    """
    One detached connection: the protocol its transport calls, and the sink its `Connection` writes to.

    Args:
        streams: what all streaming connections share; told when this one drains and when it is lost.
        transport: the open transport, taken over from uvicorn.
    """

    __slots__ = ("closing", "connection", "full", "paused", "socket", "streams", "transport")

    def __init__(self, streams: Streams, transport: asyncio.Transport) -> None:
        self.streams = streams
        self.transport = transport
        self.connection: Connection | None = None
        self.socket = None if transport.get_extra_info("ssl_object") else _same_socket(transport)
        self.full = False  # the transport holds bytes: nothing may be written past it
        self.paused = False  # the transport called pause_writing, so it will call resume_writing
        self.closing = False  # we have said goodbye: nothing more is written

    def take_over(self) -> None:
        """Become the transport's protocol."""
        transport = self.transport
        # pause_writing and resume_writing then tell whether it is empty. In TLS a buffer pauses when it has
        # as much as the limit, not more: with 0 an empty one too, and then nothing ends the pause.
        transport.set_write_buffer_limits(high=0 if self.socket is not None else 1, low=0)
        if transport.get_write_buffer_size():  # an earlier answer on this connection is still on its way
            self.full = True
            self.streams.check_soon(self)
        transport.set_protocol(self)

    # --- the sink -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> bool:
        """
        Write `data` to the socket, what does not fit to the transport's buffer; return whether all of it
        fit.
        """
        if self.full or self.socket is None:
            return self._write_through(data)
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # reset by the peer; a transport that is not reading would never find out
            self.abort()
            return False
        if sent == len(data):
            return True
        self._hold(memoryview(data)[sent:])
        return False

    def send(self, data: bytes) -> None:
        """
        Write a control frame: also while the connection is full, in order, and then kept in the transport's
        buffer.
        """
        if not self.closing:
            self.write(data)

    def _write_through(self, data: bytes) -> bool:
        """Write by way of the transport: after what it holds already, or always because it encrypts."""
        transport = self.transport
        if transport.is_closing():
            return False
        transport.write(data)
        if self.full:
            return False
        if not transport.get_write_buffer_size():  # encrypted, and taken by the transport below
            return True
        self.full = True
        self.streams.full(self)
        return False

    def _hold(self, data: bytes | memoryview) -> None:
        """Give `data` to the transport, and from now on wait until it has drained."""
        self.transport.write(data)
        if not self.full:
            self.full = True
            self.streams.full(self)

    def close(self, reason: CloseReason) -> None:
        """
        Say goodbye, flush, close. A client that does not even read this is cut off by the keepalive's
        deadline.
        """
        if self.closing:
            return
        self.write(self.farewell(reason))
        self.closing = True
        self.streams.closing(self, reason)
        self.hang_up()

    def hang_up(self) -> None:
        """Close, once what was written is flushed."""
        self.transport.close()

    def heartbeat(self, frame: bytes, head: int) -> bool:  # for the WebSocket's
        """Send a sign of life; whether the peer is alive, TCP finds out (`tune`)."""
        self.send(frame)
        return True

    def farewell(self, reason: CloseReason) -> bytes:
        """Return the last bytes of this connection."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the connection now, with all that is still buffered."""
        self.closing = True
        self.full = True
        self.transport.abort()

    # --- what the transport calls ---------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The transport's buffer is not empty."""
        self.paused = True

    def resume_writing(self) -> None:
        """The transport's buffer is empty again."""
        self.paused = False
        self._drained()

    def check_drained(self) -> bool:
        """Notice that the buffer emptied without ever having been reported; return whether to look again."""
        if not self.full or self.paused or self.transport.is_closing():
            return False
        if self.transport.get_write_buffer_size():
            return True
        self._drained()
        return False

    def _drained(self) -> None:
        if self.full and not self.closing:
            self.full = False
            self.streams.drained(self)

    def progress(self) -> object:
        """
        Return something that changes when the peer takes bytes: what the kernel and the transport still
        hold.
        """
        held = self.transport.get_write_buffer_size()
        if self.socket is not None:
            return held, _unacknowledged(self.socket.fileno())
        return held, _acknowledged(self.transport)

    def eof_received(self) -> None:
        """The client closed its side: the transport closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed: forget its socket."""
        if self.socket is not None:
            self.socket.detach()
            self.socket = None
        self.full = True
        self.streams.lost(self)
        self.streams.closed(self.transport)


class DetachedStream(Detached):
    """An SSE or NDJSON connection: it only listens."""

    __slots__ = ("unsolicited", "wire")

    def __init__(self, streams: Streams, transport: asyncio.Transport, wire: Wire) -> None:
        super().__init__(streams, transport)
        self.wire = wire
        self.unsolicited = 0

    def data_received(self, data: bytes) -> None:
        """Ignore what a client sends behind its request (pipelining); abort when it is a flood."""
        self.unsolicited += len(data)
        if self.unsolicited > MAX_UNSOLICITED:
            self.abort()

    def farewell(self, reason: CloseReason) -> bytes:
        """Return the reconnect advice and the end of the body."""
        last = LAST_CHUNK if self.wire in (Wire.SSE_CHUNKED, Wire.NDJSON_CHUNKED) else b""
        return (
            goodbye(self.wire, reason, self.streams.cursor_of(self.connection), self.streams.retry_ms())
            + last
        )


def goodbye(wire: Wire, reason: CloseReason, cursor: str, retry_ms: int) -> bytes:
    """Return the control message that ends a stream: `reconnect` with a time to wait, or `error`."""
    members = b'"reason":"%b","detail":"%b"' % (reason.name.encode(), reason.detail.encode())
    if not reason.reconnect:
        return control_frame(wire, "error", members)
    members += b',"cursor":"%b","after_ms":%d' % (cursor.encode(), retry_ms)
    if reason.url:
        members += b',"url":%b,"hop":%d' % (msgspec.json.encode(reason.url), reason.hop)
    return control_frame(wire, "reconnect", members, cursor=cursor, retry_ms=retry_ms)


def _same_socket(transport: asyncio.BaseTransport) -> socket.socket:
    """
    Return a socket object for the transport's descriptor, which stays the transport's: it must be detached,
    never closed.
    """
    # Nothing but send() is asked of it, and for that neither family nor type matter.
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, transport.get_extra_info("socket").fileno())


def _unacknowledged(fd: int) -> int:
    """Return the bytes in the kernel's send queue that the peer has not acknowledged (SIOCOUTQ, tcp(7))."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"), "little")


def _acknowledged(transport: asyncio.BaseTransport) -> bytes:
    """
    Return something that changes when the peer of an encrypted connection acknowledges bytes.

    The kernel's queue alone does not tell: it may look the same each time, filled from a buffer that nobody
    sees (tcp(7), TCP_INFO: `tcpi_bytes_acked`).
    """
    with contextlib.suppress(OSError):
        sock = transport.get_extra_info("socket")
        if sock is not None:
            info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            return info[120:]
    return b""
