"""What `tdpo evaluate` judges: the run of a recipe, or a folder that a trainer in Python or another library left."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ._console import say
from ._errors import CommandError

if TYPE_CHECKING:
    from ..config import AnyRecipe
    from ..evaluation.trained_model import TrainedModel
    from ..runs import RunDirectory
    from ..runs.trained_folders import TrainedFolder

ALLOWED = (
    "evaluation", "environment", "data.eval", "data.eval_split", "data.on_bad_rows", "data.repeated_rows",
    "prompts.eval", "sampling.engine", "sampling.url", "sampling.adapter_dir", "sampling.timeout",
    "model.device",
)  # fmt: skip
# The override that says the same of a recipe's run as a flag.
AS_OVERRIDE = {"data": "data.eval", "environment": "environment.name"}


@dataclass(frozen=True)
class Flags:
    """The options of the command, None where they were not given."""

    data: str | None = None
    environment: str | None = None
    base: str | None = None
    reference: str | None = None
    out: Path | None = None

    def given(self) -> dict[str, str]:
        """Those that were given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Judging:
    """What is judged, with what, and where the results go; `label` is the run's name in tables."""

    run: RunDirectory
    recipe: AnyRecipe
    trained: TrainedModel
    label: str
    remarks: Sequence[str] = ()

    def make_room(self) -> None:
        """Create the folder of the results. Raises `CommandError` where nothing can be written there."""
        try:
            self.run.path.mkdir(parents=True, exist_ok=True)
            is_writable = os.access(self.run.path, os.W_OK)
        except PermissionError:
            is_writable = False
        if not is_writable:
            raise CommandError(
                f"{self.run.path} cannot be written to: give another folder for the results, --out FOLDER"
            )


def evaluation_for(path: Path, flags: Flags, overrides: Sequence[str]) -> Judging:
    """How the folder `path` is judged.

    Raises:
        RunError, RecipeError, CommandError, ValueError: nothing to judge there, or the flags and overrides are wrong.
    """
    from ..records.run_places import is_recipe_run
    from ..runs.trained_folders import trained_folder

    for name, value in flags.given().items():
        if not value.strip():
            raise CommandError(f"--{name} is empty; leave it out, or give a name")
    if is_recipe_run(path):
        _overrides_of_recipe(path, flags, overrides)  # a mistake is said before anything else is missed
    folder = trained_folder(path)
    results = folder.results if flags.out is None else _results_in(flags.out)
    if folder.recipe_run is not None:
        return _of_recipe(folder, flags, overrides, results)
    from ..evaluation.folders import Asked, evaluation_of

    asked = Asked(flags.data, flags.environment, flags.base, flags.reference, overrides)
    found = evaluation_of(folder, asked)
    return Judging(results, found.recipe, found.trained, str(found.trained.described["name"]), found.remarks)


def _of_recipe(folder: TrainedFolder, flags: Flags, overrides: Sequence[str], results: RunDirectory) -> Judging:
    from ..config import KLS_OF_EVALUATIONS, OnlineRecipe, load_recipe
    from ..evaluation.trained_model import (
        TrainedModel,
        described_run,
        holds_out_as_trained,
        reference_of_recipe,
        trained_dtype,
    )

    run = folder.recipe_run
    assert run is not None
    overrides = _overrides_of_recipe(run.path, flags, overrides)
    recipe = load_recipe(run.path, overrides, say=say)
    described = {**described_run(run, recipe), "name": folder.results_name}
    reference = reference_of_recipe(folder.model, recipe)
    own = holds_out_as_trained(run, recipe)
    trained = TrainedModel(folder.model, reference, described, load_as=trained_dtype(run), judged_on_own=own)
    moved = isinstance(recipe, OnlineRecipe) and recipe.online.reference_update is not None
    remarks = [*folder.remarks, *([KLS_OF_EVALUATIONS] if moved else [])]
    return Judging(results, recipe, trained, folder.results_name, remarks)


def _overrides_of_recipe(run: Path, flags: Flags, overrides: Sequence[str]) -> Sequence[str]:
    """The overrides of a recipe's run, with those that flags stand for.

    Raises:
        CommandError: one of them says how the run was trained.
    """
    for name, value in flags.given().items():
        if name in ("base", "reference"):
            raise CommandError(f"--{name} {value} has no effect: the recipe of {run} says it; leave it out")
        if name in AS_OVERRIDE:
            overrides = [*overrides, f"{AS_OVERRIDE[name]}={json.dumps(value)}"]
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in ALLOWED):
            raise CommandError(
                f"{override!r} cannot be overridden here: it says how the run was trained; "
                f"an evaluation can change {', '.join(ALLOWED)}"
            )
    return overrides


def _results_in(folder: Path) -> RunDirectory:
    from ..runs import RunDirectory

    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--out {folder} is a file; give a folder")
    return RunDirectory(folder)
