"""From the settings to the pages that may come in."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.auth.origins import Origins, parse_hosts, parse_origins
from gateway.settings_checks import is_loopback

if TYPE_CHECKING:
    from gateway.members.sticky import Sticky
    from gateway.settings import Settings


def origins(settings: Settings, sticky: Sticky | None, *, mounted: bool) -> Origins:
    """
    Return what says which pages may come in.

    Args:
        settings: name them.
        sticky: knows those of other replicas; None if clients are not sent to others.
        mounted: whether the server is somebody else's, who says by which names it is called.
    """
    hosts = parse_hosts(settings.hosts)
    anything = settings.asks or ((mounted or not is_loopback(settings.host)) and not hosts)
    if settings.advertise:
        hosts |= {urlsplit(settings.advertise).hostname or ""}
    return Origins(
        parse_origins(settings.origins),
        None if anything else hosts,
        None if sticky is None else sticky.knows,
    )
