"""The demo page in a real Chromium: every client exact, through stalls and outages, or visibly not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import urllib.request
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Route, WebSocketRoute

from tests.support.browser import CLIENTS, TRANSPORTS, DemoPage, chromium, connections, ids_in_log
from tests.support.host import HostProcess
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

FILES = {
    "/": "text/html",
    "/demo/style.css": "text/css",
    "/demo/icon.svg": "image/svg+xml",
    "/demo/page.js": "text/javascript",
    "/demo/client.js": "text/javascript",
    "/demo/audit.js": "text/javascript",
    "/demo/parts.js": "text/javascript",
    "/demo/requests.js": "text/javascript",
    "/demo/ring.js": "text/javascript",
    "/demo/session.js": "text/javascript",
    "/demo/webhooks.js": "text/javascript",
}

OUTAGE = re.compile(r"net::ERR_|WebSocket connection to .* failed")
"""What Chromium itself says on the console while there is no server."""

STILL_ROUNDS = 5
"""How often a cursor must be seen in the same place to be taken for one that stands still."""

_topics = count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[GatewayProcess]:
    """A gateway for all tests that leave it as it is."""
    async with GatewayProcess("memory:") as running:
        yield running


@pytest.fixture
def topic() -> str:
    """A topic of this test's own."""
    return f"test{next(_topics)}.topic"


def events(topic: str, first: int, number: int, size: int = 0) -> list[dict[str, Any]]:
    """Return numbered events of one topic with `size` bytes of data; `first` is the number of the first."""
    return [{"topic": topic, "id": f"{topic}-{n}", "data": "x" * size} for n in range(first, first + number)]


def ids(topic: str, number: int) -> list[str]:
    """Return the ids of the first events of a topic."""
    return [event["id"] for event in events(topic, 1, number)]


async def publish_until_still(gateway: GatewayProcess, demo: DemoPage, topic: str) -> int:
    """
    Publish until nothing moves any more for the NDJSON client; return how many events that took.

    Being paused is not enough: so is a client each time the kernel needs a moment to take what it can. Only a
    cursor that stays where it is, while others get everything, means that browser and kernel are full.
    """
    sent, still, cursor = 0, 0, ""
    while still < STILL_ROUNDS:
        assert sent < 10_000, "not paused after 100 MB"
        await gateway.apublish(*events(topic, sent + 1, 100, 10_000))
        sent += 100
        await demo.until_count("A", sent)
        seen = connections(gateway, "ndjson_chunked")
        if not seen:  # the gateway has given up on it already
            return sent
        still = still + 1 if seen[0]["state"] == "paused" and seen[0]["cursor"] == cursor else 0
        cursor = seen[0]["cursor"]
    return sent


# --- the page itself ----------------------------------------------------------------------------------------


