"""What every test shares. Nothing skips: what a test needs and does not find fails it, with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, which may be busy, and nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

TESTS: Final = Path(__file__).parent
SCENARIOS: Final = TESTS / "scenarios"

LONGEST: Final = (
    "scenarios/test_webhooks.py",
    "scenarios/test_backbone.py",
    "scenarios/test_requests.py",
    "scenarios/test_backbone_history.py",
    "integration/test_backbone_check.py",
    "integration/test_openapi.py",
    "integration/test_members.py",
    "integration/test_requests_broker.py",
    "integration/test_deploy.py",
    "integration/test_demo.py",
    "integration/test_workers.py",
    "integration/test_tls.py",
    "integration/test_broker_docs.py",
    "integration/test_transports.py",
    "integration/test_hostile.py",
    "integration/test_readme.py",
    "integration/test_keepalive.py",
    "integration/test_demo_requests.py",
    "integration/test_trial.py",
    "integration/test_stream_log.py",
    "webhooks/test_trouble.py",
    "gateway/test_cli.py",
    "properties/test_containment.py",
)
"""
Files that take longest, the longest first. They begin before all others: where files run beside each other,
one that begins last is waited for alone.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Sort by files: the longest, then others that start processes, then the rest.

    Raises:
        UsageError: a scenario is where `.ci/test` does not look for it.
    """
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> int:
        is_integration = item.path.is_relative_to(TESTS / "integration")
        return ranks.get(item.path, len(ranks) + (0 if is_integration else 1))

    for each in items:
        if each.get_closest_marker("scenario") is not None and not each.path.is_relative_to(SCENARIOS):
            raise pytest.UsageError(f"{each.nodeid} is a scenario, and those are in tests/scenarios")
    items.sort(key=rank)
