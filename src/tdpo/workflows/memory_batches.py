"""The largest micro-batch that a recipe learns from, for an estimate of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..batches import TokenizedPair, counted_tokens, sequence_length, shared_length
from ..config import OnlineRecipe, OwnResponsesRecipe, Recipe


@dataclass(frozen=True)
class LearnedBatch:
    """What one device computes at a time.

    Attributes:
        rows, tokens: of the rows that the body computes, padded.
        counted: response tokens that the head sees.
        sequence: the longest prompt with its response, in tokens.
        response: the longest response, in tokens.
        is_one_of_several: whether an update sums the gradients of more than one.
        drawn: responses that are drawn together.
    """

    rows: int
    tokens: int
    counted: int
    sequence: int
    response: int
    is_one_of_several: bool = False
    drawn: int = 0


def batch_of_pairs(recipe: Recipe, pairs: Sequence[TokenizedPair], devices: int = 1) -> LearnedBatch:
    """The micro-batch of the longest pairs; prompts are taken to be shared where the recipe allows it."""
    training = recipe.training
    micro = _micro(training.batch_size, training.micro_batch_size, devices)
    count = min(micro, len(pairs))
    shares = training.prefix_sharing != "off"
    longest = sorted(pairs, key=shared_length, reverse=True)[:count]
    counted = [sum(counted_tokens(pair)) for pair in longest]
    length = max(map(shared_length if shares else sequence_length, longest))
    return LearnedBatch(
        rows=count if shares else 2 * count,
        tokens=length,
        counted=sum(counted),
        sequence=max(map(sequence_length, longest)),
        response=max(counted),
        is_one_of_several=micro < training.batch_size // devices,
    )


def batch_of_prompts(
    recipe: OwnResponsesRecipe, longest: int, new_tokens: int, devices: int = 1, held_out: int = 0
) -> LearnedBatch:
    """The micro-batch of responses at their full length to the longest prompt, of `longest` tokens; an evaluation draws
    responses to the `held_out` prompts too."""
    settings = recipe.optimization
    made, responses = (recipe.pairs, 2) if isinstance(recipe, OnlineRecipe) else (recipe.rollouts.completions, 1)
    update = settings.minibatch_size or made
    count = _micro(update, settings.micro_batch_size, devices)
    return LearnedBatch(
        rows=count,
        tokens=longest + responses * new_tokens,
        counted=count * responses * new_tokens,
        sequence=longest + new_tokens,
        response=new_tokens,
        is_one_of_several=count < update // devices,
        drawn=min(recipe.rollouts.batch_size, max(1, recipe.rollouts.completions // devices, held_out // devices)),
    )


def _micro(update: int, micro: int | None, devices: int) -> int:
    own = max(1, update // devices)
    return min(micro or own, own)
