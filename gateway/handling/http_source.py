"""Jobs from a gateway's door for workers, over HTTP."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import Any, Final

import httpx
import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.client import RETRIED, UNREADABLE, advice, bearer, delay_before
from gateway.handling.data import data_of
from gateway.handling.source import Job, SourceError

log = logging.getLogger(__name__)

WAIT_SECONDS: Final = 20.0
"""How long one call waits for jobs at the gateway."""

ANSWER_SECONDS: Final = 15.0
"""How long any other answer is waited for, and this one beyond its wait."""

GIVE_UP_SECONDS: Final = 300.0
"""For so long an outcome is tried to be handed in; by then the request is somebody else's."""


class HttpSource:
    """
    Leases jobs of one service.

    Args:
        base: address of the gateway.
        service: whose requests.
        worker: the name under which operators see this worker.
        token: by which the gateway is asked; may be empty.
    """

    def __init__(self, base: str, service: str, worker: str, token: str = "") -> None:
        self._token = token
        self._service = service
        self._worker = worker
        self._base = base
        self._known = False  # whether the gateway has ever given an answer as a gateway does
        self._failures = 0
        try:
            self._client = httpx.AsyncClient(
                base_url=base.rstrip("/"),
                headers=bearer(token),
                timeout=ANSWER_SECONDS,
                trust_env=False,
                follow_redirects=False,
                verify=ssl.create_default_context(),  # whom the system trusts, not httpx's own list
            )
        except (httpx.InvalidURL, ValueError):
            raise SourceError(f"{base!r} is no address of a gateway") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def take(self, most: int) -> list[Job]:
        """See `Source.take`."""
        members = {"worker": self._worker, "wait": WAIT_SECONDS, "max": min(most, 100)}
        while True:
            answer = await self._post(f"/v1/services/{self._service}:lease", members, WAIT_SECONDS)
            if answer.status_code == 200:
                leases = self._leases(answer)
                if leases:
                    return leases
            elif answer.status_code == 404 and self._known:
                log.warning("worker.unknown", extra={"service": self._service})
                await asyncio.sleep(delay_before(4, random.random()))  # no secret
            else:
                why = f"the gateway at {self._base} refuses: {_detail(answer)}"
                if answer.status_code == 401:
                    why += f" ({advice(known=bool(self._token))})"
                raise SourceError(why)

    async def progress(self, job: Job, value: bytes | None) -> bool:
        """See `Source.progress`."""
        members = {} if value is None else {"progress": Raw(value)}
        answer = await self._post(f"/v1/leases/{job.lease}:progress", members)
        if answer.status_code == 413:
            log.warning("worker.progress", extra={"token": job.token, "why": _detail(answer)})
        return answer.status_code != 404

    async def complete(self, job: Job, result: bytes) -> bool:
        """See `Source.complete`."""
        answer = await self._settle(job, "complete", {"result": Raw(result)})
        if answer is not None and answer.status_code == 413:
            # Where it was far too large nobody has looked at it, and the request still waits for its end.
            await self.fail(job, "result", _detail(answer), again=False)
        return answer is not None and answer.status_code == 204

    async def fail(self, job: Job, reason: str, detail: str, *, again: bool) -> bool:
        """See `Source.fail`."""
        members = {"reason": reason, "detail": detail, "again": again}
        answer = await self._settle(job, "fail", members)
        return answer is not None and answer.status_code == 204

    async def release(self, job: Job) -> None:
        """See `Source.release`."""
        await self._settle(job, "release", None)

    async def _settle(self, job: Job, verb: str, members: Any) -> httpx.Response | None:
        """Hand in how a job ends; None if that could not be done for so long that it is of no use."""
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                return await self._post(f"/v1/leases/{job.lease}:{verb}", members)
        except TimeoutError:
            return None

    async def _post(self, path: str, members: Any, more: float = 0) -> httpx.Response:
        """Post until there is an answer that is one."""
        body = b"" if members is None else msgspec.json.encode(members)
        headers = {"content-type": "application/json"} if body else {}
        failures = 0
        while True:
            try:
                answer = await self._client.post(
                    path, content=body, headers=headers, timeout=ANSWER_SECONDS + more
                )
            except (httpx.UnsupportedProtocol, httpx.InvalidURL):
                raise SourceError(f"{self._base!r} is no address of a gateway") from None
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if answer.status_code not in RETRIED:
                    if failures:
                        log.info("worker.back", extra={"gateway": self._base})
                    return answer
                why = _detail(answer)
            if not failures:
                log.warning("worker.waiting", extra={"gateway": self._base, "why": why})
            failures += 1
            await asyncio.sleep(delay_before(failures, random.random()))  # no secret

    def _leases(self, answer: httpx.Response) -> list[Job]:
        try:
            leases = msgspec.json.decode(answer.content, type=_Leases).leases
        except UNREADABLE:
            raise SourceError(
                f"{self._base} gave an answer that is not a gateway's, or of another version"
            ) from None
        self._known = True
        return [_job(each) for each in leases]


class _Lease(msgspec.Struct):
    """A lease as the door gives it; members of later versions are passed over."""

    lease: str
    token: str
    service: str
    attempt: int
    seconds: float
    data: Raw | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET


class _Leases(msgspec.Struct):
    leases: list[_Lease]


def _job(lease: _Lease) -> Job:
    data = data_of(lease.data, lease.data_base64)
    return Job(lease.lease, lease.token, lease.service, lease.attempt, data, lease.seconds)


def _detail(answer: httpx.Response) -> str:
    """Return what an answer says is wrong."""
    try:
        return str(msgspec.json.decode(answer.content)["detail"])
    except (*UNREADABLE, KeyError, TypeError):
        return f"status {answer.status_code}"
