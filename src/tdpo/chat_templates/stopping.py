"""When a sampled response is finished, and its text without what ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .ends import end_ids, end_of_turn


@dataclass(frozen=True)
class Stopping:
    """The ends of responses: a token of `ids`, or the constant `text`.

    The chat template writes `text` after every turn, and the tokenizer splits it into several tokens; "" where there is
    no such text. `markers` are those of `ids` that do not belong to the text of a response.
    """

    tokenizer: Any
    ids: frozenset[int]
    text: str
    markers: frozenset[int]

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Stopping:
        """The ends of the model's generation config, of the tokenizer, and of its chat template."""
        ids = end_ids(tokenizer, getattr(getattr(model, "generation_config", None), "eos_token_id", None))
        return cls(tokenizer, ids, end_of_turn(tokenizer, ids).text, ids & set(tokenizer.added_tokens_decoder))

    def ends(self, token_ids: list[int]) -> bool:
        """Whether these tokens are a finished response."""
        if token_ids[-1] in self.ids:
            return True
        if not self.text:
            return False
        # Each token stands for a byte of the text at least, so no more tokens need to be decoded.
        return str(self.tokenizer.decode(token_ids[-len(self.text.encode()) - 1 :])).rstrip().endswith(self.text)

    def text_before(self, token_ids: list[int], finished: bool) -> str:
        """The text of a response without its end, which need not be a special token."""
        content = token_ids[:-1] if finished and token_ids[-1] in self.markers else token_ids
        text = str(self.tokenizer.decode(content, skip_special_tokens=True))
        if not finished or not self.text or token_ids[-1] in self.ids:
            return text
        return text.rstrip().removesuffix(self.text)
