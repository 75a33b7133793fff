"""The estimate of memory for `tdpo doctor`: what a recipe needs at its peak, and whether the device has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..batches import TokenizedPair
    from ..config import AnyRecipe, OwnResponsesRecipe, Recipe
    from ..workflows.memory_batches import LearnedBatch

# An estimate beyond all of the device's memory by more than this is taken for certain (docs/scaling.md).
CERTAIN = 1.25
REMEDY = "a smaller micro_batch_size gives the same update, and gradient_checkpointing keeps fewer activations"


def memory_for_pairs(recipe: Recipe, pairs: Sequence[TokenizedPair], devices: int) -> Iterator[Check]:
    """Estimate the peak on each of `devices` that share the weights (FSDP2), and compare it with what is there."""
    from ..workflows.memory_batches import batch_of_pairs

    if pairs:
        yield from _memory(recipe, batch_of_pairs(recipe, pairs, devices), devices)


def memory_for_prompts(recipe: OwnResponsesRecipe, devices: int) -> Iterator[Check]:
    """As `memory_for_pairs`, where the policy draws its responses itself."""
    from ..models import load_tokenizer
    from ..recipe_data.prompts import read_recipe_prompts
    from ..sampling.sampler import encode_prompts
    from ..workflows.memory_batches import batch_of_prompts
    from ..workflows.trainer_arguments import new_tokens_of

    try:
        train, _, _ = read_recipe_prompts(recipe)
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
        encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in train])
    except (OSError, ValueError):  # the checks of prompts and model say it
        return
    batch = batch_of_prompts(recipe, max(map(len, encoded)), new_tokens_of(recipe), devices)
    yield from _memory(recipe, batch, devices)


def _memory(recipe: AnyRecipe, batch: LearnedBatch, devices: int) -> Iterator[Check]:
    """Models without an outline (weights stored quantised) are passed over, and those that other checks report."""
    from ..reference_cache.building import readable_bytes
    from ..workflows.memory_room import ModelsOfRun, memory_of

    try:
        models = ModelsOfRun.of(recipe)
    except (OSError, ValueError):
        return
    if models is None:
        return
    if devices > 1 and models.bits is not None:
        text = f"--devices {devices}: a quantised base is not shared; each device holds it whole, so leave it out"
        yield Check("memory", "problem", text)
        return
    room = memory_of(recipe, models, batch, devices)
    device, size = _device(recipe.model.device)
    each = f" on each of {devices} devices that share the weights" if devices > 1 else ""
    text = f"{room.in_words()}{each}, with {batch.rows} rows of up to {batch.tokens} tokens at a time"
    if size is None:
        yield Check("memory", "note", f"{text}; how much {device} has is not known")
    elif room.peak <= size:
        yield Check("memory", "ok", f"{text}; it fits: {device} has {readable_bytes(size)}")
    else:
        state: Any = "problem" if room.peak > CERTAIN * size else "note"
        yield Check("memory", state, f"{text}; it does not fit: {device} has {readable_bytes(size)}; {REMEDY}")


def _device(choice: str) -> tuple[str, int | None]:
    """What a recipe's `model.device` means here, an accelerator or the machine, and its memory in bytes where it is
    known."""
    from ..runs.machine import accelerators, hardware

    found, number = [] if choice == "cpu" else accelerators(), int(choice.partition(":")[2] or 0)
    if number < len(found):
        name, gib = found[number]["name"], found[number]["memory_gib"]
    elif choice in ("auto", "cpu"):
        name, gib = "the machine", hardware()["memory_gib"]
    else:  # the check of the device says that there is none
        name, gib = choice, None
    return name, None if gib is None else int(gib * 2**30)
