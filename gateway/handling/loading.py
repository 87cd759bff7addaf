"""From `module:handler` to something that can be called with a request."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.handling.source import SourceError

Handler = Callable[[Any], Any]


def load(name: str) -> Handler:
    """
    Import a handler; modules of the current folder come first.

    Args:
        name: `module:function`, or `package.module:object.method`.

    Raises:
        SourceError: there is no such thing, or it is none.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise SourceError(f"{name!r} names no handler: give one like reports:handle, a module and a function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise SourceError(f"there is no module {module_name!r} in {here} or where Python looks") from None
        raise SourceError(f"the module {module_name!r} needs another that is not there: {error}") from error
    except Exception as error:  # it is somebody else's code
        raise SourceError(f"the module {module_name!r} cannot be imported: {described(error)}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise SourceError(f"the module {module_name!r} has no {path!r}") from None
    return checked(found, name)


def checked(handler: Any, name: str) -> Handler:
    """
    Return a handler that can be called with one request.

    Raises:
        SourceError: it cannot.
    """
    if not callable(handler):
        raise SourceError(f"{name!r} is no function")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise SourceError(f"{name!r} is a generator: a handler returns its result")
    try:
        inspect.signature(handler).bind(object())
    except TypeError:
        raise SourceError(f"{name!r} cannot be called with one argument, the request") from None
    except ValueError:
        pass  # it is not written in Python, and does not say
    return handler  # type: ignore[no-any-return]  # it is callable


def is_async(handler: Handler) -> bool:
    """Tell whether a handler is to be awaited: a coroutine function, or an object whose call is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004  # what it is, not whether
    )


def described(error: BaseException) -> str:
    """Return an exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
