"""Where the prompt ends in rows that do not say so, and what a prompt and two responses must agree on."""

from __future__ import annotations

from typing import NamedTuple

from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.rows import Message, Text, shown


class Triple(NamedTuple):
    prompt: Text
    chosen: Text
    rejected: Text


def split_prompt(chosen: Text, rejected: Text) -> Triple:
    """Take the prompt out of two texts (or conversations) that both contain it: the longest common prefix.

    As TRL's DPO reads such rows: one space at the end of the common prefix of plain texts goes to the responses, and
    where one text is a prefix of the other, the last shared character (or turn) does, so that no response is empty.
    Where nothing is shared the prompt is empty; TRL 1.16 wraps to the end of `chosen` there if that is a space.
    """
    shorter = min(len(chosen), len(rejected))
    end = _shared_length(chosen, rejected)
    if end == shorter:
        end = max(shorter - 1, 0)
    elif end > 0 and chosen[end - 1] == " ":
        end -= 1
    return Triple(chosen[:end], chosen[end:], rejected[end:])


def _shared_length(first: Text, second: Text) -> int:
    """Length of the common prefix, by halving: comparing slices is far faster than comparing characters."""
    shared, bound = 0, min(len(first), len(second))
    while shared < bound:
        middle = (shared + bound + 1) // 2
        if first[shared:middle] == second[shared:middle]:
            shared = middle
        else:
            bound = middle - 1
    return shared


def resolve(prompt: Text | None, chosen: Text, rejected: Text) -> Triple | Finding:
    """Bring one row, whose fields are sound each by itself, into explicit form; None stands for an implicit prompt."""
    if chosen == rejected:
        return Finding("rejected", Reason.IDENTICAL, shown(_plain(rejected)))
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _resolve_plain(prompt, chosen, rejected)
    if prompt is None:
        return _split_conversation(chosen, rejected)
    if isinstance(prompt, str):
        return _resolve_text_prompt(prompt, chosen, rejected)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if response[: len(prompt)] == prompt:
            text = f"{_roles(response)}; leave out the prompt column or these turns"
            return Finding(name, Reason.REPEATS_PROMPT, text)
    return Triple(prompt, chosen, rejected)


def _resolve_plain(prompt: Text | None, chosen: Text, rejected: Text) -> Triple | Finding:
    kinds = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if not (isinstance(chosen, str) and isinstance(rejected, str)) or isinstance(prompt, list):
        forms = [f"{k} is {'text' if isinstance(v, str) else 'messages'}" for k, v in kinds.items() if v is not None]
        return Finding("row", Reason.MIXED_ROW, ", ".join(forms))
    if prompt is not None:
        return Triple(prompt, chosen, rejected)
    # The common prefix would leave one response empty. TRL's loop happens to keep one character for it, but where
    # this occurs a response is most often missing, and the true end of the prompt cannot be told.
    for name, text, other in (("chosen", chosen, rejected), ("rejected", rejected, chosen)):
        if text.startswith(other):
            return Finding(name, Reason.PREFIX, shown(text, near=len(other)))
    split = split_prompt(chosen, rejected)
    if not split.prompt or str(split.prompt).isspace():
        return Finding("prompt", Reason.NOTHING_SHARED, f"chosen {shown(chosen[:30])}, rejected {shown(rejected[:30])}")
    for name, response in (("chosen", split.chosen), ("rejected", split.rejected)):
        if str(response).isspace():
            return Finding(name, Reason.BLANK, shown(response))
    return split


def _split_conversation(chosen: list[Message], rejected: list[Message]) -> Triple | Finding:
    split = split_prompt(chosen, rejected)
    if split.prompt:
        return split
    single = "chosen" if len(chosen) == 1 else "rejected"
    if chosen[0] == rejected[0] and chosen[0]["role"] != "assistant":  # all that one holds: no response follows it
        return Finding(single, Reason.RESPONSE_START, _roles([chosen[0]]))
    text = f"chosen starts {shown(chosen[0])[:60]}, rejected {shown(rejected[0])[:60]}"
    return Finding("prompt", Reason.NOTHING_SHARED, text)


def _resolve_text_prompt(prompt: str, chosen: list[Message], rejected: list[Message]) -> Triple | Finding:
    """A prompt as text beside conversations: either it *is* the user's turn, or it repeats what they contain."""
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        return Triple([{"role": "user", "content": prompt}], chosen, rejected)
    split = _split_conversation(chosen, rejected)
    if isinstance(split, Finding):
        return split
    contents = [str(message["content"]).strip() for message in split.prompt if isinstance(message, dict)]
    if any(c and (c in prompt or prompt.strip() in c) for c in contents):
        return split
    return Finding("prompt", Reason.PROMPT_UNRELATED, shown(prompt))


def prompt_findings(prompt: Text) -> list[Finding]:
    """What is wrong with the order of the roles of one prompt; the first problem."""
    if isinstance(prompt, str):
        return []
    if prompt[-1]["role"] == "assistant":
        return [Finding("prompt", Reason.PROMPT_END, _roles(prompt))]
    return _first_misplaced("prompt", [], prompt)


def order_findings(triple: Triple) -> list[Finding]:
    """What is wrong with the order of the roles of one conversational row; the first problem of each part."""
    prompt, chosen, rejected = triple
    if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
        return []
    findings = prompt_findings(prompt)
    if findings and findings[0].reason == Reason.PROMPT_END:
        return findings
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if response[0]["role"] != "assistant":
            findings.append(Finding(name, Reason.RESPONSE_START, _roles(response)))
        elif response[-1]["role"] != "assistant":
            findings.append(Finding(name, Reason.RESPONSE_END, _roles(response)))
        else:
            findings += _first_misplaced(name, prompt, response)
    return findings


def _first_misplaced(name: str, before: list[Message], turns: list[Message]) -> list[Finding]:
    roles = [message["role"] for message in before + turns]
    for i in range(len(before), len(roles)):
        reason = _misplaced(roles[i], roles[:i])
        if reason is not None:
            return [Finding(f"{name}[{i - len(before)}]", reason, _roles(turns))]
    return []


def _misplaced(role: str, earlier: list[str]) -> Reason | None:
    """Why `role` may not stand here. Two user turns in a row are accepted: people do write twice."""
    previous = earlier[-1] if earlier else None
    if role in ("system", "developer") and not {"system", "developer"}.issuperset(earlier):
        return Reason.LATE_SYSTEM
    if role == "tool" and previous not in ("assistant", "tool"):
        return Reason.STRAY_TOOL
    # After its end of turn a model is not asked again: such tokens could never be sampled.
    if role == "assistant" and previous == "assistant":
        return Reason.ASSISTANT_TWICE
    return None


def _roles(messages: list[Message]) -> str:
    roles = [str(message["role"]) for message in messages]
    return "roles: " + ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else str(text[-1]["content"])
