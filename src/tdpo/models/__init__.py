"""Models: loading policy and reference, adapters, hidden states and the head, the bundled model."""

from ..records.caches import cache_folder
from .adapters import LoraSettings, add_lora, has_adapter, merged_adapter
from .bundled import BUNDLED, bundled_folder
from .configurations import check_quantized_training
from .folder_files import is_adapter_folder
from .hidden_states import causal_lm_of, find_head, has_quantized_head, response_hidden, select_logits
from .lengths import independent_length, length_thresholds, why_dependent
from .merging import logits_distance, merge_adapter, probe_logits
from .model_facts import ModelFacts, facts_of, model_facts
from .model_loading import check_folder, configuration_of, load_causal_lm, load_tokenizer, outline_causal_lm
from .probing import check_causal, check_whole_loss
from .quantization import quantization_config
from .references import (
    Reference,
    check_vocabulary,
    kept_reference,
    move_reference,
    reference_at_start,
    reference_for,
    weights_that_follow,
)
from .sharded_weights import as_shard_of, is_shard, kept_whole, release, whole, whole_weights

__all__ = [
    "BUNDLED",
    "LoraSettings",
    "ModelFacts",
    "Reference",
    "add_lora",
    "as_shard_of",
    "bundled_folder",
    "cache_folder",
    "causal_lm_of",
    "check_causal",
    "check_folder",
    "check_quantized_training",
    "check_vocabulary",
    "check_whole_loss",
    "configuration_of",
    "facts_of",
    "find_head",
    "has_adapter",
    "has_quantized_head",
    "independent_length",
    "is_adapter_folder",
    "is_shard",
    "kept_reference",
    "kept_whole",
    "length_thresholds",
    "load_causal_lm",
    "load_tokenizer",
    "logits_distance",
    "merge_adapter",
    "merged_adapter",
    "model_facts",
    "move_reference",
    "outline_causal_lm",
    "probe_logits",
    "quantization_config",
    "reference_at_start",
    "reference_for",
    "release",
    "response_hidden",
    "select_logits",
    "weights_that_follow",
    "whole",
    "whole_weights",
    "why_dependent",
]
