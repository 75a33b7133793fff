"""How much outputs differ from one another: words, sentence embeddings, known modes.

The metrics are functions of one set of outputs; `per_input` and `across_inputs` say which sets; `measure_diversity`
gives all that the study reports at once. docs/diversity.md holds the formulas, the ranges and what each metric misses.
"""

from .grouping import across_inputs, mean_of_defined, per_input, quality_gate
from .measure import Diversity, measure_diversity
from .modes import mode_coverage, mode_entropy
from .texts import distinct_n, expectation_adjusted_distinct, has_words, self_bleu
from .vectors import embedding_diversity, vendi_score

__all__ = [
    "Diversity",
    "across_inputs",
    "distinct_n",
    "embedding_diversity",
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
