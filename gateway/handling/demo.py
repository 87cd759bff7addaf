"""
A handler to try workers with: takes some seconds, and tells how far it is.

    sluice worker gateway.handling.demo:handle --service demo
"""

from __future__ import annotations

import time
from typing import Any

from gateway.handling.request import Refused, Request

STEPS = 5


def handle(request: Request) -> dict[str, Any]:
    """Return what was handed in, after a second or so; `"fail"` raises, `"refuse"` refuses."""
    if request.data == "fail":
        raise ValueError("it was told to fail")
    if request.data == "refuse":
        raise Refused("it was told to refuse")
    for step in range(STEPS):
        request.progress({"percent": 100 * step // STEPS})
        time.sleep(0.25)
    return {"echo": request.data, "attempt": request.attempt}
