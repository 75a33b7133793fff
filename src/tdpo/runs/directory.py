"""The run directory: what one training run leaves behind. It can be read at any moment and after any end.

    recipe.yaml        the resolved recipe, written before anything loads
    environment.json   command, versions, hardware, seed; one more entry for every resumption
    status.json        {"state": "running|finished|interrupted|failed", "step", "max_steps", "updated", "error"}
    data.json          what was read, skipped, cut
    metrics.jsonl      one line a log
    completions.jsonl  responses that a PPO run learned from, some of each iteration
    checkpoint-N/      complete once it holds the file COMPLETE; inputs.json names what it was trained with
    model/             what was trained
    evaluation.json, samples.jsonl, base_samples.json, report.html

JSON files appear whole or not at all; numbers that are not finite are NaN and Infinity, as Python writes them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..config import AnyRecipe, PPORecipe, RecipeError, dump_recipe, load_recipe
from ..records.files import now, open_no_link, sync_folder, write_text
from ..records.folders import remove
from ..records.json_files import read_json, read_log, write_json
from ..records.locks import is_locked, lock
from ..records.names import LOCK_FILE, MACHINE_FILE, METRICS_FILE, MODEL_FOLDER, RECIPE_FILE, STATUS_FILE
from .checkpoints import Checkpoints, checkpoint_step, find_checkpoints
from .contents import BEGINNING, is_ours
from .machine import describe_machine
from .resume import check_resumable

logger = logging.getLogger(__name__)

State = Literal["running", "finished", "interrupted", "failed"]
STATES = ("running", "finished", "interrupted", "failed")


class RunError(ValueError):
    """A run directory that cannot be used for what was wanted; the message says what to do instead."""


class RunDirectory:
    """One run's folder. Only the main process of a distributed run writes; the others pass through."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.writes = _is_main_process()
        self._has_lock = False

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    # Opening

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
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

    @classmethod
    @contextlib.contextmanager
    def training(cls, recipe: AnyRecipe, *, resume: bool = False, overwrite: bool = False) -> Iterator[RunDirectory]:
        """Lock the run in `recipe.run_dir` while it trains. It is begun anew, or continued where it stopped (`resume`).

        The status is running inside and finished, interrupted or failed after it, whatever happens. Raises `RunError`
        where the folder cannot be used (see `create`, `take_up`) or another process holds it.
        """
        run = cls.open(recipe.run_dir) if resume else cls(recipe.run_dir)
        if not resume:
            run._refuse_foreign_files()
        with run.locked():
            if resume:
                run.take_up(recipe)
            else:
                run.create(recipe, overwrite=overwrite)
            with run._recording_the_end():
                yield run

    def create(self, recipe: AnyRecipe, *, overwrite: bool = False) -> None:
        """Begin a run: recipe.yaml, then environment.json and status.json; it is one when all three are there.

        Refuses a folder that holds something else, or a run that got somewhere; `overwrite` replaces such a run (its
        own files only). A run that failed before its first update, and one that was stopped while it was begun, are
        replaced without asking.
        """
        if not self.writes:
            return
        self._refuse_foreign_files()
        with self.locked():
            if not overwrite and self.got_somewhere():
                raise RunError(self._occupied())
            mark = self.path / BEGINNING
            remove(mark)
            with open_no_link(mark, "w"):
                sync_folder(self.path)
            for entry in self.path.iterdir():
                if is_ours(entry):
                    remove(entry)
            write_text(self.path / RECIPE_FILE, dump_recipe(recipe))
            self.write_json(MACHINE_FILE, describe_machine(recipe.seed))
            self.set_status("running", step=0, max_steps=_updates(recipe))
            mark.unlink()  # from here on it is a run
            sync_folder(self.path)

    def take_up(self, recipe: AnyRecipe) -> None:
        """Continue the run with `recipe`, which may differ from the stored one in keys that do not change the
        trajectory (`check_resumable`); it is stored, and environment.json gets an entry under "resumed"."""
        changed = self.check_resumable(recipe)
        if not self.writes:
            return
        with self.locked():
            machine = self.read_json(MACHINE_FILE) or {}
            entry = {**describe_machine(recipe.seed), "step": self.resume_step(), "changed": changed}
            self.write_json(MACHINE_FILE, {**machine, "resumed": [*machine.get("resumed", []), entry]})
            write_text(self.path / RECIPE_FILE, dump_recipe(recipe))
            self.set_status("running")

    def note_resumption(self, **facts: Any) -> None:
        """Add facts to the newest entry under "resumed" in environment.json."""
        machine = self.read_json(MACHINE_FILE) or {}
        *earlier, last = machine.get("resumed") or [{}]
        self.write_json(MACHINE_FILE, {**machine, "resumed": [*earlier, {**last, **facts}]})

    def note_precision(self, precision: dict[str, Any]) -> None:
        """Record in environment.json what the run computes in."""
        if self.writes:
            self.write_json(MACHINE_FILE, {**(self.read_json(MACHINE_FILE) or {}), "precision": precision})

    def precision(self) -> dict[str, Any] | None:
        """What the run computes in, as it was recorded; None in a run of an earlier version."""
        recorded = (self.read_json(MACHINE_FILE) or {}).get("precision")
        return recorded if isinstance(recorded, dict) else None

    def is_run(self) -> bool:
        """Whether a run was begun here. A recipe alone is none: it may be a user's own file."""
        files = (self.path / RECIPE_FILE, self.path / STATUS_FILE)
        return all(file.is_file() for file in files) and not self._is_half_begun()

    def _is_half_begun(self) -> bool:
        """Whether a full disk or a kill stopped a run while its folder was set up: no file of it is of use."""
        return (self.path / BEGINNING).exists()

    def check_resumable(self, recipe: AnyRecipe) -> dict[str, list[Any]]:
        """The keys in which `recipe` differs from the stored one, each [stored, new]; `RunError` if one must not."""
        try:
            return check_resumable(self.recipe(), recipe)
        except ValueError as error:
            raise RunError(f"{self.path} cannot be resumed with this recipe:\n{error}") from None

    def _refuse_foreign_files(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"run_dir {self.path} is a file; choose another run_dir=…")
        names = sorted(p.name for p in self.path.iterdir() if p.name != LOCK_FILE)
        if names and not self.is_run() and not self._is_half_begun():
            first_names = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise RunError(
                f"run_dir {self.path} holds files that are no run of tdpo ({first_names}); choose another run_dir=…"
            )

    def why_not_new(self) -> str | None:
        """Why a new run cannot begin here as things stand, or None if it can."""
        try:
            self._refuse_foreign_files()
        except RunError as error:
            return str(error)
        return self._occupied() if self.got_somewhere() else None

    def _occupied(self) -> str:
        status, state = self.status(), self.state()
        if state == "running" and self._has_lock:  # by this process, which has not begun: whoever ran is gone
            state = "interrupted"
        resume = "" if state == "finished" else "--resume continues it, "
        return (
            f"run_dir {self.path} holds a run ({state}, step {status.get('step', 0)}): {resume}"
            "another run_dir=… starts beside it, --overwrite replaces it"
        )

    def got_somewhere(self) -> bool:
        """Whether deleting the run would lose anything: updates, metrics, checkpoints, a model."""
        if self._is_half_begun():
            return False
        checkpoints = self.checkpoints()
        traces = [*checkpoints.complete, *checkpoints.incomplete, self.path / METRICS_FILE, self.path / MODEL_FOLDER]
        return bool(self.status().get("step")) or any(trace.exists() for trace in traces)

    # Files

    def recipe(self) -> AnyRecipe:
        return load_recipe(self.path / RECIPE_FILE)

    def command(self) -> str:
        """The command that made this run, which also resumes it: "tdpo train" or "tdpo ppo"."""
        try:
            is_ppo = isinstance(self.recipe(), PPORecipe)
        except RecipeError:  # damaged, or none: the message that asks for the command is about something else
            is_ppo = False
        return "tdpo ppo" if is_ppo else "tdpo train"

    def write_json(self, name: str, value: Any) -> None:
        """Write `name` atomically: readers see the old file or the new one."""
        if self.writes:
            write_json(self.path / name, value)

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
            status, state = self.status(), self.state()
            if state == "failed":
                raise RunError(
                    f"{self.path} has no trained model: training failed ({status.get('error')}). "
                    "Repair that, then train again"
                )
            raise RunError(f"{self.path} has no trained model yet ({state}); `{self.command()} {self.path} --resume`")
        return path

    # Status

    def status(self) -> dict[str, Any]:
        return self.read_json(STATUS_FILE) or {}

    def state(self) -> str:
        """One of STATES, or "unknown". A run that says "running" while no process holds its lock was interrupted."""
        state = str(self.status().get("state", "unknown"))
        dead = state == "running" and not self._has_lock and is_locked(self.path / LOCK_FILE) is False
        return "interrupted" if dead else state

    def set_status(
        self, state: State, *, step: int | None = None, max_steps: int | None = None, error: str | None = None
    ) -> None:
        """Record the state; step and max_steps keep their last values unless given."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}; known: {', '.join(STATES)}")
        before = self.status()
        self.write_json(
            STATUS_FILE,
            {
                "state": state,
                "step": before.get("step", 0) if step is None else step,
                "max_steps": before.get("max_steps") if max_steps is None else max_steps,
                "updated": now(),
                "error": error,
            },
        )

    @contextlib.contextmanager
    def _recording_the_end(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self._record_the_end("interrupted")
            raise
        except BaseException as error:
            self._record_the_end("failed", error=f"{type(error).__name__}: {error}")
            raise
        self.set_status("finished")

    def _record_the_end(self, state: State, error: str | None = None) -> None:
        """Set the status, but only warn where it cannot be written: that must not hide the error that ended the run."""
        try:
            self.set_status(state, error=error)
        except OSError as unwritten:
            logger.warning("the state %r could not be recorded: %s", state, unwritten)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out until the block ends. The system releases the lock if this process dies."""
        if not self.writes or self._has_lock:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path / LOCK_FILE) as self._has_lock:
            if not self._has_lock:
                raise RunError(f"{self.path} is in use by another process; wait for it or choose another run_dir=…")
            try:
                yield
            finally:
                self._has_lock = False

    # Checkpoints

    def checkpoints(self) -> Checkpoints:
        """All checkpoint folders, by step."""
        return find_checkpoints(self.path)

    def resume_step(self) -> int:
        """The step that a resumption starts from; 0 without a complete checkpoint."""
        newest = self.checkpoints().newest
        return checkpoint_step(newest) if newest else 0


def _is_main_process() -> bool:
    """Whether this process writes: the first of a distributed launch (by RANK), or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _updates(recipe: AnyRecipe) -> int | None:
    """How many updates the recipe asks for; None where that depends on the data."""
    return recipe.updates if isinstance(recipe, PPORecipe) else recipe.training.max_steps