async def test_page_is_made_of_its_own_files(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """Each file has its content type and is checked for changes, and nothing is asked of any other server."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        answers: dict[str, dict[str, str]] = {}
        demo.page.on("response", lambda answer: answers.update({answer.url: answer.headers}))
        await demo.open()
        for path, kind in FILES.items():
            headers = answers[gateway.url + path + (f"?topic={topic}" if path == "/" else "")]
            assert headers["content-type"].split(";")[0] == kind
            assert headers["cache-control"] == "no-cache"
        origins = {re.sub(r"^ws", "http", url)[: len(gateway.url) + 1] for url in demo.requests}
        assert origins == {gateway.url + "/"}
        assert demo.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_fits_a_phone(browser: Browser, gateway: GatewayProcess, topic: str, scheme: str) -> None:
    """At 400 pixels nothing sticks out, in light and dark, and each control says what it is for."""
    viewport = {"width": 400, "height": 800}
    async with DemoPage(browser, gateway.url, [topic], viewport=viewport, color_scheme=scheme) as demo:
        await demo.open()
        await demo.burst(30)
        await demo.all_exact(30)
        assert await demo.page.evaluate("document.documentElement.scrollWidth") == 400
        ground = await demo.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
        assert (brightness > 200) == (scheme == "light")
        for role in ("textbox", "combobox", "spinbutton", "button"):
            controls = demo.page.get_by_role(role)
            assert (
                await controls.count()
                == await demo.page.get_by_role(role, name=re.compile(r"\w")).count()
                > 0
            )


async def test_page_works_under_a_path(browser: Browser, topic: str) -> None:
    """Mounted in another application, below a path of it, the page finds its files and the gateway."""
    async with HostProcess("memory:", lifespan=True) as host, DemoPage(browser, host.url, [topic]) as demo:
        await demo.open()
        await demo.burst(50)
        await demo.all_exact(50)
        assert demo.errors == []


async def test_commands_do_what_they_say(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """The command below the form publishes what the form says, and a client's goes on at its cursor."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        await demo.page.get_by_label("Data").fill('it\'s "text" — not JSON')
        await demo.page.locator("#publish summary").click()
        program, *arguments = shlex.split(await demo.text_of(demo.page.locator("#publish code")))
        assert program == "curl"
        header, body, url = arguments[1], arguments[3], arguments[4]
        request = urllib.request.Request(url, body.encode(), dict([header.split(": ")]))
        await asyncio.to_thread(lambda: urllib.request.urlopen(request).close())
        await demo.all_exact(1)
        await demo.client("D").locator("summary").click()
        shown = shlex.split(await demo.text_of(demo.client("D").locator("code")))
        await asyncio.to_thread(gateway.publish, {"topic": topic, "data": 2})
        status, answer = await asyncio.to_thread(gateway.get, shown[-1].removeprefix(gateway.url))
        assert (status, [event["data"] for event in json.loads(answer)["events"]]) == (200, [2])
        await demo.all_exact(2)
        text = await demo.client("A").locator(".events .body").all_inner_texts()
        assert text == ["2", json.dumps('it\'s "text" — not JSON', ensure_ascii=False)]


# --- exactness ----------------------------------------------------------------------------------------------


