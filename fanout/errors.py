"""
The errors of `fanout`: each says whose fault it is and what was wrong, in a sentence fit for a client.

    FanoutError
    ├── TopicError     a topic or pattern breaks the grammar      (the caller's mistake)
    ├── CursorError    a text is no cursor                        (the caller's mistake)
    └── ClaimError     a token's claim is not of its form         (the mistake of who issued the token)
"""

from __future__ import annotations

from typing import Final

MAX_SHOWN: Final = 200
"""Characters of what is wrong with a claim: it may quote what somebody else chose."""


class FanoutError(ValueError):
    """Root of the mistakes a caller can make; its text can be shown to the caller."""


class TopicError(FanoutError):
    """A topic or pattern breaks the grammar of `fanout.topics`."""


class CursorError(FanoutError):
    """A text is no cursor, or no start that `fanout.cursor` knows."""


class ClaimError(FanoutError):
    """
    A claim of a token is not of its form.

    Args:
        claim: its name, and the place in it, as `publish[3]`; empty if the claims as a whole are none.
        what: what is wrong with it.
    """

    def __init__(self, claim: str, what: str) -> None:
        super().__init__(claim, what)
        self.claim = claim
        self.what = what

    def __str__(self) -> str:
        subject = f"the claim {_plain(self.claim)} is" if self.claim else "the claims are"
        return f"{subject} wrong: {_plain(self.what)}"


def _plain(text: str) -> str:
    """Return `text` short and in ASCII, without what could break a log line."""
    escaped = "".join(each if " " <= each <= "~" else ascii(each)[1:-1] for each in text[:MAX_SHOWN])
    return escaped if len(escaped) < MAX_SHOWN else escaped[: MAX_SHOWN - 3] + "..."
