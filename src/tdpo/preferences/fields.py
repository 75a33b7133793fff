"""Checks of the fields of one row: texts, lists of messages, and the optional columns that have a meaning here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tdpo.preferences.message_text import ROLE_NAMES_ELSEWHERE, ROLES, holds_messages
from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.rows import Message, Text, shown
from tdpo.preferences.tool_calls import check_calls, check_tools, decoded, not_json, without_nulls

MAY_BE_EMPTY = ("system", "developer", "tool")  # roles: a missing instruction, a command without output
RESERVED_KWARGS = (
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
)
REWARDS = ("chosen_reward", "rejected_reward")
FINISHED = ("chosen_finished", "rejected_finished")

_SURROGATE = re.compile("[\ud800-\udfff]")


def find_surrogate(text: str) -> int | None:
    """Return the position of the first code point that UTF-8 cannot encode, or None."""
    match = None if text.isascii() else _SURROGATE.search(text)
    return None if match is None else match.start()


def check_text(name: str, value: object) -> tuple[Text | None, list[Finding]]:
    """Return `value` as `Text` and no findings, or None and the reasons why it is not a text."""
    if isinstance(value, str):
        findings = _string_findings(name, value)
        if not findings and holds_messages(value):
            findings = [Finding(name, Reason.MESSAGES_AS_TEXT, shown(value))]
        return (None, findings) if findings else (value, [])
    if isinstance(value, list | tuple) and not value:
        return None, [Finding(name, Reason.NO_MESSAGES, "[]")]
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        return _check_messages(name, value)
    if value is None:
        return None, [Finding(name, Reason.NULL, "")]
    hint = "; one message goes into a list of its own" if isinstance(value, Mapping) and "role" in value else ""
    return None, [Finding(name, Reason.WRONG_TYPE, f"{type(value).__name__}: {shown(value)}{hint}")]


def _string_findings(name: str, text: str) -> list[Finding]:
    if not text:
        return [Finding(name, Reason.EMPTY, "''")]
    if text.isspace():
        return [Finding(name, Reason.BLANK, shown(text))]
    if "\0" in text:
        return [Finding(name, Reason.NUL, shown(text, near=text.index("\0")))]
    surrogate = find_surrogate(text)
    if surrogate is not None:
        return [Finding(name, Reason.SURROGATE, shown(text, near=surrogate))]
    return []


def _check_messages(name: str, parts: list[Any] | tuple[Any, ...]) -> tuple[list[Message] | None, list[Finding]]:
    messages: list[Message] = []
    findings: list[Finding] = []
    for i, part in enumerate(parts):
        message, message_findings = _check_message(f"{name}[{i}]", part)
        findings += message_findings
        messages.append(message)
    return (None, findings) if findings else (messages, [])


def _check_message(path: str, part: object) -> tuple[Message, list[Finding]]:
    if not isinstance(part, Mapping):
        return {}, [Finding(path, Reason.NOT_MESSAGE, shown(part))]
    # Arrow gives every message, call and argument the keys of all others, with null values. A chat template must not
    # see those keys.
    message = without_nulls(part)
    role, content = message.get("role"), message.get("content")
    if role is None:
        hint = "; ShareGPT's 'from' and 'value' are called 'role' and 'content' here" if "from" in part else ""
        return message, [Finding(path, Reason.NO_ROLE, f"{shown(dict(part))}{hint}")]
    if role not in ROLES:
        likely_role = ROLE_NAMES_ELSEWHERE.get(str(role).lower(), str(role).strip().lower())
        hint = f"; did you mean '{likely_role}'?" if likely_role in ROLES else ""
        return message, [Finding(f"{path}.role", Reason.UNKNOWN_ROLE, f"{shown(role)}{hint}")]
    message, findings = check_calls(message, path)
    calls_tools = role == "assistant" and bool(message.get("tool_calls"))
    if calls_tools and content is None:
        return {**message, "content": ""}, findings
    if content is None:
        return message, [Finding(path, Reason.NO_CONTENT, shown(dict(part)))]
    if not isinstance(content, str):
        text = f"{type(content).__name__}: {shown(content)}"
        return message, [Finding(f"{path}.content", Reason.CONTENT_NOT_TEXT, text)]
    content_findings = _string_findings(f"{path}.content", content)
    if calls_tools or role in MAY_BE_EMPTY:
        content_findings = [f for f in content_findings if f.reason not in (Reason.EMPTY, Reason.BLANK)]
    return message, findings + content_findings


def check_template_options(columns: Mapping[str, Any], *, plain: bool) -> tuple[dict[str, Any], list[Finding]]:
    """Check and normalise the columns that the chat template receives, `tools` and `chat_template_kwargs`.

    Returns all `columns`, without those two where they are empty. A chat template is not used for `plain` text, so
    beside it a value that is not empty is a finding.
    """
    checked = dict(columns)
    findings: list[Finding] = []
    for name, check in (("tools", check_tools), ("chat_template_kwargs", _check_template_kwargs)):
        value = checked.pop(name, None)
        if value is None or (isinstance(value, str | list | tuple | Mapping) and not value):
            continue
        option, finding = check(value)
        if finding is None and option and plain:
            finding = Finding(name, Reason.NEEDS_TEMPLATE, shown(value))
        if finding is not None:
            findings.append(finding)
        elif option:
            checked[name] = option
    return checked, findings


def check_options(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Return the columns of a row other than its texts; those that have a meaning here are checked and normalised."""
    extra = {key: value for key, value in values.items() if key not in ("prompt", "chosen", "rejected")}
    extra, findings = check_template_options(extra, plain=isinstance(values.get("chosen"), str))
    for name in FINISHED:
        if extra.get(name) is not None and not isinstance(extra[name], bool):
            findings.append(Finding(name, Reason.NOT_BOOL, shown(extra[name])))
    for name in REWARDS:
        if extra.get(name) is not None and not _is_finite(extra[name]):
            findings.append(Finding(name, Reason.NOT_FINITE, shown(extra[name])))
    for name in ("image", "images"):
        if extra.get(name) is not None and extra[name] not in ([], ""):
            findings.append(Finding(name, Reason.IMAGES, shown(extra[name])))
    return extra, findings


def _check_template_kwargs(column: object) -> tuple[dict[str, Any] | None, Finding | None]:
    name = "chat_template_kwargs"
    value = decoded(column)
    if not isinstance(value, Mapping):
        return None, Finding(name, Reason.BAD_TEMPLATE_KWARGS, f"{type(value).__name__}: {shown(value)}")
    reserved = [key for key in value if key in RESERVED_KWARGS and value[key] is not None]
    if reserved:
        return None, Finding(f"{name}.{reserved[0]}", Reason.RESERVED_KWARG, shown(value[reserved[0]]))
    finding = not_json(value, name)
    return (None, finding) if finding is not None else (without_nulls(value), None)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
