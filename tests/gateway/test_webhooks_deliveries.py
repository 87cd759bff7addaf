"""The API of webhooks, its half about deliveries: a real server, a real store, nobody who sends."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mint import time_text
from gateway.pages import read_page, write_page
from gateway.problems import Problem
from gateway.webhooks_deliveries import MAX_JOBS
from tests.support.webhook_api import EPOCH, Api, id_of, problem, webhook_id
from webhooks.health import Record
from webhooks.records import Attempt, Standing, Status
from webhooks.stored import delivery_name, endpoint_name

NOW: Final = int(time.time() * 1000)
UNTRIED: Final = ("pending", "failed", "delivered", "expired", "held")


async def pages(api: Api, path: str, name: str, limit: int, **query: str) -> list[list[dict[str, Any]]]:
    """Return all pages of a list."""
    found: list[list[dict[str, Any]]] = []
    page: str | None = ""
    while page is not None:
        asked = {**query, "limit": str(limit), **({"page": page} if page else {})}
        answer = await api.http.get(path, params=asked)
        assert answer.status_code == 200, answer.text
        found.append(answer.json()[name])
        page = answer.json().get("next")
    return found


async def test_deliveries_are_listed_from_the_newest(api: Api) -> None:
    """With what became of each, and when it is tried next."""
    created = await api.create()
    names = await api.deliver(created["id"], 3, time_ms=NOW)
    await api.settle(created["id"], 1, Standing.DELIVERED, Attempt(1, NOW, 200, None, 12, b"ok"))
    await api.settle(created["id"], 2, Standing.FAILED, Attempt(1, NOW, None, "timeout", 15_000))
    answer = await api.http.get(f"/v1/webhooks/{created['id']}/deliveries")
    shown = answer.json()["deliveries"]
    assert answer.json().keys() == {"deliveries"}
    assert [each["id"] for each in shown] == names[::-1]
    assert [each["state"] for each in shown] == ["pending", "failed", "delivered"]
    pending, failed, delivered = shown
    at = time_text(NOW + 3).decode()
    assert pending == {
        "id": names[2],
        "webhook": created["id"],
        "webhook_id": webhook_id(3),
        "event": "e3",
        "topic": "a.b",
        "time": at,
        "state": "pending",
        "attempts": 0,
        "next_attempt": at,
    }
    assert failed["attempts"] == delivered["attempts"] == 1
    assert "next_attempt" not in failed
    assert failed["ended"] >= failed["time"]
    for each in shown:
        assert (await api.http.get(f"/v1/deliveries/{each['id']}")).json() == each


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
async def test_pages_are_the_whole_list(api: Api, limit: int) -> None:
    """Each delivery once, in order, also while more are made."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}/deliveries"
    names = await api.deliver(created["id"], 7, time_ms=NOW)
    first = (await api.http.get(path, params={"limit": limit})).json()
    seen = [each["id"] for each in first["deliveries"]]
    await api.deliver(created["id"], 3, first=8, time_ms=NOW)
    while "next" in first:
        first = (await api.http.get(path, params={"limit": limit, "page": first["next"]})).json()
        assert 0 < len(first["deliveries"]) <= limit
        seen += [each["id"] for each in first["deliveries"]]
    assert seen == names[::-1]


async def test_deliveries_by_state(api: Api) -> None:
    """Each state has a list of its own, in pages."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}/deliveries"
    names = await api.deliver(created["id"], 9, time_ms=NOW)
    for position, standing in enumerate((Standing.DELIVERED, Standing.FAILED, Standing.EXPIRED), 1):
        await api.settle(created["id"], position, standing)
        await api.settle(created["id"], position + 3, standing)
    found = {
        state: [each["id"] for page in await pages(api, path, "deliveries", 1, state=state) for each in page]
        for state in UNTRIED
    }
    assert found == {
        "pending": names[6:],
        "held": [],
        "delivered": [names[3], names[0]],
        "failed": [names[4], names[1]],
        "expired": [names[5], names[2]],
    }


@pytest.mark.parametrize("status", [Status.DISABLED, Status.GONE, Status.PAUSED])
async def test_what_is_pending_is_held_while_nothing_is_sent(api: Api, status: Status) -> None:
    """It is not said when it is tried next, because nobody knows."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}/deliveries"
    names = await api.deliver(created["id"], 3)
    await api.close(created["id"], status)
    assert (await api.http.get(path, params={"state": "pending"})).json() == {"deliveries": []}
    held = (await api.http.get(path, params={"state": "held"})).json()["deliveries"]
    assert [each["id"] for each in held] == names
    assert all("next_attempt" not in each and "ended" not in each for each in held)


