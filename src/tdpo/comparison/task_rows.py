"""The rows of a task that has no environment."""

from __future__ import annotations

from ..config import Recipe, Study, Task, load_recipe
from ..preferences import read_for
from ..recipe_data.pairs import RecipeData, read_data


def task_rows(study: Study, task: Task) -> RecipeData:
    """A task's own rows; split with the study's first seed, so that every cell has the same held-out prompts."""
    assert task.data is not None
    recipe = load_recipe({"run_dir": "-", "seed": study.seeds[0], "data": task.data.model_dump()})
    assert isinstance(recipe, Recipe)
    with read_for(f"tasks[{study.tasks.index(task)}].data"):
        return read_data(recipe)
