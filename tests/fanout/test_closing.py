"""The table of close reasons."""

from __future__ import annotations

import pytest
from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode

from fanout import closing
from fanout.closing import CloseReason
from fanout.frames import websocket_close

REASONS = [value for value in vars(closing).values() if isinstance(value, CloseReason)]

NEVER_SENT = {CloseCode.ABNORMAL_CLOSURE}
"""RFC 6455 7.4.1: no endpoint puts this code into a close frame."""
UNAUTHORIZED = 3000
"""As registered with IANA for WebSocket close codes."""


def test_names_are_unique() -> None:
    """Each reason has a name of its own, by which logs and metrics know it."""
    names = [reason.name for reason in REASONS]
    assert len(REASONS) >= 10
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.name)
def test_each_reason(reason: CloseReason) -> None:
    """A reason's code may be sent, or says that nothing was; its sentence needs no escaping."""
    assert reason.code in {*map(int, EXTERNAL_CLOSE_CODES), *NEVER_SENT, UNAUTHORIZED}
    assert '"' not in reason.detail
    assert "\\" not in reason.detail
    assert reason.detail.isascii()
    assert reason.detail.isprintable()
    assert websocket_close(reason.code, reason.name)[4:] == reason.name.encode()


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.name)
def test_the_advice_and_the_code_agree(reason: CloseReason) -> None:
    """Who is told not to come back has left, broken the rules or lost the right; all others go on."""
    final = {CloseCode.NORMAL_CLOSURE, CloseCode.PROTOCOL_ERROR, UNAUTHORIZED}
    assert reason.reconnect == (reason.code not in final)
    if "reconnect with your cursor" in reason.detail:
        assert reason.reconnect
