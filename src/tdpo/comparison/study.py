"""One study from start to end: checked, run, written. What `tdpo compare` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ..config import Arm, Study, dump_study, flatten, load_study
from ..config.recipe_loading import read_values
from ..environments import check_reward
from ..installation import extra_command
from ..records.files import now, write_text
from ..records.json_files import read_json
from ..records.locks import holder, lock
from ..records.metric_names import counted
from ..records.names import ABOUT_FILE, LOCK_FILE, STUDY_FILE
from ..records.study_tables import CellKey
from ..runs import RunError, accelerators, usable_cores
from .cells import StudyFiles, cells_of, check_recipes, task_environment, training_prompts
from .running import Failure, Observer, Outcome, Report, Stopped, is_done, run_cells
from .study_writing import write_study
from .task_files import ChangedInput, changed_inputs

# How a study is run and judged: no run depends on it. A server may have moved since the last call.
FREE = ("workers", "study_dir", "claims", "questions", "sampling.url", "sampling.adapter_dir", "sampling.timeout")
# Lists to which a study may add without changing the runs it has.
GROWS = ("tasks", "arms", "seeds", "best_of", "temperatures")


@dataclass(frozen=True)
class Finished:
    """The outcome of a study. Its tables cover the finished cells; `unwritten` says why they could not be written."""

    files: StudyFiles
    done: int
    failures: list[Failure]
    waiting: int
    seconds: float
    changed: list[ChangedInput] = field(default_factory=list)
    unwritten: OSError | None = None


def compare(study: Study, observer: Observer, *, command: str) -> Finished:
    """Run the cells of a study that are not finished yet, then write its tables, claims and about.json.

    The same study in the same folder goes on where it stopped; failed cells are tried again. A study that has gained
    tasks, arms, strengths or seeds goes on too, with the runs that are there.

    Raises:
        RecipeError, ValueError, ModuleNotFoundError, RewardError: the study cannot be run as it is; nothing was begun.
        RunError: its folder holds something else, or another process runs it.
        Stopped: Ctrl-C; the tables hold what is done.
    """
    files = StudyFiles.of(study)
    cells = cells_of(study)
    check(study, files, cells)
    _refuse_foreign_folder(study, files)
    files.folder.mkdir(parents=True, exist_ok=True)
    with lock(files.folder / LOCK_FILE) as has_lock:
        if not has_lock:
            who = holder(files.folder / LOCK_FILE)
            raise RunError(
                f"{files.folder} is in use by another `tdpo compare`{f' ({who})' if who else ''}; wait for it, or "
                "choose another study_dir=…"
            )
        write_text(files.folder / STUDY_FILE, dump_study(study))
        started, begun = time.monotonic(), now()
        before = _seconds_before(files)

        def write(outcome: Outcome) -> Finished:
            seconds = round(time.monotonic() - started, 1)
            changed = changed_inputs(study, files, outcome.done)
            about = {
                "command": command,
                "started": begun,
                "seconds": before + seconds,
                "changed_inputs": [entry.as_dict() for entry in changed],
            }
            unwritten = None
            try:
                if outcome.done:
                    write_study(study, files, outcome.failures, about)
            except OSError as error:  # a full disk: the caller must still learn which cells it stopped
                unwritten = error
            return Finished(
                files, len(outcome.done), outcome.failures, len(outcome.waiting), seconds, changed, unwritten
            )

        try:
            outcome = run_cells(study, files, cells, _do_cell, workers_of(study), observer)
        except Stopped as stopped:
            write(stopped.outcome)
            raise
        return write(outcome)


def _do_cell(study: Study, files: StudyFiles, cell: CellKey, report: Report) -> None:
    """The job of a cell's process. It imports here, so that the study's own process loads no training code."""
    from .work import do_cell

    do_cell(study, files, cell, report)


def check(study: Study, files: StudyFiles, cells: Sequence[CellKey]) -> None:
    """Raise now what would fail cells later: recipes, the device, environments and their packages, prompts, the
    embedder."""
    check_recipes(study, files, cells)
    if not all(is_done(files, cell) for cell in cells):  # else they are only judged anew, which needs no device
        from ..models.devices import check_device

        check_device(study.model.device)
    for task in study.tasks:
        environment = task_environment(task)
        if environment is not None:
            training_prompts(study, environment, study.seeds[0])
            check_reward(environment, [*environment.train, *environment.held_out], environment.max_new_tokens)
    if study.embeddings is not None:
        from ..embeddings import check_embedder

        check_embedder(study.embeddings)
    for package, need in (("sacrebleu", "self-BLEU needs"), ("scipy", "intervals of a study's answers need")):
        if find_spec(package) is None and (package == "sacrebleu" or study.questions is not None):
            raise ModuleNotFoundError(f"{need} the package {package}, which is not installed: {extra_command('eval')}")


def workers_of(study: Study) -> int:
    """How many cells run at a time: one on each accelerator that they may use, and without one, on their threads."""
    return study.workers or len(_accelerators(study)) or max(1, usable_cores() // study.threads)


def place_of(study: Study) -> str:
    """Where the cells run, in words."""
    names = [each["name"] for each in _accelerators(study)]
    if not names:
        return "the CPU"
    used = min(workers_of(study), len(names))
    where = f"{counted(used, 'accelerator')}" + (f" of {len(names)}" if used < len(names) else "")
    return f"{where} ({', '.join(dict.fromkeys(names))})"


def _accelerators(study: Study) -> list[dict[str, Any]]:
    """Those that the study's models may run on: of several GPUs all, which workers share in turn, or the one named."""
    kind, _, number = study.model.device.partition(":")
    present = [] if kind == "cpu" else accelerators()
    return present[int(number) :][:1] if number else present


