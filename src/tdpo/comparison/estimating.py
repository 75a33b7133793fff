"""How long a study will take: from the runs that are done, and for other arms from steps measured on this machine.

The parts of a run are counted as they are in `work.py`: a reference samples the preferences and its answers; a trained
run learns, answers the held-out prompts and has its KLs measured. Responses count at their full length, so runs whose
responses end earlier take less. A pass of a model with its backward counts as three forwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean

import torch

from ..config import Recipe, Study, Task, load_recipe
from ..methods import ARMS, BEST_OF
from ..models import load_tokenizer
from ..recipe_data.pairs import prompt_key
from ..records.json_files import read_json
from ..records.names import CELL_FILE
from ..records.study_tables import CellKey
from ..sampling.sampler import encode_prompts
from ..workflows.measured_speed import PASSES_OF_JUDGING, PASSES_OF_UPDATE, Speed, learning_seconds, measure_speed
from ..workflows.run_size import FEW, RunSize, size_of_pairs
from .cells import StudyFiles, task_environment, task_of, training_prompts, training_recipe
from .task_rows import task_rows

ANSWER_TOKENS = 64  # of evaluations without an environment


@dataclass(frozen=True)
class TaskSize:
    """What the runs of a task compute.

    Attributes:
        learned: what is learned from.
        held_out_pairs: how many pairs are judged.
        asked: held-out prompts.
        answer: the longest answer to one, in tokens.
    """

    learned: RunSize
    held_out_pairs: int
    asked: int
    answer: int


@dataclass(frozen=True)
class Estimate:
    """Seconds of all work that is left, over all processes, and on what they rest, in sentences."""

    seconds: float
    grounds: list[str]


def estimate(
    study: Study, files: StudyFiles, to_do: Sequence[CellKey], done: Sequence[CellKey], say: Callable[[str], None]
) -> Estimate:
    """How long the cells `to_do` will take. `say` is told when something is measured, which takes some seconds.

    Raises what reading the tasks, loading the model, sampling or learning would raise.
    """
    of_arm = seconds_by_arm(files, done)
    known = [cell for cell in to_do if cell.arm in of_arm]
    total = sum(mean(of_arm[cell.arm]) for cell in known)
    arms = dict.fromkeys(cell.arm for cell in known)
    grounds = [f"{arm}: {mean(of_arm[arm]):.0f} s a run, as in the {len(of_arm[arm])} that are done" for arm in arms]
    unknown = [cell for cell in to_do if cell.arm not in of_arm]
    if unknown:
        say(f"measuring a few steps of {study.model.name} for the estimate of the time; Ctrl-C leaves it out")
        sizes = {task: task_size(study, task_of(study, task)) for task in dict.fromkeys(c.task for c in unknown)}
        speed = _measured(study, next(iter(sizes.values())))
        total += sum(seconds_of_cell(study, files, cell, sizes[cell.task], speed) for cell in unknown)
        drawing = "; the server's time to draw responses is not in it" if study.sampling.is_server else ""
        grounds.append(f"measured now: {speed.description}{drawing}")
    return Estimate(total, grounds)


def seconds_by_arm(files: StudyFiles, done: Sequence[CellKey]) -> dict[str, list[float]]:
    """The seconds that finished cells took, by arm."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for cell in done:
        seconds[cell.arm].append(sum(read_json(files.cell(cell) / CELL_FILE)["seconds"].values()))
    return dict(seconds)


def task_size(study: Study, task: Task) -> TaskSize:
    """Count what the runs of a task compute. Raises what reading it raises."""
    environment = task_environment(task)
    if environment is None:
        return _size_of_rows(study, task)
    evaluation, sampling = study.evaluation, study.sampling
    tokenizer = load_tokenizer(study.model.name, trust_remote_code=study.model.trust_remote_code)
    chosen = training_prompts(study, environment, study.seeds[0])
    few = [prompt.rendered_from for prompt in chosen.train[:FEW]]
    return TaskSize(
        learned=RunSize(
            few,
            prompt=mean(map(len, encode_prompts(tokenizer, few))),
            response=sampling.max_new_tokens or environment.max_new_tokens,
            pairs=len(chosen.train) * sampling.pairs_per_prompt,
        ),
        held_out_pairs=0,
        asked=len(environment.held_out[: evaluation.max_prompts]),
        answer=evaluation.max_new_tokens or environment.max_new_tokens,
    )


def _size_of_rows(study: Study, task: Task) -> TaskSize:
    assert task.data is not None
    rows = task_rows(study, task)
    assert rows.eval is not None  # the study's schema asks for held-out rows
    recipe = load_recipe({"run_dir": "-", "data": task.data.model_dump(), "model": study.model.model_dump()})
    assert isinstance(recipe, Recipe)
    return TaskSize(
        learned=size_of_pairs(recipe, rows.train),
        held_out_pairs=len(rows.eval),
        asked=min(len({prompt_key(row) for row in rows.eval.rows}), study.evaluation.max_prompts or 0),
        answer=study.evaluation.max_new_tokens or ANSWER_TOKENS,
    )


def seconds_of_cell(study: Study, files: StudyFiles, cell: CellKey, size: TaskSize, speed: Speed) -> float:
    """The seconds of one cell at this speed."""
    answers = size.asked * study.evaluation.samples_per_prompt * size.answer * speed.token
    measured = size.asked * (study.evaluation.kl_samples_per_prompt or study.evaluation.samples_per_prompt)
    judged = speed.update(measured, size.learned.prompt + 2 * size.answer)
    share = PASSES_OF_JUDGING / PASSES_OF_UPDATE
    if ARMS[cell.arm].kind == "baseline":
        drawn = int(cell.strength) if cell.arm == BEST_OF else 1
        return speed.start + answers * drawn + (0.0 if cell.arm == BEST_OF else judged * share)
    if cell.arm == "reference":
        sampled = 0 if task_of(study, cell.task).environment is None else study.budget
        return speed.start + sampled * size.learned.response * speed.token + answers + judged * share
    judged += speed.update(size.held_out_pairs, size.learned.prompt + 2 * size.learned.response)
    recipe, learned = training_recipe(study, files, cell), size.learned
    if not isinstance(recipe, Recipe):
        learned = replace(learned, response=recipe.rollouts.max_new_tokens or size.answer)
    # The model is loaded to learn, and once more to answer.
    learning = learning_seconds(recipe, speed, learned)
    return 2 * speed.start + learning + answers + judged * share


def _measured(study: Study, size: TaskSize) -> Speed:
    with _threads(study.threads):
        return measure_speed(
            study.model,
            size.learned.prompts,
            max(1, round(size.learned.response)),
            pairs=study.training.micro_batch_size or study.training.batch_size,
            responses=0 if study.sampling.is_server else study.sampling.batch_size,
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
