"""Where keys come from: rotation, broken sets in between, and strangers who name keys that are not there."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.auth import sources
from gateway.auth.authority import Authority
from gateway.auth.keyset import MAX_SET_BYTES, BadKey, KeySet
from gateway.auth.registry import Registry
from gateway.auth.sources import AGAIN_SECONDS, KeyFile, KeySource, KeyUrl, SharedKey
from gateway.auth.store import SqliteAccess
from gateway.problems import Problem
from gateway.sqlite_consumers import SqliteConsumers
from tests.support.certificates import Certificates
from tests.support.recorded import Recorder, Said, recording
from tests.support.server import free_port
from tests.support.tokens import NOW, SECRET, key_set, pair, token

ONE = key_set(pair("ES256", "one").public)
BOTH = key_set(pair("ES256", "one").public, pair("ES256", "two").public)
TWO = key_set(pair("ES256", "two").public)


def names(keys: KeySet | None) -> list[str | None]:
    """Return the names of the keys of a set."""
    return [] if keys is None else [key.id for key in keys.candidates("ES256", None)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # another task, or a file, changes it
            await asyncio.sleep(0.005)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- a secret


async def test_a_shared_secret_stays_as_it_is() -> None:
    """There is nothing to look for."""
    source: KeySource = SharedKey(SECRET)
    await source.start()
    await source.run()
    assert not await source.look()
    assert source.keys is not None
    assert len(source.keys.candidates("HS256", "any")) == 1


def test_a_shared_secret_is_long() -> None:
    """One that is not is refused, without telling it."""
    with pytest.raises(BadKey, match="at least 32 bytes, this one 31"):
        SharedKey("x" * 31)


# --- a file


def write(file: Path, text: bytes | None) -> None:
    """Write a file anew; remove it for None."""
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)


def replace(file: Path, text: bytes) -> None:
    """Put another file in the place of a file."""
    other = file.with_suffix(".new")
    other.write_bytes(text)
    other.replace(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with one key."""
    path = tmp_path / "keys.json"
    path.write_bytes(ONE)
    return path


def test_a_file_has_to_be_good_at_the_start(tmp_path: Path) -> None:
    """A typing error is noticed at once and not by the first who is refused."""
    with pytest.raises(BadKey, match="cannot be read: No such file"):
        KeyFile(tmp_path / "missing")
    with pytest.raises(BadKey, match="cannot be read: Is a directory"):
        KeyFile(tmp_path)
    (tmp_path / "keys").write_bytes(b"{")
    with pytest.raises(BadKey, match="no JSON"):
        KeyFile(tmp_path / "keys")


async def test_a_file_is_read_again_when_it_is_another(file: Path) -> None:
    """Written anew, or put in its place; and only then."""
    source = KeyFile(file)
    first = source.keys
    assert not await source.look()
    assert source.keys is first
    write(file, BOTH)
    assert await source.look()
    assert names(source.keys) == ["one", "two"]
    replace(file, TWO)
    assert await source.look()
    assert names(source.keys) == ["two"]


