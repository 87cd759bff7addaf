"""What a limit of memory means, where it comes from, and when it is over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.memory import Memory, available, limit_of, resident

MIB = 1 << 20
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def groups(folder: Path, lines: str, files: dict[str, str]) -> int:
    """Return what is available to a process in these control groups."""
    process, root = folder / "proc", folder / "groups"
    process.mkdir()
    (process / "cgroup").write_text(lines)
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return available(process, root)


@pytest.mark.parametrize(
    ("lines", "files", "found"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/\n", {"memory.max": "104857600\n"}, 100 * MIB),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "52428800\n"}, 50 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": "52428800\n", "a/memory.max": "104857600\n"}, 50 * MIB),
        ("0::/elsewhere\n", {"memory.max": "104857600\n"}, 100 * MIB),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "104857600\n"}, 100 * MIB),
        ("4:cpu,memory:/x\n", {"memory/memory.limit_in_bytes": "104857600\n"}, 100 * MIB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, MACHINE),
        ("3:cpuset:/\n", {"memory.max": "104857600\n"}, MACHINE),
    ],
    ids=[
        "no limit", "outermost", "max", "of the one around it", "the lesser", "in a container", "version 1",
        "version 1, outermost", "version 1, none", "another kind",
    ],
)  # fmt: skip
def test_what_there_is(tmp_path: Path, lines: str, files: dict[str, str], found: int) -> None:
    """It is the least of what the groups around the process allow and the machine has."""
    assert groups(tmp_path, lines, files) == found


def test_what_there_is_without_control_groups(tmp_path: Path) -> None:
    """A kernel that has none leaves the machine."""
    assert available(tmp_path, tmp_path) == MACHINE


def test_a_limit_is_a_size_or_a_part() -> None:
    """A part is shared by the workers, a size is each one's."""
    assert limit_of("512MiB", 4) == 512 * MIB
    assert limit_of("0", 4) == 0
    assert limit_of("80%", 1) == int(available() * 0.8)
    assert limit_of(" 12.5 %", 4) == int(available() * 0.125 / 4)


@pytest.mark.parametrize("text", ["", "0%", "101%", "-1", "80 percent", "%", "1e3%", "٨٠%", "5XB", "nan%"])
def test_what_is_no_limit(text: str) -> None:
    """Anything else is refused, with a sentence."""
    with pytest.raises(ValueError, match="is no size like 512MiB, no part like 80% and not 0"):
        limit_of(text, 1)


@given(st.integers(1, 1000), st.lists(st.integers(0, 1200), max_size=30))
def test_it_does_not_flap(limit: int, seen: list[int]) -> None:
    """It is reached above the limit, and over only below 95 % of it; between them it stays as it was."""
    values = iter(seen)
    memory = Memory(limit, lambda: next(values))
    for each in seen:
        before = memory.reached
        memory.look()
        if each > limit:
            assert memory.reached
        elif each <= limit * 0.95:
            assert not memory.reached
        else:
            assert memory.reached == before
        assert (memory.trouble() is None) is not memory.reached
        assert memory.resident == each


def test_no_limit_is_never_reached() -> None:
    """With 0 it is only looked."""
    memory = Memory(0, lambda: 10**15)
    memory.look()
    assert (memory.resident, memory.reached, memory.trouble()) == (10**15, False, None)


def test_what_is_resident() -> None:
    """It is what the kernel says elsewhere as well, and grows by what is touched."""
    before = resident()
    held = bytearray(os.urandom(1) * (32 * MIB))
    with open("/proc/self/status") as lines:  # noqa: PTH123  # no file, the kernel's answer
        told = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    assert before + 30 * MIB < resident()
    assert abs(told - resident()) < 4 * MIB
    del held
