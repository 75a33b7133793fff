"""Run directories as the report sees them: everything that is there, and a note for everything that is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..guards.documents import DocumentError, load_yaml
from ..methods import public_name
from ..records.best_update import best_in_words
from ..records.dotted import at, dict_at, text_at
from ..records.names import (
    COMPLETIONS_FILE,
    DATA_FILE,
    EVALUATION_FILE,
    LOCK_FILE,
    MACHINE_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    RECIPE_FILE,
    SAMPLES_FILE,
    STATUS_FILE,
    TRAINER_FILE,
)
from ..records.run_places import is_model_folder, is_recipe_run, meant_by, newest_checkpoint, results_folder, run_above
from ..records.run_states import state_of
from .metrics_reading import read_metrics
from .numbers import number
from .reading import LenientFolder
from .run import Run

RUN_FILES = (RECIPE_FILE, MACHINE_FILE, DATA_FILE, METRICS_FILE, STATUS_FILE, EVALUATION_FILE, SAMPLES_FILE)
TRACES = (*RUN_FILES, TRAINER_FILE)
WHAT_EVALUATING_DOES = "compare it with the base model"


def load_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """Read every run directory and give each a label that no other has.

    Raises ValueError when there is no directory, or one is given twice, FileNotFoundError when one does not exist
    or holds none of a run's files. Anything else that is wrong with a run is said in the report instead.
    """
    if not run_dirs:
        raise ValueError("no run directory given: a report needs at least one, for instance runs/sentiment-tdpo2")
    paths = [meant_by(Path(run_dir)) for run_dir in run_dirs]
    repeated = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if repeated:
        raise ValueError(f"run directory given twice: {', '.join(repeated)}; name each run once")
    runs = [_load_run(path, index) for index, path in enumerate(paths)]
    return [replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def _load_run(path: Path, index: int) -> Run:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such run directory; expected a folder that `tdpo train`, `tdpo ppo` or `tdpo compare` wrote"
        )
    above = run_above(path)
    of_this_model = (results_folder(path), path)
    files = LenientFolder(path, fallbacks=(*of_this_model, *([] if above is None else [above])))
    if not any(files.place(name).exists() for name in TRACES):
        raise FileNotFoundError(_why_nothing_to_report(path))
    # The evaluation of a run is one of another model than that of its checkpoint.
    judged = LenientFolder(of_this_model[0], files.notes, of_this_model)
    recipe, recipe_text, recipe_file, best = _read_recipe(files)
    status = _read_status(files)
    evaluation = judged.json(EVALUATION_FILE, _without_evaluation(path, recipe_file, status))
    run = Run(
        path=path,
        label=path.resolve().name,
        index=index,
        recipe=recipe,
        recipe_text=recipe_text,
        recipe_file=recipe_file,
        best=best,
        machine=files.json(MACHINE_FILE, "versions, hardware and command are unknown"),
        data=files.json(DATA_FILE, "what the training data held is unknown"),
        metrics=read_metrics(files),
        status=status,
        evaluation=evaluation,
        samples=_read_samples(judged, evaluation),
        completions=_read_completions(files),
        notes=files.notes,
    )
    if above is None and is_model_folder(path) and not recipe_file:
        run.notes[:] = _known_of_a_model_alone(run.notes)
    if above is not None:
        run.notes.append(f"This is {path.name} of the run in {above}: curves, data and machine are those of the run.")
    run.notes.extend(_gaps(run))
    return run


def _known_of_a_model_alone(notes: list[str]) -> list[str]:
    """The notes on a model that no trainer of tdpo made: one sentence on the files that only those write."""
    not_here = tuple(f"{name} is missing" for name in RUN_FILES if name not in (EVALUATION_FILE, SAMPLES_FILE))
    others = [note for note in notes if not note.startswith(not_here)]
    return ["How this model was trained is not recorded: the page shows what its evaluation found.", *others]


def _why_nothing_to_report(path: Path) -> str:
    if is_model_folder(path):
        return f"{path}: there is nothing to report on this model yet; judge it first: `{_evaluating(path, '')}`"
    return f"{path}: not a run directory; expected at least one of {', '.join(TRACES)}"


def _evaluating(path: Path, recipe_file: str) -> str:
    """The command that judges a run; what only a recipe says is a flag elsewhere."""
    return f"tdpo evaluate {path}" + ("" if recipe_file == RECIPE_FILE else " --data FILE")


def _without_evaluation(path: Path, recipe_file: str, status: dict[str, Any]) -> str:
    command = f"`{_evaluating(path, recipe_file)}`"
    if awaits_its_model(path, status):
        return f"{command} can {WHAT_EVALUATING_DOES} once its training has finished"
    return f"run {command} to {WHAT_EVALUATING_DOES}"


def awaits_its_model(path: Path, status: dict[str, Any]) -> bool:
    """Whether training has not finished and left nothing so far that `tdpo evaluate` could judge."""
    if text_at(status, "state") in ("", "finished") or is_model_folder(path):
        return False
    if is_recipe_run(path):  # of which a checkpoint is judged under its own name
        return not is_model_folder(path / MODEL_FOLDER)
    return meant_by(path) == path and not is_model_folder(path / MODEL_FOLDER) and newest_checkpoint(path) is None


def _read_status(run: LenientFolder) -> dict[str, Any]:
    """The content of status.json. A run that says "running" while no process holds its lock was killed."""
    status = run.json(STATUS_FILE, "whether training finished is unknown")
    if "state" not in status:
        return status
    return {**status, "state": state_of(status, run.place(STATUS_FILE).with_name(LOCK_FILE))}


def _read_samples(run: LenientFolder, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The responses of the evaluation, which need not have any."""
    if evaluation and not evaluation.get("generations"):
        if run.place(SAMPLES_FILE).exists():
            run.notes.append(
                f"{SAMPLES_FILE} is of an earlier evaluation and is not shown: the last one has no responses."
            )
        return []
    return run.json_lines(SAMPLES_FILE, "there are no responses to read")


