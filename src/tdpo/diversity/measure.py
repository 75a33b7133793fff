"""Everything that a study reports about the diversity of one cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .grouping import Metric, across_inputs, mean_of_defined, passes, per_input, quality_gate
from .modes import mode_coverage, mode_entropy
from .vectors import as_rows, embedding_diversity, vendi_score
from .words import distinct_n, expectation_adjusted_distinct, has_words, self_bleu

if TYPE_CHECKING:
    from .vectors import Embeddings

# Name → the metric's input and the metric, in the order of a study's tables.
METRICS: dict[str, tuple[str, Metric]] = {
    "embedding_diversity": ("embeddings", embedding_diversity),
    "ead": ("texts", expectation_adjusted_distinct),
    "distinct_1": ("texts", partial(distinct_n, n=1)),
    "distinct_2": ("texts", partial(distinct_n, n=2)),
    "self_bleu": ("texts", self_bleu),
    "vendi": ("embeddings", vendi_score),
}


@dataclass(frozen=True)
class Diversity:
    """Metrics of one cell of a study by name; None where there are too few responses to define them.

    `per_prompt` has one value per prompt. `overall` has the mean over the prompts that have a value, and the metrics
    `across_…`, which belong to no single prompt.
    """

    per_prompt: dict[str, list[float | None]]
    overall: dict[str, float | None]


def measure_diversity(
    texts: Sequence[Sequence[str]],
    *,
    rewards: Sequence[Sequence[float | None]] | None = None,
    threshold: float | None = None,
    modes: Sequence[Sequence[str]] | None = None,
    labels: Sequence[Sequence[str | None]] | None = None,
    embeddings: Sequence[Embeddings] | None = None,
) -> Diversity:
    """All diversity metrics of responses `texts[prompt][response]`; rewards, labels and embeddings are aligned to them.

    Per input: `embedding_diversity`, `ead`, `distinct_1`, `distinct_2`, `self_bleu` (lower is more diverse), `vendi`.
    `across_…`: the same across inputs. `gated_…`: the same per input, of responses with a reward ≥ `threshold`.
    `gated_share`, `valid_share`: shares of all responses that have words and pass the threshold, or are in a mode.
    `mode_coverage`, `mode_entropy`: over the labels of a prompt's responses (None: in no mode).

    Metrics without their inputs have no entry: `embedding_diversity` and `vendi` need `embeddings` (one `[K, D]` per
    prompt), `gated_…` need `rewards` and `threshold`, the modes need `modes` and `labels`. Responses without a word are
    ignored, except in the denominators of the two shares: an empty response is no success.

    Raises:
        ValueError: shapes that do not agree, modes without labels, a label that is not among the modes, or embeddings
            that are not finite.
        ModuleNotFoundError: sacrebleu is not installed.
    """
    for name, values in (("rewards", rewards), ("labels", labels), ("embeddings", embeddings)):
        if values is not None:
            _check_aligned(name, values, texts)
    kinds: dict[str, Sequence[Any]] = {"texts": texts}
    if embeddings is not None:
        kinds["embeddings"] = [_without_empty(*pair) for pair in zip(embeddings, texts, strict=True)]
    metrics = {name: (metric, kinds[kind]) for name, (kind, metric) in METRICS.items() if kind in kinds}

    per_prompt = {name: per_input(metric, groups) for name, (metric, groups) in metrics.items()}
    across = {f"across_{name}": across_inputs(metric, groups) for name, (metric, groups) in metrics.items()}
    if rewards is not None and threshold is not None:
        for name, (metric, groups) in metrics.items():
            per_prompt[f"gated_{name}"] = per_input(metric, quality_gate(groups, rewards, threshold))
        per_prompt["gated_share"] = _shares(texts, rewards, lambda reward: passes(reward, threshold))
    if modes is not None:
        per_prompt.update(_modes(texts, labels, modes))
    overall = {name: mean_of_defined(values) for name, values in per_prompt.items()}
    return Diversity(per_prompt, overall | across)


def _modes(
    texts: Sequence[Sequence[str]], labels: Sequence[Sequence[str | None]] | None, modes: Sequence[Sequence[str]]
) -> dict[str, list[float | None]]:
    if labels is None:
        raise ValueError("modes are known, but no labels say which output is in which; pass labels")
    if len(modes) != len(texts):
        raise ValueError(f"modes are given for {len(modes)} prompts, texts for {len(texts)}")
    of_words = [
        [label for text, label in zip(group, marks, strict=True) if has_words(text)]
        for group, marks in zip(texts, labels, strict=True)
    ]
    return {
        "mode_coverage": [mode_coverage(group, names) for group, names in zip(of_words, modes, strict=True)],
        "mode_entropy": [mode_entropy(group) for group in of_words],
        "valid_share": _shares(texts, labels, lambda label: label is not None),
    }


def _shares(
    texts: Sequence[Sequence[str]], marks: Sequence[Sequence[Any]], accepted: Callable[[Any], bool]
) -> list[float | None]:
    """For each prompt the share of its responses that have words and an accepted mark; None without a response."""
    good = [
        [has_words(text) and accepted(mark) for text, mark in zip(group, values, strict=True)]
        for group, values in zip(texts, marks, strict=True)
    ]
    return [sum(group) / len(group) if group else None for group in good]


def _without_empty(embeddings: Embeddings, texts: Sequence[str]) -> Tensor:
    """The embeddings `[K, D]` with rows of zeros for texts without words, however a model embedded these."""
    return as_rows(embeddings, blank=[not has_words(text) for text in texts])


def _check_aligned(name: str, values: Sequence[Any], texts: Sequence[Sequence[str]]) -> None:
    if len(values) != len(texts):
        raise ValueError(f"{name} are given for {len(values)} prompts, texts for {len(texts)}")
    for prompt, (group, responses) in enumerate(zip(values, texts, strict=True)):
        if len(group) != len(responses):
            raise ValueError(f"prompt {prompt} has {len(responses)} texts, but {len(group)} {name}")
