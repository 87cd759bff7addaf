"""
The demo page in a real headless Chromium, Debian's, driven by playwright.

    async with chromium() as browser, DemoPage(browser, gateway.url) as demo:
        await demo.burst(100)
        await demo.all_exact(100)

What each client got is collected by the tests themselves, so that the page's own checks are checked, too.
Every wait has a deadline.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

from playwright.async_api import Browser, Locator, Page, async_playwright

from tests.support.server import GatewayProcess

DEADLINE_MS: Final = 30_000

CLIENTS: Final = "ABCDE"
TRANSPORTS: Final = ("websocket", "sse", "ndjson", "longpoll", "poll")
"""The transports of the clients when the page is opened, in their order."""

_FLAGS: Final = (
    "--no-sandbox",  # which Chromium demands of root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# The page tells what a client got by an event in the DOM; here all are kept, the page shows only the last.
_COLLECT: Final = """
window.received = {};
addEventListener("sluice:event", ({ target, detail }) => {
  (window.received[target.dataset.client] ??= []).push(detail.id);
});
"""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a headless Chromium; fail with a sentence if there is none."""
    path = shutil.which("chromium")
    assert path is not None, "the tests of the demo page need Chromium: install Debian's package chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class DemoPage:
    """
    The demo page, opened in a window of its own.

    Args:
        browser: where.
        url: address of the gateway, without a slash at the end.
        topics: the patterns to follow.
        context: options of the browser's window: `viewport`, `color_scheme`, …

    Attributes:
        page: playwright's page.
        errors: what went to the console as an error, and exceptions nobody caught.
        requests: the address of everything the page asked for.
    """

    def __init__(self, browser: Browser, url: str, topics: Sequence[str] = ("#",), **context: Any) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page: Page
        self._browser = browser
        self._url = url
        self._topics = topics
        self._query = "&".join(f"topic={topic.replace('#', '%23')}" for topic in topics)
        self._context = context

    async def __aenter__(self) -> Self:
        context = await self._browser.new_context(**self._context)
        self.page = await context.new_page()
        self.page.set_default_timeout(DEADLINE_MS)
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        await self.page.add_init_script(_COLLECT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is not None and self.errors:
            error.add_note("The page's console had:\n" + "\n".join(self.errors[-20:]))
        await self.page.context.close()

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    async def open(self) -> Self:
        """Load the page, wait until its clients are connected, and have its form publish what they follow."""
        await self.page.goto(f"{self._url}/?{self._query}")
        for name in CLIENTS:
            await self.until_client(name, "data-state", "open")
        if "#" not in self._topics[0]:
            await self.page.get_by_label("Topic", exact=True).fill(self._topics[0])
        return self

    # --- what is on it --------------------------------------------------------------------------------------

    def client(self, name: str) -> Locator:
        """Return a client's panel."""
        return self.page.locator(f'[data-client="{name}"]')

    async def verdicts(self) -> dict[str, str]:
        """Return what the page says about each client."""
        return {name: await self.client(name).locator(".mark").inner_text() for name in CLIENTS}

    async def received(self) -> dict[str, list[str]]:
        """Return the ids of the events that each client got, in their order."""
        got: dict[str, list[str]] = await self.page.evaluate("window.received")
        return {name: got.get(name, []) for name in CLIENTS}

    async def counts(self) -> dict[str, int]:
        """Return how many events each client got."""
        return {name: len(ids) for name, ids in (await self.received()).items()}

    async def text_of(self, element: Locator) -> str:
        """Return an element's text once there is some."""
        await element.filter(has_text=re.compile(r"\S")).wait_for()
        return await element.inner_text()

    # --- doing something ------------------------------------------------------------------------------------

    async def button(self, name: str, text: str) -> None:
        """Press a button of a client."""
        await self.client(name).get_by_role("button", name=text, exact=True).click()

    async def switch(self, name: str, transport: str) -> None:
        """Choose another transport for a client."""
        await self.client(name).get_by_role("combobox").select_option(transport)

    async def press(self, text: str) -> None:
        """Press a button of the publish form."""
        await self.page.locator("#publish").get_by_role("button", name=text, exact=True).click()

    async def burst(self, count: int) -> None:
        """Publish a burst and wait until it is durable."""
        await self.page.get_by_label("Burst of").fill(str(count))
        await self.press("Publish burst")
        await self.until_told(f"durable: {count:,} accepted")

    # --- waiting --------------------------------------------------------------------------------------------

    async def until(self, condition: str, argument: object = None) -> None:
        """Wait until an expression of JavaScript becomes true."""
        await self.page.wait_for_function(condition, arg=argument, timeout=DEADLINE_MS)

    async def until_client(self, name: str, attribute: str, value: str) -> None:
        """Wait until a client's panel has this value of an attribute."""
        await self.page.wait_for_selector(
            f'[data-client="{name}"][{attribute}="{value}"]', timeout=DEADLINE_MS
        )

    async def until_count(self, name: str, count: int) -> None:
        """Wait until a client got so many events or more."""
        await self.until(
            "([name, count]) => (window.received[name] ?? []).length >= count",
            [name, count],
        )

    async def until_told(self, text: str) -> None:
        """Wait until the publish form tells something that begins so."""
        await self.until("(text) => document.querySelector('#publish output').value.startsWith(text)", text)

    async def all_exact(self, count: int, level: str = "good") -> None:
        """Wait until every client got so many events, and the page calls them all together `level`."""
        for name in CLIENTS:
            await self.until_count(name, count)
        try:
            await self.page.wait_for_selector(f'#overall[data-level="{level}"]', timeout=DEADLINE_MS)
        except Exception as error:
            error.add_note(f"The page says {await self.verdicts()}, counts {await self.counts()}")
            raise
        assert await self.counts() == dict.fromkeys(CLIENTS, count)


def ids_in_log(
    gateway: GatewayProcess, topics: Sequence[str] = ("#",), cursor: str = "earliest"
) -> list[str]:
    """Return the ids of all events behind a cursor, in the log's order, read by plain polls."""
    query = "&".join(f"topic={topic.replace('#', '%23')}" for topic in topics)
    ids: list[str] = []
    while True:
        status, body = gateway.get(f"/v1/events?{query}&cursor={cursor}&limit=1000")
        assert status == 200, body
        answer = json.loads(body)
        ids += [event["id"] for event in answer["events"]]
        cursor = answer["cursor"]
        if not answer["more"]:
            return ids


def connections(gateway: GatewayProcess, wire: str) -> list[dict[str, Any]]:
    """Return what the gateway says about its connections on a wire."""
    status, body = gateway.get("/v1/connections?limit=1000")
    assert status == 200, body
    return [each for each in json.loads(body)["connections"] if each["wire"] == wire]