async def test_the_next_attempt_waits_for_the_endpoint(api: Api) -> None:
    """Until its breaker closes, or as long as the receiver asked for."""
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1, time_ms=NOW)
    until = NOW + 3_600_000
    for record in (
        Record(failures=5, first_failure=NOW, last_failure=NOW, open_until=until),
        Record(wait_until=until),
    ):
        owner = await api.store.join(60_000)
        await api.store.hold(owner, range(64), 60_000)
        await api.store.settle(
            owner,
            [],
            health={
                id_of(created["id"]): msgspec.json.encode(
                    [
                        record.failures,
                        record.first_failure,
                        record.last_failure,
                        record.openings,
                        record.open_until,
                        record.wait_until,
                    ]
                )
            },
        )
        await api.store.leave(owner)
        shown = (await api.http.get(f"/v1/deliveries/{name}")).json()
        assert shown["next_attempt"] == time_text(until).decode()
        health = (await api.show(created["id"]))["health"]
        assert health["waits_until"] == time_text(until).decode()
        assert health["failures"] == record.failures


async def test_attempts_are_listed_from_the_newest(api: Api) -> None:
    """With status or error, how long it took, and the beginning of the answer."""
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1)
    await api.settle(
        created["id"],
        1,
        Standing.DELIVERED,
        Attempt(1, NOW, None, "refused", 2),
        Attempt(2, NOW + 5000, 500, None, 31, b"no\xff"),
        Attempt(3, NOW + 9000, 200, None, 4),
    )
    listed = await pages(api, f"/v1/deliveries/{name}/attempts", "attempts", 2)
    assert [each["number"] for page in listed for each in page] == [3, 2, 1]
    assert listed[1] == [{"number": 1, "time": time_text(NOW).decode(), "error": "refused", "duration_ms": 2}]
    assert listed[0][1] == {
        "number": 2,
        "time": time_text(NOW + 5000).decode(),
        "status": 500,
        "duration_ms": 31,
        "response": "no\ufffd",
    }
    assert listed[0][0].keys() == {"number", "time", "status", "duration_ms"}


# --- paging garbage


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "99999999999", "x", "", "1.5", "\uff11"])
async def test_limits_that_are_none(api: Api, limit: str) -> None:
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1)
    for path in (f"/v1/webhooks/{created['id']}/deliveries", f"/v1/deliveries/{name}/attempts"):
        problem(await api.http.get(path, params={"limit": limit}), 422, "limit is a whole number")


async def test_pages_that_are_none(api: Api) -> None:
    """Garbage, the pages of other lists, numbers out of bounds."""
    created, other = await api.create(), await api.create()
    names = await api.deliver(created["id"], 3)
    await api.deliver(other["id"], 3, first=1)
    path = f"/v1/webhooks/{created['id']}/deliveries"
    mine = (await api.http.get(path, params={"limit": 1})).json()["next"]
    pending = (await api.http.get(path, params={"limit": 1, "state": "pending"})).json()["next"]
    others = (await api.http.get(f"/v1/webhooks/{other['id']}/deliveries", params={"limit": 1})).json()[
        "next"
    ]
    name = f"deliveries/{id_of(created['id'])}/"
    bad = [
        *("x", "0", "-1", "%00", "=", mine + "=", mine[:-1], mine + "A", "A" * 5000, "é", "next"),
        *(pending, others),
        *(write_page(name, number) for number in (-2, 2**62 + 1, 2**63, 2**64 - 1, -(2**63))),
        write_page(name),
        write_page(name, 1, 2),
        base64.urlsafe_b64encode(msgspec.msgpack.encode([name, ["1"]])).decode(),
        base64.urlsafe_b64encode(msgspec.msgpack.encode([name, [1.5]])).decode(),
        base64.urlsafe_b64encode(b"\xdd\xff\xff\xff\xff").decode(),
    ]
    for page in bad:
        problem(await api.http.get(path, params={"page": page}), 422, "the page is none of this list")
    problem(await api.http.get(path, params={"page": mine, "state": "failed"}), 422, "none of this list")
    attempts = f"attempts/{id_of(created['id'])}/"
    for number in (2**15, 2**40):
        page = write_page(attempts, number)
        problem(await api.http.get(f"/v1/deliveries/{names[0]}/attempts", params={"page": page}), 422)


