"""Good examples, changed a little: what finds its way deeper into a parser than bytes that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from hypothesis import strategies as st

INTERESTING: Final = (
    b"\x00",
    b"\r\n",
    b"\n",
    b"\r",
    b"\x7f",
    b"\xff",
    b"\x80",
    b"\xc0\xaf",  # overlong
    b"\xed\xa0\x80",  # a surrogate
    b"\xf4\x90\x80\x80",  # beyond Unicode
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\\ud800",
    b"\\u0000",
    b"%00",
    b"%ff",
    b"-1",
    b"+",
    b"0",
    b"9" * 20,
    b"9" * 5000,
    b"1e999",
    b"-0.0",
    b"NaN",
    b"[" * 2000,
    b'{"a":' * 500,
    b'"',
    b"\\",
    b" ",
    b"\t",
    b",",
    b";",
    b":",
    b".",
    b"*",
    b"#",
    b"=",
    b"&",
    b"null",
)
"""What has broken parsers before."""

_LARGEST: Final = 40_000


def mutate(random: Random, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """
    Return a changed copy of `data`: pieces deleted, doubled, swapped, flipped, and put in.

    Args:
        random: decides.
        data: what is changed.
        corpus: whose pieces may be put in as well.
        words: pieces that mean something to what is tested.
    """
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        begin, end = sorted(random.randrange(len(changed) + 1) for _ in range(2))
        end = min(end, begin + random.choice((1, 2, 8, 64, 4096)))
        match random.randrange(7):
            case 0:
                del changed[begin:end]
            case 1:
                changed[end:end] = changed[begin:end] * random.choice((1, 1, 2, 30))
            case 2:
                other = random.randrange(len(changed) + 1)
                changed[other:other] = changed[begin:end]
                del changed[begin:end]
            case 3 if changed:
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            case 4:
                changed[begin:begin] = random.choice(INTERESTING)
            case 5:
                changed[begin:end] = random.choice([*words, *INTERESTING])
            case _:
                other_data = random.choice(corpus)
                at = random.randrange(len(other_data) + 1)
                changed[begin:end] = other_data[at : at + random.choice((1, 8, 64, 4096))]
    return bytes(changed[:_LARGEST])


def mutated(corpus: Sequence[bytes], words: Sequence[bytes] = ()) -> st.SearchStrategy[bytes]:
    """Return a strategy of examples: as they are, changed, several joined, and now and then just bytes."""

    def changed(seed: int) -> bytes:
        random = Random(seed)
        data = random.choice(corpus)
        if random.random() < 0.3:
            data += random.choice(corpus)
        return mutate(random, data, corpus, words)

    return st.one_of(st.integers(0, 1 << 48).map(changed), st.sampled_from(corpus), st.binary(max_size=300))


def cuts(random: Random, data: bytes) -> list[bytes]:
    """Return `data` in pieces, as a network may bring it."""
    sizes = random.choice(((1,), (1, 2, 3), (1, 7, 100, 2000), (5000,)))
    pieces, at = [], 0
    while at < len(data):
        size = random.choice(sizes)
        if sizes == (1,) and at > 3000:
            size = 1000  # byte by byte is slow
        pieces.append(data[at : at + size])
        at += size
    return pieces
