"""The webhook panel of the demo page in a real Chromium."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.browser import DemoPage, chromium
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

DEADLINE: Final = 30.0
_topics = count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    """A gateway that may send to this machine."""
    with GatewayProcess("memory:", webhooks_allow="127.0.0.0/8") as running:
        yield running


@pytest.fixture(scope="module")
def careful() -> Iterator[GatewayProcess]:
    """A gateway that may not, as it is without any setting."""
    with GatewayProcess("memory:") as running:
        yield running


@pytest.fixture
def topic() -> str:
    """A topic of this test's own."""
    return f"hook{next(_topics)}.topic"


class Panel:
    """The panel on an open page."""

    def __init__(self, demo: DemoPage) -> None:
        self.demo = demo
        self.page = demo.page

    async def make(self, topic: str) -> None:
        """Make a webhook and wait until it is there."""
        await self.ask(topic)
        await self.page.locator("#webhook-facts").wait_for()

    async def ask(self, topic: str) -> None:
        """Ask for a webhook."""
        await self.page.get_by_label("Topics to send").fill(topic)
        await self.page.get_by_role("button", name="Make a webhook").click()

    async def publish(self) -> None:
        await self.demo.press("Publish one")
        await self.demo.until_told("durable: 1 accepted")

    async def received(self, number: int, **data: str) -> None:
        """Wait until the receiver got so many requests, the last one with these marks."""
        marks = "".join(f'[data-{name}="{value}"]' for name, value in data.items())
        await self.page.wait_for_selector(
            f"#webhook-received tbody:has(tr:nth-child({number}):last-child) tr:first-child{marks}"
        )

    async def delivery(self, state: str, attempts: int) -> None:
        """Wait until the newest delivery stands so, after so many attempts."""
        await self.page.wait_for_selector(
            f'#webhook-deliveries tbody tr:first-child[data-state="{state}"][data-attempts="{attempts}"]'
        )


def webhooks_of(gateway: GatewayProcess) -> list[Any]:
    status, body = gateway.get("/v1/webhooks")
    assert status == 200
    found: list[Any] = json.loads(body)["webhooks"]
    return found


async def until_none(gateway: GatewayProcess) -> None:
    async with asyncio.timeout(DEADLINE):
        while await asyncio.to_thread(webhooks_of, gateway):  # noqa: ASYNC110  (it is another process)
            await asyncio.sleep(0.05)


async def test_a_retry_can_be_watched(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """A webhook is made, verified twice, refused by 500, retried, tried again by hand, and removed."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        panel = Panel(demo)
        await panel.make(topic)
        await panel.publish()
        await panel.delivery("delivered", 1)
        await panel.received(1, answered="204", verified="true", browser="true")
        (webhook,) = await asyncio.to_thread(webhooks_of, gateway)
        facts = await demo.page.locator("#webhook-facts").inner_text()
        assert webhook["id"] in facts
        assert "whsec_" in facts

        await demo.page.get_by_label("Receiver answers 500").check()
        await panel.publish()
        await panel.delivery("pending", 1)
        await panel.received(2, answered="500", verified="true", browser="true")
        await demo.page.get_by_label("Receiver answers 500").uncheck()
        await panel.delivery("delivered", 2)
        await panel.received(3, answered="204", verified="true", browser="true")
        row = demo.page.locator("#webhook-deliveries tbody tr").first
        assert await row.locator(".pills").inner_text() == "500\n204"

        await row.get_by_role("button", name="Retry").click()
        await panel.delivery("delivered", 3)
        await demo.page.get_by_role("button", name="Send a test event").click()
        await panel.delivery("delivered", 1)
        await panel.received(5, answered="204", verified="true", browser="true")
        await demo.page.get_by_role("button", name="Remove the webhook").click()
        await until_none(gateway)
        await demo.page.locator("#webhook-views").wait_for(state="hidden")
        assert demo.errors == [each for each in demo.errors if "500" in each]


async def test_what_has_to_be_allowed_is_said(browser: Browser, careful: GatewayProcess, topic: str) -> None:
    """A gateway that may not send to this machine refuses; the page says why, and what would allow it."""
    async with DemoPage(browser, careful.url, [topic]) as demo:
        await demo.open()
        await Panel(demo).ask(topic)
        said = await demo.text_of(demo.page.locator("#webhook output"))
        assert "127.0.0.1 is a loopback address" in said
        hint = await demo.page.locator("#webhook-allow").inner_text()
        assert "sluice serve --webhooks-allow 127.0.0.0/8,::1" in hint
        assert await asyncio.to_thread(webhooks_of, careful) == []


async def test_a_name_for_this_machine_is_blocked(
    browser: Browser, careful: GatewayProcess, topic: str
) -> None:
    """The webhook is made, since a name says nothing, but nothing is sent; the page says why."""
    async with DemoPage(browser, f"http://localhost:{careful.port}", [topic]) as demo:
        await demo.open()
        panel = Panel(demo)
        await panel.make(topic)
        await panel.publish()
        await panel.delivery("pending", 1)
        await demo.page.locator("#webhook-allow").wait_for()
        assert await demo.page.locator("#webhook-deliveries .pills").first.inner_text() == "blocked"
        assert await demo.page.locator("#webhook-received tbody tr").count() == 0


async def test_whoever_leaves_takes_the_webhook_along(
    browser: Browser, gateway: GatewayProcess, topic: str
) -> None:
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        await Panel(demo).make(topic)
        assert len(await asyncio.to_thread(webhooks_of, gateway)) == 1
        await demo.page.goto("about:blank")
        await until_none(gateway)
