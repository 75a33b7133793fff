"""How much responses differ from one another: in their words, their sentence embeddings, their modes.

The metrics are functions of one set of responses; `per_input` and `across_inputs` choose the sets; `measure_diversity`
computes everything that the study reports. docs/diversity.md has the formulas, the ranges and what each metric misses.
"""

from .exact_modes import exact_mode_metrics
from .grouping import across_inputs, mean_of_defined, per_input, quality_gate
from .measure import Diversity, measure_diversity
from .modes import mode_coverage, mode_entropy
from .vectors import embedding_diversity, vendi_score
from .words import distinct_n, expectation_adjusted_distinct, has_words, self_bleu

__all__ = [
    "Diversity",
    "across_inputs",
    "distinct_n",
    "embedding_diversity",
    "exact_mode_metrics",
    "expectation_adjusted_distinct",
    "has_words",
    "mean_of_defined",
    "measure_diversity",
    "mode_coverage",
    "mode_entropy",
    "per_input",
    "quality_gate",
    "self_bleu",
    "vendi_score",
]
