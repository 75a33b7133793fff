"""The data sets of a trainer on pairs: whatever the user passes becomes tokenised pairs, with a report of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...batches import TokenizedPair, TokenizedPairs, tokenize_pairs
from ...models import facts_of
from ...preferences import PreferenceRow, preferences_from_dataset
from ...scoring.fitting import check_ids
from .config import TDPOConfig

logger = logging.getLogger(__name__)


class PairDatasets:
    """Tokenises data sets for one model.

    Args:
        model: a causal language model, which says how long a row may be, and which tokens it has.
        tokenizer: its tokenizer.
        args: `max_length` and `counted_turns` are used.

    Attributes:
        reports: what became of the rows of each data set, by its name.
        sources: the files and data sets that rows came from.
    """

    def __init__(self, model: Any, tokenizer: Any, args: TDPOConfig) -> None:
        self.tokenizer, self.counted_turns = tokenizer, args.counted_turns
        self.facts = facts_of(model, tokenizer)
        self.max_length = self.facts.max_length(args.max_length)
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        self.reports: dict[str, dict[str, Any]] = {}
        self.sources: list[str] = []

    def pairs(self, name: str, dataset: Any) -> Any:
        """The pairs of a data set. None, and lists of tokenised pairs, stay as they are; so do dictionaries of several.

        Raises:
            BadPreferences: a row is broken.
            ValueError: no pair is left, or a token is not in the model's vocabulary.
        """
        if dataset is None or (isinstance(dataset, list) and dataset and isinstance(dataset[0], TokenizedPair)):
            return dataset
        if isinstance(dataset, dict) and name != "train":
            return {key: self.pairs(f"{name}_{key}", value) for key, value in dataset.items()}
        tokenized = dataset if isinstance(dataset, TokenizedPairs) else self._tokenized(name, dataset)
        self.reports[name] = tokenized.report.as_dict()
        self.sources += [source for source in tokenized.sources if source not in self.sources]
        for sentence in tokenized.report.warnings():
            logger.warning("%s data: %s", name, sentence)
        check_ids(tokenized.pairs, self.vocabulary)
        return tokenized.pairs

    def _tokenized(self, name: str, dataset: Any) -> TokenizedPairs:
        return tokenize_pairs(
            _rows(dataset, name),
            self.tokenizer,
            self.max_length,
            end_ids=self.facts.end_token_ids,
            counted_turns=self.counted_turns,
        )


def _rows(dataset: Any, name: str) -> Sequence[PreferenceRow]:
    rows = getattr(dataset, "rows", None)
    if isinstance(rows, list):
        return rows
    return preferences_from_dataset(dataset, source=f"{name}_dataset").rows


def all_pairs(pairs: list[TokenizedPair] | dict[str, list[TokenizedPair]] | None) -> list[TokenizedPair]:
    """The pairs of one data set, of several by name, or of none, in one list."""
    if isinstance(pairs, dict):
        return [pair for part in pairs.values() for pair in part]
    return pairs or []
