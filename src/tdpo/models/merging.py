"""Merging an adapter into its base for good, in memory; `training.saving` writes such a model.

If head and embedding are tied, an adapter on one of them cannot be merged into the weight of both. The
two are then untied, and the configuration says so, because otherwise loading the model would tie them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import has_adapter
from .configurations import first_sentence, text_config
from .hidden_states import causal_lm_of
from .quantization import dequantized, is_quantized_model

# Largest difference of logits, relative to the largest logit. The merged weight is rounded, the separate product of the
# adapter is not; half precision rounds to 8 or 11 bits, in every layer.
MERGING_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 0.1


def merge_adapter(model: Any) -> Any:
    """Merge the adapter into the base weights: one plain model that needs no peft, with the adapter's logits.

    A quantised base is turned into plain weights first, which hold the same numbers: the sum would have to be rounded
    to few bits again. Eight-bit layers round activations as well, and the merged model does not.

    Raises:
        ValueError: `model` has no adapter or one that cannot be merged, or the merged model has other logits.
    """
    if not has_adapter(model):
        raise ValueError("this model has no adapter to merge: it is a full model already")
    if is_quantized_model(model):
        model = dequantized(model)
    expected = probe_logits(model)
    untied = _untie(causal_lm_of(model))
    try:
        merged = model.merge_and_unload()
    except Exception as error:  # learned prompts, quantised layers, variants: peft raises errors of many classes
        raise ValueError(f"this adapter cannot be merged into its base: {first_sentence(error)}") from error
    if has_adapter(merged):
        raise ValueError("this adapter lies on top of another one, which merging would leave out: merge that one first")
    if untied:
        _tie_where_equal(merged)
    tolerance = MERGING_TOLERANCE.get(merged.dtype, HALF_TOLERANCE)
    if (off := logits_distance(expected, probe_logits(merged))) > tolerance:
        raise ValueError(
            f"merging would write another model: its logits differ from the adapter's by {off:.2g} (relative; rounding "
            f"explains {tolerance:g}). Use the adapter as it is, or load its base in float32."
        )
    return merged


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """Logits `[1, T, V]` of tokens from all over the vocabulary.

    The first and the last tokens are among them, and some that an adapter trains alone, as these change nothing else.
    """
    lm = causal_lm_of(model)
    device = next(lm.parameters()).device
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    ids = [*range(2), *(7919 * i % vocabulary for i in range(1, 9)), *range(vocabulary - 4, vocabulary)]
    ids += list(_single_tokens(model))
    was_training = model.training
    model.eval()
    try:
        inputs = torch.tensor([ids], device=device)
        logits: Tensor = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
    finally:
        model.train(was_training)
    return logits.float()


def _single_tokens(model: nn.Module) -> Iterator[int]:
    """A few of the tokens that the model's adapters train alone (`trainable_token_indices`)."""
    for module in model.modules():
        for indices in getattr(module, "token_indices", {}).values():
            yield from list(indices)[:4]
            return


def logits_distance(expected: Tensor, actual: Tensor) -> float:
    """The largest difference relative to the largest logit; inf where one is finite and the other is not."""
    length = min(expected.shape[1], actual.shape[1])
    expected, actual = expected[:, :length], actual[:, :length]
    if expected.shape != actual.shape or not torch.equal(expected.isfinite(), actual.isfinite()):
        return float("inf")
    finite = expected.isfinite()
    size = expected[finite].abs().max().clamp_min(1e-6)
    return float((expected - actual)[finite].abs().max() / size)


def _ends(lm: Any) -> tuple[Any, Any] | None:
    """The embedding and the output layer, where the model has both."""
    ends = lm.get_input_embeddings(), lm.get_output_embeddings()
    return None if None in ends else ends


def _untie(lm: Any) -> bool:
    """Give the head weights of its own if it is tied to the embedding and one of the two is adapted; whether it was."""
    ends = _ends(lm)
    if ends is None or not any(_is_adapted(end) for end in ends):
        return False
    embedding, head = (_base(end) for end in ends)
    if embedding.weight is not head.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    _record_tying(lm, False)
    return True


def _tie_where_equal(lm: Any) -> None:
    """Tie both ends again if they became equal, as they do with adapters that were made for tied weights."""
    ends = _ends(lm)
    if ends is not None and torch.equal(ends[0].weight, ends[1].weight):
        _record_tying(lm, True)
        lm.tie_weights()


def _record_tying(lm: Any, tied: bool) -> None:
    for config in (lm.config, text_config(lm.config)):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied
    # transformers noted this when the model was made, and uses it when it saves.
    lm.all_tied_weights_keys = lm.get_expanded_tied_weights_keys(all_submodels=True)


def _is_adapted(end: nn.Module) -> bool:
    return type(end).__module__.partition(".")[0] == "peft"


def _base(end: Any) -> Any:
    """The layer itself, inside the wrappers of peft."""
    while True:
        if hasattr(end, "get_base_layer"):
            end = end.get_base_layer()
        elif hasattr(end, "original_module"):
            end = end.original_module
        else:
            return end
