"""The panels of requests and of the ring on the demo page, in a real Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from fanout.ring import Ring
from gateway.requests.buckets import BUCKETS
from tests.support.browser import chromium
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess
from tests.support.worker import WorkerProcess

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

HANDLER: Final = "from gateway.handling.demo import handle\n"
WAYS: Final = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess("memory:", services="demo,other", request_tries=1) as running:
        yield running


async def open_page(browser: Browser, gateway: GatewayProcess) -> Page:
    page = await (await browser.new_context()).new_page()
    page.set_default_timeout(30_000)
    await page.goto(f"{gateway.url}/?topic=nothing")
    return page


async def hand_in(page: Page, data: str) -> None:
    await page.locator("#request").get_by_label("For the worker").fill(data)
    await page.get_by_role("button", name="Hand in").click()


async def all_ways_show(page: Page, state: str) -> None:
    """Wait until the newest request is shown in this state by each way."""
    await page.wait_for_function(
        """([state, ways]) => {
          const cells = [...document.querySelectorAll("#requests tbody tr:first-child .pill")];
          return cells.length === ways && cells.every((each) => each.textContent === state);
        }""",
        arg=[state, WAYS],
    )


async def test_a_request_is_followed_in_three_ways(browser: Browser, gateway: GatewayProcess) -> None:
    """From the queue, without a worker, to its result; and to the reason why there is none."""
    page = await open_page(browser, gateway)
    await hand_in(page, '{"month": 11}')
    await all_ways_show(page, "queued")
    command = page.locator("#request-worker code")
    await command.wait_for()
    assert await command.text_content() == "sluice worker gateway.handling.demo:handle --service demo"
    with WorkerProcess(gateway.url, "demo", HANDLER):
        await all_ways_show(page, "done")
        first = "#requests tbody tr:first-child .outcome"
        outcome = page.locator(first)
        assert await outcome.text_content() == '{"echo":{"month":11},"attempt":1}'
        told = "([first, text]) => document.querySelector(first).textContent.includes(text)"
        await command.wait_for(state="hidden")  # the page looks every two seconds
        for data, text in (("fail", "error: ValueError: it was told to fail"), ("refuse", "refused: it was")):
            await hand_in(page, data)
            await page.wait_for_function(told, arg=[first, text])  # by then its row is the first
            await all_ways_show(page, "failed")
        await hand_in(page, "a text")
        await page.wait_for_function(told, arg=[first, "percent"])
        await all_ways_show(page, "done")
    await hand_in(page, "1")
    await all_ways_show(page, "queued")
    await page.locator("#requests tbody tr:first-child").get_by_role("button", name="Cancel").click()
    await all_ways_show(page, "cancelled")
    await page.context.close()


async def test_without_services_the_page_says_what_to_do(browser: Browser) -> None:
    """There is no form, but a sentence."""
    with GatewayProcess("memory:") as gateway:
        page = await open_page(browser, gateway)
        await page.get_by_text("This gateway takes no requests").wait_for()
        assert not await page.locator("#request").is_visible()
        await page.context.close()


async def buckets_are(page: Page, expected: dict[str, int]) -> None:
    """Wait until those who own something, and how much, are shown so."""
    await page.wait_for_function(
        """(expected) => {
          const rows = [...document.querySelectorAll("#ring tbody tr")];
          const owning = rows.filter((row) => row.dataset.buckets !== "0");
          return owning.length === Object.keys(expected).length
            && owning.every((row) => expected[row.dataset.member] === Number(row.dataset.buckets));
        }""",
        arg=expected,
    )


async def test_the_ring_is_live_while_one_is_killed(browser: Browser) -> None:
    """The page shows who owns how much, and that it is the others' when a replica or a worker is killed."""
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(niceness=0))
        one, other = (
            stack.enter_context(GatewayProcess(backbone=broker.url, services="demo", name=name))
            for name in ("one", "other")
        )
        first, _ = (
            stack.enter_context(WorkerProcess(broker.url, "demo", HANDLER, name=name))
            for name in ("w1", "w2")
        )
        page = await open_page(browser, one)
        replicas, workers = Ring(("one", "other")), Ring(("w1", "w2"), buckets=BUCKETS)
        await buckets_are(page, {**replicas.loads(), **workers.loads()})
        assert await page.locator("#ring-maps canvas").count() == 2
        first.kill()
        await buckets_are(page, {**replicas.loads(), "w2": BUCKETS})
        other.kill()
        await buckets_are(page, {"one": replicas.buckets, "w2": BUCKETS})
        await hand_in(page, "1")
        await all_ways_show(page, "done")
        await page.context.close()
