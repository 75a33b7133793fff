"""The cells of a study and their recipes: sections that all share, and the keys of the arm and its strength."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import CRITIC_KEYS, AnyRecipe, Arm, RecipeError, RecipeProblem, Study, Task, load_recipe
from ..environments import Environment, drawn_prompts
from ..methods import ARMS, BEST_OF, TEMPERATURE, ArmKind
from ..records.study_tables import CellKey

# The keys of `data` that do not name a source.
READING = ("max_length", "on_bad_rows", "repeated_rows", "counted_turns")


@dataclass(frozen=True)
class StudyFiles:
    """Paths of a study's files. `held` are the arms whose strengths are KL targets."""

    folder: Path
    held: frozenset[str] = frozenset()

    @classmethod
    def of(cls, study: Study) -> StudyFiles:
        return cls(Path(study.study_dir), frozenset(arm.name for arm in study.arms if arm.is_held))

    def cell(self, cell: CellKey) -> Path:
        """The folder of a cell: its state, log and numbers, and its run directory `run`."""
        strength = f"target{cell.strength}" if cell.arm in self.held else cell.strength
        return self.folder / "cells" / cell.task / "-".join(filter(None, (cell.arm, strength, f"s{cell.seed}")))

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
    """All cells: reference cells first, then by seed, strength and task with the arms side by side, then baselines. A
    study that is stopped early can then compare the arms."""
    references = [reference_cell(task.label, seed) for seed in study.seeds for task in study.tasks]
    most = max(len(arm.values) for arm in study.arms)
    trained = [
        CellKey(task.label, arm.name, strength_text(arm.values[at]), seed)
        for seed in study.seeds
        for at in range(most)
        for task in study.tasks
        for arm in study.arms
        if at < len(arm.values) and applies(arm.name, task)
    ]
    baselines = [
        CellKey(task.label, name, strength_text(value), seed)
        for seed in study.seeds
        for task in study.tasks
        for name, values in baselines_of(study).items()
        for value in values
        if applies(name, task)
    ]
    return references + trained + baselines


def baselines_of(study: Study) -> dict[str, Sequence[float]]:
    """The study's baselines without training, each with what its cells differ in."""
    return {BEST_OF: study.best_of, TEMPERATURE: study.temperatures}


def applies(arm: str, task: Task) -> bool:
    """Whether a task can be learned by an arm: what preference rows lack is a reward, and prompts to answer."""
    needs_reward = arm == BEST_OF or ARMS[arm].kind in ("ppo", "online")
    return not needs_reward or task.environment is not None


def strength_kind(study: Study, arm: str) -> str:
    """What the strengths of an arm's cells are: "strength", "target", "n", "temperature"; "" for the reference."""
    kind = ARMS[arm]
    if not kind.is_trained:
        return kind.strength
    return "target" if any(own.name == arm and own.is_held for own in study.arms) else "strength"


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


def prompts_to_train_on(study: Study) -> int:
    """How many prompts of a task every run of a seed trains on: as many as the budget has samples for."""
    return study.budget // study.sampling.samples_per_prompt


def training_prompts(study: Study, environment: Environment, seed: int) -> Environment:
    """The environment with the training prompts of one seed, which are the same for all arms.

    Raises:
        ValueError: it has fewer.
    """
    count = prompts_to_train_on(study)
    if count > len(environment.train):
        raise ValueError(
            f"task {environment.name}: budget {study.budget} with sampling.samples_per_prompt "
            f"{study.sampling.samples_per_prompt} needs {count} training prompts, there are {len(environment.train)}; "
            "lower the budget or draw more samples of each prompt"
        )
    return replace(environment, train=drawn_prompts(environment.train, count, seed))


def training_recipe(study: Study, files: StudyFiles, cell: CellKey) -> AnyRecipe:
    """The recipe that a cell is trained with.

    Raises:
        RecipeError: the study's sections and the arm's own keys do not make a recipe; names the cell.
    """
    return _loaded(_values(study, files, cell), study, cell, files)


