"""Models: loading policy and reference, adapters, the head, the bundled model."""

from .adapters import LoraSettings, add_lora, has_adapter, is_adapter_folder, merge_adapter, merged_adapter
from .bundled import BUNDLED, bundled_folder, cache_folder
from .hidden_states import causal_lm_of, find_head, policy_hidden, select_logits
from .lengths import configuration_of, independent_length, length_thresholds, why_dependent
from .loading import ModelFacts, check_folder, facts_of, has_no_units_for, load_causal_lm, load_tokenizer, model_facts
from .references import Reference, kept_reference, reference_at_start, reference_for

__all__ = [
    "BUNDLED",
    "LoraSettings",
    "ModelFacts",
    "Reference",
    "add_lora",
    "bundled_folder",
    "cache_folder",
    "causal_lm_of",
    "check_folder",
    "configuration_of",
    "facts_of",
    "find_head",
    "has_adapter",
    "has_no_units_for",
    "independent_length",
    "is_adapter_folder",
    "kept_reference",
    "length_thresholds",
    "load_causal_lm",
    "load_tokenizer",
    "merge_adapter",
    "merged_adapter",
    "model_facts",
    "policy_hidden",
    "reference_at_start",
    "reference_for",
    "select_logits",
    "why_dependent",
]
