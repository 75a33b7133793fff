"""A preference pair as token ids: a prompt with two responses, of which the first is chosen and the second rejected."""

from __future__ import annotations

from dataclasses import dataclass

from .responses import PromptResponses
from .turns import Gaps


@dataclass(frozen=True)
class TokenizedPair(PromptResponses):
    """A prompt with its chosen and its rejected response, which start where the tokenised wholes leave the prompt."""

    @classmethod
    def of(
        cls,
        prompt_ids: list[int],
        chosen_ids: list[int],
        rejected_ids: list[int],
        source: str = "memory",
        row: int = 0,
        chosen_gaps: Gaps = (),
        rejected_gaps: Gaps = (),
    ) -> TokenizedPair:
        return cls(prompt_ids, (chosen_ids, rejected_ids), source, row, (chosen_gaps, rejected_gaps))

    @property
    def chosen_ids(self) -> list[int]:
        return self.responses[0]

    @property
    def rejected_ids(self) -> list[int]:
        return self.responses[1]

    @property
    def chosen_gaps(self) -> Gaps:
        return self.gaps[0]

    @property
    def rejected_gaps(self) -> Gaps:
        return self.gaps[1]
