"""Preference rows made of scored responses: best with worst, second best with second worst, and so on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..environments import Prompt


@dataclass(frozen=True)
class ScoredResponse:
    """A response with its reward; `tokens` counts the end-of-sequence token if `finished`."""

    prompt_index: int
    sample_index: int
    text: str
    tokens: int
    finished: bool
    reward: float


@dataclass
class PairCounts:
    """What became of the responses.

    Args:
        pairs: that were made.
        ties: pairs left out, because both rewards are equal.
        identical: responses left out, because an earlier one to the same prompt has the same text.
        empty: responses left out, because their text is white space or holds a NUL character, which no preference file
            may hold.
        prompts_without_pair: prompts of whose responses no pair could be made.
    """

    pairs: int = 0
    ties: int = 0
    identical: int = 0
    empty: int = 0
    prompts_without_pair: int = 0


def make_pairs(
    prompts: Sequence[Prompt], samples: Iterable[ScoredResponse], pairs_per_prompt: int
) -> tuple[list[dict[str, Any]], PairCounts]:
    """Preference rows from responses in the order of their prompts.

    Of each prompt's responses the best is paired with the worst, the second best with the second worst, and so on. Of
    equal rewards the earlier response counts as the better.
    """
    counts = PairCounts()
    rows: list[dict[str, Any]] = []
    for index, group in groupby(samples, key=lambda item: item.prompt_index):
        ranked = sorted(_distinct(group, counts), key=lambda item: (-item.reward, item.sample_index))
        before = len(rows)
        for k in range(min(pairs_per_prompt, len(ranked) // 2)):
            chosen, rejected = ranked[k], ranked[-1 - k]
            if chosen.reward > rejected.reward:
                rows.append(_row(prompts[index], chosen, rejected))
            else:
                counts.ties += 1
        counts.prompts_without_pair += len(rows) == before
    counts.pairs = len(rows)
    return rows, counts


def _distinct(samples: Iterable[ScoredResponse], counts: PairCounts) -> list[ScoredResponse]:
    by_text: dict[str, ScoredResponse] = {}
    for item in samples:
        if not item.text.strip() or "\0" in item.text:
            counts.empty += 1
        elif item.text in by_text:
            counts.identical += 1
        else:
            by_text[item.text] = item
    return list(by_text.values())


def _row(prompt: Prompt, chosen: ScoredResponse, rejected: ScoredResponse) -> dict[str, Any]:
    def response(text: str) -> Any:
        return text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]

    return {
        "prompt": prompt.prompt,
        "chosen": response(chosen.text),
        "rejected": response(rejected.text),
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "chosen_finished": chosen.finished,
        "rejected_finished": rejected.finished,
        "prompt_id": prompt.id,
        **getattr(prompt.rendered_from, "columns", dict)(),  # training renders the prompt as sampling did
    }
