"""
Where the keys for tokens come from: a setting, a file, or an address, and how they are kept up to date.

Keys rotate. A file is looked at every few seconds. An address is asked every few minutes, and at once when a
token names a key that is not there, but not more often than now and then: a stranger can name as many as he
likes. What cannot be read leaves the keys that are there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import SplitResult, urlsplit

from gateway.auth.keyset import MAX_SET_BYTES, BadKey, KeySet
from gateway.client import is_local

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
"""How often a file is looked at."""
REFRESH_SECONDS: Final = 300.0
"""How often an address is asked."""
AGAIN_SECONDS: Final = 10.0
"""How often it is asked at most, whoever would like it to be."""
FETCH_SECONDS: Final = 5.0


class KeySource(Protocol):
    """Has the keys, and keeps them up to date."""

    failures: int

    @property
    def keys(self) -> KeySet | None:
        """The keys; None as long as there never were any."""

    async def start(self) -> None:
        """Read them for the first time."""

    async def run(self) -> None:
        """Keep them up to date until cancelled."""

    async def look(self) -> bool:
        """Look again because a key was missed; return whether the keys are others now."""


def check_key(secret: str) -> None:
    """
    Check a shared secret.

    Raises:
        BadKey: it is too short; the text does not repeat it.
    """
    KeySet.shared(secret)


def check_source(text: str) -> None:
    """
    Check where a key set is to be had, without looking there.

    Raises:
        BadKey: it is an address from which keys are not fetched.
    """
    if _is_url(text):
        KeyUrl(text)


def sources(secret: str, place: str) -> list[KeySource]:
    """
    Return the sources that the settings name.

    Args:
        secret: a shared one; empty if there is none.
        place: file or address of a key set; empty if there is none.

    Raises:
        BadKey: one of them cannot be used.
    """
    found: list[KeySource] = [SharedKey(secret)] if secret else []
    if place:
        found.append(KeyUrl(place) if _is_url(place) else KeyFile(Path(place).expanduser()))
    return found


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http:", "https:"))


class SharedKey:
    """
    One secret that whoever makes tokens has as well.

    Args:
        secret: it.

    Raises:
        BadKey: it is too short.
    """

    failures = 0

    def __init__(self, secret: str) -> None:
        self.keys: KeySet = KeySet.shared(secret)

    async def start(self) -> None:
        """Nothing is to be done."""

    async def run(self) -> None:
        """Nothing is to be done."""

    async def look(self) -> bool:
        """There is nothing new."""
        return False


class KeyFile:
    """
    A key set in a file.

    Args:
        path: of the file.

    Raises:
        BadKey: it cannot be read, or is no key set.
    """

    def __init__(self, path: Path) -> None:
        self.failures = 0
        self._path = path
        self._seen = _stamp(path)
        self.keys: KeySet = _read(path)

    async def start(self) -> None:
        """Nothing is to be done."""

    async def run(self) -> None:
        """Look at the file again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> bool:
        """Read the file if it is another than before."""
        seen = _stamp(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self.keys = _read(self._path)
        except BadKey as error:
            self.failures += 1
            log.error("auth.keys: %s is not used, the keys from before are: %s", self._path, error)  # noqa: TRY400
            return False
        log.info("auth.keys: read %d from %s", len(self.keys), self._path)
        return True


class KeyUrl:
    """
    A key set at an address.

    Args:
        url: of the set, `https://`; `http://` only of this machine.
        clock: seconds that never go back.

    Raises:
        BadKey: it is no such address.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        parts = _split(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_local(url)):
            raise BadKey("keys are fetched by https:// only, so that nobody else can give us some")
        self.failures = 0
        self.keys: KeySet | None = None
        self._url = url
        self._clock = clock
        self._asked = -AGAIN_SECONDS
        self._fetching = asyncio.Lock()

    async def start(self) -> None:
        """Ask for the first time; without an answer the gateway starts all the same."""
        await self._fetch()

    async def run(self) -> None:
        """Ask again and again."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS if self.keys is not None else AGAIN_SECONDS)
            await self._fetch()

    async def look(self) -> bool:
        """Ask, if it is not too soon."""
        before = self.keys
        async with self._fetching:
            # Who asked while we waited may have found them.
            if self.keys is before and self._clock() - self._asked >= AGAIN_SECONDS:
                await self._ask()
        return self.keys is not before

    async def _fetch(self) -> None:
        async with self._fetching:
            await self._ask()

    async def _ask(self) -> None:
        self._asked = self._clock()
        try:
            text = await _get(self._url)
            found = KeySet.parse(text, public=True)
        except (BadKey, OSError) as error:
            self.failures += 1
            log.warning("auth.keys: those at %s cannot be used: %s", _shown(self._url), error)
            return
        if self.keys is None or not self.keys.is_same(found):
            self.keys = found
            log.info("auth.keys: read %d from %s", len(found), _shown(self._url))


async def _get(url: str) -> bytes:
    """
    Fetch a small document.

    Raises:
        OSError: it cannot be had.
        BadKey: it is too long, or the answer was another.
    """
    import httpx  # noqa: PLC0415  # nobody else pays for it

    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            httpx.AsyncClient(
                timeout=FETCH_SECONDS,
                trust_env=not is_local(url),
                verify=await _trusting(url),
            ) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise BadKey(f"the answer was {answer.status_code}")
            text = b""
            async for part in answer.aiter_bytes():
                text += part
                if len(text) > MAX_SET_BYTES:
                    raise BadKey(f"the set has more than {MAX_SET_BYTES} bytes")
            return text
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise OSError(str(error) or type(error).__name__) from None


async def _trusting(url: str) -> ssl.SSLContext:
    """Return what trusts whom the system trusts, not httpx's own list; reading that takes a while."""
    if url.startswith("http:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not needed, and trusts nobody
    return await asyncio.to_thread(ssl.create_default_context)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        seen = path.stat()
    except OSError:
        return (0, 0, 0)
    return (seen.st_mtime_ns, seen.st_size, seen.st_ino)


def _read(path: Path) -> KeySet:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SET_BYTES + 1)
    except OSError as error:
        raise BadKey(f"it cannot be read: {os.strerror(error.errno or 0)}") from None
    return KeySet.parse(text, public=False)


def _split(url: str) -> SplitResult:
    """
    Return the parts of an address.

    Raises:
        BadKey: it is none.
    """
    wrong = BadKey("it is no address of keys like https://login.example.com/keys.json")
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wrong from None
    if not has_host or not url.isprintable() or " " in url:
        raise wrong
    return parts


def _shown(url: str) -> str:
    """Return an address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