def _read_completions(run: LenientFolder) -> list[dict[str, Any]]:
    """Responses of a run's rollouts; only PPO writes them, and not if it was told not to."""
    there = run.place(COMPLETIONS_FILE).exists()
    return run.json_lines(COMPLETIONS_FILE, "there are no responses from training to read") if there else []


def _read_recipe(run: LenientFolder) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
    """The settings by section and key, their text, and the file that they are from: a recipe, or a trainer's record;
    and what that record says of the best model."""
    import yaml

    if not run.place(RECIPE_FILE).exists() and run.place(TRAINER_FILE).exists():
        record = run.json(TRAINER_FILE, "the settings of this run are unknown")
        settings = dict_at(record, "settings")
        as_yaml = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        return settings, as_yaml, TRAINER_FILE, dict_at(record, "best")
    text = run.text(RECIPE_FILE, "the settings of this run are unknown")
    if text is None:
        return {}, "", "", {}
    try:
        value = load_yaml(text)
    except DocumentError as error:
        run.notes.append(f"recipe.yaml {error}: it is shown as it is.")
        return {}, text, RECIPE_FILE, {}
    except yaml.YAMLError as error:
        run.notes.append(f"recipe.yaml is not valid YAML ({error}): it is shown as it is.")
        return {}, text, RECIPE_FILE, {}
    return (value if isinstance(value, dict) else {}), text, RECIPE_FILE, {}


def _gaps(run: Run) -> list[str]:
    """Sentences on parts that are absent although their file is there."""
    notes = []
    if run.best and run.best.get("step") != run.best.get("of"):
        notes.append(f"The model is that of {best_in_words(run.best)}: the curves go on after it.")
    if assumed := dict_at(run.evaluation, "run", "margin_of"):
        beta = f" with β = {assumed['beta']}" if assumed.get("beta") is not None else ""
        notes.append(
            f"The training had no margin of pairs, or its method is not recorded: accuracy and margin are those of "
            f"{public_name(text_at(assumed, 'loss'))}{beta}."
        )
    if run.metrics and not any(line.get("split") == "eval" for line in run.metrics):
        batches = "responses to training prompts" if run.on_own_responses else "training batches"
        notes.append(f"No evaluation during training was logged: the curves show {batches} only.")
    if run.evaluation and not run.evaluation.get("pairs") and not run.on_own_responses:
        notes.append("No held-out pairs were evaluated: accuracy and KL on pairs are known from training only.")
    notes += _too_few_prompts(run)
    for key in sorted({key for line in run.metrics for key in line}):
        values = [line[key] for line in run.metrics if isinstance(line.get(key), float)]
        bad = [line for line in run.metrics if isinstance(line.get(key), float) and number(line[key]) is None]
        if bad:
            notes.append(
                f"{key} was not finite in {len(bad)} of {len(values)} logged lines "
                f"(first at step {bad[0].get('step')}): the curve has gaps there."
            )
    return notes


def _too_few_prompts(run: Run) -> list[str]:
    """A sentence for each part of the evaluation whose means have no intervals, which is so with too few prompts."""
    parts = (
        (
            "Held-out prompts that were answered",
            ("settings", "prompts"),
            ("generations", "trained", "reverse_kl_interval"),
        ),
        ("Prompts of the held-out pairs", ("pairs", "prompts"), ("pairs", "intervals", "margin")),
    )
    sentences = []
    for what, count_at, (*place, key) in parts:
        count, numbers = number(at(run.evaluation, *count_at)), dict_at(run.evaluation, *place)
        if count is not None and key in numbers and numbers[key] is None:
            sentences.append(f"{what}: {count:.0f}. They are too few, or too much alike, for intervals of means.")
    return sentences


def _labels(runs: list[Run]) -> list[str]:
    """The method's name where it tells the runs apart, if need be with PPO's KL; else the folder's, with its parent
    or a number if need be."""
    losses = [run.loss for run in runs]
    with_kl = [_with_direction(run) for run in runs]
    for labels in (losses, with_kl):
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    folders = [run.path.resolve() for run in runs]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    uses: Counter[str] = Counter()
    for position, name in enumerate(names):
        uses[name] += 1
        names[position] = name if uses[name] == 1 else f"{name} ({uses[name]})"
    return names


def _with_direction(run: Run) -> str:
    direction = text_at(run.kl, "direction")
    return f"{run.loss}, {direction} KL" if run.is_ppo and direction else run.loss
