"""The demo page, and its client, of a gateway that asks who is there; in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.bearer import ENVIRON, call, fresh
from tests.support.browser import TRANSPORTS, DemoPage, chromium
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

FOLLOW = """
async ([transport, tokens, topic]) => {
  const { Client } = await import("/demo/client.js");
  window.seen = [];
  window.asked = 0;
  const token = () => tokens[Math.min(window.asked++, tokens.length - 1)];
  window.follower?.stop();
  const onEvent = (event) => window.seen.push(event.data);
  window.follower = new Client({ topics: [topic], transport, token, onEvent });
  window.follower.start();
}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess("memory:", environ=ENVIRON) as running:
        yield running


async def test_the_page_asks_for_a_token(browser: Browser, gateway: GatewayProcess) -> None:
    """A bad one is refused in words; with a good one all clients are exact, and no script can read it."""
    good = fresh(sub="demo", publish=["#"], subscribe=["#"], requests=["*"], webhooks=True)
    demo = DemoPage(browser, gateway.url, ["enter.it"])
    async with demo:
        await demo.page.goto(f"{gateway.url}/?topic=enter.it")
        await demo.page.get_by_label("Token").fill("wrong")
        await demo.page.get_by_role("button", name="Enter").click()
        assert "not good" in await demo.text_of(demo.page.locator("#enter output:not(:empty)"))
        await demo.page.get_by_label("Token").fill(good)
        await demo.page.get_by_role("button", name="Enter").click()
        await demo.open()  # the cookie is there by now: nobody is asked again
        await demo.burst(50)
        await demo.all_exact(50)
        assert await demo.page.evaluate("document.cookie") == ""
        assert not [url for url in demo.requests if good[:20] in url]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_client_has_a_token_of_its_own(
    browser: Browser, gateway: GatewayProcess, transport: str
) -> None:
    """It is carried on every transport without a cookie, never in a URL, and renewed when it ends."""
    topic = f"token.{transport}"
    good = fresh(sub="demo", publish=["#"], subscribe=["#"])
    # Good for the request for the head, and the ticket or the stream. Then comes a newer one.
    short = fresh(-6, sub="demo", subscribe=["#"])
    tokens = [short, short, good]
    demo = DemoPage(browser, gateway.url)
    async with demo:
        await demo.page.goto(f"{gateway.url}/healthz")
        await demo.page.evaluate(FOLLOW, [transport, tokens, topic])
        await demo.until("() => window.follower.state === 'open'")
        await demo.until("(count) => window.asked >= count", len(tokens))
        await demo.page.wait_for_timeout(4500)  # the first is over by then
        address = address_of(gateway)
        for number in range(3):
            answer = await call(address, "POST", "/v1/events", good, {"topic": topic, "data": number})
            assert answer.status == 202
        await demo.until("() => window.seen.length >= 3")
        assert json.loads(await demo.page.evaluate("JSON.stringify(window.seen)")) == [0, 1, 2]
        assert not [url for url in demo.requests if good[:20] in url or short[:20] in url]
        await demo.page.evaluate("window.follower.stop()")