@given(
    st.text(max_size=60) | st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode())
)
def test_whatever_is_read_as_a_page_is_one(text: str) -> None:
    """Any text is refused, or is what would be written."""
    try:
        place = read_page(text, "list", (0, 0), (100, 100))
    except Problem:
        return
    assert write_page("list", *place) == text


@pytest.mark.parametrize("state", ["", "PENDING", "done", "pending,failed"])
async def test_states_that_are_none(api: Api, state: str) -> None:
    created = await api.create()
    answer = await api.http.get(f"/v1/webhooks/{created['id']}/deliveries", params={"state": state})
    problem(answer, 422, "state is one of pending, delivered, failed, expired, held")


async def test_deliveries_that_are_not_there(api: Api) -> None:
    """Unknown names, those of others, those of removed webhooks."""
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1)
    id = id_of(created["id"])
    for wrong in (
        delivery_name(id, 1),
        delivery_name(id + 1, 1),
        "dl_1_1",
        "dl_" + "9" * 30,
        "x",
        "%00",
        endpoint_name(id),
    ):
        problem(await api.http.get(f"/v1/deliveries/{wrong}"), 404, "there is no delivery")
    assert (await api.http.get(f"/v1/deliveries/{name}")).status_code == 200
    await api.http.delete(f"/v1/webhooks/{created['id']}")
    problem(await api.http.get(f"/v1/deliveries/{name}"), 404, "there is no delivery")
    problem(await api.http.post(f"/v1/deliveries/{name}:retry"), 404, "there is no delivery")


# --- trying again


@pytest.mark.parametrize("standing", [Standing.FAILED, Standing.DELIVERED, Standing.PENDING])
async def test_a_delivery_is_tried_again(api: Api, standing: Standing) -> None:
    """Now, whatever became of it; its attempts go on counting."""
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1)
    await api.settle(created["id"], 1, standing, Attempt(1, NOW, 500, None, 1))
    answer = await api.http.post(f"/v1/deliveries/{name}:retry")
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/deliveries/{name}"
    shown = answer.json()
    assert (shown["state"], shown["attempts"]) == ("pending", 1)
    assert shown == (await api.http.get(f"/v1/deliveries/{name}")).json()
    assert api.webhooks.looks == 1


async def test_what_has_expired_is_not_tried_again(api: Api) -> None:
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1)
    await api.settle(created["id"], 1, Standing.EXPIRED)
    problem(await api.http.post(f"/v1/deliveries/{name}:retry"), 409, "the event has expired")


@pytest.mark.parametrize(
    ("status", "said"), [(Status.PAUSED, "paused: resume it first"), (Status.GONE, "gone: enable it first")]
)
async def test_nothing_is_tried_that_is_not_sent_to(api: Api, status: Status, said: str) -> None:
    created = await api.create()
    (name,) = await api.deliver(created["id"], 1)
    await api.close(created["id"], status)
    problem(await api.http.post(f"/v1/deliveries/{name}:retry"), 409, said)


# --- recovering


def text(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


async def failing(api: Api, count: int = 5) -> tuple[str, list[str]]:
    """Return a webhook and its deliveries, of times one second apart, all of which failed."""
    created = await api.create()
    names = []
    for position in range(1, count + 1):
        names += await api.deliver(created["id"], 1, first=position, time_ms=NOW + position * 1000)
        await api.settle(created["id"], position, Standing.FAILED, Attempt(1, NOW, 500, None, 1))
    return created["id"], names


async def states(api: Api, names: list[str]) -> list[str]:
    return [(await api.http.get(f"/v1/deliveries/{name}")).json()["state"] for name in names]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"since": "earliest"}, "ppppp"),
        ({"since": text(NOW + 2500)}, "ffppp"),
        ({"since": text(NOW + 2500), "until": text(NOW + 4500)}, "ffppf"),
        ({"since": text(NOW + 99_000)}, "fffff"),
        ({"since": "1970-01-01T00:00:00Z", "until": "1970-01-01T00:00:01Z"}, "fffff"),
        ({"since": f"{EPOCH}-2-0000"}, "ffppp"),
        ({"since": f"{EPOCH}-2-0000", "until": f"{EPOCH}-3-0000"}, "ffpff"),
        ({"since": f"{EPOCH}-9223372036854775807-0000"}, "fffff"),
    ],
)
async def test_what_failed_is_recovered(api: Api, body: dict[str, str], expected: str) -> None:
    """Since a time or behind a cursor, up to another if that is said; a job tells how far it is."""
    webhook, names = await failing(api)
    answer = await api.http.post(f"/v1/webhooks/{webhook}/recover", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["task"], job["state"], job["deliveries"], job["webhook"]) == (
        "recover",
        "running",
        0,
        webhook,
    )
    assert answer.headers["location"] == f"/v1/webhooks/{webhook}/jobs/{job['id']}"
    assert api.webhooks.looks == 1
    await api.finish_jobs(limit=2)
    done = (await api.http.get(answer.headers["location"])).json()
    assert done == {**job, "state": "done", "deliveries": expected.count("p")}
    assert (await api.http.get(f"/v1/webhooks/{webhook}/jobs")).json() == {"jobs": [done]}
    assert "".join(each[0] for each in await states(api, names)) == expected


