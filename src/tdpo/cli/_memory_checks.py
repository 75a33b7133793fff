"""The estimate of memory for `tdpo doctor`: what a recipe needs at its peak, and whether the device has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..batches import TokenizedPair
    from ..config import AnyRecipe, OwnResponsesRecipe, Recipe
    from ..workflows.memory_batches import LearnedBatch
    from ..workflows.memory_room import MemoryRoom

# The part of a device's memory up to which an estimate fits: libraries and the allocator need some, and estimates are
# off by a few per cent (docs/scaling.md).
FITS = 0.8


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
        train, held_out, _ = read_recipe_prompts(recipe)
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
        encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in (*train, *held_out)])
    except (OSError, ValueError):  # the checks of prompts and model say it
        return
    batch = batch_of_prompts(recipe, max(map(len, encoded)), new_tokens_of(recipe), devices, len(held_out))
    yield from _memory(recipe, batch, devices)


def _memory(recipe: AnyRecipe, batch: LearnedBatch, devices: int) -> Iterator[Check]:
    """Models without an outline (weights stored quantised) are passed over, and those that other checks report."""
    from ..reference_cache.building import readable_bytes
    from ..workflows.memory_room import memory_of
    from ..workflows.models_of_run import ModelsOfRun

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
        return
    has = f"{device} has {readable_bytes(size)}"
    if room.peak <= FITS * size:
        yield Check("memory", "ok", f"{text}; it fits: {has}")
    elif room.peak <= size:
        yield Check("memory", "note", f"{text}; it is close: {has}, and libraries need some; {_remedy(recipe, room)}")
    else:
        yield Check("memory", "problem", f"{text}; it does not fit: {has}; {_remedy(recipe, room)}")


def _remedy(recipe: AnyRecipe, room: MemoryRoom) -> str:
    """What to change where the moment with the largest memory is this one."""
    from ..workflows.memory_room import COLLECTING, LEARNING

    section, has_lora = recipe.OPTIMIZATION, recipe.model.lora is not None
    if room.peak_moment == LEARNING:
        fewer = "a smaller micro_batch_size gives the same update"
        checkpointing = f"{section}.gradient_checkpointing keeps fewer activations"
        remedies = [fewer, *([] if recipe.optimization.gradient_checkpointing else [checkpointing])]
    elif room.peak_moment == COLLECTING:
        remedies = _remedies_of_collecting(recipe, has_lora=has_lora)
    else:
        remedies = []
    if not has_lora:
        remedies.append("an adapter (model.lora) has few gradients, and its optimizer little to keep")
    elif recipe.model.quantization is None:
        remedies.append("model.quantization holds the base in 4 or 8 bits")
    return "; ".join([*remedies, "several GPUs can share the weights (--devices)"])


def _remedies_of_collecting(recipe: AnyRecipe, *, has_lora: bool) -> list[str]:
    from ..config import Recipe

    if isinstance(recipe, Recipe):  # of which only another model as the reference takes room for its cache
        return ["model.reference, another model, is there too while its cache is made: take a smaller one"]
    if recipe.sampling.is_server:
        return ["a smaller rollouts.completions keeps less of an iteration"]
    unfolded = ["rollouts.merge_adapter: false makes no copy of the adapted layers"] if has_lora else []
    return ["a smaller rollouts.batch_size draws fewer responses at a time", *unfolded]


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
