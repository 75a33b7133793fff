"""An adapter folded into its base for good, in memory; `training.saving` writes such a model.

Where the head is tied to the embedding, an adapter on one of them alone cannot be folded into the weight of both. The
two are untied then, and the configuration says so, because whoever loads the model would tie them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import has_adapter
from .configurations import first_sentence, text_config
from .hidden_states import causal_lm_of

# Largest difference of logits, relative to the largest of them. A sum of weights is rounded once more than the sum of
# two products; half precision rounds to 8 or 11 bits, in every layer.
MERGING_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 0.1


def merge_adapter(model: Any) -> Any:
    """Fold the adapter into the base weights: one plain model that needs no peft, with the adapter's logits.

    Raises:
        ValueError: `model` has no adapter, one that cannot be merged, or the merged model says something else.
    """
    if not has_adapter(model):
        raise ValueError("this model has no adapter to merge: it is a full model already")
    expected = probe_logits(model)
    untied = _untie(causal_lm_of(model))
    try:
        merged = model.merge_and_unload()
    except Exception as error:  # prompts of their own, quantised layers, variants: peft raises as it likes
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
    """Logits `[1, T, V]` of tokens from all over the vocabulary, its first and its last among them, which adapters of
    single tokens change alone."""
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


def logits_distance(expected: Tensor, found: Tensor) -> float:
    """The largest difference relative to the largest logit; inf where one is finite and the other is not."""
    length = min(expected.shape[1], found.shape[1])
    expected, found = expected[:, :length], found[:, :length]
    if expected.shape != found.shape or not torch.equal(expected.isfinite(), found.isfinite()):
        return float("inf")
    inside = expected.isfinite()
    size = expected[inside].abs().max().clamp_min(1e-6)
    return float((expected - found)[inside].abs().max() / size)


def _ends(lm: Any) -> tuple[Any, Any] | None:
    """The embedding and the output layer, where the model has both."""
    ends = lm.get_input_embeddings(), lm.get_output_embeddings()
    return None if None in ends else ends


def _untie(lm: Any) -> bool:
    """Give a head that is tied to an adapted embedding, or adapted itself, weights of its own; whether it was."""
    ends = _ends(lm)
    if ends is None or not any(_is_adapted(end) for end in ends):
        return False
    embedding, head = (_base(end) for end in ends)
    if embedding.weight is not head.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    _say_tied(lm, False)
    return True


def _tie_where_equal(lm: Any) -> None:
    """Both ends got the same, as adapters made for tied weights give: tie them again."""
    ends = _ends(lm)
    if ends is not None and torch.equal(ends[0].weight, ends[1].weight):
        _say_tied(lm, True)
        lm.tie_weights()


def _say_tied(lm: Any, tied: bool) -> None:
    for config in (lm.config, text_config(lm.config)):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied
    # What transformers noted when the model was made, and saves by.
    lm.all_tied_weights_keys = lm.get_expanded_tied_weights_keys(all_submodels=True)


def _is_adapted(end: nn.Module) -> bool:
    return type(end).__module__.partition(".")[0] == "peft"


def _base(end: Any) -> Any:
    """The layer itself, inside what peft has put around it."""
    while True:
        if hasattr(end, "get_base_layer"):
            end = end.get_base_layer()
        elif hasattr(end, "original_module"):
            end = end.original_module
        else:
            return end
