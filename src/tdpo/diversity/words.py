"""How much texts differ in their words: distinct-n, EAD, self-BLEU. Pure Python; sacrebleu is imported on first use."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..installation import extra_command

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BLEU_ORDER = 4


def has_words(text: str) -> bool:
    """Whether the text contains a word. Every metric ignores texts without one (empty, spaces, punctuation alone)."""
    return _WORD.search(text) is not None


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Share of different n-grams among all n-grams of the texts (Li et al. 2016, arXiv 1510.03055), in (0, 1].

    The n-grams are of words, in lower case and without punctuation, and never cross the end of a text. None where no
    text has n words. The share falls with the amount of text, so compare equal amounts only.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    different, total = _count_ngrams([_words(text) for text in texts], n)
    return different / total if total else None


def expectation_adjusted_distinct(
    texts: Iterable[str], *, vocabulary: int = 50257, orders: Sequence[int] = (1, 2, 3, 4, 5)
) -> float | None:
    """EAD: different n-grams, divided by the number expected of uniform draws (Liu et al. 2022, arXiv 2202.13587).

    For each order it is N / (V·(1 − ((V − 1)/V)^C)), with N different ones among C n-grams and V = `vocabulary`. V is
    the same for all orders, as in Kirk et al. 2024 (arXiv 2310.06452; 50257 is GPT-2's vocabulary). The result is the
    mean over those `orders` of which there are n-grams, which are those of `distinct_n`; None where there are none.

    It is positive, and 1 for what uniform draws would give. It exceeds 1 by at most a factor
    C/(V·(1 − (1 − 1/V)^C)), which is 1 + C/2V for few n-grams.

    Raises ValueError for a vocabulary below 2, and for no orders or one below 1.
    """
    if vocabulary < 2:
        raise ValueError(f"vocabulary must be at least 2, not {vocabulary}")
    if not orders or min(orders) < 1:
        raise ValueError(f"orders must be one or more numbers from 1 on, not {tuple(orders)}")
    words = [_words(text) for text in texts]
    counts = [_count_ngrams(words, n) for n in orders]
    # 1 − (1 − 1/V)^C, without the cancellation that occurs with few n-grams and a large vocabulary.
    shares = [
        different / (vocabulary * -math.expm1(total * math.log1p(-1 / vocabulary)))
        for different, total in counts
        if total
    ]
    return math.fsum(shares) / len(shares) if shares else None


def self_bleu(texts: Iterable[str]) -> float | None:
    """Mean over the texts of the BLEU of one against all others (Zhu et al. 2018, arXiv 1802.01886), in [0, 1].

    LOWER is more diverse: 1 for identical texts, 0 without a common token. The BLEU is `sacrebleu.sentence_bleu`'s with
    its defaults (13a tokens, case kept, up to 4-grams, effective order, exponential smoothing), divided by 100. Each
    text is tokenised and counted once; the highest count of an n-gram among the others follows from its two highest.
    Texts without a word are ignored; None if fewer than two others remain. Raises ModuleNotFoundError if sacrebleu is
    not installed.
    """
    usable = [text for text in texts if has_words(text)]
    if len(usable) < 2:
        return None
    bleu, extract = _sacrebleu()
    tokenize = bleu(effective_order=True).tokenizer
    counts_of_texts: list[tuple[Counter[Any], int]] = [
        extract(tokenize(text.rstrip()), 1, _BLEU_ORDER) for text in usable
    ]
    highest = _two_highest([counts for counts, _ in counts_of_texts])
    lengths = [length for _, length in counts_of_texts]
    scores = []
    for index, (counts, length) in enumerate(counts_of_texts):
        correct = [0] * _BLEU_ORDER
        for gram, count in counts.items():
            best, owner, second = highest[gram]
            correct[len(gram) - 1] += min(count, second if owner == index else best)
        total = [max(0, length - n) for n in range(_BLEU_ORDER)]
        # The reference length is that of the other text nearest in length, the shorter of two.
        nearest = min((abs(other - length), other) for place, other in enumerate(lengths) if place != index)[1]
        score = bleu.compute_bleu(correct, total, length, nearest, smooth_method="exp", effective_order=True).score
        scores.append(min(1.0, score / 100))
    return math.fsum(scores) / len(scores)


def _two_highest(counters: Sequence[Counter[Any]]) -> dict[Any, tuple[int, int, int]]:
    """n-gram → (its highest count in one text, which text that is, its highest count in any other text)."""
    highest: dict[Any, tuple[int, int, int]] = {}
    for index, counts in enumerate(counters):
        for gram, count in counts.items():
            best, owner, second = highest.get(gram, (0, -1, 0))
            highest[gram] = (count, index, best) if count > best else (best, owner, max(second, count))
    return highest


def _sacrebleu() -> tuple[Any, Any]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.helpers import extract_all_word_ngrams
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"self-BLEU is computed with the package sacrebleu, which is not installed: {extra_command('eval')}"
        ) from error
    return BLEU, extract_all_word_ngrams


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _count_ngrams(texts: Sequence[list[str]], n: int) -> tuple[int, int]:
    """The number of different n-grams in the texts, and the number of all."""
    grams = [gram for words in texts for gram in _ngrams(words, n)]
    return len(set(grams)), len(grams)


def _ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))
