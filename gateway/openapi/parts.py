"""
The parts that descriptions are put together from. Pure.

Objects that the gateway answers stay open, because members may be added; those that it takes are closed,
because it refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.problems import CONTENT_TYPE

Json = dict[str, Any]

JSON: Final = "application/json"

TEXT: Final[Json] = {"type": "string"}
FLAG: Final[Json] = {"type": "boolean"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
TIME: Final[Json] = {"type": "string", "format": "date-time"}
ANYTHING: Final[Json] = {"description": "Any JSON."}

REFUSALS: Final[Mapping[int, str]] = {
    400: "No JSON, no HTTP, no UTF-8, or no cursor.",
    401: "There is no token, or it is none that is good now.",
    403: "A page of another origin has a browser ask for it, or the token does not allow it.",
    404: "There is nothing of that name.",
    408: "The head or the body of the request did not arrive in time.",
    409: "Not in this state, or others change it all the time.",
    410: "It has left the log.",
    412: "It is not any more what `If-Match` says.",
    413: "The body, an event, the number of events or a result is too large.",
    414: "The target of the request is too long.",
    415: "A content type, charset or content encoding that is not read.",
    421: "The gateway does not go by the name by which it was called.",
    422: "Well-formed, and against the rules.",
    426: "Another version of WebSocket than 13.",
    429: (
        "Your address, or your token's subject, has as much as it may have; or the service has as many "
        "unfinished requests."
    ),
    431: "The head of the request is too large.",
    501: "The server in front of this gateway opens no WebSockets.",
    503: "Not now; `Retry-After` says when.",
}
"""What each status of a refusal means, wherever it is answered."""

ANY: Final = (400, 403, 408, 414, 421, 429, 431)
"""What the server refuses by the head of a request, whatever was asked for."""
BODY: Final = (413, 415)
"""What is refused of any body, beside `ANY`."""

_REFUSAL_HEADERS: Final[Mapping[int, tuple[str, ...]]] = {
    415: ("Accept-Post", "Accept-Patch", "Accept-Encoding"),
    426: ("Sec-WebSocket-Version",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

HEADERS: Final[Mapping[str, tuple[str, Json]]] = {
    "Accept-Encoding": ("The content encodings that are read.", TEXT),
    "Accept-Patch": ("The content types that are read of a `PATCH`.", TEXT),
    "Accept-Post": ("The content types that are read of a `POST`.", TEXT),
    "Cache-Control": ("Whether the answer may be kept.", TEXT),
    "ETag": ("Names what was answered, for `If-None-Match` or `If-Match`.", {**TEXT, "pattern": '^".*"$'}),
    "Location": ("Where what was made, or is wanted, can be found.", TEXT),
    "Retry-After": ("Seconds after which asking again makes sense.", COUNT),
    "Sec-WebSocket-Version": ("The versions that are spoken.", TEXT),
    "Vary": ("The headers of the request that the answer depends on.", TEXT),
}
"""What each header of an answer says."""


def ref(name: str) -> Json:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def shape(required: str = "", /, **properties: Json) -> Json:
    """
    Return the schema of an object that the gateway answers.

    Args:
        required: the members that are always there, with spaces between; those that are not may be missing.
        properties: the schema of each member.
    """
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required.split()
    return schema


def taken(required: str = "", /, **properties: Json) -> Json:
    """Return the schema of an object that the gateway takes: as `shape`, and no other members."""
    return {**shape(required, **properties), "additionalProperties": False}


def optional(schema: Json) -> Json:
    """Return the schema of what may be null as well."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def listed(items: Json, least: int = 0, most: int | None = None) -> Json:
    """Return the schema of an array."""
    schema: Json = {"type": "array", "items": items}
    if least:
        schema["minItems"] = least
    return schema if most is None else {**schema, "maxItems": most}


def one_of(*values: str) -> Json:
    """Return the schema of a word out of several."""
    return {"type": "string", "enum": list(values)}


def text(least: int, most: int, description: str = "") -> Json:
    """Return the schema of a text with bounds, in characters."""
    schema: Json = {"type": "string", "minLength": least, "maxLength": most}
    return {**schema, "description": description} if description else schema


def number(least: float, most: float, description: str = "") -> Json:
    """Return the schema of a number with bounds."""
    schema: Json = {"type": "number", "minimum": least, "maximum": most}
    return {**schema, "description": description} if description else schema


def parameter(
    where: str, name: str, schema: Json, description: str, *, required: bool = False, explode: bool = False
) -> Json:
    """Return a parameter in the `path`, the `query` or a `header`; one with `explode` may be repeated."""
    described: Json = {"name": name, "in": where, "description": description, "schema": schema}
    if required or where == "path":
        described["required"] = True
    return {**described, "explode": True} if explode else described


def body(content: Json, description: str = "", *, required: bool = False) -> Json:
    """Return a request body with a schema for each content type."""
    described: Json = {"content": {kind: {"schema": schema} for kind, schema in content.items()}}
    if required:
        described["required"] = True
    return {"description": description, **described} if description else described


def answer(
    description: str, content: Json | None = None, headers: Sequence[str] = (), maybe: Sequence[str] = ()
) -> Json:
    """
    Return an answer.

    Args:
        description: when it is given.
        content: the schema for each content type; None if there is no body.
        headers: the headers that it always has.
        maybe: the headers that it may have.
    """
    described: Json = {"description": description}
    if content is not None:
        described["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    shown = {name: {**_header(name), "required": True} for name in headers}
    shown |= {name: _header(name) for name in maybe}
    return {**described, "headers": shown} if shown else described


def _header(name: str) -> Json:
    description, schema = HEADERS[name]
    return {"description": description, "schema": schema}


def refused(*statuses: int) -> Json:
    """Return the answers by which something is refused; those of `ANY` are always among them."""
    return {
        str(status): {"$ref": f"#/components/responses/Problem{status}"}
        for status in sorted({*ANY, *statuses})
    }


def refusals() -> Json:
    """Return all answers by which something can be refused, for the components of a document."""
    return {
        f"Problem{status}": answer(
            description, {CONTENT_TYPE: ref("Problem")}, ["Cache-Control"], _REFUSAL_HEADERS.get(status, ())
        )
        for status, description in REFUSALS.items()
    }


def operation(
    id: str,
    summary: str,
    answers: Json,
    *,
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    description: str = "",
) -> Json:
    """Return an operation: what one method of a path does."""
    described: Json = {"operationId": id, "summary": summary}
    if description:
        described["description"] = description
    if parameters:
        described["parameters"] = list(parameters)
    if body is not None:
        described["requestBody"] = body
    return {**described, "responses": dict(sorted(answers.items()))}
