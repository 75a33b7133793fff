"""Tool calls and tool descriptions in one form, whichever way they were stored.

Two habits of storage would otherwise change what a chat template writes. Tables have one set of keys for a whole
column, so Arrow gives every object the keys of all others, as nulls; and APIs hand out the arguments of a call as JSON
text, which templates that dump them would quote a second time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.rows import shown


def without_nulls(value: Any) -> Any:
    """`value` without the keys that are null, at every depth; null elements of lists stay."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def check_calls(message: dict[str, Any], path: str) -> tuple[dict[str, Any], list[Finding]]:
    """A message whose calls (`tool_calls`, and `function_call` of older APIs) hold their arguments as objects.

    An empty list of calls is left out: it says nothing, and templates that ask whether there is one would be misled.
    """
    checked = dict(message)
    findings: list[Finding] = []
    if isinstance(checked.get("function_call"), Mapping):
        checked["function_call"], findings = _check_function(checked["function_call"], f"{path}.function_call")
    if "tool_calls" not in checked:
        return checked, findings
    calls = decoded(checked.pop("tool_calls"))
    if not isinstance(calls, list | tuple):
        text = f"{type(calls).__name__}: {shown(calls)}"
        return checked, [*findings, Finding(f"{path}.tool_calls", Reason.BAD_TOOL_CALLS, text)]
    found = [_check_call(decoded(call), f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if found:
        checked["tool_calls"] = [call for call, _ in found]
    return checked, findings + [finding for _, problems in found for finding in problems]


def _check_call(call: Any, path: str) -> tuple[Any, list[Finding]]:
    if not isinstance(call, Mapping):
        return call, [Finding(path, Reason.BAD_TOOL_CALLS, f"{type(call).__name__}: {shown(call)}")]
    inner = decoded(call["function"]) if "function" in call else None
    if isinstance(inner, Mapping):
        function, findings = _check_function(inner, f"{path}.function")
        return {**call, "function": function}, findings
    return _check_function(call, path)  # name and arguments may also stand in the call itself


def _check_function(function: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[Finding]]:
    given = function.get("arguments")
    if given is None:
        return dict(function), []
    path = f"{path}.arguments"
    values = decoded(given)
    if not isinstance(values, Mapping):
        hint = "; a call without arguments has {}" if given == "" else _syntax(given)
        return dict(function), [Finding(path, Reason.BAD_ARGUMENTS, f"{type(given).__name__}: {shown(given)}{hint}")]
    odd = not_json(values, path)
    if odd is not None:
        return dict(function), [odd]
    return {**function, "arguments": values}, []


def check_tools(value: object) -> tuple[list[Any] | None, Finding | None]:
    """Tool descriptions as a list of objects; the list, one description and its parameters may each be JSON text.

    In JSON text a null is one that somebody wrote, and stays; elsewhere it may be Arrow's.
    """
    tools = decoded(value) if isinstance(value, str) else without_nulls(value)
    if not isinstance(tools, list):
        return None, Finding("tools", Reason.BAD_TOOLS, f"{type(tools).__name__}: {shown(value)}{_syntax(value)}")
    described: list[Any] = []
    for i, tool in enumerate(tools):
        checked, finding = _check_tool(decoded(tool), f"tools[{i}]")
        if finding is not None:
            return None, finding
        described.append(checked)
    return described, None


def _check_tool(tool: Any, path: str) -> tuple[Any, Finding | None]:
    if not isinstance(tool, Mapping):
        return tool, Finding(path, Reason.BAD_TOOLS, f"{type(tool).__name__}: {shown(tool)}{_syntax(tool)}")
    if isinstance(tool.get("function"), Mapping):
        function, finding = _with_parameters(tool["function"], f"{path}.function")
        tool = {**tool, "function": function}
    else:
        tool, finding = _with_parameters(tool, path)
    return tool, finding or not_json(tool, path)


def _with_parameters(function: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], Finding | None]:
    given = function.get("parameters")
    schema = decoded(given)
    if isinstance(given, str) and not isinstance(schema, Mapping):
        return function, Finding(f"{path}.parameters", Reason.BAD_TOOLS, f"text: {shown(given)}{_syntax(given)}")
    return ({**function, "parameters": schema} if isinstance(given, str) else function), None


def not_json(value: Any, path: str) -> Finding | None:
    """The first part of `value` that JSON does not know (a date, NaN, an array): templates could not write it."""
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return None
    else:
        return Finding(path, Reason.NOT_JSON_VALUE, f"{type(value).__name__}: {shown(value)}")
    return next((finding for at, item in parts if (finding := not_json(item, at)) is not None), None)


def decoded(value: Any) -> Any:
    """What JSON text stands for, if it stands for an object or a list; everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return document if isinstance(document, dict | list) else value


def _syntax(value: Any) -> str:
    """What is wrong with the JSON of a text."""
    if not isinstance(value, str):
        return ""
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        return f"; {error}"
    return ""
