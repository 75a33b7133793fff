"""Loading of functions that a recipe names as "file.py:name" or "package.module:name"."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from tdpo.preferences.rows import shown


class FunctionError(ValueError):
    """A function that a recipe names cannot be loaded. The message names what was searched and the nearest match."""


def load_function(spec: str) -> Callable[..., Any]:
    """Return the function that `spec` names: "file.py:name" or "package.module:name".

    The file or module is imported, which runs its code. Raises FunctionError if there is no such file, module or name,
    if importing fails, or if the name cannot be called.
    """
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name.isidentifier()):
        raise FunctionError(f"{spec!r} names no function; expected file.py:name or package.module:name")
    module = _import_file(Path(place).expanduser(), spec) if place.endswith(".py") else _import_module(place, spec)
    if not hasattr(module, name):
        raise FunctionError(f"{spec}: {place} has no {name!r}{_nearest_functions(module, name)}")
    function = getattr(module, name)
    if inspect.isclass(function):
        raise FunctionError(f"{spec}: {name!r} is a class; name a function, or an instance that can be called")
    if not callable(function):
        raise FunctionError(f"{spec}: {name!r} cannot be called: it is {type(function).__name__} {shown(function)}")
    return function


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise FunctionError(
            f"{spec}: no such file {str(path)!r}{_nearest_files(path)} (looked in {path.parent.resolve()})"
        )
    # A unique module name: `reward.py` must not become the module that other code imports as `reward`.
    name = f"tdpo_function_in_{path.stem}_{crc32(str(path.resolve()).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert module_spec is not None and module_spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look up a class's module here
    try:
        module_spec.loader.exec_module(module)
    except KeyboardInterrupt:
        sys.modules.pop(name, None)
        raise
    except BaseException as error:  # sys.exit too
        sys.modules.pop(name, None)
        raise FunctionError(_import_failed(spec, error, path)) from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise FunctionError(f"{spec}: {name!r} is neither a file ending in .py nor the name of a module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise FunctionError(_import_failed(spec, error, None)) from error
        file = Path(*name.split(".")).with_suffix(".py")
        hint = f"; the file {file} is named {file}:{spec.rpartition(':')[2]}" if file.is_file() else ""
        raise FunctionError(f"{spec}: there is no module {error.name!r} to import{hint}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too
        raise FunctionError(_import_failed(spec, error, None)) from error


def _import_failed(spec: str, error: BaseException, file: Path | None) -> str:
    """Describe the error with the line of the user's file that caused it, or else with the place that raised it."""
    reason = f"{spec}: importing it raised {type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return reason  # a syntax error names its line itself
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file.resolve()]
    place = f"{file}, line {own[-1].lineno}" if own else f"{frames[-1].filename}, line {frames[-1].lineno}"
    return f"{reason} ({place})"


def _nearest_functions(module: ModuleType, name: str) -> str:
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; it has {', '.join(names[:8])}" if names else "; it has no functions"


def _nearest_files(path: Path) -> str:
    names = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(str(path.parent / name)) for name in near)}?" if near else ""
