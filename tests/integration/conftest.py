"""
The gateways that integration tests share.

`gateway` is the gateway in each of its shells: as `sluice serve` runs it, on detached sockets, and mounted in
another application on plain uvicorn, where the host runs its lifespan or not. `own` is the first alone. They
are shared by all tests that leave the settings alone; each test uses `topics` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.certificates import Certificates
from tests.support.clients import Address, Topics
from tests.support.host import HostProcess, address_of
from tests.support.server import GatewayProcess

_numbers = count(1)


@pytest.fixture(scope="session")
def own_process() -> Iterator[GatewayProcess]:
    with GatewayProcess() as process:
        yield process


@pytest.fixture(scope="session")
def mounted_process() -> Iterator[GatewayProcess]:
    with HostProcess(lifespan=True) as process:
        yield process


@pytest.fixture(scope="session")
def bare_process() -> Iterator[GatewayProcess]:
    with HostProcess(lifespan=False) as process:
        yield process


@pytest.fixture(scope="session")
def tls_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    with GatewayProcess(tls=certificates.trusting(), tls_cert=certificates.both) as process:
        yield process


@pytest.fixture(params=["own", "mounted", "bare"])
def gateway(request: pytest.FixtureRequest) -> Address:
    """The address of a gateway in each of its shells."""
    return address_of(request.getfixturevalue(f"{request.param}_process"))


@pytest.fixture
def own(own_process: GatewayProcess) -> Address:
    """The address of a `sluice serve`."""
    return address_of(own_process)


@pytest.fixture(params=["mounted", "bare"])
def mounted(request: pytest.FixtureRequest) -> Address:
    """The address of a gateway mounted in another application."""
    return address_of(request.getfixturevalue(f"{request.param}_process"))


@pytest.fixture
def topics() -> Topics:
    """Topics that no other test uses."""
    return Topics(f"test{next(_numbers)}")
