"""Which way of decoding gives the logits of a model's own forward? The model is asked, with a few made-up tokens.

A state of earlier tokens is not the same thing in every architecture, and neither is padding: what is right for
attention over a key-value cache makes a recurrent model, or one whose biases count places, sample something else.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..models import causal_lm_of, length_thresholds
from . import compiled_steps, recorded_steps
from .decoding import DecodingBatch, Way, keeps_all_keys

logger = logging.getLogger(__name__)

# From the fastest to the surest, each with what it costs.
WAYS = {
    Way("cache", pads=True, shares_prefix=True): "",
    Way("cache", pads=True): "what the prompts of a batch have in common is encoded for each of them",
    Way("own", pads=True): "what the prompts of a batch have in common is encoded for each of them",
    Way("cache", pads=False): "only prompts of one length share a batch, so that batches are smaller",
    Way("own", pads=False): "only prompts of one length share a batch, so that batches are smaller",
    Way("none", pads=False): (
        "every new token computes its whole sequence again, and only prompts of one length share a batch: for long "
        "responses many times slower"
    ),
}

# Relative distance of logits: rounding stays far below, a state or a padding that is misread far above.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

# For each model the right way, and the longest sequence for which it is known. PPO samples from one model in every
# iteration. The key holds what may be set anew on a loaded model: attention, precision, device.
_static_of_models: WeakKeyDictionary[Any, dict[tuple[str, torch.dtype, str], bool]] = WeakKeyDictionary()
_ways_of_models: WeakKeyDictionary[Any, dict[tuple[str, torch.dtype, str], tuple[Way, int]]] = WeakKeyDictionary()


def way_of(model: Any, length: int) -> Way:
    """The fastest way that gives, for sequences of up to `length` tokens, the logits of whole sequences.

    A model is asked once for each precision and device, and again where sequences get longer than some number in its
    configuration that a length may be compared with, such as the width of a sliding window.

    Raises:
        ValueError: no way does; what the model says of a sequence then depends on what else is in its batch.
    """
    lm = causal_lm_of(model)
    device = next(lm.parameters()).device.type
    ways_of_model = _ways_of_models.setdefault(lm, {})
    key = (str(lm.config._attn_implementation), _computing_dtype(model), device)
    way, longest = ways_of_model.get(key, (None, 0))
    thresholds = length_thresholds(lm.config)
    if way is not None and not any(longest < threshold <= length for threshold in thresholds):
        return way
    ways = [w for w in WAYS if not w.shares_prefix or keeps_all_keys(lm.config)]
    first = ways[0]
    lengths = [SHORT, length] if any(SHORT < threshold <= length for threshold in thresholds) else [SHORT]
    right_way, distance_of_first = _first_right(model, ways[ways.index(way) if way in ways else 0 :], lengths)
    ways_of_model[key] = right_way, max(longest, length)
    if right_way not in (way, first):
        logger.warning(
            "%s is sampled from in another way than other models, since the fastest would give other logits than the "
            "model itself (relative distance %.2g): %s.",
            type(lm).__name__,
            distance_of_first,
            WAYS[right_way],
        )
    return right_way


def with_static_steps(model: Any, way: Way, to_come: int, at_most: int) -> Way:
    """The same way with recorded or compiled steps, where these pay and give the logits of whole sequences; else `way`.

    Of the steps that are about to be taken, `to_come` is an estimate and `at_most` their largest number.
    """
    lm = causal_lm_of(model)
    if way.state != "cache" or not way.pads or not keeps_all_keys(lm.config):
        return way
    recorded, compiled = replace(way, steps="recorded"), replace(way, steps="compiled")
    if recorded_steps.pays(model, at_most) and _is_right(model, recorded):
        way = recorded
    return compiled if compiled_steps.pays(model, to_come, way.steps) and _is_right(model, compiled) else way


def _is_right(model: Any, way: Way) -> bool:
    """Whether a way with a static cache gives the logits of whole sequences. A model is asked once."""
    lm = causal_lm_of(model)
    known = _static_of_models.setdefault(lm, {})
    key = (str(lm.config._attn_implementation), _computing_dtype(model), way.steps)
    if key not in known:
        if way.steps == "compiled":
            logger.info("Compiling the decoding steps of %s, which takes a minute or two.", type(lm).__name__)
        off = distance(model, way, SHORT)
        known[key] = off <= TOLERANCE.get(_computing_dtype(model), 5e-2)
        if not known[key]:
            logger.info("%s steps are not used: their logits differ by %.2g (relative)", way.steps, off)
    return known[key]


def _computing_dtype(model: Any) -> torch.dtype:
    """What products are rounded to: the dtype of autocast where it is on, and else that of the weights."""
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtype: torch.dtype = causal_lm_of(model).dtype
    return dtype


SHORT = 16  # tokens of the longest sequence of a probe
GRAPH_STEPS = 6  # of one shape: the first warms up, a graph is recorded of the second, and most are replayed


def _first_right(model: Any, ways: Sequence[Way], lengths: Sequence[int]) -> tuple[Way, float]:
    """The first way that is right at all lengths, and the largest distance of the very first way."""
    distances = []
    for way in ways:
        distances.append(max(distance(model, way, length) for length in lengths))
        if distances[-1] <= TOLERANCE.get(_computing_dtype(model), 5e-2):
            return way, distances[0]
    raise ValueError(
        f"cannot sample from {type(causal_lm_of(model)).__name__}: what it says of a sequence depends on the other "
        f"rows of its batch (its logits differ by {distances[-1]:.2g}, relative, from those of the sequence alone)"
    )


@torch.no_grad()
def distance(model: Any, way: Way, longest: int) -> float:
    """Relative distance of a way's logits from those of whole sequences, each alone; inf where it does not run.

    Two prompts with a common beginning, one of them short (of one length where the way does not pad); the longer is
    sampled twice, one of its rows leaves after a step, and the others go on.
    """
    try:
        return max(_distances_by_row(model, way, longest))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        logger.info("decoding by %s does not run on this model: %s", way, error)
        return float("inf")


def _distances_by_row(model: Any, way: Way, longest: int) -> Iterator[float]:
    make = _Tokens(model)
    common, first, others = make(3), make(1), make(GRAPH_STEPS if way.is_static else 1)
    rest = longest - len(common + first + others)
    rows = [common + make(rest), common + make(1 if way.pads else rest)]
    batch = DecodingBatch(model, longest, way)
    prompts = batch.prefill(rows)
    batch.select([0, 1, 0])
    after = [batch.feed(torch.tensor([first] * 3, device=model.device), batch.mask.new_ones(3, 1))]
    batch.select([2, 1])
    for token in others:
        after.append(batch.feed(torch.tensor([[token]] * 2, device=model.device), batch.mask.new_ones(2, 1)))
    for row, ids in enumerate(rows):
        logits = [prompts[row], *(of_step[row] for of_step in after)]
        expected = whole_logits(model, ids + first + others, len(logits))
        gaps = sorted(_gap(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))
        # Where rounding is coarse, one token may go to another expert; a state that is misread spoils most steps.
        yield gaps[len(gaps) // 2] if _computing_dtype(model) in (torch.bfloat16, torch.float16) else gaps[-1]


class _Tokens:
    """Token ids spread over the vocabulary, the next few at each call; never the one that pads."""

    def __init__(self, model: Any) -> None:
        lm = causal_lm_of(model)
        self.size = lm.get_input_embeddings().weight.shape[0]
        self.pad, self.count = getattr(lm.config.get_text_config(), "pad_token_id", None), 0

    def __call__(self, number: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < number:
            self.count += 1
            token = (self.count * 7919 + self.count // self.size) % self.size
            if token != self.pad or self.size == 1:
                ids.append(token)
        return ids


def whole_logits(model: Any, ids: list[int], last: int) -> Tensor:
    """Logits `[last, V]` after each of the last `last` tokens of one sequence, from one forward of it alone."""
    input_ids = torch.tensor([ids], device=model.device)
    takes = inspect.signature(causal_lm_of(model).forward).parameters
    less: dict[str, Any] = {"logits_to_keep": last} if "logits_to_keep" in takes else {}
    output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False, **less)
    logits: Tensor = output.logits[0, -last:]
    return logits


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """Relative distance of two logits `[V]`; 0 where the model's own are NaN, which is no reason against a way."""
    expected, actual = theirs.double(), ours.double()
    inside = expected.isfinite()  # a masked vocabulary has logits of -inf
    if not inside.any() or expected.isnan().any():
        return 0.0
    expected, actual = expected[inside], actual[inside]
    expected, actual = expected - expected.mean(), actual - actual.mean()  # a shift of all changes no probability
    gap = float((actual - expected).norm() / expected.norm().clamp_min(1e-30))
    return gap if gap == gap else float("inf")