def evaluation_recipe(study: Study, files: StudyFiles, cell: CellKey) -> AnyRecipe:
    """The recipe that a cell is evaluated with. Without a reward it also names held-out pairs."""
    values = _values(study, files, cell)
    if task_of(study, cell.task).environment is None:
        values["data"]["eval"] = str(files.pairs(cell.task, cell.seed, "held-out"))
    return _loaded(values, study, cell, files)


def check_recipes(study: Study, files: StudyFiles, cells: Sequence[CellKey]) -> None:
    """Raise `RecipeError` with the problems of all cells' recipes at once."""
    problems: dict[str, RecipeProblem] = {}
    for cell in cells:
        if not ARMS[cell.arm].is_trained:
            continue
        try:
            training_recipe(study, files, cell)
        except RecipeError as error:
            for problem in error.problems:
                problems.setdefault(f"{cell.arm} {problem.key} {problem.reason}", problem)
    if problems:
        raise RecipeError(list(problems.values()), "study")


def _values(study: Study, files: StudyFiles, cell: CellKey) -> dict[str, Any]:
    task, kind = task_of(study, cell.task), ARMS[cell.arm].kind
    values: dict[str, Any] = {
        "run_dir": str(files.run(cell)),
        "seed": cell.seed,
        "model": study.model.model_dump(),
        "evaluation": {**study.evaluation.model_dump(), "seed": study.evaluation.seed + cell.seed},
    }
    if study.sampling.is_server:
        values["sampling"] = study.sampling.engine_alone().model_dump()
    if task.environment is not None:
        values["environment"] = _given(task.environment)
    if kind in ("ppo", "online"):
        values["rollouts"] = {**_given(study.rollouts), "prompts": prompts_to_train_on(study)}
        section = _given(study.ppo if kind == "ppo" else study.online)
        if ARMS[cell.arm].fixed.get("ppo.advantage", "gae") != "gae":
            section = {key: value for key, value in section.items() if key not in CRITIC_KEYS}
        iterations = study.budget // study.rollouts.completions
        return values | {kind: {**section, "iterations": iterations, "num_threads": study.threads}}
    data = {"train": str(files.pairs(cell.task, cell.seed)), **reading_of(task)}
    training = {**_given(study.training), "num_threads": study.threads}
    if study.training.reference != "model" and study.training.reference_cache_dir is None:
        training["reference_cache_dir"] = str(files.reference_cache)
    return values | {"data": data, "training": training}


def _given(section: Any) -> dict[str, Any]:
    """The keys of a section that somebody wrote. The others are resolved anew, together with the keys of the arm."""
    values: dict[str, Any] = section.model_dump(exclude_unset=True)
    return values


def _loaded(values: dict[str, Any], study: Study, cell: CellKey, files: StudyFiles) -> AnyRecipe:
    kind, arm = ARMS[cell.arm], next(arm for arm in study.arms if arm.name == cell.arm)
    own = _own_keys(study, arm, cell.strength)
    try:
        for key in own:
            if key in arm.set:
                raise RecipeError([RecipeProblem(key, _why_not_set(key, kind), "")])
        texts = [f"{key}={json.dumps(value)}" for key, value in {**own, **arm.set}.items()]
        return load_recipe(values, texts, replaces=False)  # a study is a document: it says all that it means
    except RecipeError as error:
        where = f"cell {files.name(cell)}"
        raise RecipeError([RecipeProblem(p.key, p.reason, where) for p in error.problems], "study") from None


def _own_keys(study: Study, arm: Arm, strength: str) -> dict[str, Any]:
    """The keys that make the arm what it is, at this strength or target."""
    kind, value = ARMS[arm.name], next(value for value in arm.values if strength_text(value) == strength)
    if not arm.is_held:
        return {**kind.fixed, kind.key: value}
    section = kind.target_key.rpartition(".")[0]
    direction = {} if study.target_direction is None else {f"{section}.target_direction": study.target_direction}
    return {**kind.fixed, **kind.held, kind.target_key: value * arm.train_at, **direction}


def _why_not_set(key: str, kind: ArmKind) -> str:
    if key.endswith(".target_direction"):
        return "is the study's own: set target_direction"
    is_target = key == kind.target_key
    return "makes the arm what it is; " + ("set arms[].targets" if is_target else "remove it from arms[].set")
