"""The model of a cell at the KL target that its training was held at: the adapter times the factor that meets it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from ..config import AnyRecipe, Study
from ..environments import Environment, Prompt, drawn_prompts
from ..evaluation.judged_models import JudgedModels, Progress
from ..evaluation.meeting_target import Meeting, scale_to_target
from ..evaluation.trained_model import TrainedModel, model_of_run
from ..methods import ARMS
from ..models.adapter_scaling import save_scaled_adapter
from ..records.folders import remove
from ..records.json_files import read_json, write_json
from ..records.names import MET_FILE, MET_FOLDER
from ..records.study_tables import CellKey
from ..runs import RunDirectory
from ..sampling.sampler import SamplingSettings
from .cells import StudyFiles, task_environment, task_of, training_prompts

PROMPTS, SAMPLES = 48, 2  # responses to measure a KL by: one in fourteen of its standard deviation


def model_on_target(
    study: Study, files: StudyFiles, cell: CellKey, recipe: AnyRecipe, *, progress: Progress | None = None
) -> TrainedModel:
    """The trained model whose KL meets the cell's target; it is made where an earlier call has not made it.

    Raises:
        ValueError: the policy has not moved from its reference, or its adapter is not plain LoRA.
    """
    run = RunDirectory(files.run(cell))
    recipe = run.with_models_found(recipe)
    trained, folder = model_of_run(run, recipe), files.cell(cell) / MET_FOLDER
    if not _about(files, cell).exists():
        forget_meeting(files, cell)  # what an interrupted call left
        meeting = _found(study, cell, run, recipe, trained, progress)
        save_scaled_adapter(Path(trained.folder), folder, meeting.factor)
        write_json(_about(files, cell), asdict(meeting))
    return replace(trained, folder=folder)


def forget_meeting(files: StudyFiles, cell: CellKey) -> None:
    """Remove what was made of a training that is to be done anew."""
    remove(_about(files, cell))
    remove(files.cell(cell) / MET_FOLDER)


def adapter_factor(files: StudyFiles, cell: CellKey) -> dict[str, float]:
    """The factor as a number of the cell; nothing where there is none."""
    about = _about(files, cell)
    return {"adapter_factor": read_json(about)["factor"]} if about.exists() else {}


def _about(files: StudyFiles, cell: CellKey) -> Path:
    return files.cell(cell) / MET_FILE


def _found(
    study: Study,
    cell: CellKey,
    run: RunDirectory,
    recipe: AnyRecipe,
    trained: TrainedModel,
    progress: Progress | None,
) -> Meeting:
    environment = task_environment(task_of(study, cell.task))
    direction = study.target_direction or ARMS[cell.arm].direction
    assert environment is not None and direction is not None  # the study's schema asks for both
    judged = JudgedModels.trained(run, recipe, trained, None, None, None)
    evaluation = study.evaluation
    settings = SamplingSettings(
        num_samples=SAMPLES,
        max_new_tokens=evaluation.max_new_tokens or environment.max_new_tokens,
        temperature=evaluation.temperature,
        seed=evaluation.seed + cell.seed,
        batch_size=evaluation.batch_size,
    )
    return scale_to_target(
        judged.policy,
        judged.statistics,
        judged.tokenizer,
        [prompt.rendered_from for prompt in meeting_prompts(study, environment, cell.seed)],
        settings,
        float(cell.strength),
        direction,
        progress=None if progress is None else lambda done, total: progress("meeting the target", done, total),
    )


def meeting_prompts(study: Study, environment: Environment, seed: int) -> list[Prompt]:
    """Prompts to measure the KL on: held-out ones that are not judged, whose themes training has not seen either, or
    else training prompts that no run of this seed trained on, or else all training prompts. A policy goes farther from
    its reference on what it was trained on, and on prompts like it."""
    judged = study.evaluation.max_prompts
    trained_on = {prompt.id for prompt in training_prompts(study, environment, seed).train}
    held_out = [] if judged is None else list(environment.held_out[judged:])
    unseen = [prompt for prompt in environment.train if prompt.id not in trained_on]
    source = next((part for part in (held_out, unseen) if len(part) >= PROMPTS), list(environment.train))
    return drawn_prompts(source, min(PROMPTS, len(source)), seed)
