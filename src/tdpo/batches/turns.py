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
    """The tokens of a whole (`whole`, tokenised: `ids`) between an assistant's turn and the next one's first word.

    They are found by rendering the conversation up to there, which must be how the whole begins. Where a template
    writes earlier turns otherwise once later ones follow, its own mask is asked, if it has one.

    Raises UnknownTurns where neither tells.
    """
    try:
        return tuple(_rendered_gaps(encoder, prompt, turns, whole, ids, end))
    except UnknownTurns:
        masked = _masked_gaps(encoder, prompt.followed_by(turns), ids, {end.token_id})
        if masked is None:
            raise
        return masked


def _rendered_gaps(
    encoder: Encoder, prompt: Conversation, turns: Sequence[Message], whole: str, ids: Sequence[int], end: EndOfTurn
) -> Iterator[tuple[int, int]]:
    for first, after in _other_turns(turns):
        try:
            answered = encoder.render(prompt.followed_by(turns[:first]))
            asked = encoder.render(prompt.followed_by(turns[:after]), generation_prompt=True)
        except TemplateRefusal as refusal:
            raise UnknownTurns(f"{refusal}, when it ends with turn {after}") from refusal
        said = without_tail(answered, end, finished=True)
        if not whole.startswith(said):
            said = without_tail(answered, end, finished=False)  # its end is another one before other turns
        shared = prefix_length(asked, whole)
        content = str(turns[after - 1].get("content") or "").strip()
        if not whole.startswith(said) or shared < asked.rfind(content) + len(content):
            raise UnknownTurns(f"turn {after} is written otherwise when another follows")
        start = prefix_length(encoder.rendered(said), ids)
        stop = prefix_length(encoder.rendered(asked[:shared]), ids)
        yield start, max(start, stop)


def _other_turns(turns: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Where users and tools speak: (their first turn, the assistant's next)."""
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
    """What the template's `{% generation %}` leaves out between two of the assistant's turns; None without such."""
    masked = encoder.generation_mask(conversation)
    if masked is None or masked[0][: len(ids)] != list(ids):
        return None
    mask = masked[1][: len(ids)]
    spoken = [position for position, is_spoken in enumerate(mask) if is_spoken]
    gaps = []
    for before, behind in pairwise(spoken):
        start = before + 1
        if behind > start and ids[start] in ends:
            start += 1  # the end of a turn is the assistant's, whether the template marks it or not
        if behind > start:
            gaps.append((start, behind))
    return tuple(gaps)


def within(gaps: Gaps, boundary: int, length: int) -> Gaps:
    """Gaps of a whole as gaps of its response, which starts at `boundary` and has `length` tokens."""
    moved = ((max(0, start - boundary), min(length, stop - boundary)) for start, stop in gaps)
    return tuple((start, stop) for start, stop in moved if start < stop)
