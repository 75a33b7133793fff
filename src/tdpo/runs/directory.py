"""The run directory: what one training run leaves behind. It can be read at any moment and after any end.

    recipe.yaml        the resolved recipe, written before anything loads
    environment.json   command, versions, hardware, seed; one more entry for every resumption
    status.json        {"state": "running|finished|interrupted|failed", "step", "max_steps", "updated", "error"}
    data.json          what was read, skipped, cut
    metrics.jsonl      one line a log
    trackers.json      by what each tracker of report_to knows this run
    completions.jsonl  responses that a PPO run learned from, some of each iteration
    checkpoint-N/      complete once it holds the file COMPLETE; inputs.json names what it was trained with
    model/             what was trained
    evaluation.json, samples.jsonl, base_samples.json, answers.jsonl, report.html
    replaced-run/      the run that `--overwrite` replaces, until the new one has a model

JSON files appear whole or not at all; numbers that are not finite are NaN and Infinity, as Python writes them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..config import AnyRecipe, Recipe, dump_recipe
from ..records.files import now, sync_folder, write_text
from ..records.json_files import write_json
from ..records.locks import holder, lock
from ..records.names import LOCK_FILE, MACHINE_FILE, RECIPE_FILE, STATUS_FILE
from ..records.run_states import KILLED
from .contents import BEGINNING
from .machine import describe_machine
from .model_folders import model_folders
from .replacing import is_unsettled, let_go, make_way, settle
from .resume import check_resumable
from .run_files import RunError, RunFiles

logger = logging.getLogger(__name__)

State = Literal["running", "finished", "interrupted", "failed"]
STATES = ("running", "finished", "interrupted", "failed")


class RunDirectory(RunFiles):
    """One run's folder, to read and to train in. Only the main process of a distributed run writes; others pass by."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.writes = _is_main_process()
        self._has_lock = False
        # While a run is to be replaced and still stands: the recipe of the new one, and files that wait for it.
        self._waiting: AnyRecipe | None = None
        self._waiting_files: dict[str, Any] = {}
        self.has_put_back = False  # whether the run that was replaced stands here again, after a failure

    # Opening

    @classmethod
    @contextlib.contextmanager
    def training(cls, recipe: AnyRecipe, *, resume: bool = False, overwrite: bool = False) -> Iterator[RunDirectory]:
        """Lock the run in `recipe.run_dir` while it trains. It is begun anew, or continued where it stopped (`resume`).

        With `overwrite`, a run that got somewhere stands untouched until `begin` is called, once all is checked; and it
        is kept until `let_go_of_replaced` is. After a failure before the first update it is put back.

        The status is running inside and finished, interrupted or failed after it, whatever happens. Raises `RunError`
        where the folder cannot be used (see `create`, `take_up`) or another process holds it.
        """
        run = cls.open(recipe.run_dir) if resume else cls(recipe.run_dir)
        if not resume and run.writes:  # others could look while the first one makes the run
            run._refuse_foreign_files()
        with run.locked():
            if resume:
                run.take_up(recipe)
            elif not (overwrite and run._waits_for_checks(recipe)):
                run.create(recipe, overwrite=overwrite)
            with run.recording_the_end():
                yield run

    def create(self, recipe: AnyRecipe, *, overwrite: bool = False) -> None:
        """Begin a run: recipe.yaml, then environment.json and status.json; it is one when all three are there.

        Refuses a folder that holds something else, or a run that got somewhere; `overwrite` moves such a run aside (its
        own files only). A run that failed before its first update, and one that was stopped while it was begun, are
        replaced without asking.
        """
        if not self.writes:
            return
        self._refuse_foreign_files()
        with self.locked():
            self._settle()
            if not overwrite and self.got_somewhere():
                raise RunError(self._occupied())
            self._begin(recipe)

    def begin(self) -> None:
        """Move the old run aside and begin the new one, now that nothing but training can fail. Without an old run,
        the new one has begun already, and nothing happens."""
        if self._waiting is None:
            return
        recipe, files = self._waiting, self._waiting_files
        self._waiting, self._waiting_files = None, {}
        self._begin(recipe)
        for name, value in files.items():
            self.write_json(name, value)

    def let_go_of_replaced(self) -> None:
        """Delete the run that this one replaces: call it once the new model is saved."""
        if self.writes:
            let_go(self.path)

    def _waits_for_checks(self, recipe: AnyRecipe) -> bool:
        """Whether a run stands here that must stay until `begin`, with `recipe`, is called."""
        if not self.writes:
            return False
        self._settle()
        if self.got_somewhere():
            self._waiting = recipe
        return self._waiting is not None

    def _settle(self) -> None:
        """Finish what a kill stopped while a run was replaced; see `settle`."""
        if is_unsettled(self.path):
            settle(self.path, new_is_worth_nothing=self._is_half_begun() or self._is_worth_nothing())

    def _begin(self, recipe: AnyRecipe) -> None:
        make_way(self.path, keep=self.got_somewhere())
        write_text(self.path / RECIPE_FILE, dump_recipe(recipe))
        self.write_json(MACHINE_FILE, {**describe_machine(recipe.seed), "model_folders": model_folders(recipe)})
        self.set_status("running", step=0, max_steps=_updates(recipe))
        (self.path / BEGINNING).unlink()  # from here on it is a run
        sync_folder(self.path)

    def take_up(self, recipe: AnyRecipe) -> None:
        """Continue the run with `recipe`, which may differ from the stored one in keys that do not change the
        trajectory (`check_resumable`); it is stored, and environment.json gets an entry under "resumed"."""
        changed = self.check_resumable(recipe)
        if self.with_models_found(recipe) != recipe:
            recorded = ", ".join(f"{key} was {folder}" for key, folder in self.model_folders().items())
            raise RunError(
                f"{self.path} was begun elsewhere: the recipe's names of models lead to no folder from {Path.cwd()} "
                f"({recorded}). Give the command where the run was begun"
            )
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
        if names and not self.is_run() and not self._is_half_begun() and not is_unsettled(self.path):
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
        elsewhere = "another run_dir=… starts beside it, --overwrite replaces it"
        if not self.is_run():
            return f"run_dir {self.path} holds a run that a kill stopped another from replacing; {elsewhere}"
        # Where this process, which has not begun, holds the lock, whoever was running is gone.
        state = KILLED if self._has_lock and self.state() == "running" else self.state()
        resume = "" if state in ("running", "finished") else "--resume continues it, "
        kept = self.replaced_run()
        note = "" if kept is None else f". The run that it was to replace is kept in {kept}"
        return f"run_dir {self.path} holds a run that {self.in_words(state)}: {resume}{elsewhere}{note}"

    @property
    def still_stands(self) -> bool:
        """Whether the run that was here stands untouched, as its replacement has not begun."""
        return self._waiting is not None

    # Files

    def write_json(self, name: str, value: Any) -> None:
        """Write `name` atomically: readers see the old file or the new one. It waits where `begin` is awaited."""
        if self._waiting is not None:
            self._waiting_files[name] = value
        elif self.writes:
            write_json(self.path / name, value)

    # Status

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
    def recording_the_end(self) -> Iterator[None]:
        """A context whose end is recorded in status.json: finished, interrupted, or failed with the error."""
        try:
            yield
        except KeyboardInterrupt:
            self._record_the_end("interrupted")
            raise
        except BaseException as error:
            self._record_the_end("failed", error=f"{type(error).__name__}: {error}")
            raise
        self.begin()
        self.set_status("finished")

    def _record_the_end(self, state: State, error: str | None = None) -> None:
        """Set the status, and put back the run that one without an update replaced. Only warn where the disk refuses:
        that must not hide the error that ended the run."""
        if self.still_stands:
            return
        try:
            if self.writes and is_unsettled(self.path) and (not self.is_run() or self._is_worth_nothing()):
                self._settle()
                self.has_put_back = True
            else:
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
                who = holder(self.path / LOCK_FILE)
                raise RunError(
                    f"{self.path} is in use by another process{f' ({who})' if who else ''}; wait for its end, or "
                    "choose another run_dir=…"
                )
            try:
                yield
            finally:
                self._has_lock = False

    # Checkpoints


def _is_main_process() -> bool:
    """Whether this process writes: the first of a distributed launch (by RANK), or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _updates(recipe: AnyRecipe) -> int | None:
    """How many updates the recipe asks for; None where that depends on the data."""
    return recipe.training.max_steps if isinstance(recipe, Recipe) else recipe.updates
