"""Separation of the prompt from both responses of a row, and checks of the three together."""

from __future__ import annotations

from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.role_order import describe_roles
from tdpo.preferences.rows import Message, Text, Triple, shown


def split_prompt(chosen: Text, rejected: Text) -> Triple:
    """Split two texts (or conversations) that begin with the same prompt into the prompt and two responses.

    The prompt is the longest common prefix, by the rules of TRL's DPO. One space at the end of the common prefix of
    plain texts goes to the responses. If one text is a prefix of the other, the last shared character (or turn) goes to
    the responses, so that no response is empty. If nothing is shared, the prompt is empty; TRL 1.16 differs here if
    `chosen` ends with a space: its index wraps to the end of the text.
    """
    shorter = min(len(chosen), len(rejected))
    end = _shared_length(chosen, rejected)
    if end == shorter:
        end = max(shorter - 1, 0)
    elif end > 0 and chosen[end - 1] == " ":
        end -= 1
    return Triple(chosen[:end], chosen[end:], rejected[end:])


def _shared_length(first: Text, second: Text) -> int:
    """Length of the common prefix. It is found by bisection, as comparing slices is far faster than characters."""
    shared, bound = 0, min(len(first), len(second))
    while shared < bound:
        middle = (shared + bound + 1) // 2
        if first[shared:middle] == second[shared:middle]:
            shared = middle
        else:
            bound = middle - 1
    return shared


def resolve(prompt: Text | None, chosen: Text, rejected: Text) -> Triple | Finding:
    """Bring one row into explicit form, or return the finding that prevents it.

    Each field is valid by itself already. `prompt` is None for a row whose prompt is implicit.
    """
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
            text = f"{describe_roles(response)}; leave out the prompt column or these turns"
            return Finding(name, Reason.REPEATS_PROMPT, text)
    return Triple(prompt, chosen, rejected)


def _resolve_plain(prompt: Text | None, chosen: Text, rejected: Text) -> Triple | Finding:
    kinds = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if not (isinstance(chosen, str) and isinstance(rejected, str)) or isinstance(prompt, list):
        forms = [f"{k} is {'text' if isinstance(v, str) else 'messages'}" for k, v in kinds.items() if v is not None]
        return Finding("row", Reason.MIXED_ROW, ", ".join(forms))
    if prompt is not None:
        return Triple(prompt, chosen, rejected)
    # The common prefix would leave one response empty. TRL's loop happens to keep one character for it. But in such
    # rows a response is most often missing, and the true end of the prompt cannot be told.
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
    if chosen[0] == rejected[0] and chosen[0]["role"] != "assistant":  # the only turn of one: no response follows
        return Finding(single, Reason.RESPONSE_START, describe_roles([chosen[0]]))
    text = f"chosen starts {shown(chosen[0])[:60]}, rejected {shown(rejected[0])[:60]}"
    return Finding("prompt", Reason.NOTHING_SHARED, text)


def _resolve_text_prompt(prompt: str, chosen: list[Message], rejected: list[Message]) -> Triple | Finding:
    """Resolve a prompt that is text beside conversations: it is the user's turn, or it repeats what they contain."""
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        return Triple([{"role": "user", "content": prompt}], chosen, rejected)
    split = _split_conversation(chosen, rejected)
    if isinstance(split, Finding):
        return split
    contents = [str(message["content"]).strip() for message in split.prompt if isinstance(message, dict)]
    if any(c and (c in prompt or prompt.strip() in c) for c in contents):
        return split
    return Finding("prompt", Reason.PROMPT_UNRELATED, shown(prompt))


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else str(text[-1]["content"])