def _seconds_before(files: StudyFiles) -> float:
    """Seconds that earlier calls took."""
    path = files.folder / ABOUT_FILE
    return float(read_json(path).get("seconds", 0.0)) if path.exists() else 0.0


def _refuse_foreign_folder(study: Study, files: StudyFiles) -> None:
    folder = files.folder
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"study_dir {folder} is a file; choose another study_dir=…")
    if not (folder / STUDY_FILE).exists():
        names = sorted(path.name for path in folder.iterdir() if path.name != LOCK_FILE)
        if names:
            raise RunError(f"study_dir {folder} holds files that are no study ({', '.join(names[:3])}); choose another")
        return
    changed = _changed(load_study(folder), study)
    if changed:
        lines = "\n".join(changed)
        raise RunError(
            f"{folder} holds another study:\n{lines}\nset these back to go on with it, or choose another study_dir=…\n"
            "(tasks, arms, strengths, targets, baselines and seeds may be added, none taken away)"
        )
    _refuse_older_prompts(study, files)


def _refuse_older_prompts(study: Study, files: StudyFiles) -> None:
    """Raise RunError where runs are left of a study whose other runs trained on prompts chosen by an older rule."""
    folder = files.folder
    has_prompts = any(task.environment is not None for task in study.tasks)
    if not has_prompts or "training_prompts" in read_values(folder, STUDY_FILE)[0]:
        return
    if not all(is_done(files, cell) for cell in cells_of(study)):
        raise RunError(
            f"{folder} was begun by an earlier version, in which preferences were made from the first training prompts "
            "and PPO drew from all of them; now all runs of a seed train on the same prompts. Choose another "
            "study_dir=… for the runs that are left"
        )


def _changed(before: Study, after: Study) -> list[str]:
    """A line for each key that differs and because of which runs of `before` cannot be runs of `after`."""
    old, new = flatten(before), flatten(after)
    return [
        f"  {key}: the study has {old.get(key)!r}, now {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
        and key not in FREE
        and key.split(".")[0] not in before.idle_sections
        and not (key in GROWS and _grown(before, after, key))
    ]


def _grown(before: Study, after: Study, key: str) -> bool:
    """Whether a list still has all entries. The first seed must stay first: it splits the rows of tasks."""
    if key == "tasks":
        return all(task in after.tasks for task in before.tasks)
    if key == "seeds":
        return after.seeds[: len(before.seeds)] == before.seeds
    if key in ("best_of", "temperatures"):
        return set(getattr(before, key)) <= set(getattr(after, key))
    arms = {arm.name: arm for arm in after.arms}
    return all(arm.name in arms and _is_part_of(arm, arms[arm.name]) for arm in before.arms)


def _is_part_of(arm: Arm, more: Arm) -> bool:
    return (arm.set, arm.is_held) == (more.set, more.is_held) and set(arm.values) <= set(more.values)
