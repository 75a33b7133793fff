"""The cells of a study and their recipes: sections that all share, and the keys of the arm and its strength."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import AnyRecipe, Arm, RecipeError, RecipeProblem, Study, Task, load_recipe
from ..environments import Environment
from ..methods import ARMS
from ..records.study_tables import CellKey

# The keys of `data` that do not name a source.
READING = ("max_length", "on_bad_rows", "repeated_rows", "counted_turns")


@dataclass(frozen=True)
class StudyFiles:
    """Paths of a study's files."""

    folder: Path

    def cell(self, cell: CellKey) -> Path:
        """The folder of a cell: its state, log and numbers, and its run directory `run`."""
        name = f"{cell.arm}-s{cell.seed}" if cell.arm == "reference" else f"{cell.arm}-{cell.strength}-s{cell.seed}"
        return self.folder / "cells" / cell.task / name

    def run(self, cell: CellKey) -> Path:
        """The run directory of a cell. The reference has only samples in it."""
        return self.cell(cell) / "run"

    def name(self, cell: CellKey) -> str:
        """A cell as people read it: its place in the folder of cells."""
        return self.cell(cell).relative_to(self.folder / "cells").as_posix()

    def pairs(self, task: str, seed: int, split: str = "train") -> Path:
        """The preference pairs of a task, which its reference cell writes."""
        return self.folder / "pairs" / f"{task}-s{seed}-{split}.jsonl"

    @property
    def product_speed(self) -> Path:
        """What cells measured of this machine, if it mattered: beside this name, a file for each dtype."""
        return self.folder / "product_speed.json"

    @property
    def reference_cache(self) -> Path:
        return self.folder / "reference_cache"


def reference_cell(task: str, seed: int) -> CellKey:
    return CellKey(task, "reference", "", seed)


def cells_of(study: Study) -> list[CellKey]:
    """All cells: reference cells first, then by seed, strength and task with the arms side by side. A study that is
    stopped early can then compare the arms."""
    references = [reference_cell(task.label, seed) for seed in study.seeds for task in study.tasks]
    most = max(len(arm.strengths) for arm in study.arms)
    trained = [
        CellKey(task.label, arm.name, strength_text(arm.strengths[at]), seed)
        for seed in study.seeds
        for at in range(most)
        for task in study.tasks
        for arm in study.arms
        if at < len(arm.strengths) and applies(arm.name, task)
    ]
    return references + trained


def applies(arm: str, task: Task) -> bool:
    """Whether an arm can learn a task: PPO needs a reward, which preference rows do not have."""
    return ARMS[arm].kind != "ppo" or task.environment is not None


def strength_text(strength: float) -> str:
    return format(strength, "g")


def task_of(study: Study, name: str) -> Task:
    return next(task for task in study.tasks if task.label == name)


def reading_of(task: Task) -> dict[str, Any]:
    """The keys of the task's rows that say how they are read. They hold for the study's copy of these rows too."""
    given = {} if task.data is None else _given(task.data)
    return {key: given[key] for key in READING if key in given}


def task_environment(task: Task) -> Environment | None:
    """The task's environment, under the task's name; None for preference rows. Raises what loading it raises."""
    if task.environment is None:
        return None
    return replace(task.environment.load(), name=task.label)


def training_prompts(study: Study, environment: Environment) -> Environment:
    """The environment with as many training prompts as the budget has samples for: the first ones.

    Raises:
        ValueError: it has fewer.
    """
    count = study.budget // study.sampling.samples_per_prompt
    if count > len(environment.train):
        raise ValueError(
            f"task {environment.name}: budget {study.budget} with sampling.samples_per_prompt "
            f"{study.sampling.samples_per_prompt} needs {count} training prompts, there are {len(environment.train)}; "
            "lower the budget or draw more samples of each prompt"
        )
    return replace(environment, train=environment.train[:count])


def training_recipe(study: Study, files: StudyFiles, cell: CellKey) -> AnyRecipe:
    """The recipe that a cell is trained with.

    Raises:
        RecipeError: the study's sections and the arm's own keys do not make a recipe; names the cell.
    """
    return _loaded(_values(study, files, cell), _arm(study, cell), cell, files)


def evaluation_recipe(study: Study, files: StudyFiles, cell: CellKey) -> AnyRecipe:
    """The recipe that a cell is evaluated with. Without a reward it also names held-out pairs."""
    values = _values(study, files, cell)
    if task_of(study, cell.task).environment is None:
        values["data"]["eval"] = str(files.pairs(cell.task, cell.seed, "held-out"))
    return _loaded(values, _arm(study, cell), cell, files)


def check_recipes(study: Study, files: StudyFiles, cells: Sequence[CellKey]) -> None:
    """Raise `RecipeError` with the problems of all cells' recipes at once."""
    problems: dict[str, RecipeProblem] = {}
    for cell in cells:
        if cell.arm == "reference":
            continue
        try:
            training_recipe(study, files, cell)
        except RecipeError as error:
            for problem in error.problems:
                problems.setdefault(f"{cell.arm} {problem.key} {problem.reason}", problem)
    if problems:
        raise RecipeError(list(problems.values()), "study")


def _arm(study: Study, cell: CellKey) -> Arm:
    return next(arm for arm in study.arms if arm.name == cell.arm)


def _values(study: Study, files: StudyFiles, cell: CellKey) -> dict[str, Any]:
    task, kind = task_of(study, cell.task), ARMS[cell.arm]
    values: dict[str, Any] = {
        "run_dir": str(files.run(cell)),
        "seed": cell.seed,
        "model": study.model.model_dump(),
        "evaluation": {**study.evaluation.model_dump(), "seed": study.evaluation.seed + cell.seed},
    }
    if task.environment is not None:
        values["environment"] = _given(task.environment)
    if kind.kind == "ppo":
        ppo = {**_given(study.ppo), "iterations": study.budget // study.rollouts.completions}
        return values | {"rollouts": _given(study.rollouts), "ppo": {**ppo, "num_threads": study.threads}}
    data = {"train": str(files.pairs(cell.task, cell.seed)), **reading_of(task)}
    training = {**_given(study.training), "num_threads": study.threads}
    if study.training.reference != "model" and study.training.reference_cache_dir is None:
        training["reference_cache_dir"] = str(files.reference_cache)
    return values | {"data": data, "training": training}


def _given(section: Any) -> dict[str, Any]:
    """The keys of a section that somebody wrote. The others are resolved anew, together with the keys of the arm."""
    values: dict[str, Any] = section.model_dump(exclude_unset=True)
    return values


def _loaded(values: dict[str, Any], arm: Arm, cell: CellKey, files: StudyFiles) -> AnyRecipe:
    kind = ARMS[cell.arm]
    strength = next(value for value in arm.strengths if strength_text(value) == cell.strength)
    overrides = {**kind.fixed, kind.key: strength, **arm.set}
    try:
        for key in (kind.key, *kind.fixed):
            if key in arm.set:
                raise RecipeError([RecipeProblem(key, "makes the arm what it is; remove it from arms[].set", "")])
        texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        return load_recipe(values, texts, replaces=False)  # a study is a document: it says all that it means
    except RecipeError as error:
        where = f"cell {files.name(cell)}"
        raise RecipeError([RecipeProblem(p.key, p.reason, where) for p in error.problems], "study") from None
