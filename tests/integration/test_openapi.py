"""
A gateway with keys answers as `/openapi.json` says: schemathesis asks whatever that allows, and whatever it
does not; every answer has to be one that is described, and what is not allowed has to be refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest

from gateway.openapi import asyncapi
from gateway.openapi.document import describe
from gateway.settings import Settings
from tests.support.clients import Address, fetch
from tests.support.described import SERVICE, Account
from tests.support.tokens import SECRET

# All is asked before the first test; a machine that others use as well takes several times as long.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CHECKOUT: Final = Path(__file__).parents[2]
DEADLINE: Final = 540.0
LEAST_CASES: Final = 10_000

DOCUMENT: Final = describe(Settings(data="memory:", services=SERVICE, jwt_key=SECRET), auth=True)
LABELS: Final = [
    f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods
]


@pytest.fixture(scope="module")
def accounts() -> dict[str, Account]:
    """What came of asking for each operation."""
    asked = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.asking"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # cases as alike each time as they can be
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr.decode()
    return msgspec.json.decode(asked.stdout, type=dict[str, Account])


@pytest.mark.parametrize("label", LABELS)
def test_answers_are_as_described(accounts: dict[str, Account], label: str) -> None:
    """Every answer is as it is described for its status, and what is not allowed is refused."""
    account = accounts[label]
    assert not account.failure, account.failure
    assert account.succeeded, "nothing was ever asked for that is there"


def test_so_many_cases_were_sent(accounts: dict[str, Account]) -> None:
    """All operations were asked for, and all together often enough."""
    assert accounts.keys() == set(LABELS)
    assert sum(each.sent for each in accounts.values()) >= LEAST_CASES


async def test_the_documents_are_served(own: Address) -> None:
    """What is described is served as it is, for the settings of the gateway."""
    served = (await fetch(own, "/openapi.json")).json
    assert served == describe(Settings(data="memory:"), auth=False)
    served = (await fetch(own, "/asyncapi.json")).json
    assert served == asyncapi.describe(Settings(data="memory:", port=own.port))
