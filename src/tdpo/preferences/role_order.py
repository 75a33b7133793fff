"""Checks of the order of roles in prompts and responses that are lists of messages."""

from __future__ import annotations

from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.rows import Message, Text, Triple


def prompt_findings(prompt: Text) -> list[Finding]:
    """Return the first problem with the order of roles in one prompt, as a list of at most one finding."""
    if isinstance(prompt, str):
        return []
    if prompt[-1]["role"] == "assistant":
        return [Finding("prompt", Reason.PROMPT_END, describe_roles(prompt))]
    return _first_misplaced("prompt", [], prompt)


def order_findings(triple: Triple) -> list[Finding]:
    """Return the problems with the order of roles in one conversational row: the first one of each of its parts."""
    prompt, chosen, rejected = triple
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return []
    findings = prompt_findings(prompt)
    if findings and findings[0].reason == Reason.PROMPT_END:
        return findings
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if response[0]["role"] != "assistant":
            findings.append(Finding(name, Reason.RESPONSE_START, describe_roles(response)))
        elif response[-1]["role"] != "assistant":
            findings.append(Finding(name, Reason.RESPONSE_END, describe_roles(response)))
        else:
            findings += _first_misplaced(name, prompt, response)
    return findings


def _first_misplaced(name: str, before: list[Message], turns: list[Message]) -> list[Finding]:
    roles = [message["role"] for message in before + turns]
    for i in range(len(before), len(roles)):
        reason = _misplaced(roles[i], roles[:i])
        if reason is not None:
            return [Finding(f"{name}[{i - len(before)}]", reason, describe_roles(turns))]
    return []


def _misplaced(role: str, earlier: list[str]) -> Reason | None:
    """Return why `role` may not follow the roles `earlier`, or None.

    Two user turns in a row are accepted, because people do write twice.
    """
    previous = earlier[-1] if earlier else None
    if role in ("system", "developer") and not {"system", "developer"}.issuperset(earlier):
        return Reason.LATE_SYSTEM
    if role == "tool" and previous not in ("assistant", "tool"):
        return Reason.STRAY_TOOL
    # A model is not sampled again after its end of turn, so such tokens could never be drawn.
    if role == "assistant" and previous == "assistant":
        return Reason.ASSISTANT_TWICE
    return None


def describe_roles(messages: list[Message]) -> str:
    """List the roles of `messages` for an error message, at most eight of them."""
    roles = [str(message["role"]) for message in messages]
    return "roles: " + ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")