async def test_what_fails_later_is_not_recovered(api: Api) -> None:
    """A job ends with what there was when it began."""
    webhook, names = await failing(api, 2)
    await api.http.post(f"/v1/webhooks/{webhook}/recover", json={"since": "earliest"})
    names += await api.deliver(webhook, 1, first=3, time_ms=NOW + 9000)
    await api.settle(webhook, 3, Standing.FAILED)
    await api.finish_jobs()
    assert await states(api, names) == ["pending", "pending", "failed"]


@pytest.mark.parametrize(
    ("body", "pointer", "said"),
    [
        ({}, "/since", "since is missing"),
        ({"since": 5}, "/since", "since is wrong"),
        ({"since": "yesterday"}, "/since", "since is an RFC 3339 time, earliest, or the cursor of an event"),
        ({"since": "latest"}, "/since", "since is an RFC 3339 time"),
        ({"since": "-5"}, "/since", "since is an RFC 3339 time"),
        ({"since": "2026-13-01T00:00:00Z"}, "/since", "since is an RFC 3339 time"),
        ({"since": "zzzzzz-1-0000"}, "/since", "of a log from which nothing was delivered"),
        ({"since": "earliest", "until": "x"}, "/until", "until is an RFC 3339 time"),
        ({"since": "earliest", "state": "failed"}, "/state", "there is no member"),
    ],
)
async def test_recoveries_that_cannot_be(api: Api, body: dict[str, Any], pointer: str, said: str) -> None:
    webhook, _ = await failing(api, 1)
    answer = await api.http.post(f"/v1/webhooks/{webhook}/recover", json=body)
    assert problem(answer, 422, said)["pointer"] == pointer
    assert (await api.http.get(f"/v1/webhooks/{webhook}/jobs")).json() == {"jobs": []}


async def test_a_webhook_without_deliveries_is_recovered_at_once(api: Api) -> None:
    created = await api.create()
    since = text(NOW - int(timedelta(days=3650).total_seconds() * 1000))
    assert (
        await api.http.post(f"/v1/webhooks/{created['id']}/recover", json={"since": since})
    ).status_code == 202
    await api.finish_jobs()


async def test_there_are_so_many_jobs_at_a_time(api: Api) -> None:
    webhook, _ = await failing(api, 1)
    path = f"/v1/webhooks/{webhook}/recover"
    for _ in range(MAX_JOBS):
        assert (await api.http.post(path, json={"since": "earliest"})).status_code == 202
    problem(
        await api.http.post(path, json={"since": "earliest"}), 409, "10 jobs of the webhook are under way"
    )
    await api.finish_jobs()
    assert (await api.http.post(path, json={"since": "earliest"})).status_code == 202


async def test_jobs_that_are_not_there(api: Api) -> None:
    """Unknown names, and those of another webhook's."""
    webhook, _ = await failing(api, 1)
    other = await api.create()
    job = (await api.http.post(f"/v1/webhooks/{webhook}/recover", json={"since": "earliest"})).json()["id"]
    problem(await api.http.get(f"/v1/webhooks/{webhook}/jobs/job_x"), 404, "there is no job 'job_x'")
    problem(await api.http.get(f"/v1/webhooks/{other['id']}/jobs/{job}"), 404, "there is no job")
