"""What a run directory says of its run. It can be asked at any moment; nothing here writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ..config import AnyRecipe, PPORecipe, RecipeError, load_recipe
from ..records.json_files import read_json, read_log
from ..records.names import LOCK_FILE, MACHINE_FILE, METRICS_FILE, MODEL_FOLDER, RECIPE_FILE, STATUS_FILE
from ..records.run_states import state_in_words, state_of
from .checkpoints import Checkpoints, checkpoint_step, find_checkpoints
from .contents import BEGINNING, BEING_MOVED
from .model_folders import with_models_found
from .replacing import is_unsettled, replaced_run


class RunError(ValueError):
    """A run directory that cannot be used for what was wanted; the message says what to do instead."""


class RunFiles:
    """One run's folder, to read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run. Raises `RunError` where there is none."""
        run = cls(path)
        if not run.path.is_dir():
            reason = "it is a file" if run.path.exists() else "it does not exist"
            raise RunError(
                f"{run.path} is no run directory: {reason}; expected a folder that `tdpo train` or `tdpo ppo` wrote"
            )
        if not run.is_run():
            inside = sorted(str(p.parent) for p in run.path.glob(f"*/{STATUS_FILE}"))
            hint = f"; runs inside it: {', '.join(inside)}" if inside else ""
            raise RunError(f"{run.path} is no run directory: it has no {RECIPE_FILE} and {STATUS_FILE}{hint}")
        return run

    def is_run(self) -> bool:
        """Whether a run was begun here. A recipe alone is none: it may be a user's own file."""
        files = (self.path / RECIPE_FILE, self.path / STATUS_FILE)
        return all(file.is_file() for file in files) and not self._is_half_begun()

    def _is_half_begun(self) -> bool:
        """Whether a full disk or a kill stopped a run while its folder was set up: no file of it is of use."""
        return (self.path / BEGINNING).exists() or (self.path / BEING_MOVED).exists()

    def got_somewhere(self) -> bool:
        """Whether deleting the run would lose anything: updates, metrics, checkpoints, a model, a run that is kept."""
        if is_unsettled(self.path):
            return True
        if self._is_half_begun():
            return False
        return (self.path / METRICS_FILE).exists() or not self._is_worth_nothing()

    def _is_worth_nothing(self) -> bool:
        """Whether no update was made, and there is neither a checkpoint nor a model."""
        checkpoints = self.checkpoints()
        traces = [*checkpoints.complete, *checkpoints.incomplete, self.path / MODEL_FOLDER]
        return not self.status().get("step") and not any(trace.exists() for trace in traces)

    def replaced_run(self) -> Path | None:
        """The folder of the run that this one was to replace, as long as it is kept."""
        return replaced_run(self.path)

    def recipe(self) -> AnyRecipe:
        return load_recipe(self.path / RECIPE_FILE)

    def with_models_found(self, recipe: AnyRecipe) -> AnyRecipe:
        """`recipe` with its models' folders as they were when the run began, where its own names lead nowhere.

        Raises FileNotFoundError where neither is there.
        """
        return with_models_found(recipe, self.model_folders(), self.path / RECIPE_FILE)

    def model_folders(self) -> dict[str, str]:
        """The folders of the recipe's models when the run began, by key; {} of runs of earlier versions."""
        return (self.read_json(MACHINE_FILE) or {}).get("model_folders") or {}

    def command(self) -> str:
        """The command that made this run, which also resumes it: "tdpo train" or "tdpo ppo"."""
        try:
            is_ppo = isinstance(self.recipe(), PPORecipe)
        except RecipeError:  # damaged, or none: the message that asks for the command is about something else
            is_ppo = False
        return "tdpo ppo" if is_ppo else "tdpo train"

    def read_json(self, name: str) -> Any:
        """The content of `name`, or None where there is no such file."""
        path = self.path / name
        return read_json(path) if path.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged line, oldest first. A cut-off last line is left out, and a broken line with a warning."""
        return read_log(self.path / METRICS_FILE)

    @property
    def model_path(self) -> Path:
        """The trained model. Raises `RunError` where training has not finished."""
        path = self.path / MODEL_FOLDER
        if not path.is_dir():
            state = self.state()
            kept = self.replaced_run()
            note = "" if kept is None else f". The run that it is to replace is kept: {kept}"
            if state == "failed":
                step = self.resume_step()
                again = f"`{self.command()} {self.path} --resume` goes on from step {step}" if step else "train again"
                raise RunError(
                    f"{self.path} has no trained model: training {self.in_words()}. Repair that, then {again}{note}"
                )
            advice = "wait for its end" if state == "running" else f"`{self.command()} {self.path} --resume` goes on"
            raise RunError(f"{self.path} has no trained model yet: it {self.in_words()}; {advice}{note}")
        return path

    def checkpoints(self) -> Checkpoints:
        """All checkpoint folders, by step."""
        return find_checkpoints(self.path)

    def resume_step(self) -> int:
        """The step that a resumption starts from; 0 without a complete checkpoint."""
        newest = self.checkpoints().newest
        return checkpoint_step(newest) if newest else 0

    def status(self) -> dict[str, Any]:
        return self.read_json(STATUS_FILE) or {}

    def state(self) -> str:
        """One of STATES, "killed" for a run that says "running" while no process holds its lock, or "unknown"."""
        return state_of(self.status(), self.path / LOCK_FILE)

    def in_words(self, state: str | None = None) -> str:
        """What became of the run, as it goes after its name: "was killed at update 12 of 32, last seen on …"."""
        return state_in_words(self.status(), state or self.state(), self.path / LOCK_FILE)
