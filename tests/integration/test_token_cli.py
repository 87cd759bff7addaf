"""A gateway that asks who comes, and the commands that say so by a token of `sluice token`."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.command import run_sluice
from tests.support.server import GatewayProcess
from tests.support.tokens import SECRET

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess(data="memory:", jwt_key=SECRET, jwt_audience="push") as process:
        yield process


def made(*flags: str) -> str:
    """Return a token of the command, for this gateway."""
    done = run_sluice("token", "--audience", "push", *flags, environ={"SLUICE_JWT_KEY": SECRET})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_token_opens_what_it_grants(gateway: GatewayProcess) -> None:
    """It publishes and listens where it may; elsewhere, and to everybody else, the answer is one sentence."""
    token = made("--subject", "ada", "--publish", "chat.*", "--subscribe", "chat.#")
    environ = {"SLUICE_TOKEN": token, "SLUICE_URL": gateway.url}
    done = run_sluice("publish", "chat.a", '"hello"', environ=environ)
    assert done.returncode == 0, done.stderr
    flags = ("--cursor", "earliest", "--count", "1", "--data")
    done = run_sluice("tail", "chat.a", *flags, environ=environ)
    assert (done.returncode, done.stdout) == (0, '"hello"\n'), done.stderr
    for arguments in (["publish", "news.a", "1"], ["tail", "#"], ["requests", "list"]):
        done = run_sluice(*arguments, environ=environ)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"sluice: {gateway.url} answered 403: ")
        assert done.stderr.count("\n") == 1
    for arguments in (["publish", "chat.a", "1"], ["tail", "chat.a"]):
        done = run_sluice(*arguments, environ={"SLUICE_URL": gateway.url})
        assert done.returncode == 1
        assert done.stderr.endswith("(set SLUICE_TOKEN to a token, or to an API key)\n")
        done = run_sluice(*arguments, environ={**environ, "SLUICE_TOKEN": token[:-6]})
        assert done.returncode == 1
        assert "answered 401" in done.stderr
        assert done.stderr.endswith("(it is that of SLUICE_TOKEN)\n")


def test_tail_ends_with_its_token(gateway: GatewayProcess) -> None:
    """A token that is good for a second, and the leeway for clocks, does not keep a connection open."""
    token = made("--subject", "eve", "--subscribe", "chat.#", "--for", "1s")
    done = run_sluice("tail", "chat.b", environ={"SLUICE_TOKEN": token, "SLUICE_URL": gateway.url})
    assert (done.returncode, done.stdout) == (1, "")
    assert "token" in done.stderr


def test_no_door_opens_to_a_path_that_only_looks_like_another(gateway: GatewayProcess) -> None:
    """A line break behind a path leads nowhere, whoever asks."""
    for path, status in (
        ("/v1/requests/x:retry", 403),
        ("/v1/requests/x:retry%0A", 404),
        ("/metrics%0a", 404),
    ):
        request = urllib.request.Request(gateway.url + path, method="POST" if "retry" in path else "GET")
        request.add_header("Authorization", f"Bearer {made('--subject', 'ada')}")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)
        assert caught.value.code == status, path
        caught.value.close()
