"""Asking a gateway over HTTP, once: what commands that look, or have something done, need of it."""

from __future__ import annotations

import http.client
import urllib.error
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from gateway.client import (
    REQUEST_SECONDS,
    UNREADABLE,
    ClientError,
    asked,
    opener,
    refusal,
    rest_of,
    unreachable,
    url_of,
)
from gateway.values import read_json

PAGE: Final = 1000
"""Entries that are asked for at a time."""


class ApiClient:
    """
    Asks one gateway. Nothing is repeated: what was not answered may have been done.

    Args:
        base: address of the gateway.
        token: by which it is asked; may be empty.

    Raises:
        ClientError: the address is none.
    """

    def __init__(self, base: str, token: str = "") -> None:
        self._token = token
        url_of(base, "/")
        self._base = base
        self._opener = opener(base)

    def ask(self, method: str, path: str, members: Any = None) -> Any:
        """
        Make a request and return what its answer is, decoded as by `read_json`; None if it is empty.

        Args:
            method: of the request.
            path: with its query, percent-encoded.
            members: sent as JSON unless it is None.

        Raises:
            ClientError: it was refused, or not answered.
        """
        answer = self._answer(method, path, members)
        try:
            return read_json(answer) if answer else None
        except ValueError:
            raise self._no_gateway() from None

    def line(self, method: str, path: str) -> bytes:
        """
        Make a request and return the JSON of its answer on one line, with everything in it as it came: no
        value of Python lies between, so nothing is too large.

        Raises:
            ClientError: it was refused, or not answered.
        """
        try:
            return msgspec.json.format(self._answer(method, path), indent=-1)
        except UNREADABLE:
            raise self._no_gateway() from None

    def entries(self, path: str, name: str, limit: int | None = None, **query: str) -> Iterator[Any]:
        """
        Yield the entries of a list, page by page.

        Args:
            path: of the list, without its query.
            name: the member that has the entries.
            limit: at most so many.
            query: parameters of the list.
        """
        page, left = "", limit
        while left is None or left > 0:
            given = {**query, "limit": str(PAGE if left is None else min(left, PAGE))}
            if page:
                given["page"] = page
            answer = self.ask("GET", f"{path}?{urlencode(given)}")
            yield from answer[name]
            page = answer.get("next")
            if not page:
                return
            if left is not None:
                left -= len(answer[name])

    def _no_gateway(self) -> ClientError:
        return ClientError(f"{self._base} gave an answer that is not a gateway's")

    def _answer(self, method: str, path: str, members: Any = None) -> bytes:
        body = None if members is None else msgspec.json.encode(members)
        request = asked(url_of(self._base, path), self._token, body, method)
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as response:
                answer: bytes = response.read()
        except urllib.error.HTTPError as error:
            with error:
                after = error.headers.get("Retry-After")
                failure = refusal(self._base, error.code, after, rest_of(error), known=bool(self._token))
        except (OSError, http.client.HTTPException) as error:
            failure = unreachable(self._base, error)
        else:
            return answer
        raise ClientError(failure.why)
