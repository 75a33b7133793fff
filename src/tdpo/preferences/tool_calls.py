"""Normalisation of tool calls and tool descriptions, whichever way they were stored.

Two ways of storing them would otherwise change what a chat template writes. A table has one set of keys for a whole
column, so Arrow gives every object the keys of all others, with null values. And APIs return the arguments of a call as
JSON text, which templates that serialise them would quote a second time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.rows import shown


def without_nulls(value: Any) -> Any:
    """Return `value` without the keys whose value is null, at every depth. Null elements of lists stay."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def check_calls(message: dict[str, Any], path: str) -> tuple[dict[str, Any], list[Finding]]:
    """Return the message with the arguments of its calls decoded to objects, and what is wrong with these calls.

    Calls stand in `tool_calls`, or in `function_call` of older APIs. An empty list of calls is removed: it says
    nothing, and templates that test whether the key exists would be misled.
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
    results = [_check_call(decoded(call), f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if results:
        checked["tool_calls"] = [call for call, _ in results]
    return checked, findings + [finding for _, problems in results for finding in problems]


def _check_call(call: Any, path: str) -> tuple[Any, list[Finding]]:
    if not isinstance(call, Mapping):
        return call, [Finding(path, Reason.BAD_TOOL_CALLS, f"{type(call).__name__}: {shown(call)}")]
    inner = decoded(call["function"]) if "function" in call else None
    if isinstance(inner, Mapping):
        function, findings = _check_function(inner, f"{path}.function")
        return {**call, "function": function}, findings
    return _check_function(call, path)  # name and arguments may also stand in the call itself


def _check_function(function: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[Finding]]:
    arguments = function.get("arguments")
    if arguments is None:
        return dict(function), []
    path = f"{path}.arguments"
    values = decoded(arguments)
    if not isinstance(values, Mapping):
        hint = "; a call without arguments has {}" if arguments == "" else _syntax(arguments)
        text = f"{type(arguments).__name__}: {shown(arguments)}{hint}"
        return dict(function), [Finding(path, Reason.BAD_ARGUMENTS, text)]
    finding = not_json(values, path)
    if finding is not None:
        return dict(function), [finding]
    return {**function, "arguments": values}, []


def check_tools(value: object) -> tuple[list[Any] | None, Finding | None]:
    """Return tool descriptions as a list of objects, or None and the reason why they cannot be read.

    The list, a description and its parameters may each be JSON text. A null in JSON text was written on purpose and
    stays; elsewhere a null may have been added by Arrow and is removed.
    """
    tools = decoded(value) if isinstance(value, str) else without_nulls(value)
    if not isinstance(tools, list):
        return None, Finding("tools", Reason.BAD_TOOLS, f"{type(tools).__name__}: {shown(value)}{_syntax(value)}")
    descriptions: list[Any] = []
    for i, tool in enumerate(tools):
        description, finding = _check_tool(decoded(tool), f"tools[{i}]")
        if finding is not None:
            return None, finding
        descriptions.append(description)
    return descriptions, None


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
    parameters = function.get("parameters")
    schema = decoded(parameters)
    if isinstance(parameters, str) and not isinstance(schema, Mapping):
        text = f"text: {shown(parameters)}{_syntax(parameters)}"
        return function, Finding(f"{path}.parameters", Reason.BAD_TOOLS, text)
    return ({**function, "parameters": schema} if isinstance(parameters, str) else function), None


def not_json(value: Any, path: str) -> Finding | None:
    """Return a finding for the first part of `value` that JSON cannot represent (a date, NaN, an array), or None.

    A chat template could not write such a value.
    """
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return None
    else:
        return Finding(path, Reason.NOT_JSON_VALUE, f"{type(value).__name__}: {shown(value)}")
    return next((finding for place, item in parts if (finding := not_json(item, place)) is not None), None)


def decoded(value: Any) -> Any:
    """Decode JSON text that stands for an object or a list; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return document if isinstance(document, dict | list) else value


def _syntax(value: Any) -> str:
    """Return the error of the JSON decoder for a text, to be appended to a message; "" where there is none."""
    if not isinstance(value, str):
        return ""
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        return f"; {error}"
    return ""
