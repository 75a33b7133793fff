"""The unit of everything that is computed: a prompt with its responses, as token ids, and their order in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from .turns import Gaps


@dataclass(frozen=True)
class PromptResponses:
    """Token ids of a prompt and of one or more responses to it.

    Args:
        prompt_ids: may be empty; nothing predicts the first token of a response then.
        responses: token ids of each response.
        source, row: where they come from, for messages.
        gaps: for each response the spans (start, end) that others wrote, users or tools: seen, but not counted. Left
            out, no response has any.

    Raises:
        ValueError: no response, or gaps of another number of responses.
    """

    prompt_ids: list[int]
    responses: Sequence[list[int]]
    source: str = "memory"
    row: int = 0
    gaps: tuple[Gaps, ...] = ()

    def __post_init__(self) -> None:
        if not self.responses:
            raise ValueError(f"{self.source}:{self.row} has no response")
        if not self.gaps:
            object.__setattr__(self, "gaps", ((),) * len(self.responses))
        if len(self.gaps) != len(self.responses):
            raise ValueError(
                f"{self.source}:{self.row} has {len(self.responses)} responses, and gaps of {len(self.gaps)}"
            )


def shared_length(prompt: PromptResponses) -> int:
    """Tokens of a prompt that is computed once, with all of its responses."""
    return len(prompt.prompt_ids) + sum(map(len, prompt.responses))


def sequence_length(prompt: PromptResponses) -> int:
    """Tokens of the prompt with its longest response: the longest sequence that the model reads."""
    return len(prompt.prompt_ids) + max(map(len, prompt.responses))


def counted_tokens(prompt: PromptResponses) -> tuple[int, ...]:
    """For each response, the number of its tokens that are predicted and lie in no gap.

    Without a prompt nothing predicts the first token of a response, so it is not counted.
    """
    first = 0 if prompt.prompt_ids else 1
    skipped = [sum(stop - max(start, first) for start, stop in gaps) for gaps in prompt.gaps]
    return tuple(len(ids) - first - gap for ids, gap in zip(prompt.responses, skipped, strict=True))


def sequence_order(prompts: Sequence[PromptResponses]) -> list[tuple[int, int]]:
    """(prompt, response) of each of the S responses of a batch, in the order of their sequence numbers.

    The first responses of all prompts come first, then the second ones, and so on. So of P pairs, the chosen response
    of pair p has the number p and the rejected one P + p.
    """
    most = max(len(prompt.responses) for prompt in prompts)
    return [(p, k) for k in range(most) for p, prompt in enumerate(prompts) if k < len(prompt.responses)]


class FlatOrder:
    """The places of response tokens in tensors that hold those of many prompts flat, as one batch of all would.

    Args:
        prompts: of which batches are made.

    Attributes:
        sequences: (prompt, response) of each of the S responses, as `sequence_order` gives them.
        lengths: `[S]`, the counted tokens of each.
        by_prompt: the number of each where responses are counted prompt by prompt instead.
    """

    def __init__(self, prompts: Sequence[PromptResponses]) -> None:
        self.prompts = prompts
        self.sequences = sequence_order(prompts)
        first = list(accumulate((len(prompt.responses) for prompt in prompts), initial=0))
        self.by_prompt = [first[p] + k for p, k in self.sequences]
        counts = list(map(counted_tokens, prompts))
        self.lengths = torch.tensor([counts[p][k] for p, k in self.sequences])
        ends = self.lengths.cumsum(0).tolist()
        self._spans = {
            place: range(end - length, end)
            for place, end, length in zip(self.sequences, ends, self.lengths.tolist(), strict=True)
        }

    def tokens_of(self, numbers: Sequence[int]) -> Tensor:
        """Flat indices of the tokens of these prompts, in the order in which a batch of them holds them."""
        batch = [self.prompts[number] for number in numbers]
        spans = [self._spans[numbers[p], k] for p, k in sequence_order(batch)]
        return torch.tensor(list(chain.from_iterable(spans)), dtype=torch.long)
