"""Where the files of a run lie that a checkpoint, or the folder of a saved model, belongs to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .json_files import read_json
from .names import EVALUATION_FOLDER, MODEL_FOLDER, RECIPE_FILE, STATUS_FILE, TRAINER_FILE

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MODEL_FILES = ("config.json", "adapter_config.json")


def is_model_folder(folder: Path) -> bool:
    """Whether the folder holds a model or an adapter."""
    return any((folder / name).is_file() for name in MODEL_FILES)


def is_trainer_run(folder: Path) -> bool:
    """Whether a trainer in Python trained in this folder; beside a saved model lies a copy of its record alone."""
    return all((folder / name).is_file() for name in (TRAINER_FILE, STATUS_FILE))


def is_recipe_run(folder: Path) -> bool:
    """Whether a recipe's run was begun in this folder."""
    return all((folder / name).is_file() for name in (RECIPE_FILE, STATUS_FILE))


def run_above(folder: Path) -> Path | None:
    """The run that a checkpoint or the folder of a model lies in."""
    parent = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    return parent if is_model_folder(folder) and (is_recipe_run(parent) or is_trainer_run(parent)) else None


def saved_model(run: Path) -> Path | None:
    """The folder of the model that a run's training saved; for a trainer in Python, where that can be found."""
    if is_recipe_run(run):
        return run / MODEL_FOLDER
    saved = trainer_record(run).get("model")
    named = [run / saved] if isinstance(saved, str) else []
    return next((model for model in (*named, run / MODEL_FOLDER, run) if is_model_folder(model)), None)


def trainer_record(folder: Path) -> dict[str, Any]:
    """What a trainer in Python recorded in this folder; {} where it did not.

    Raises:
        ValueError: the file is broken.
    """
    file = folder / TRAINER_FILE
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no record of a trainer, which is a JSON object: restore it, or delete it")
    return content


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most updates that holds a model, whatever wrote it."""
    there = [(int(match[1]), p) for p in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(p.name))]
    return max(((step, p) for step, p in there if is_model_folder(p)), default=(0, None))[1]


def meant_by(folder: Path) -> Path:
    """The folder whose results somebody asks for who names `folder`.

    The saved model of a run stands for the run, and a folder that holds checkpoints alone for the newest.
    """
    above = run_above(folder)
    if above is not None:
        whole = saved_model(above)
        return above if whole is not None and whole.resolve() == folder.resolve() else folder
    if is_model_folder(folder) or is_recipe_run(folder) or is_trainer_run(folder):
        return folder
    return newest_checkpoint(folder) or folder


def results_folder(folder: Path) -> Path:
    """Where an evaluation of a checkpoint or a model goes: a subfolder, so that the model stays what it was."""
    return folder / EVALUATION_FOLDER if is_model_folder(folder) and not is_trainer_run(folder) else folder
