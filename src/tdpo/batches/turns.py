"""Responses of several turns: which of their tokens the user or a tool wrote, so that a model never says them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Literal

from ..chat_templates import Conversation, Encoder, EndOfTurn, TemplateRefusal, prefix_length, without_tail
from ..preferences import Message

CountedTurns = Literal["assistant", "all"]
Gaps = tuple[tuple[int, int], ...]  # (start, end) of tokens that are seen but not counted, in order


class UnknownTurns(ValueError):
    """The template does not let the turns of a response be told apart."""


def has_other_turns(turns: Sequence[Message]) -> bool:
    """Whether anybody but the assistant speaks in a response."""
    return any(turn["role"] != "assistant" for turn in turns)


def gaps_of(
    encoder: Encoder, prompt: Conversation, turns: Sequence[Message], whole: str, ids: Sequence[int], end: EndOfTurn
) -> Gaps:
    """The spans of tokens that others than the assistant wrote between two of its turns.

    The conversation is rendered up to each of the assistant's turns, which must be how the whole conversation begins.
    Where a template writes earlier turns in another way once later ones follow, its own mask decides, if it has one.

    Args:
        encoder: renders and tokenises.
        prompt: the conversation before the response.
        turns: of the response.
        whole: the rendered conversation with the response.
        ids: `whole` as tokens.
        end: what the template writes behind a turn.

    Raises:
        UnknownTurns: neither the rendered beginnings nor a mask tell.
    """
    try:
        return tuple(_rendered_gaps(encoder, prompt, turns, whole, ids, end))
    except UnknownTurns:
        gaps = _masked_gaps(encoder, prompt.followed_by(turns), ids, {end.token_id})
        if gaps is None:
            raise
        return gaps


def _rendered_gaps(
    encoder: Encoder, prompt: Conversation, turns: Sequence[Message], whole: str, ids: Sequence[int], end: EndOfTurn
) -> Iterator[tuple[int, int]]:
    for first, after in _other_turns(turns):
        try:
            up_to_others = encoder.render(prompt.followed_by(turns[:first]))
            up_to_next = encoder.render(prompt.followed_by(turns[:after]), generation_prompt=True)
        except TemplateRefusal as refusal:
            raise UnknownTurns(f"{refusal}, when it ends with turn {after}") from refusal
        before = without_tail(up_to_others, end, finished=True)
        if not whole.startswith(before):
            before = without_tail(up_to_others, end, finished=False)  # its end is another one before other turns
        shared = prefix_length(up_to_next, whole)
        content = str(turns[after - 1].get("content") or "").strip()
        if not whole.startswith(before) or shared < up_to_next.rfind(content) + len(content):
            raise UnknownTurns(f"turn {after} is written otherwise when another follows")
        start = prefix_length(encoder.rendered(before), ids)
        stop = prefix_length(encoder.rendered(up_to_next[:shared]), ids)
        yield start, max(start, stop)


def _other_turns(turns: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """The index of each first turn of a user or tool, with that of the assistant's next turn."""
    first = None
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            first = number if first is None else first
        elif first is not None:
            yield first, number
            first = None


def _masked_gaps(
    encoder: Encoder, conversation: Conversation, ids: Sequence[int], ends: Collection[int | None]
) -> Gaps | None:
    """What the template's `{% generation %}` marks leave out between the assistant's turns; None without such marks."""
    ids_and_mask = encoder.generation_mask(conversation)
    if ids_and_mask is None or ids_and_mask[0][: len(ids)] != list(ids):
        return None
    mask = ids_and_mask[1][: len(ids)]
    positions = [position for position, is_assistant in enumerate(mask) if is_assistant]
    gaps = []
    for before, behind in pairwise(positions):
        start = before + 1
        if behind > start and ids[start] in ends:
            start += 1  # the end of a turn is the assistant's, whether the template marks it or not
        if behind > start:
            gaps.append((start, behind))
    return tuple(gaps)


def within(gaps: Gaps, boundary: int, length: int) -> Gaps:
    """Gaps of a whole conversation as gaps of its response, which starts at `boundary` and has `length` tokens."""
    of_response = ((max(0, start - boundary), min(length, stop - boundary)) for start, stop in gaps)
    return tuple((start, stop) for start, stop in of_response if start < stop)
