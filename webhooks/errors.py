"""
The one mistake that a user of webhooks can make: to give what cannot be.

It says what is wrong and where, in a sentence fit for the user. It knows nothing of HTTP, so that what
decides about endpoints needs no web framework; whoever answers the user makes a problem of it.
"""

from __future__ import annotations


class Invalid(ValueError):
    """
    Something that a user gave is refused.

    Args:
        detail: what is wrong with it, and what would be right. Never repeats a secret.
        pointer: where it is, as a JSON pointer (RFC 6901); empty for the whole.
    """

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer

    def under(self, pointer: str) -> Invalid:
        """Return the same mistake, made inside of what `pointer` leads to."""
        return Invalid(self.detail, pointer + self.pointer)


def step(name: str | int) -> str:
    """Return one step of a JSON pointer: to a member by its name, or to an item by its index."""
    return "/" + str(name).replace("~", "~0").replace("/", "~1")


def shown(text: str) -> str:
    """Return what a user wrote fit for an error message: short, in ASCII, on one line."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
