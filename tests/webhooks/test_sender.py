"""The sender: what it sends, when it gives up, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.files import raise_limit
from tests.support.receiver import (
    DEADLINE,
    HEAD,
    OK,
    Peer,
    Script,
    always,
    answers,
    full_backlog,
    receiver,
    silent,
    sockets_to,
    until,
)
from tests.support.sender import BODY, HEADERS, SHORT, open_sender, tasks_inside
from webhooks.attempt import Outcome
from webhooks.flight import Phase
from webhooks.pool import Keep
from webhooks.sender import Sender, SenderFull
from webhooks.target import parse_target

# --- what is sent -------------------------------------------------------------------------------------------


async def test_a_request_is_what_was_asked_for() -> None:
    """A receiver gets one POST with the headers given, the host, the length, and the body as it is."""
    async with receiver(always) as found, open_sender() as sender:
        outcome = await sender.send(parse_target(found.url + "?a=b"), HEADERS, BODY)
    assert outcome == Outcome(status=200, excerpt=b"ok", duration_ms=outcome.duration_ms)
    (request,) = found.requests
    assert request.line == "POST /hook?a=b HTTP/1.1"
    assert request.headers == {
        "Host": f"127.0.0.1:{found.port}",
        "Accept-Encoding": "identity",
        "Content-Length": "7",
        "webhook-id": "msg_1",
        "content-type": "application/json",
    }
    assert request.body == BODY


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 3_000_000])
async def test_a_body_of_any_size_arrives(size: int) -> None:
    """Bodies arrive whole, whether or not they fit into one write."""
    body = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    async with receiver(always) as found, open_sender() as sender:
        for _ in range(2):
            outcome = await sender.send(parse_target(found.url), b"", body[:size])
            assert outcome.status == 200
    assert [request.body for request in found.requests] == [body[:size]] * 2
    assert found.connections == 1


async def test_another_method_and_the_headers_of_its_answer() -> None:
    """A handshake by OPTIONS gets the headers of the answer that it asks for, and no others."""
    answer = b"HTTP/1.1 200 OK\r\nWebHook-Allowed-Rate: 120\r\nX-Other: 1\r\nContent-Length: 0\r\n\r\n"
    async with receiver(answers(answer)) as found, open_sender() as sender:
        target = parse_target(found.url)
        outcome = await sender.send(target, b"", method="OPTIONS", wanted=[b"webhook-allowed-rate"])
    assert found.requests[0].line == "OPTIONS /hook HTTP/1.1"
    assert outcome.headers == (("webhook-allowed-rate", "120"),)


# --- deadlines ----------------------------------------------------------------------------------------------


class SilentNames:
    """A name server that never answers."""

    async def addresses(self, host: str) -> tuple[str, ...]:
        await asyncio.Event().wait()
        raise AssertionError


async def expired(sender: Sender, url: str) -> Outcome:
    """Return the outcome of an attempt whose deadline passes, when it should."""
    begun = time.monotonic()
    outcome = await sender.send(parse_target(url), HEADERS, BODY)
    assert SHORT - 0.002 <= time.monotonic() - begun < SHORT + 5  # timers count in milliseconds
    assert outcome.duration_ms >= SHORT * 1000 - 2
    return outcome


async def test_a_name_server_that_does_not_answer() -> None:
    """The deadline is over the name, too."""
    async with open_sender(names=SilentNames(), timeout=SHORT) as sender:
        outcome = await expired(sender, "http://slow.test/")
    assert outcome.error == "timeout"
    assert outcome.detail == "the name was not resolved within 0.5 seconds"


async def test_a_connection_that_is_never_completed() -> None:
    """The deadline is over the connection: a receiver whose backlog is full."""
    with full_backlog() as port:
        before = sockets_to(port)
        async with open_sender(timeout=SHORT) as sender:
            outcome = await expired(sender, f"http://127.0.0.1:{port}/")
            assert sockets_to(port) == before
    assert outcome.error == "timeout"
    assert outcome.detail == "no connection could be made within 0.5 seconds"


async def test_a_handshake_that_does_not_end() -> None:
    """The deadline is over the TLS handshake."""

    async def script(peer: Peer) -> None:
        await peer.reader.read()

    async with receiver(script) as found:
        async with open_sender(timeout=SHORT) as sender:
            outcome = await expired(sender, found.url.replace("http", "https"))
            await until(lambda: sockets_to(found.port) == 0, "the socket stays")
    assert outcome.error == "timeout"
    assert outcome.detail == "the TLS handshake did not end within 0.5 seconds"


async def test_a_receiver_that_says_nothing() -> None:
    """The deadline is over the wait for an answer."""
    async with receiver(silent) as found, open_sender(timeout=SHORT) as sender:
        outcome = await expired(sender, found.url)
        await until(lambda: sockets_to(found.port) == 0, "the socket stays")
    assert outcome.error == "timeout"
    assert outcome.detail == "no answer came within 0.5 seconds"


def dripping(start: bytes, rest: bytes) -> Script:
    """Return a script: answer with `start`, then byte by byte, slowly."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        for byte in rest:
            await asyncio.sleep(0.05)
            await peer.send(bytes([byte]))

    return script


