"""
Run the bench: `python -m bench`, or single rows of it: `python -m bench --only ws50 sse50`.

Prints one table; a figure that misses its target is marked, and the exit status is then 1. A row that could
not be measured says why, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.amqp_rows import ROWS as AMQP_ROWS
from bench.build import BenchError, program
from bench.lab import Lab, Plan
from bench.machine import choose_cores, raise_file_limit
from bench.rows import ROWS as ALONE_ROWS
from bench.rows import Row
from bench.table import Result, render
from bench.webhook_rows import ROWS as WEBHOOK_ROWS

GROUPS = {"alone": ALONE_ROWS, "amqp": AMQP_ROWS, "webhooks": WEBHOOK_ROWS}
ROWS = (*ALONE_ROWS, *AMQP_ROWS, *WEBHOOK_ROWS)
FILES_NEEDED = 19_000  # 18,000 connections and room for the rest
NOISY = 0.1  # how much of a core in others' hands makes a row say so


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        "python -m bench", description="Measure the gateway against a bare C server."
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=names, help=f"rows to run, of: {', '.join(names)}"
    )
    parser.add_argument(
        "--group",
        choices=GROUPS,
        help="the rows without a broker (alone), with one (amqp), or those about webhooks",
    )
    parser.add_argument(
        "--quick", action="store_true", help="shorter rounds and fewer connections, within 90 s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument(
        "--serve",
        default=str(Path(sys.executable).parent / "sluice"),
        metavar="COMMAND",
        help="what starts the gateway; `serve` and its flags are appended",
    )
    parser.add_argument("--flags", default="", help="further flags for the gateway, in one word")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="run the gateway under cProfile and write the profile of its last start there",
    )
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="measure the floor against itself: every ratio should be 1, the rest is noise",
    )
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    command = tuple(shlex.split(options.serve))
    flags = tuple(shlex.split(options.flags))
    return Plan(command, flags, choose_cores(), options.profile, options.quick, options.self_check)


def run(rows: Sequence[Row], plan: Plan) -> tuple[list[Result], list[str]]:
    """Measure the rows one after the other; returns the results and what failed."""
    results: list[Result] = []
    failures: list[str] = []
    for place, row in enumerate(rows, 1):
        print(f"[{place}/{len(rows)}] {row.name} …", end=" ", flush=True, file=sys.stderr)
        began = time.monotonic()
        with Lab(plan) as lab:
            try:
                found = row.measure(lab, row.name)
            except BenchError as error:
                failures.append(f"{row.name}: {str(error).splitlines()[0]}")
                print(f"FAILED: {error}\n{lab.said()}", file=sys.stderr)
                continue
            disturbed = lab.disturbance()
        noise = f", others used {disturbed:.0%} of a core" if disturbed > NOISY else ""
        print(f"{time.monotonic() - began:.0f} s{noise}", file=sys.stderr)
        results += found
    return results, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every child is ended on the way out
    rows = [row for row in GROUPS.get(options.group, ROWS) if row.name in (options.only or [row.name])]
    if options.self_check:
        rows = [row for row in rows if row.beside_floor]
    about = sum(row.seconds for row in rows) / (4 if options.quick else 1)
    print(f"{len(rows)} rows, about {about:.0f} s on a quiet machine", file=sys.stderr)
    try:
        raise_file_limit(FILES_NEEDED)
        program("load"), program("floor"), program("catch")
        results, failures = run(rows, make_plan(options))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(render(results))
    for failure in failures:
        print(f"NOT MEASURED: {failure}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2))
    if failures:
        return 2
    return int(any(result.met is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
