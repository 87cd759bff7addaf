"""From a name to a handler, and every name that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.handling.loading import load
from gateway.handling.source import SourceError

MODULE = """
import asyncio

def handle(request): return request
async def handle_async(request): return request
def no_argument(): pass
def two_arguments(one, two): pass
def with_default(request, other=1): return request
def generator(request): yield request
async def async_generator(request): yield request
class Many:
    def handle(self, request): return request
many = Many()
number = 1
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("path", ["handle", "handle_async", "with_default", "many.handle"])
def test_what_can_be_a_handler(folder: Path, path: str) -> None:
    """Anything that is called with a request."""
    (folder / "good_handlers.py").write_text(MODULE)
    assert callable(load(f"good_handlers:{path}"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bad_handlers", "names no handler"),
        (":handle", "names no handler"),
        ("bad_handlers:", "names no handler"),
        ("bad_handlers:nothing", "has no 'nothing'"),
        ("bad_handlers:many.nothing", "has no 'many.nothing'"),
        ("bad_handlers:number", "is no function"),
        ("bad_handlers:no_argument", "cannot be called with one argument"),
        ("bad_handlers:two_arguments", "cannot be called with one argument"),
        ("bad_handlers:generator", "is a generator"),
        ("bad_handlers:async_generator", "is a generator"),
        ("not_there:handle", "there is no module 'not_there'"),
        ("not.there:handle", "there is no module 'not.there'"),
        ("needs_another:handle", "needs another that is not there"),
        ("raises:handle", "cannot be imported: RuntimeError: not today"),
        ("broken:handle", "cannot be imported: SyntaxError"),
    ],
)
def test_what_cannot(folder: Path, name: str, why: str) -> None:
    """One sentence says why."""
    (folder / "bad_handlers.py").write_text(MODULE)
    (folder / "needs_another.py").write_text("import a_module_that_nobody_has\n")
    (folder / "raises.py").write_text('raise RuntimeError("not today")\n')
    (folder / "broken.py").write_text("def handle(\n")
    with pytest.raises(SourceError, match=why):
        load(name)
