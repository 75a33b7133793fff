"""Hidden states under two layouts, compared; and in which form a model's attention takes the masks of shared rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..batches import PromptResponses, ResponseBatch, RowCosts, padded_batch, shared_prefix_batch
from ..models import causal_lm_of, response_hidden
from ..models.configurations import text_config

logger = logging.getLogger(__name__)

# Relative distance of hidden states under both layouts: rounding stays far below, a mask that is ignored
# (a sliding window, relative positions, a state-space layer) far above.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class RowForm:
    """`ResponseCollator`'s arguments of the same names."""

    ranged: bool = False
    costs: RowCosts | None = None


# Whether a model takes ranges, by what may be set anew on a loaded model.
_takes_ranges: WeakKeyDictionary[Any, dict[tuple[str, torch.dtype], bool]] = WeakKeyDictionary()


def row_form(model: Any, other_models: Sequence[Any | None] = (), *, by_cost: bool = True) -> RowForm:
    """How rows that share prompts are given to these models where they run.

    On a CPU by a mask, which is cut into spans. On a GPU attention goes by blocks where it gives the model's own hidden
    states; a batch for which that, or a dense mask, would cost more than padded rows is padded, if `by_cost`. Models
    are asked once.
    """
    lm = causal_lm_of(model)
    if next(lm.parameters()).device.type != "cuda":
        return RowForm()
    ranged = all(takes_ranges(each) for each in unlike_models(model, other_models))
    return RowForm(ranged, costs_of(lm, ranged) if by_cost else None)


def takes_ranges(model: Any) -> bool:
    """Whether attention by blocks gives the hidden states of padded rows, for made-up rows of several blocks."""
    lm = causal_lm_of(model)
    known = _takes_ranges.setdefault(lm, {})
    key = (str(getattr(lm.config, "_attn_implementation", "")), lm.dtype)
    if key not in known:
        prompts = _made_up(lm)
        padded, ranged = padded_batch(prompts, 0), shared_prefix_batch(prompts, 0, ranged=True)
        distance = distance_of(model, padded, ranged, padded.sequence_index % len(prompts))
        known[key] = distance <= tolerance(model)
        if not known[key]:
            logger.info("attention by blocks differs by %.2g (relative) on this model: masks are dense", distance)
    return known[key]


def _made_up(lm: Any) -> list[PromptResponses]:
    """Two pairs whose rows have blocks that are seen whole, in part, and not at all, as far as the model's positions
    reach."""
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    limit = getattr(text_config(lm.config), "max_position_embeddings", None) or 512
    scale = min(1.0, limit / 512)

    def ids(count: int, first: int) -> list[int]:
        return [(first + 7919 * i) % vocabulary for i in range(max(1, int(count * scale)))]

    return [
        PromptResponses(ids(150, 1), [ids(300, 2), ids(200, 3)]),
        PromptResponses(ids(30, 4), [ids(20, 5), ids(250, 6)]),
    ]


def costs_of(lm: Any, ranged: bool) -> RowCosts:
    """The estimates for this model, from the sizes of its layers' products."""
    config = text_config(lm.config)
    body = lm.base_model
    products = sum(m.weight.numel() for m in body.modules() if isinstance(m, nn.Linear))
    heads = int(getattr(config, "num_attention_heads", 1))
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return RowCosts(products, 2 * heads * width * int(getattr(config, "num_hidden_layers", 1)), ranged)


def tolerance(model: Any) -> float:
    """The largest relative distance that rounding explains in the model's dtype."""
    return TOLERANCE.get(model.dtype, 5e-2)


def unlike_models(model: Any, other_models: Sequence[Any | None]) -> list[Any]:
    """One model of each configuration."""
    return list({causal_lm_of(m).config.to_json_string(): m for m in (*other_models, model) if m is not None}.values())


@torch.no_grad()
def distance_of(model: Any, padded: ResponseBatch, shared: ResponseBatch, prompt_index: Tensor) -> float:
    """The largest relative distance of hidden states over the prompts; `prompt_index` `[N]` says to which each token
    belongs; inf where the shared layout does not run."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        expected, actual = _hidden(model, padded, device), _hidden(model, shared, device)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        logger.info("the shared layout does not run on this model: %s", error)
        return float("inf")
    finally:
        model.train(was_training)
    index = prompt_index.to(device)
    off, norm = (torch.zeros(padded.num_prompts, device=device, dtype=torch.double) for _ in range(2))
    off.index_add_(0, index, (expected - actual).square().sum(dim=1))
    norm.index_add_(0, index, expected.square().sum(dim=1))
    return float((off / norm.clamp_min(1e-60)).max().sqrt())


def _hidden(model: Any, batch: ResponseBatch, device: torch.device) -> Tensor:
    inputs = {name: value.to(device) for name, value in batch.model_inputs().items()}
    return response_hidden(model, inputs, batch.response_index.to(device)).double()
