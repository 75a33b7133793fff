"""Checks for `tdpo doctor` of what a recipe needs beside models and data: device, folders, packages, room, pairs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..batches import TokenizedPair
    from ..config import AnyRecipe, Recipe


def run_dir(recipe: AnyRecipe) -> Iterator[Check]:
    """Check that a run can begin in the run directory, and that all folders of the recipe can be written to."""
    from ..records.folders import require_writable
    from ..runs import RunDirectory
    from ..workflows.prerequisites import written_folders

    run = RunDirectory(recipe.run_dir)
    reason = run.why_not_new()
    if reason is not None:
        yield Check("run_dir", "note" if run.is_run() else "problem", reason)
    for key, folder in written_folders(recipe).items():
        try:
            if not folder.is_file() or key != "run_dir":
                require_writable(folder, key)
        except OSError as error:
            yield Check(key, "problem", str(error))
        else:
            if key == "run_dir" and reason is None:
                yield Check("run_dir", "ok", f"{run.path} is free")


def device(recipe: AnyRecipe) -> Iterator[Check]:
    """Check that the recipe's device is here, and that what speeds the body up can run on it."""
    from ..models.devices import describe_device
    from ..workflows.prerequisites import device_of_recipe, speedups

    place = device_of_recipe(recipe)
    yield Check("device", "ok", f"model.device {recipe.model.device}: models run on {describe_device(place)}")
    for key, reason in speedups(recipe, place).items():
        yield Check(key, "problem" if reason else "ok", reason or f"{recipe.OPTIMIZATION}.{key} can run there")


def packages(recipe: AnyRecipe) -> Iterator[Check]:
    """Check the packages of optimiser and trackers."""
    from ..workflows.prerequisites import missing_packages

    for sentence in missing_packages(recipe):
        yield Check("packages", "problem", sentence)


def room(recipe: AnyRecipe, length: int) -> Iterator[Check]:
    """Check the disk for a run of `length` updates (of PPO: iterations). Raises OSError if it is too small.

    Models that cannot be outlined are passed over: another check reports them, and quantised weights have no outline.
    """
    from ..records.files import free_bytes
    from ..reference_cache.building import readable_bytes
    from ..workflows.disk_room import DiskRoom
    from ..workflows.prerequisites import check_critic, check_policy

    try:
        policy = check_policy(recipe.model)
        critic = None if policy is None else check_critic(recipe, policy)
    except (OSError, ValueError):
        return
    if policy is None:
        return
    needs = DiskRoom.of(recipe, policy, critic)
    needs.check(length)
    free = readable_bytes(free_bytes(needs.folder))
    yield Check("room", "ok", f"{needs.folder} will hold {needs.in_words(length)}; {free} are free there")


def cache_room(recipe: Recipe, pairs: Sequence[TokenizedPair], width: int | None) -> Iterator[Check]:
    """Compare the largest size that the reference cache can have with the free bytes. `width` is D of hidden states."""
    if recipe.training.reference == "model" or width is None:
        return
    from ..batches import counted_tokens
    from ..models import cache_folder
    from ..records.files import free_bytes
    from ..reference_cache.building import readable_bytes

    own = recipe.training.reference_cache_dir
    folder = Path(own).expanduser() if own else cache_folder() / "reference"
    tokens = sum(sum(counted_tokens(pair)) for pair in pairs)
    most = tokens * (8 * width + 100)  # two vectors of float32 and some numbers a token
    free = free_bytes(folder)
    text = f"up to {readable_bytes(most)} for {tokens:,} response tokens; {readable_bytes(free)} are free in {folder}"
    if most <= free:
        yield Check("reference cache", "ok", text)
        return
    then = "stops there" if recipe.training.reference == "cache" else "runs the reference in every step instead"
    yield Check("reference cache", "note", f"{text}: if that is too little, training {then}")


def pairs_to_come(recipe: Recipe, path: Path, overrides: Sequence[str]) -> Iterator[Check]:
    """Name the files of pairs that are not there yet and that `tdpo pairs` makes, with its command."""
    from ..recipe_data.pairs import files_of_pairs_to_make

    options = {"data.train": [], "data.eval": ["--split", "held_out"]}
    for key, file in files_of_pairs_to_make(recipe).items():
        command = shlex.join(["tdpo", "pairs", str(path), *overrides, *options[key]])
        yield Check("pairs", "note", f"{key} {file} is not there yet: {command}")
