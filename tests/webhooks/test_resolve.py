"""Names to addresses: shared while they are looked up, and slow ones hold up nobody but each other."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.receiver import DEADLINE, until
from webhooks import resolve
from webhooks.resolve import MAX_ADDRESSES, SystemNames, Unresolved, system_look_up


class Server:
    """Stands for the system's resolver: a call waits until the test lets its name go, if it holds it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._held: dict[str, threading.Event] = {}

    def hold(self, *hosts: str) -> None:
        for host in hosts:
            self._held[host] = threading.Event()

    def release(self, *hosts: str) -> None:
        for host in hosts:
            self._held.pop(host).set()

    def __call__(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        held = self._held.get(host)
        assert held is None or held.wait(DEADLINE), "the test does not let it go"
        if host.startswith("missing"):
            raise Unresolved("it is missing")
        if host.startswith("broken"):
            raise RuntimeError(host)
        return (f"{host}'s address",)


@pytest.fixture
def server() -> Iterator[Server]:
    """Yield a resolver that lets everything go in the end."""
    server = Server()
    yield server
    server.release(*list(server._held))


@pytest.fixture
async def names(server: Server) -> AsyncIterator[SystemNames]:
    """Yield names with three threads, of which one is for slow names."""
    names = SystemNames(threads=3, slow=1, look_up=server)
    yield names
    names.close()


def asking(names: SystemNames, *hosts: str) -> list[asyncio.Task[tuple[str, ...]]]:
    return [asyncio.create_task(names.addresses(host)) for host in hosts]


async def test_a_name_becomes_its_addresses(names: SystemNames) -> None:
    """What the resolver says is what is said."""
    assert await names.addresses("a") == ("a's address",)


async def test_a_name_without_an_address(names: SystemNames) -> None:
    """Whoever asks for it is told why, everybody with an error of his own."""
    first, second = await asyncio.gather(*asking(names, "missing", "missing"), return_exceptions=True)
    assert isinstance(first, Unresolved)
    assert isinstance(second, Unresolved)
    assert str(first) == str(second) == "it is missing"
    assert first is not second


async def test_a_resolver_that_breaks_down(names: SystemNames) -> None:
    """An error that nobody foresaw ends the look-up and not the thread."""
    for _ in range(5):
        with pytest.raises(Unresolved, match="the name could not be resolved: RuntimeError"):
            await names.addresses("broken")


async def test_an_answer_is_shared_and_not_kept(names: SystemNames, server: Server) -> None:
    """Those who ask meanwhile get the same answer; who asks afterwards gets a new one."""
    server.hold("a")
    tasks = asking(names, "a", "a", "a")
    await until(lambda: server.asked == ["a"], "nothing is looked up")
    server.release("a")
    assert await asyncio.gather(*tasks) == [("a's address",)] * 3
    assert server.asked == ["a"]
    await names.addresses("a")
    assert server.asked == ["a", "a"]


async def test_who_gives_up_disturbs_nobody(names: SystemNames, server: Server) -> None:
    """One of those who wait for a name can be cancelled without harm to the others."""
    server.hold("a")
    first, second = asking(names, "a", "a")
    await until(lambda: server.asked == ["a"], "nothing is looked up")
    first.cancel()
    server.release("a")
    assert await second == ("a's address",)
    assert first.cancelled()


async def test_what_nobody_waits_for_is_not_looked_up(names: SystemNames, server: Server) -> None:
    """A name whose turn comes when nobody waits for it any more is left out, and can be asked for again."""
    server.hold("a", "b", "c")
    tasks = asking(names, "a", "b", "c")
    await until(lambda: len(server.asked) == 3, "not all are looked up")
    (forgotten,) = asking(names, "d")
    await asyncio.sleep(0)
    forgotten.cancel()
    await asyncio.wait([forgotten])
    server.release("a", "b", "c")
    await asyncio.gather(*tasks)
    await names.addresses("e")
    assert "d" not in server.asked
    assert await names.addresses("d") == ("d's address",)


async def test_threads_are_no_more_than_allowed(names: SystemNames, server: Server) -> None:
    """So many names are looked up at a time, and no more; the rest follows."""
    hosts = [f"host{number}" for number in range(10)]
    server.hold(*hosts)
    tasks = asking(names, *hosts)
    await until(lambda: len(server.asked) == 3, "not enough are looked up")
    assert sum(thread.name == "webhook-names" for thread in threading.enumerate()) == 3
    server.release(*hosts)
    await asyncio.gather(*tasks)
    assert sorted(server.asked) == hosts


async def test_slow_names_wait_for_each_other_only(
    names: SystemNames, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that took long once are looked up one at a time, and the others are not held up by them."""
    slow = ["slow1", "slow2", "slow3"]
    monkeypatch.setattr(resolve, "SLOW_SECONDS", 0.0)
    await asyncio.gather(*asking(names, *slow))
    monkeypatch.undo()
    server.hold(*slow)
    server.asked.clear()
    tasks = asking(names, *slow)
    await until(lambda: server.asked == ["slow1"], "none is looked up")
    for _ in range(5):
        await names.addresses("quick")
    assert server.asked == ["slow1"] + ["quick"] * 5
    server.release("slow1")
    await until(lambda: server.asked[-1] == "slow2", "the next one does not follow")
    assert "slow3" not in server.asked
    server.release("slow2", "slow3")
    await asyncio.gather(*tasks)


async def test_a_name_that_was_quick_again_is_slow_no_more(
    names: SystemNames, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One slow answer is forgotten with the next quick one."""
    hosts = ["a", "b"]
    monkeypatch.setattr(resolve, "SLOW_SECONDS", 0.0)
    await asyncio.gather(*asking(names, *hosts))
    monkeypatch.undo()
    await asyncio.gather(*asking(names, *hosts))
    server.hold(*hosts)
    server.asked.clear()
    tasks = asking(names, *hosts)
    await until(lambda: sorted(server.asked) == hosts, "they wait for each other")
    server.release(*hosts)
    await asyncio.gather(*tasks)


async def test_closing_ends_the_threads(names: SystemNames, server: Server) -> None:
    """When it is closed nobody waits any more, and the threads end, one that is busy when it comes back."""
    server.hold("a")
    (task,) = asking(names, "a")
    await until(lambda: server.asked == ["a"], "nothing is looked up")
    names.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.release("a")
    await until(
        lambda: all(thread.name != "webhook-names" for thread in threading.enumerate()), "a thread stays"
    )


def test_the_system_knows_this_machine() -> None:
    """The system's own resolver is asked: it knows localhost without a name server."""
    assert "127.0.0.1" in system_look_up("localhost")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name does not exist, or has no address"),
        (socket.gaierror(socket.EAI_NODATA, "x"), "the name does not exist, or has no address"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), "the name could not be resolved: Try again"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: socket.gaierror, sentence: str
) -> None:
    """A name that does not exist is told from one that cannot be asked for at the moment."""

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(Unresolved) as unresolved:
        system_look_up("name.test")
    assert str(unresolved.value) == sentence


def test_few_of_many_addresses_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a hundred addresses, each listed twice, gives the first few."""
    many = [(0, 0, 0, "", (f"192.0.2.{number // 2}", 0)) for number in range(200)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)
    assert system_look_up("many.test") == tuple(f"192.0.2.{number}" for number in range(MAX_ADDRESSES))
