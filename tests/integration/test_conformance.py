"""
RFC 6455 conformance of the gateway's own WebSocket protocol class: the Autobahn cases, run by `kosoku`.

Categories: 1 framing, 2 pings and pongs, 3 reserved bits, 4 opcodes, 5 fragmentation, 6 UTF-8, 7 closing, 10
what remains. (9 measures limits, 12 and 13 are permessage-deflate, which has tests of its own.)
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kosoku import FailureError, run_fuzzingclient

from tests.support.echo import EchoProcess

pytestmark = pytest.mark.integration

CATEGORIES = {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 10: 1}
"""Each category with the number of its cases: a category that was not run must not pass."""

INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}
"""Cases in which RFC 6455 leaves the behaviour open; any is right."""

LATE = {"6.4.3", "6.4.4"}
"""
Invalid UTF-8 inside a frame of which the end has not come yet. It is refused when the frame is complete and
not within it, which the suite calls NON-STRICT; RFC 6455 8.1 asks for no more.
"""


@pytest.fixture(scope="module", params=["plain", "deflate"])
def echo(request: pytest.FixtureRequest) -> Iterator[EchoProcess]:
    """An echo server that compresses if asked to, and one that does not."""
    with EchoProcess(deflate=request.param == "deflate") as process:
        yield process
        assert "Traceback" not in process.log_text(), process.log_text()


@pytest.mark.parametrize("category", CATEGORIES)
async def test_the_websocket_protocol_conforms(echo: EchoProcess, category: int) -> None:
    """Every case of a category is OK, in what is answered and in how the connection is closed."""
    try:
        results = await run_fuzzingclient(echo.websocket_url, cases=[f"{category}.*"], concurrency=4)
    except FailureError as failure:
        results = failure.results
        pytest.fail("\n".join(f"{each.case_id}: {each.result} {each.result_close}" for each in results))
    verdicts = {each.case_id: (each.behavior.value, each.behavior_close.value) for each in results}
    assert len(verdicts) == CATEGORIES[category]
    for case, (behavior, close) in verdicts.items():
        allowed = {"OK"}
        if case in INFORMATIONAL:
            allowed.add("INFORMATIONAL")
        elif case in LATE:
            allowed.add("NON-STRICT")
        assert behavior in allowed, f"{case}: {behavior}"
        assert close in allowed - {"NON-STRICT"}, f"{case}: {close} at the end"
