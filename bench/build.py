"""Compile the C programs of the bench, once per change of their sources."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BIN = HERE / "bin"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


class BenchError(Exception):
    """The bench cannot go on, or a figure would be worthless; says why."""


def program(name: str) -> Path:
    """
    Return the compiled form of `bench/<name>.c`, made anew if it is missing or older than its source.

    Raises:
        BenchError: there is no C compiler, or it refuses the source.
    """
    source, binary = HERE / f"{name}.c", BIN / name
    newest = max(path.stat().st_mtime for path in (source, *HERE.glob("*.h")))
    if binary.exists() and binary.stat().st_mtime >= newest:
        return binary
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError(
            "the load client is written in C: install a compiler (Debian: apt-get install gcc libc6-dev)"
        )
    BIN.mkdir(exist_ok=True)
    done = subprocess.run(
        [compiler, *FLAGS, "-o", str(binary), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{compiler} refuses {source.name}:\n{done.stderr}")
    return binary
