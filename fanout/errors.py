"""
The errors of `fanout`: each says whose fault it is and what was wrong, in a sentence fit for a client.

    FanoutError
    ├── TopicError     a topic or pattern breaks the grammar      (the caller's mistake)
    └── CursorError    a text is no cursor                        (the caller's mistake)
"""

from __future__ import annotations


class FanoutError(ValueError):
    """Root of the mistakes a caller can make; its text can be shown to the caller."""


class TopicError(FanoutError):
    """A topic or pattern breaks the grammar of `fanout.topics`."""


class CursorError(FanoutError):
    """A text is no cursor, or no start that `fanout.cursor` knows."""
