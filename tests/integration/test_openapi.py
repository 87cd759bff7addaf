"""
A gateway answers as `/openapi.json` says, with keys and without: schemathesis asks whatever that allows, and
whatever it does not; every answer has to be one that is described, and what is not allowed has to be refused.
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
from tests.support.described import Account, document

# All is asked before the first test; a machine that others use as well takes several times as long.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CHECKOUT: Final = Path(__file__).parents[2]
DEADLINE: Final = 540.0
LEAST_CASES: Final = 10_000


def labels_of(keys: bool) -> list[str]:
    """Return the names of all operations of a gateway that has keys, or has none."""
    paths = document(keys=keys)["paths"]
    return [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]


LABELS: Final = labels_of(True)
OPEN: Final = labels_of(False)


@pytest.fixture(scope="module")
def accounts() -> dict[str, Account]:
    """What came of asking a gateway with keys for each operation."""
    return asked()


@pytest.fixture(scope="module")
def open_accounts() -> dict[str, Account]:
    """The same of one without."""
    return asked("--without-keys")


def asked(*arguments: str) -> dict[str, Account]:
    """Ask a gateway in a process of its own, and return what came of it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.asking", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # cases as alike each time as they can be
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=dict[str, Account])


@pytest.mark.parametrize("label", LABELS)
def test_answers_are_as_described(accounts: dict[str, Account], label: str) -> None:
    """Every answer is as it is described for its status, and what is not allowed is refused."""
    check(accounts[label])


@pytest.mark.parametrize("label", OPEN)
def test_answers_without_keys_are_as_described(open_accounts: dict[str, Account], label: str) -> None:
    """The same of a gateway that asks nobody who they are."""
    check(open_accounts[label])


def check(account: Account) -> None:
    """Check that an operation was asked for with success, and that no answer was wrong."""
    assert not account.failure, account.failure
    assert account.succeeded, "nothing was ever asked for that is there"


def test_so_many_cases_were_sent(accounts: dict[str, Account], open_accounts: dict[str, Account]) -> None:
    """All operations were asked for, and all together often enough."""
    assert accounts.keys() == set(LABELS)
    assert open_accounts.keys() == set(OPEN)
    assert {"GET /v1/keys", "POST /v1/tickets"} <= set(LABELS) - set(OPEN)
    assert sum(each.sent for each in accounts.values()) >= LEAST_CASES
    assert sum(each.sent for each in open_accounts.values()) >= LEAST_CASES // 5


async def test_the_documents_are_served(own: Address) -> None:
    """What is described is served as it is, for the settings of the gateway."""
    served = (await fetch(own, "/openapi.json")).json
    assert served == describe(Settings(data="memory:"), auth=False)
    served = (await fetch(own, "/asyncapi.json")).json
    assert served == asyncapi.describe(Settings(data="memory:", port=own.port))
