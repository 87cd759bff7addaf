"""
The request worker: runs a handler for the requests of a service. What `sluice worker` is made of.

    from gateway.handling import Refused

    def handle(request):
        if not request.data:
            raise Refused("there is nothing to do")     # never try this one again
        request.progress({"percent": 50})
        return {"url": "https://…"}
"""

from __future__ import annotations

from gateway.handling.request import Refused, Request

__all__ = ["Refused", "Request"]
