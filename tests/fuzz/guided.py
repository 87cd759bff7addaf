"""
Coverage leads: inputs that reach lines in an order that none before did are kept, and changed further.

    make fuzz ARGS="--seconds 60 --target http"

A target that fails is said with the input, as small as it could be made, ready to become an example in
`targets.py`. Without `--seed` each run is another one. `make test` runs a little of it, the same each time.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from random import Random
from types import FrameType
from typing import Any, Final

from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS, Target

Edge = tuple[int, int, int]
"""A file, a line of it, and the line that was run there before."""

SHRINK_TRIES: Final = 2000


class Tracer:
    """
    Runs a function and tells which edges of some modules it took.

    Args:
        modules: their names.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        files = [importlib.import_module(name).__file__ for name in modules]
        self._numbers = {file: number for number, file in enumerate(files)}
        self._edges: set[Edge] = set()

    def run(self, function: Callable[[], None]) -> set[Edge]:
        """Return the edges that a call took."""
        self._edges = set()
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            function()
        finally:
            sys.settrace(before)
        return self._edges

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        number = self._numbers.get(frame.f_code.co_filename)
        if number is None:
            return None
        last = -frame.f_code.co_firstlineno
        edges = self._edges

        def line(frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
            nonlocal last
            if event == "line":
                edges.add((number, last, frame.f_lineno))
                last = frame.f_lineno
            elif event == "exception":
                edges.add((number, last, 0))
            return line

        return line


class Guided:
    """
    One target, fuzzed.

    Args:
        target: what is fuzzed.
        seed: of the random choices.

    Attributes:
        corpus: the inputs that reached something new, in order.
        edges: all that was reached.
        runs: how many inputs were tried.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self.corpus: list[bytes] = []
        self.edges: set[Edge] = set()
        self.runs = 0
        self._target = target
        self._random = Random(seed)
        self._tracer = Tracer(target.modules)
        for example in target.corpus:
            self.corpus.append(example)
            self._try(example)

    def step(self) -> None:
        """
        Try one more input.

        Raises:
            Exception: whatever the target's check raised, with the input in a note.
        """
        # Half of the time one of the newest: what lies behind them has been tried least.
        newest = self.corpus[-20:]
        data = self._random.choice(newest if self._random.random() < 0.5 else self.corpus)
        data = mutate(self._random, data, self._target.corpus, self._target.words)
        if self._try(data):
            self.corpus.append(data)

    def _try(self, data: bytes) -> bool:
        """Run an input; return whether it reached something new."""
        self.runs += 1
        try:
            edges = self._tracer.run(lambda: self._target.check(data))
        except Exception as error:
            error.add_note(f"The input was {self._smallest(data, type(error))!r}")
            raise
        new = edges - self.edges
        self.edges |= new
        return bool(new)

    def _smallest(self, data: bytes, kind: type[Exception]) -> bytes:
        """Return as small a part of `data` as still fails in this way."""
        tries, size = 0, len(data) // 2
        while size and tries < SHRINK_TRIES:
            at = 0
            while at < len(data) and tries < SHRINK_TRIES:
                tries += 1
                smaller = data[:at] + data[at + size :]
                if self._fails(smaller, kind):
                    data = smaller
                else:
                    at += size
            size //= 2
        return data

    def _fails(self, data: bytes, kind: type[Exception]) -> bool:
        try:
            self._target.check(data)
        except kind:
            return True
        except Exception:  # noqa: BLE001  # another failure, of its own
            return False
        return False


def fuzz(name: str, seed: int, enough: Callable[[Guided], bool]) -> Guided:
    """Fuzz a target until it is enough; return what came of it."""
    guided = Guided(TARGETS[name], seed)
    while not enough(guided):
        guided.step()
    return guided


def main() -> int:
    """Fuzz for a time, one target after the other; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    names = given.target or list(TARGETS)
    seed = given.seed if given.seed is not None else time.time_ns() % 1_000_000
    failed = 0
    for name in names:
        until = time.monotonic() + given.seconds / len(names)
        try:
            guided = fuzz(name, seed, lambda _, until=until: time.monotonic() > until)  # type: ignore[misc]
        except Exception:  # noqa: BLE001  # that is what is looked for
            traceback.print_exc()
            print(f"{name}: FAILED, with --seed {seed}")  # noqa: T201
            failed += 1
            continue
        print(f"{name}: {guided.runs} inputs, {len(guided.edges)} edges, {len(guided.corpus)} kept")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
