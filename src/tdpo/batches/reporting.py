"""A report of what became of the rows. Whatever is cut or left out is counted and told to the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TokenizationReport:
    """Counts of one tokenisation; lists name the rows as "source:row"."""

    rows: int = 0
    pairs: int = 0
    max_length: int | None = None
    truncated_rows: int = 0
    truncated_tokens: int = 0
    dropped_long_prompts: list[str] = field(default_factory=list)
    dropped_identical: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    boundary_moved: int = 0
    prompt_reduced: list[str] = field(default_factory=list)
    response_reduced: list[str] = field(default_factory=list)
    generation_prompt_dropped: list[str] = field(default_factory=list)
    dropped_text: str = ""
    without_end: int = 0
    end_text: str = ""
    begun_twice: int = 0
    other_turns: int = 0
    uncounted_tokens: int = 0
    longest: int = 0
    mean_prompt_tokens: float = 0.0
    mean_response_tokens: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def warnings(self) -> list[str]:
        """One sentence for each thing that happened to the data, empty when nothing did."""
        return [*self._left_out(), *self._boundaries(), *self._ends()]

    def _left_out(self) -> list[str]:
        sentences = []
        if self.refused:
            sentences.append(
                f"{len(self.refused)} of {self.rows} rows were skipped, since the chat template cannot render them as "
                f"they are: {_first(self.refused)}."
            )
        if self.truncated_rows:
            sentences.append(
                f"{self.truncated_rows} of {self.rows} rows are longer than max_length={self.max_length}: "
                f"{self.truncated_tokens} response tokens were cut from their ends, and with them the end-of-sequence "
                "token, so that nothing teaches to stop in the middle."
            )
        if self.dropped_long_prompts:
            sentences.append(
                f"{len(self.dropped_long_prompts)} of {self.rows} rows were dropped: the prompt alone fills "
                f"max_length={self.max_length} ({_first(self.dropped_long_prompts)})."
            )
        if self.dropped_identical:
            sentences.append(
                f"{len(self.dropped_identical)} of {self.rows} rows were dropped: chosen and rejected are the "
                f"same tokens, maybe only after truncation ({_first(self.dropped_identical)})."
            )
        return sentences

    def _boundaries(self) -> list[str]:
        sentences = []
        if self.boundary_moved:
            sentences.append(
                f"In {self.boundary_moved} of {self.rows} rows the prompt's last characters merge into the response's "
                "first token; the response starts at that token, so nothing of it is lost."
            )
        if self.generation_prompt_dropped:
            sentences.append(
                f"In {len(self.generation_prompt_dropped)} of {self.rows} rows the chat template writes "
                f"{self.dropped_text!r} before an answer that is to be generated, but not before one that is there: "
                "training sees the prompt without it, sampling with it "
                f"({_first(self.generation_prompt_dropped)})."
            )
        if self.response_reduced:
            sentences.append(
                f"In {len(self.response_reduced)} of {self.rows} rows the chat template leaves out or changes a part "
                "of a response, such as its reasoning or a tool call; that part is not trained on "
                f"({_first(self.response_reduced)})."
            )
        if self.prompt_reduced:
            sentences.append(
                f"In {len(self.prompt_reduced)} of {self.rows} rows the chat template leaves out or changes a part of "
                f"the prompt: an earlier turn, its reasoning, or the tools ({_first(self.prompt_reduced)})."
            )
        if self.other_turns:
            how = (
                f"{self.uncounted_tokens} tokens are seen but not counted"
                if self.uncounted_tokens
                else "all is counted"
            )
            sentences.append(
                f"In {self.other_turns} of {self.rows} rows a user or a tool speaks within a response: {how} "
                "(counted_turns)."
            )
        if self.begun_twice:
            sentences.append(
                f"{self.begun_twice} texts begin with the beginning-of-sequence token that the tokenizer adds as well; "
                "it stands there once."
            )
        return sentences

    def _ends(self) -> list[str]:
        sentences = []
        if self.without_end:
            sentences.append(
                f"{self.without_end} responses of {self.rows} rows end without a token that a model could stop at, "
                "although they are not marked as cut off: the chat template writes none after an answer, or the "
                "tokenizer has none. Nothing teaches the model to stop."
            )
        if self.end_text:
            sentences.append(
                f"The chat template ends a turn with the text {self.end_text!r}, which is no token of its own: what is "
                "sampled here stops at it, other programs may not. Adding it to the tokenizer as a special token "
                "would be safer."
            )
        return sentences


def _first(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