@pytest.mark.parametrize(
    "broken",
    [b"", BOTH[:-1], b'{"keys": []}', key_set({"kty": "new"}), b" " * (MAX_SET_BYTES + 1), None],
    ids=["empty", "half", "no keys", "no known key", "too long", "removed"],
)
async def test_a_broken_file_leaves_the_keys_from_before(
    file: Path, broken: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and when the file is whole again it is read."""
    source = KeyFile(file)
    first = source.keys
    write(file, broken)
    assert not await source.look()
    assert not await source.look()
    assert source.keys is first
    assert source.failures == 1
    assert [each.levelno for each in caplog.records] == [logging.ERROR]
    assert str(file) in caplog.text
    write(file, BOTH)
    assert await source.look()
    assert names(source.keys) == ["one", "two"]
    assert source.failures == 1


async def test_a_file_is_looked_at_by_itself(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask."""
    monkeypatch.setattr(sources, "LOOK_SECONDS", 0.005)
    source = KeyFile(file)
    running = asyncio.create_task(source.run())
    write(file, b"{")
    await until(lambda: source.failures == 1)
    write(file, TWO)
    await until(lambda: names(source.keys) == ["two"])
    running.cancel()


# --- an address


@pytest.fixture
def server() -> Iterator[Recorder]:
    """A server that has one key."""
    with recording(lambda _asked: Said(ONE, headers={"Content-Type": "application/jwk-set+json"})) as made:
        yield made


@pytest.mark.parametrize(
    "url",
    [
        "http://keys.example/set",
        "http://127.0.0.1.evil.example/set",
        "http://localhost.evil.example/set",
        "http://localhost@evil.example/set",
        "http://192.0.2.1/set",
        "ftp://127.0.0.1/set",
        "file:///etc/keys",
        "127.0.0.1/set",
        "",
        "https://",
        "https:///set",
        "https://[::1/set",
        "https://keys.example:99999/set",
        "https://keys example/set",
        "https://keys.example/a\nb",
    ],
)
def test_what_is_no_address_of_keys(url: str) -> None:
    """Over http:// anybody on the way could give us keys of their own; only on this machine there is none."""
    with pytest.raises(BadKey, match=r"fetched by https://|no address"):
        KeyUrl(url)


@pytest.mark.parametrize(
    "url",
    ["https://keys.example/set", "http://127.0.0.1:1/set", "http://localhost/set", "http://[::1]:1/set"],
)
def test_what_is_an_address_of_keys(url: str) -> None:
    """Nothing is asked before the start."""
    assert KeyUrl(url).keys is None


async def test_keys_are_fetched_at_the_start(server: Recorder) -> None:
    """By one request."""
    source = KeyUrl(f"{server.url}/set?a=1")
    await source.start()
    assert names(source.keys) == ["one"]
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("GET", "/set?a=1")
    assert "authorization" not in asked.headers


async def test_an_unknown_key_is_looked_for_now_and_then(server: Recorder) -> None:
    """Whoever names one makes us ask, but not more often than every AGAIN_SECONDS, whatever the answer."""
    clock = Clock()
    source = KeyUrl(server.url, clock)
    await source.start()
    first = source.keys
    for _ in range(5):
        assert not await source.look()
    assert len(server.asked) == 1
    clock.now += AGAIN_SECONDS - 0.001
    assert not await source.look()
    assert len(server.asked) == 1
    clock.now += 0.001
    assert not await source.look()  # it asks, and finds what it had
    assert len(server.asked) == 2
    assert source.keys is first
    server.answer = lambda _asked: Said(BOTH)
    assert not await source.look()
    clock.now += AGAIN_SECONDS
    assert await source.look()
    assert names(source.keys) == ["one", "two"]
    assert len(server.asked) == 3


async def test_many_who_miss_a_key_ask_once(server: Recorder) -> None:
    """When keys rotate, everybody's token names the new one: one asks, and all see what it found."""
    clock = Clock()
    source = KeyUrl(server.url, clock)
    await source.start()
    server.answer = lambda _asked: Said(TWO)
    clock.now += AGAIN_SECONDS
    assert await asyncio.gather(*(source.look() for _ in range(50))) == [True] * 50
    assert len(server.asked) == 2
    clock.now += AGAIN_SECONDS
    assert await asyncio.gather(*(source.look() for _ in range(50))) == [False] * 50
    assert len(server.asked) == 3


TROUBLE: dict[str, Said] = {
    "no JSON": Said(b"<html>"),
    "half": Said(BOTH[:-1]),
    "no keys": Said(b'{"keys": []}'),
    "too long": Said(ONE[:-1] + b" " * MAX_SET_BYTES + b"}"),
    "not found": Said(TWO, 404),
    "error": Said(TWO, 500),
    "no content": Said(b"", 204),
    "a shared secret": Said(key_set({"kty": "oct", "k": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"})),
    "another coding": Said(TWO, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_what_cannot_be_used_leaves_the_keys_from_before(
    server: Recorder, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and told, and the next answer that is good is used."""
    clock = Clock()
    source = KeyUrl(server.url.replace("http://", "http://me:hush@") + "/set?hush", clock)
    await source.start()
    first = source.keys
    server.answer = lambda _asked: TROUBLE[trouble]
    clock.now += AGAIN_SECONDS
    assert not await source.look()
    assert source.keys is first
    assert source.failures == 1
    assert "cannot be used" in caplog.text
    assert "hush" not in caplog.text
    server.answer = lambda _asked: Said(TWO)
    clock.now += AGAIN_SECONDS
    assert await source.look()
    assert names(source.keys) == ["two"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(server: Recorder, status: int) -> None:
    """Keys come from where somebody chose, and from nowhere else."""
    with recording(lambda _asked: Said(TWO)) as other:
        server.answer = lambda _asked: Said(TWO, status, {"Location": other.url})
        source = KeyUrl(server.url)
        await source.start()
        assert source.keys is None
        assert source.failures == 1
        assert other.asked == []


async def test_a_server_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway starts without it, has the keys once it is there, and keeps them when it goes."""
    monkeypatch.setattr(sources, "AGAIN_SECONDS", 0.005)
    monkeypatch.setattr(sources, "REFRESH_SECONDS", 0.005)
    with recording(lambda _asked: Said(b"not yet", 503)) as server:
        source = KeyUrl(server.url)
        await source.start()
        assert source.keys is None
        running = asyncio.create_task(source.run())
        await until(lambda: source.failures > 2)
        server.answer = lambda _asked: Said(ONE)
        await until(lambda: names(source.keys) == ["one"])
        server.answer = lambda _asked: Said(BOTH)
        await until(lambda: names(source.keys) == ["one", "two"])
    failures = source.failures
    await until(lambda: source.failures > failures + 2)
    assert names(source.keys) == ["one", "two"]
    assert not running.done()
    running.cancel()


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the connection and says nothing, or a byte now and then, holds up nobody for long."""
    monkeypatch.setattr(sources, "FETCH_SECONDS", 0.2)

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        with suppress(ConnectionError):  # it is given up
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        given_up.set()

    given_up = asyncio.Event()
    async with await asyncio.start_server(drip, "127.0.0.1", 0) as made:
        source = KeyUrl(f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}/")
        async with asyncio.timeout(30):
            await source.start()
            await given_up.wait()
        assert (source.keys, source.failures) == (None, 1)


async def test_nobody_listens() -> None:
    """The same as no answer."""
    source = KeyUrl(f"http://127.0.0.1:{free_port()}/")
    await source.start()
    assert (source.keys, source.failures) == (None, 1)


async def test_who_the_system_trusts_may_have_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an authority of one's own, that the administrator made known to the system; nobody else."""
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.both)
    with recording(lambda _asked: Said(ONE), context) as server:
        source = KeyUrl(server.url)
        await source.start()
        assert (source.keys, source.failures) == (None, 1)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        await source.start()
        assert names(source.keys) == ["one"]


# --- an authority with several


async def test_a_token_of_a_new_key_is_known_at_once(server: Recorder, tmp_path: Path) -> None:
    """The first token by a new key makes us ask for it; those of the old one are good as long as it is."""
    clock = Clock()
    store = SqliteConsumers(None)
    await store.start()
    authority = Authority(
        [SharedKey(SECRET), KeyUrl(server.url, clock)], Registry(SqliteAccess(store)), clock=lambda: NOW
    )
    await authority.start()
    old = token({"sub": "old"}, pair("ES256", "one").private, "ES256", kid="one")
    new = token({"sub": "new"}, pair("ES256", "two").private, "ES256", kid="two")
    assert (await authority.known(old)).subject == "old"
    server.answer = lambda _asked: Said(BOTH)
    with pytest.raises(Problem) as caught:
        await authority.known(new)  # it was asked for a moment ago
    assert caught.value.status == 401
    clock.now += AGAIN_SECONDS
    assert [each.subject for each in await asyncio.gather(*(authority.known(new) for _ in range(20)))] == (
        ["new"] * 20
    )
    assert len(server.asked) == 2
    assert (await authority.known(old)).subject == "old"
    server.answer = lambda _asked: Said(TWO)
    clock.now += AGAIN_SECONDS
    with pytest.raises(Problem):
        await authority.known(token({"sub": "x"}, pair("ES256", "three").private, "ES256", kid="three"))
    with pytest.raises(Problem) as caught:
        await authority.known(old)
    assert caught.value.status == 401
    assert (await authority.known(new)).subject == "new"
    assert (await authority.known(token({"sub": "shared"}))).subject == "shared"
    await store.close()


async def test_nobody_can_be_known_without_keys() -> None:
    """Until the address answers, it is us who cannot tell."""
    store = SqliteConsumers(None)
    await store.start()
    source = KeyUrl(f"http://127.0.0.1:{free_port()}/")
    authority = Authority([source], Registry(SqliteAccess(store)), clock=lambda: NOW)
    await authority.start()
    assert authority.trouble() is not None
    with pytest.raises(Problem) as caught:
        await authority.known(token())
    assert (caught.value.status, caught.value.retry_after) == (503, 5)
    await store.close()
