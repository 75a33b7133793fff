"""When a sampled response is finished, and what of it was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .ends import end_ids, end_of_turn


@dataclass(frozen=True)
class Stopping:
    """A response is finished at a token of `ids`, or where its text ends with the constant `text` that the chat
    template writes behind a turn and the tokenizer splits ("": it writes none)."""

    tokenizer: Any
    ids: frozenset[int]
    text: str
    markers: frozenset[int]  # of `ids` those that are no part of what is said

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Stopping:
        """The ends of the model's generation config, of the tokenizer, and of its chat template."""
        ids = end_ids(tokenizer, getattr(getattr(model, "generation_config", None), "eos_token_id", None))
        return cls(tokenizer, ids, end_of_turn(tokenizer, ids).text, ids & set(tokenizer.added_tokens_decoder))

    def ends(self, token_ids: list[int]) -> bool:
        """Whether these tokens are a finished response. Each token of the text holds a byte of it at least."""
        if token_ids[-1] in self.ids:
            return True
        if not self.text:
            return False
        return str(self.tokenizer.decode(token_ids[-len(self.text.encode()) - 1 :])).rstrip().endswith(self.text)

    def text_before(self, token_ids: list[int], finished: bool) -> str:
        """The text of a response without what ends it, which need not be a special token."""
        said = token_ids[:-1] if finished and token_ids[-1] in self.markers else token_ids
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        if not finished or not self.text or token_ids[-1] in self.ids:
            return text
        return text.rstrip().removesuffix(self.text)
