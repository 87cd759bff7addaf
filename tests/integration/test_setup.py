"""The scripts that prepare a machine: silent with nothing to do, one sentence where nothing can be done."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """Return a PATH with a shell's bare necessities, without Python, compilers, and apt-get."""
    for tool in ("bash", "basename", "dirname", "id"):
        found = shutil.which(tool)
        assert found is not None, f"{tool} is missing on this machine"
        (tmp_path / tool).symlink_to(found)
    return str(tmp_path)


def run_script(name: str, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script of `.ci` by bash, with only `path` to find programs in if it is given."""
    bash = shutil.which("bash")
    assert bash is not None, "bash is missing on this machine"
    return subprocess.run(
        [bash, str(CHECKOUT / ".ci" / name), *arguments],
        env=None if path is None else {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_nothing_is_said_when_nothing_is_missing() -> None:
    """On a machine that has all that the tests need, making sure of it is silent."""
    done = run_script("packages", "chromium", "nginx", "nchan", "cc", "node", "rabbitmq", "postgres")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_missing_is_named_where_it_cannot_be_installed(bare_path: str) -> None:
    """Without apt-get the missing packages are named, with what to do."""
    done = run_script("packages", "chromium", "cc", path=bare_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Missing: chromium gcc libc6-dev. Install them ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_tool_is_refused() -> None:
    """A name that the script does not know is a mistake of its caller."""
    done = run_script("packages", "chrome")
    assert (done.returncode, done.stderr) == (
        1,
        "packages: chrome is none of chromium, nginx, nchan, haproxy, cc, node, rabbitmq, amqp, postgres.\n",
    )


def test_a_missing_python_is_told(bare_path: str, tmp_path: Path) -> None:
    """Without Python and apt-get, one sentence says what to install."""
    done = run_script("venv", str(tmp_path / "venv"), path=bare_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Missing: python3 python3-venv. Install them ")
    assert not (tmp_path / "venv").exists()