async def test_a_head_that_drips() -> None:
    """A byte now and then buys no time: the deadline is one for all."""
    async with receiver(dripping(b"", HEAD + b"X: y" * 100)) as found, open_sender(timeout=SHORT) as sender:
        outcome = await expired(sender, found.url)
    assert outcome.error == "timeout"
    assert outcome.detail == "the head of the answer did not end within 0.5 seconds"


async def test_a_body_that_drips() -> None:
    """A body that does not end within the deadline is cut off; the head has decided."""
    script = dripping(HEAD + b"Content-Length: 1000\r\n\r\n", b"x" * 1000)
    async with receiver(script) as found, open_sender(timeout=SHORT) as sender:
        outcome = await expired(sender, found.url)
        await until(lambda: sockets_to(found.port) == 0, "the socket stays")
    assert (outcome.status, outcome.error) == (200, None)
    assert set(outcome.excerpt) == {ord("x")}


async def test_a_request_that_is_not_taken() -> None:
    """The deadline is over the sending: a receiver that does not read."""

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # streams have a socket's transport
        await asyncio.sleep(DEADLINE)

    async with receiver(script) as found, open_sender(timeout=SHORT) as sender:
        outcome = await sender.send(parse_target(found.url), HEADERS, bytes(30_000_000))
        await until(lambda: sockets_to(found.port) == 0, "the socket stays")
    assert outcome.error == "timeout"


async def test_each_attempt_has_its_own_deadline() -> None:
    """One timer serves all, and each attempt ends when it is due and not before."""
    async with receiver(silent) as found, open_sender(timeout=SHORT) as sender:

        async def attempt(delay: float) -> float:
            await asyncio.sleep(delay)
            return (await sender.send(parse_target(found.url), HEADERS, BODY)).duration_ms

        durations = await asyncio.gather(*(attempt(number * 0.1) for number in range(5)))
    assert all(SHORT * 1000 - 2 <= duration < SHORT * 1000 + 400 for duration in durations), durations


# --- cancelling and leaving ---------------------------------------------------------------------------------


WAITING = [Phase.RESOLVING, Phase.CONNECTING, Phase.ENCRYPTING, Phase.ASKING, Phase.READING]
IDLE = None
"""Stands for a connection that has had its answer."""


@asynccontextmanager
async def held_in(
    phase: Phase | None,
) -> AsyncIterator[tuple[Sender, asyncio.Task[Outcome], Callable[[], int]]]:
    """Yield a sender with an attempt that waits in `phase`, and what counts its sockets."""

    async def script(peer: Peer) -> None:
        if phase is not Phase.ENCRYPTING:
            await peer.request()
            await peer.send({Phase.READING: b"HTTP/1.1 2", IDLE: OK}.get(phase, b""))
        await peer.reader.read()

    def holds() -> bool:
        """Whether the attempt has come as far as it can, and its socket is there to be counted."""
        if phase is IDLE:
            return sender.statistics().idle == 1
        (flight,) = sender._running
        return flight.phase is phase and sockets() == (phase is not Phase.RESOLVING)

    def sockets() -> int:
        return sockets_to(port) - before

    async with receiver(script) as found, open_sender(names=SilentNames()) as sender:
        with full_backlog() as full:
            port = full if phase is Phase.CONNECTING else found.port
            host = "slow.test" if phase is Phase.RESOLVING else "127.0.0.1"
            scheme = "https" if phase is Phase.ENCRYPTING else "http"
            before = sockets_to(port)
            attempt = sender.send(parse_target(f"{scheme}://{host}:{port}/"), HEADERS, BODY)
            task = asyncio.create_task(attempt)
            await asyncio.sleep(0)  # it begins
            await until(holds, "it does not come so far")
            yield sender, task, sockets


@pytest.mark.parametrize("phase", WAITING)
async def test_a_cancelled_attempt_leaves_nothing(phase: Phase) -> None:
    """Whatever an attempt waits for, cancelling it closes its socket, ends its task, and has no outcome."""
    async with held_in(phase) as (sender, task, sockets):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: sender.statistics().open == 0, "a connection stays")
        assert sender.free == 1024
        assert sockets() == 0
        assert not tasks_inside()


