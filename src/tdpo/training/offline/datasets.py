"""The data sets of a trainer on pairs: whatever the user passes becomes tokenised pairs, with a report of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from ...batches import TokenizedPair, TokenizedPairs, tokenize_pairs
from ...models import facts_of
from ...preferences import Preferences, preferences_from_dataset
from ...scoring.fitting import check_ids
from ..recorded_settings import described_source, file_of
from .config import TDPOConfig

logger = logging.getLogger(__name__)


class PairDatasets:
    """Tokenises data sets for one model.

    Args:
        model: a causal language model, which says how long a row may be, and which tokens it has.
        tokenizer: its tokenizer.
        args: `max_length`, `counted_turns`, `on_bad_rows` and `repeated_rows` are used.

    Attributes:
        reports: what became of the rows of each data set, by its name.
        described: the same with where the rows came from, as data.json says it.
        files: the file that a data set was read from, by its name, where that is known.
        sources: the files and data sets that rows came from.
    """

    def __init__(self, model: Any, tokenizer: Any, args: TDPOConfig) -> None:
        self.tokenizer, self.args = tokenizer, args
        self.facts = facts_of(model, tokenizer)
        self.max_length = self.facts.max_length(args.max_length)
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        self.reports: dict[str, dict[str, Any]] = {}
        self.described: dict[str, dict[str, Any]] = {}
        self.files: dict[str, str | None] = {}
        self.sources: list[str] = []

    def pairs(self, name: str, dataset: Any) -> Any:
        """The pairs of a data set. None, and lists of tokenised pairs, stay as they are; so do dictionaries of several.

        Raises:
            BadPreferences: a row is broken, and they are not to be skipped.
            ValueError: no pair is left, or a token is not in the model's vocabulary.
        """
        if dataset is None or (isinstance(dataset, list) and dataset and isinstance(dataset[0], TokenizedPair)):
            return dataset
        if isinstance(dataset, dict) and name != "train":
            return {key: self.pairs(f"{name}_{key}", value) for key, value in dataset.items()}
        if isinstance(dataset, TokenizedPairs):
            tokenized, summary, remarks = dataset, {}, []
        else:
            rows = self._rows(name, dataset)
            tokenized, summary, remarks = self._tokenized(rows), rows.summary(), rows.remarks()
        self.reports[name] = {**tokenized.report.as_dict(), **summary}
        self.described[name] = {"skipped": 0, **self.reports[name], "source": described_source(dataset)}
        self.files[name] = file_of(dataset)
        in_memory = tokenized.sources == (f"{name}_dataset",)  # the name that errors give to rows without a file
        sources = (described_source(dataset),) if in_memory else tokenized.sources
        self.sources += [source for source in sources if source not in self.sources]
        for sentence in [*remarks, *tokenized.report.warnings()]:
            logger.warning("%s data: %s", name, sentence)
        check_ids(tokenized.pairs, self.vocabulary)
        return tokenized.pairs

    def _rows(self, name: str, dataset: Any) -> Preferences:
        if isinstance(dataset, Preferences):
            return dataset
        return preferences_from_dataset(
            dataset,
            source=f"{name}_dataset",
            on_bad_rows=self.args.on_bad_rows,
            repeated_rows=self.args.repeated_rows,
        )

    def _tokenized(self, rows: Preferences) -> TokenizedPairs:
        return tokenize_pairs(
            rows.rows,
            self.tokenizer,
            self.max_length,
            end_ids=self.facts.end_token_ids,
            on_bad_rows=self.args.on_bad_rows,
            counted_turns=self.args.counted_turns,
        )


def seen_in_training(
    train: list[TokenizedPair] | None, held_out: list[TokenizedPair] | dict[str, list[TokenizedPair]] | None
) -> Iterator[str]:
    """A sentence about each held-out data set with pairs that are also trained on: they say nothing of new prompts."""
    trained = {_content(pair) for pair in train or ()}
    for name, pairs in (held_out if isinstance(held_out, dict) else {"held-out": held_out or []}).items():
        known = sum(_content(pair) in trained for pair in pairs)
        if known:
            yield f"{known} of {len(pairs)} {name} pairs are also trained on: their numbers are not those of new pairs."


def _content(pair: TokenizedPair) -> tuple[tuple[int, ...], ...]:
    return (tuple(pair.prompt_ids), *map(tuple, pair.responses))


def all_pairs(pairs: list[TokenizedPair] | dict[str, list[TokenizedPair]] | None) -> list[TokenizedPair]:
    """The pairs of one data set, of several by name, or of none, in one list."""
    if isinstance(pairs, dict):
        return [pair for part in pairs.values() for pair in part]
    return pairs or []