async def test_all_clients_show_all_events(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """What is published by the form, in bursts and over HTTP comes to every client, in the log's order."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        await demo.page.get_by_label("Id").fill("mine")
        await demo.press("Publish one")
        await demo.until_told("durable: 1 accepted")
        await demo.press("Publish one")
        await demo.until_told("durable: 0 accepted, 1 known already")
        await demo.page.get_by_label("Id").fill("")
        await asyncio.gather(demo.burst(1500), gateway.apublish(*events(topic, 1, 300)))
        await demo.all_exact(1801)
        expected = ids_in_log(gateway, [topic])
        assert (await demo.received()) == dict.fromkeys(CLIENTS, expected)
        assert set(ids(topic, 300)) | {"mine"} <= set(expected)
        assert set((await demo.verdicts()).values()) == {"exact"}
        assert demo.errors == []


async def test_pattern_chooses_the_events(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """Another pattern begins anew with what it picks; one that is none is refused, and changes nothing."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        pattern = demo.page.get_by_label("Pattern")
        follow = demo.page.get_by_role("button", name="Follow")
        await pattern.fill("a..b")
        await follow.click()
        await demo.until("() => document.querySelector('.problem').textContent !== ''")
        await gateway.apublish(*events(topic, 1, 3))
        await demo.all_exact(3)
        demo.errors.clear()  # Chromium reports the 422
        await pattern.fill(f"{topic}.*, {topic}.x.#")
        await follow.click()
        await demo.page.wait_for_function("() => document.querySelector('#total').textContent === '0'")
        for name in CLIENTS:
            await demo.until_client(name, "data-state", "open")
        picked = [*events(f"{topic}.x.y.z", 1, 2), *events(f"{topic}.y", 1, 1)]
        await gateway.apublish(*events(topic, 4, 1), *picked)
        await demo.all_exact(6)  # the three from before, and three more
        expected = [*ids(topic, 3), *(event["id"] for event in picked)]
        assert (await demo.received()) == dict.fromkeys(CLIENTS, expected)
        assert demo.errors == []


async def test_stalled_client_is_paused_and_catches_up(browser: Browser, topic: str) -> None:
    """A client that stops reading is paused, which others do not notice, and reading again it catches up."""
    async with GatewayProcess("memory:") as gateway, DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        await demo.button("C", "Stop reading")
        sent = await publish_until_still(gateway, demo, topic)
        for name in "ABDE":
            await demo.until_count(name, sent)
        await demo.until_client("C", "data-seen", "paused")
        await demo.until_client("C", "data-level", "wait")
        (before,) = connections(gateway, "ndjson_chunked")
        await gateway.apublish(*events(topic, sent + 1, 100))
        sent += 100
        for name in "ABDE":
            await demo.until_count(name, sent)
        (after,) = connections(gateway, "ndjson_chunked")
        assert (before["state"], after["state"]) == ("paused", "paused")
        assert (after["cursor"], after["behind"]) == (before["cursor"], before["behind"] + 100)
        assert (await demo.counts())["C"] == 0
        row = demo.page.locator('#server tr[data-state="paused"]')
        assert re.search(r"\bC\b.*paused", await row.inner_text())
        await demo.button("C", "Resume reading")
        await demo.all_exact(sent)
        assert (await demo.received()) == dict.fromkeys(CLIENTS, ids(topic, sent))
        await demo.until_client("C", "data-seen", "live")
        assert demo.errors == []


async def test_client_stalled_for_too_long_goes_on_at_its_cursor(browser: Browser, topic: str) -> None:
    """When the gateway gives up on a client that does not read, the client reads on where it was."""
    async with GatewayProcess("memory:", stall_timeout=2) as gateway:
        async with DemoPage(browser, gateway.url, [topic]) as demo:
            await demo.open()
            await demo.button("C", "Stop reading")
            sent = await publish_until_still(gateway, demo, topic)
            await demo.until(
                "() => document.querySelector('[data-client=C] .seen').textContent.startsWith('gave up')"
            )
            assert connections(gateway, "ndjson_chunked") == []
            await demo.button("C", "Resume reading")
            await demo.all_exact(sent)
            assert (await demo.received()) == dict.fromkeys(CLIENTS, ids(topic, sent))


@contextlib.asynccontextmanager
async def publishing(gateway: GatewayProcess, topic: str) -> AsyncIterator[list[str]]:
    """Publish all the time, a few events at once; gives the ids."""
    sent: list[str] = []
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            batch = events(topic, len(sent) + 1, 3)
            await gateway.apublish(*batch)
            sent.extend(event["id"] for event in batch)
            await asyncio.sleep(0.02)  # a pace at which the browser, not the publisher, has the processor

    task = asyncio.create_task(publish())
    try:
        yield sent
    finally:
        stop.set()
        await task


async def test_switching_transports_loses_nothing(
    browser: Browser, gateway: GatewayProcess, topic: str
) -> None:
    """While events keep coming, each client goes through all transports, and gets all once, in order."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        async with publishing(gateway, topic) as sent:
            for step in range(1, len(TRANSPORTS) + 1):
                before = await demo.counts()
                for place, name in enumerate(CLIENTS):
                    await demo.switch(name, TRANSPORTS[(place + step) % len(TRANSPORTS)])
                for name in CLIENTS:
                    await demo.until_count(name, before[name] + 20)
        await demo.all_exact(len(sent))
        assert (await demo.received()) == dict.fromkeys(CLIENTS, sent)
        assert demo.errors == []


async def test_disconnected_clients_miss_nothing(
    browser: Browser, gateway: GatewayProcess, topic: str
) -> None:
    """A client that was away gets what it missed, also if it comes back over another transport."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        await gateway.apublish(*events(topic, 1, 20))
        await demo.all_exact(20)
        for name in "BCDE":
            await demo.button(name, "Disconnect")
            await demo.until_client(name, "data-state", "stopped")
        await demo.switch("E", "sse")
        await gateway.apublish(*events(topic, 21, 500))
        await demo.until_count("A", 520)
        await demo.until_client("B", "data-level", "wait")
        assert (await demo.verdicts())["B"] == "500 behind"
        await demo.button("A", "Disconnect")
        for name in CLIENTS:
            await demo.button(name, "Reconnect")
        await demo.all_exact(520)
        assert (await demo.received()) == dict.fromkeys(CLIENTS, ids(topic, 520))
        assert demo.errors == []


async def test_hidden_page_gives_its_connections_back(browser: Browser, topic: str) -> None:
    """A page that nobody sees holds no connection, and goes on at its cursors when it is seen again."""
    async with GatewayProcess("memory:") as gateway, DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        hide = """(hidden) => {
            Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        await demo.page.evaluate(hide, arg=True)
        for name in CLIENTS:
            await demo.until_client(name, "data-state", "stopped")
        await gateway.apublish(*events(topic, 1, 100))
        await demo.page.evaluate(hide, arg=False)
        await demo.all_exact(100)
        assert (await demo.received()) == dict.fromkeys(CLIENTS, ids(topic, 100))


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_clients_survive_a_restart(browser: Browser, tmp_path: Path, end: str) -> None:
    """The gateway is killed or stopped, and started again on its data: clients and producer just go on."""
    async with GatewayProcess(tmp_path) as gateway, DemoPage(browser, gateway.url) as demo:
        await demo.open()
        await demo.press("Start steady stream")
        await demo.until_count("E", 10)
        assert demo.errors == []
        await asyncio.to_thread(getattr(gateway, end))
        await demo.until("() => document.querySelector('#publish output').value.endsWith('sending it again')")
        await gateway.astart()
        before = max((await demo.counts()).values())
        for name in CLIENTS:
            await demo.until_count(name, before + 10)
        await demo.press("Stop steady stream")
        await demo.page.get_by_role("button", name="Start steady stream").wait_for()
        assert [error for error in demo.errors if not OUTAGE.search(error)] == []
        demo.errors.clear()
        await demo.burst(100)
        expected = ids_in_log(gateway)
        await demo.all_exact(len(expected))
        assert (await demo.received()) == dict.fromkeys(CLIENTS, expected)
        assert len(set(expected)) == len(expected)
        assert demo.errors == []


# --- what is not exact is seen ------------------------------------------------------------------------------


async def test_gap_is_shown(browser: Browser, topic: str) -> None:
    """Clients that come back too late are told of the gap on every transport, show it, and go on after it."""
    async with GatewayProcess("memory:", retention_events=50, window_events=20) as gateway:
        async with DemoPage(browser, gateway.url, [topic]) as demo:
            await demo.open()
            await gateway.apublish(*events(topic, 1, 10))
            await demo.all_exact(10)
            for name in CLIENTS:
                await demo.button(name, "Disconnect")
            for first in range(11, 311, 100):
                await gateway.apublish(*events(topic, first, 100))
            for name in CLIENTS:
                await demo.button(name, "Reconnect")
            for name in CLIENTS:
                await demo.until_client(name, "data-level", "told")
                assert "expired" in await demo.client(name).locator(".gap").inner_text()
            got = await demo.received()
            expected = [*ids(topic, 10), *ids_in_log(gateway)]
            assert got == dict.fromkeys(CLIENTS, expected)
            assert 60 <= len(got["A"]) < 310
            await demo.page.wait_for_selector('#overall[data-level="told"]')


async def test_recreated_log_is_told(browser: Browser, topic: str) -> None:
    """After a restart that lost the log every client is told of the reset, and gets all of the new log."""
    async with GatewayProcess("memory:") as gateway, DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        await gateway.apublish(*events(topic, 1, 10))
        await demo.all_exact(10)
        await gateway.arestart()
        await gateway.apublish(*events(topic, 11, 10))
        for name in CLIENTS:
            await demo.until_count(name, 20)
            await demo.until_client(name, "data-level", "told")
            assert "reset" in await demo.client(name).locator(".gap").inner_text()
        assert (await demo.received()) == dict.fromkeys(CLIENTS, ids(topic, 20))


async def test_lost_and_repeated_messages_are_marked(
    browser: Browser, gateway: GatewayProcess, topic: str
) -> None:
    """When a message to a client is swallowed on the way and another repeated, the page says so."""

    def tamper(page: WebSocketRoute) -> None:
        server = page.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            number = json.loads(message).get("data", {}).get("n")
            for _ in range({3: 0, 5: 2}.get(number, 1)):
                page.send(message)

        server.on_message(pass_on)

    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.page.route_web_socket(re.compile("/v1/events"), tamper)
        await demo.open()
        await demo.burst(8)
        await demo.until_client("A", "data-level", "bad")
        for name in CLIENTS[1:]:
            await demo.until_client(name, "data-level", "good")
        await demo.page.wait_for_selector('#overall[data-level="bad"]')
        assert await demo.verdicts() == dict.fromkeys(CLIENTS, "exact") | {"A": "1 missing, 1 twice"}


async def test_refused_publish_is_told(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """What the gateway refuses is told in its words; what it is too busy for is sent again."""
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        field = demo.page.get_by_label("Topic", exact=True)
        await field.fill("no..topic")
        await demo.press("Publish one")
        await demo.until_told("refused: ")
        await field.fill(topic)
        busy = iter([503, 429])

        async def answer(route: Route) -> None:
            status = next(busy, None) if route.request.method == "POST" else None
            if status is None:
                await route.continue_()
            else:
                await route.fulfill(status=status, headers={"retry-after": "0"}, json={"title": "busy"})

        await demo.page.route(re.compile("/v1/events$"), answer)
        await demo.press("Publish one")
        await demo.until_told("busy, sending it again")
        await demo.until_told("durable: 1 accepted")
        await demo.all_exact(1)


AUDIT = """async (steps) => {
    const { Audit } = await import("./demo/audit.js");
    const audit = new Audit();
    for (const [client, what] of steps) {
        if (what === "gap") audit.gap(client);
        else audit.take(client, { cursor: `c${what}`, id: `i${what}`, data: { run: "r", n: what } });
    }
    return ["a", "b"].map((client) => audit.tally(client).verdict.text);
}"""

FAULTS = {
    "a1 b1 a2 b2": ("exact", "exact"),
    "a1 a2 a3 b1": ("exact", "2 behind"),
    "a1 a2 a3 b1 b3": ("exact", "1 missing"),
    "b1 b3 a1 a2 a3": ("exact", "1 missing"),
    "a1 a2 b1 b1 b2": ("exact", "1 twice"),
    "a1 a2 a3 b1 b3 b2": ("exact", "1 out of order"),
    "b1 b3 b2 a1 a2 a3": (
        "1 out of order",
        "1 out of order",
    ),  # they disagree; the numbers convict the second
    "a1 a2 a3 b1 bgap b3": ("exact", "exact, gap told"),
    "b1 bgap b4 a1 a2 a3 a4": ("exact", "exact, gap told"),
    "b1 bgap b3 b5 a1 a2 a3 a4 a5": ("exact", "1 missing"),
    "a1 a2 a3 a4 bgap b2 b4": ("exact", "1 missing"),
    "a1 b1 a3 b3": ("1 missing", "1 missing"),  # nobody got the second: only the numbers tell
}
"""What two clients get, in what order, and what is to be said about each."""


async def test_audit_finds_each_fault(browser: Browser, gateway: GatewayProcess, topic: str) -> None:
    """The page's referee tells lost, repeated and late events from what a gap announced, whoever is first."""
    found = {}
    async with DemoPage(browser, gateway.url, [topic]) as demo:
        await demo.open()
        for steps in FAULTS:
            given = [(step[0], int(step[1:]) if step[1:].isdecimal() else step[1:]) for step in steps.split()]
            found[steps] = tuple(await demo.page.evaluate(AUDIT, given))
    assert found == FAULTS
