"""The API of webhooks, its half about deliveries: lists, attempts, repeating one, and recovering many."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import Response

from fanout.cursor import Cursor, Earliest, Since, parse_start
from fanout.errors import CursorError
from gateway.operate import json_response
from gateway.pages import read_limit, read_page, write_page
from gateway.problems import Problem
from gateway.resources import Call
from gateway.webhooks_found import check_match, check_open, find_endpoint, is_visible, missing
from gateway.webhooks_shown import delivery_state, shown_attempt, shown_delivery, shown_job
from webhooks import records
from webhooks.delivery import State
from webhooks.description import decoded
from webhooks.errors import Invalid
from webhooks.logbook import Logbook
from webhooks.operations import HIGHEST
from webhooks.parcels import named
from webhooks.records import LOG_BITS, NOWHERE, Standing, Status, Task, message_number
from webhooks.service import Webhooks
from webhooks.store import Store
from webhooks.stored import delivery_key, delivery_name, endpoint_name, job_name, record_of

MAX_JOBS: Final = 10
"""Jobs of an endpoint that are not finished: whoever begins more has not looked at the first."""
MAX_JOBS_SHOWN: Final = 100
MAX_ATTEMPT: Final = 2**15 - 1

_ENDED: Final = {
    State.DELIVERED: Standing.DELIVERED,
    State.FAILED: Standing.FAILED,
    State.EXPIRED: Standing.EXPIRED,
}
_STATES: Final = {state.value: state for state in State}


class Deliveries:
    """
    Answers what is asked about deliveries.

    Args:
        webhooks: whose they are.
    """

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        self._store: Store = webhooks.store
        self._logbook = Logbook(webhooks.store)

    # --- looking --------------------------------------------------------------------------------------------

    async def listed(self, call: Call) -> Response:
        """Return deliveries of an endpoint: the newest events first; what is pending as it is due."""
        asked = call.query("state", "limit", "page")
        state, limit = _read_state(asked.get("state")), read_limit(asked.get("limit"))
        endpoint = await find_endpoint(self._store, call)
        waiting = State.PENDING if endpoint.status is Status.OPEN else State.HELD
        name = f"deliveries/{endpoint.id}/{'' if state is None else state.value}"
        if state is waiting:
            after = read_page(asked.get("page"), name, (-1, -1), (HIGHEST, HIGHEST))
            rows = await self._store.list_pending(endpoint.id, (after[0], after[1]), limit + 1)
        elif state in (State.PENDING, State.HELD):
            rows = []  # all that is not done is the other of the two
        else:
            (before,) = read_page(asked.get("page"), name, (HIGHEST,), (HIGHEST,))
            standing = None if state is None else _ENDED[state]
            rows = await self._store.list_deliveries(endpoint.id, standing, before, limit + 1)
        shown: dict[str, Any] = {"deliveries": await self._shown(call, rows[:limit], endpoint)}
        if len(rows) > limit:
            last = rows[limit - 1]
            place = (last.due, last.message) if state is waiting else (last.message,)
            shown["next"] = write_page(name, *place)
        return json_response(shown)

    async def show(self, call: Call) -> Response:
        """Return one delivery."""
        call.query()
        endpoint, row = await self._find(call)
        return await self._one(call, row, endpoint)

    async def attempts(self, call: Call) -> Response:
        """Return the attempts of a delivery, the newest first."""
        asked = call.query("limit", "page")
        limit = read_limit(asked.get("limit"))
        endpoint, row = await self._find(call)
        name = f"attempts/{endpoint.id}/{row.message}"
        (before,) = read_page(asked.get("page"), name, (MAX_ATTEMPT,), (MAX_ATTEMPT,))
        rows = await self._store.list_attempts(endpoint.id, row.message, before, limit + 1)
        shown: dict[str, Any] = {"attempts": [shown_attempt(each) for each in rows[:limit]]}
        if len(rows) > limit:
            shown["next"] = write_page(name, rows[limit - 1].number)
        return json_response(shown)

    async def _find(self, call: Call) -> tuple[records.Endpoint, records.Delivery]:
        """
        Return the delivery that the path names, and its endpoint.

        Raises:
            Problem: 404, there is none.
        """
        call.caller.check_webhooks()
        key = delivery_key(call.part("delivery"))
        if key is not None:
            endpoint = await self._store.find_endpoint(key[0])
            row = None if endpoint is None else await self._store.find_delivery(*key)
            if endpoint is not None and row is not None and is_visible(call.caller, endpoint):
                return endpoint, row
        raise Problem(404, f"there is no delivery {call.part('delivery')[:60]!a}")

    async def _one(
        self, call: Call, row: records.Delivery, endpoint: records.Endpoint, status: int = 200
    ) -> Response:
        (shown,) = await self._shown(call, [row], endpoint)
        return json_response(shown, status)

    async def _shown(
        self, call: Call, rows: list[records.Delivery], endpoint: records.Endpoint
    ) -> list[dict[str, Any]]:
        # As it is behind the rows: the attempt that closes it is in a row by the same transaction.
        endpoint = await self._store.find_endpoint(endpoint.id) or endpoint
        record = record_of(endpoint.health)
        is_open = endpoint.status is Status.OPEN
        return [
            {
                **shown_delivery(
                    row, delivery_state(row.standing, is_open=is_open), record, await self._webhook_id(row)
                ),
                "topic": call.caller.shown(row.topic),
            }
            for row in rows
        ]

    async def _webhook_id(self, row: records.Delivery) -> str:
        """Return the `webhook-id` of a delivery's attempts."""
        epoch = await self._logbook.epoch(row.message >> LOG_BITS)
        return named(row.message, row.event, row.time, epoch)[0]

    # --- having done ----------------------------------------------------------------------------------------

    async def accepted(self, call: Call, endpoint: records.Endpoint, message: int) -> Response:
        """Return the answer to whoever had a delivery made."""
        row = await self._store.find_delivery(endpoint.id, message)
        if row is None:
            raise Problem(404, "the webhook was removed in the meantime")
        answer = await self._one(call, row, endpoint, 202)
        answer.headers["location"] = call.url(f"/v1/deliveries/{delivery_name(endpoint.id, message)}")
        return answer

    async def retry(self, call: Call) -> Response:
        """Have a delivery tried again, now and from the beginning of its schedule, also one that arrived."""
        call.check_bare()
        endpoint, row = await self._find(call)
        check_open(endpoint)
        if not await self._store.repeat(endpoint.id, [row.message]):
            raise Problem(409, "the event has expired: it is not sent any more")
        self._webhooks.look()
        return await self.accepted(call, endpoint, row.message)

    async def recover(self, call: Call) -> Response:
        """Begin a job that has all deliveries tried again that failed."""
        call.query()
        wanted = decoded(call.members(), _Recovery)
        endpoint = await find_endpoint(self._store, call)
        after = await self._place(wanted.since, "since")
        until = HIGHEST if wanted.until is None else await self._place(wanted.until, "until")
        return await self._begin(call, endpoint, Task.RECOVER, after, until)

    async def skip(self, call: Call) -> Response:
        """Begin a job that gives up what is held, and opens the endpoint when that is done."""
        endpoint = await find_endpoint(self._store, call)
        check_match(call, endpoint)
        return await self._begin(call, endpoint, Task.SKIP, NOWHERE, HIGHEST)

    async def _begin(
        self, call: Call, endpoint: records.Endpoint, task: Task, after: int, until: int
    ) -> Response:
        """Begin a job on deliveries of events behind `after`, up to `until`, that are there now."""
        newest = await self._store.list_deliveries(endpoint.id, limit=1)
        last = min(until, newest[0].message) if newest else NOWHERE
        jobs = await self._store.list_jobs(endpoint.id, MAX_JOBS_SHOWN)
        if sum(not each.finished for each in jobs) >= MAX_JOBS:
            raise Problem(409, f"{MAX_JOBS} jobs of the webhook are under way: wait until one is done")
        job = await self._store.add_job(endpoint.id, task, after, last)
        if job is None:
            raise missing(call)
        self._webhooks.look()
        answer = json_response(shown_job(job), 202)
        answer.headers["location"] = call.url(
            f"/v1/webhooks/{endpoint_name(endpoint.id)}/jobs/{job_name(job.id)}"
        )
        return answer

    async def _place(self, text: str, member: str) -> int:
        """
        Return the number of the last message before a time, or up to a cursor.

        Raises:
            Invalid: the text is neither.
        """
        try:
            start = parse_start(text)
        except CursorError:
            start = None
        if isinstance(start, Since):
            return await self._store.find_time(start.time_ms)
        if isinstance(start, Earliest):
            return NOWHERE
        if not isinstance(start, Cursor):
            raise Invalid(f"{member} is an RFC 3339 time, earliest, or the cursor of an event", f"/{member}")
        number = await self._logbook.last_of(start.epoch)
        if number is None:
            raise Invalid("the cursor is of a log from which nothing was delivered", f"/{member}")
        return message_number(number, min(start.position, (1 << LOG_BITS) - 1))

    # --- jobs -----------------------------------------------------------------------------------------------

    async def jobs(self, call: Call) -> Response:
        """Return the jobs of an endpoint, the newest first."""
        call.query()
        endpoint = await find_endpoint(self._store, call)
        rows = await self._store.list_jobs(endpoint.id, MAX_JOBS_SHOWN)
        return json_response({"jobs": [shown_job(each) for each in rows]})

    async def job(self, call: Call) -> Response:
        """Return one job."""
        call.query()
        endpoint = await find_endpoint(self._store, call)
        for each in await self._store.list_jobs(endpoint.id, HIGHEST):
            if job_name(each.id) == call.part("job"):
                return json_response(shown_job(each))
        raise Problem(404, f"there is no job {call.part('job')[:60]!a}")


class _Recovery(msgspec.Struct, forbid_unknown_fields=True):
    """Of which events the deliveries are recovered: from a time or cursor on, up to one."""

    since: str
    until: str | None = None


def _read_state(text: str | None) -> State | None:
    if text is None:
        return None
    if text not in _STATES:
        raise Problem(422, f"state is one of {', '.join(_STATES)}")
    return _STATES[text]