@pytest.mark.parametrize("phase", [*WAITING, IDLE])
async def test_a_sender_that_is_left_leaves_nothing(phase: Phase | None) -> None:
    """Leaving a sender ends what is under way, and returns when every socket is closed."""
    async with held_in(phase) as (sender, task, sockets):
        await sender.__aexit__(None, None, None)
        assert sockets() == 0
        assert sender.statistics().open == sender.statistics().in_flight == 0
        if phase is IDLE:
            assert (await task).status == 200
        else:
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(SenderFull, match="closing"):
            sender.start(parse_target("http://127.0.0.1/"), b"", b"", print)
        sender._tasks = asyncio.TaskGroup()  # for the context that leaves it once more
        await sender._tasks.__aenter__()


async def test_no_more_attempts_than_allowed() -> None:
    """A sender takes as many attempts at a time as its owner said, and says how many are free."""
    async with receiver(silent) as found, open_sender(in_flight=3) as sender:
        outcomes: list[Outcome] = []
        target = parse_target(found.url)
        running = [sender.start(target, HEADERS, BODY, outcomes.append) for _ in range(3)]
        assert sender.free == 0
        with pytest.raises(SenderFull, match="3 attempts are under way"):
            sender.start(target, HEADERS, BODY, outcomes.append)
        sender.cancel(running[1])
        assert sender.free == 1
        sender.cancel(running[1])
        assert sender.free == 1
        sender.start(target, HEADERS, BODY, outcomes.append)
    assert not outcomes


async def test_a_process_that_stood_still() -> None:
    """What came while this process did not run is read before its deadline is looked at."""
    standing = threading.Event()

    def answer_meanwhile(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            assert standing.wait(DEADLINE)
            sock.sendall(OK)
            sock.recv(1)

    def stand_still(_: Outcome) -> None:
        # In the middle of reading from sockets, after which the loop looks at its timers first.
        standing.set()
        time.sleep(SHORT + 1.5)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_meanwhile, args=[listener])
        thread.start()
        async with receiver(always) as found, open_sender(timeout=SHORT) as sender:
            target = parse_target(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            attempt = asyncio.create_task(sender.send(target, HEADERS, BODY))
            await until(lambda: sender.statistics().opened == 1, "it does not connect")
            sender.start(parse_target(found.url), HEADERS, BODY, stand_still)
            assert (await attempt).status == 200
        thread.join(DEADLINE)


async def test_an_outcome_that_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    """When what hears an outcome fails, that is logged, and the other attempts go on."""

    def fails(outcome: Outcome) -> None:
        raise RuntimeError(outcome.status)

    async with receiver(always) as found, open_sender() as sender:
        sender.start(parse_target(found.url), HEADERS, BODY, fails)
        sender.start(parse_target("http://nowhere.test/"), HEADERS, BODY, fails)
        await until(lambda: sender.free == 1024, "they do not end")
        assert (await sender.send(parse_target(found.url), HEADERS, BODY)).status == 200
    assert caplog.text.count("an outcome was not taken") == 2


async def test_an_error_passes_through_the_sender() -> None:
    """An error of whoever uses a sender leaves it as it is."""
    async with receiver(silent) as found:
        with pytest.raises(ZeroDivisionError):
            await failing(found.url)
        assert sockets_to(found.port) == 0


async def failing(url: str) -> None:
    """Fail while an attempt is under way."""
    async with open_sender() as sender:
        sender.start(parse_target(url), HEADERS, BODY, print)
        raise ZeroDivisionError


# --- a crowd ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_thousand_targets_and_five_thousand_in_flight() -> None:
    """So many attempts at a time go to so many targets, each gets its answer, and little is kept open."""
    raise_limit()
    targets, each = 1000, 5
    held = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await held.wait()
        await peer.send(OK)
        await peer.gone()

    outcomes: list[Outcome] = []
    async with receiver(script, host="0.0.0.0", backlog=5000) as found:
        keep = Keep(links=500, per_origin=1)
        async with open_sender(in_flight=targets * each, keep=keep, timeout=120) as sender:
            for number in range(targets):
                url = f"http://127.0.{number // 250}.{number % 250 + 1}:{found.port}/"
                for _ in range(each):
                    sender.start(parse_target(url), HEADERS, BODY, outcomes.append)
            assert sender.free == 0
            await until(lambda: len(found.requests) == targets * each, "not all arrive", 120)
            assert sender.statistics().open == targets * each
            held.set()
            await until(lambda: sender.free == targets * each, "not all are answered", 120)
            assert sender.statistics().idle == 500
            await until(lambda: sockets_to(found.port) == 500, "more are kept open", 120)
        assert sockets_to(found.port) == 0
    assert [outcome.status for outcome in outcomes] == [200] * targets * each
