"""Writes the files of a study from the numbers of its finished cells: tables, claims, about.json.

Everything but the seconds (timings.csv, about.json) depends on the cells alone, not on when or in which order they ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..config import Study
from ..methods import ARMS, REFERENCE
from ..records.files import now
from ..records.json_files import read_json, read_jsonl, write_json
from ..records.names import (
    ABOUT_FILE,
    CELL_FILE,
    CLAIMS_FILE,
    CURVES_FILE,
    MEASURED_FILE,
    PROMPTS_FILE,
    QUESTIONS_FILE,
    RESPONSES_FILE,
    RESULTS_FILE,
    SAMPLES_FILE,
    TIMINGS_FILE,
)
from ..records.run_times import cache_seconds, training_seconds
from ..records.study_about import ArmFacts, TaskFacts
from ..records.study_tables import (
    CellKey,
    CurveRow,
    PromptRow,
    ResponseRow,
    ResultRow,
    write_curves,
    write_prompts,
    write_responses,
    write_results,
)
from ..runs import RunDirectory, describe_machine
from .answering import answers_of, claims_of
from .cell_statistics import cell_results, means_over_seeds
from .cells import (
    StudyFiles,
    applies,
    baselines_of,
    cells_of,
    strength_kind,
    strength_text,
    task_environment,
    task_of,
)
from .claims import judge_claims
from .prompt_table import PromptTable
from .running import Failure, is_done

CURVES = {
    "reward_mean": "reward_mean",
    "accuracy": "accuracy",
    "margin": "margin",
    "loss": "loss",
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "chosen_forward_kl": "forward_kl",
    "chosen_reverse_kl": "reverse_kl",
}


def write_study(study: Study, files: StudyFiles, failures: Sequence[Failure], about: Mapping[str, Any]) -> None:
    """Write all files of the study but its report. `about` is what about.json says of the call: command, seconds
    and inputs that have changed."""
    planned = cells_of(study)
    done = [cell for cell in planned if is_done(files, cell)]
    numbers = {cell: read_json(files.cell(cell) / MEASURED_FILE) for cell in done}
    table = PromptTable.from_rows(_prompt_rows(study, numbers))
    results = [*cell_results(table), *_overall_rows(numbers)]
    write_results(files.folder / RESULTS_FILE, results)
    write_prompts(files.folder / PROMPTS_FILE, table.rows())
    write_responses(files.folder / RESPONSES_FILE, (row for cell in done for row in _responses(study, files, cell)))
    write_curves(files.folder / CURVES_FILE, (row for cell in done for row in _curves(study, files, cell)))
    write_results(files.folder / TIMINGS_FILE, _timings(files, done))
    write_json(files.folder / CLAIMS_FILE, judge_claims(table, planned, claims=claims_of(study)))
    if study.questions is not None:
        write_json(files.folder / QUESTIONS_FILE, answers_of(study, table, sorted(set(planned) - set(done))))
    else:
        (files.folder / QUESTIONS_FILE).unlink(missing_ok=True)
    write_json(files.folder / ABOUT_FILE, {**_about(study, files, done, planned, failures), **about})


def _prompt_rows(study: Study, numbers: Mapping[CellKey, dict[str, Any]]) -> Iterator[PromptRow]:
    for cell, of_cell in numbers.items():
        kind, prompts = strength_kind(study, cell.arm), of_cell["prompts"]
        clusters = of_cell.get("clusters", prompts)  # earlier versions wrote none
        for metric, values in of_cell["by_prompt"].items():
            for prompt, value, cluster in zip(prompts, values, clusters, strict=True):
                yield PromptRow(cell, prompt, metric, value, cluster, kind)


def _overall_rows(numbers: Mapping[CellKey, dict[str, Any]]) -> list[ResultRow]:
    """Numbers that are no mean over prompts. They have no interval."""
    rows = [
        ResultRow(cell.task, cell.arm, cell.strength, cell.seed, metric, value)
        for cell, of_cell in numbers.items()
        for metric, value in of_cell["overall"].items()
        if metric not in of_cell["by_prompt"]
    ]
    return [*rows, *means_over_seeds(rows)]


def _responses(study: Study, files: StudyFiles, cell: CellKey) -> Iterator[ResponseRow]:
    environment = task_environment(task_of(study, cell.task))
    prompts = {} if environment is None else {prompt.id: prompt for prompt in environment.held_out}
    model = "base" if cell.arm == "reference" else "trained"
    for line in read_jsonl(files.run(cell) / SAMPLES_FILE):
        if line["model"] != model:
            continue
        mode = None
        if environment is not None and environment.mode_of is not None:
            mode = environment.mode_of(prompts[line["prompt_id"]], line["text"])
        yield ResponseRow(
            cell,
            line["prompt_id"],
            line["prompt"],
            line["sample_index"],
            line["text"],
            line["reward"],
            line["tokens"],
            line["finished"],
            line["reverse_kl"],
            mode,
        )


def _curves(study: Study, files: StudyFiles, cell: CellKey) -> Iterator[CurveRow]:
    """Training logs by update. Runs on own responses also have those scored so far; runs on preferences have all
    responses scored before they begin."""
    if not ARMS[cell.arm].is_trained:
        return
    draws_itself = ARMS[cell.arm].kind in ("ppo", "online")
    iteration = 0
    for line in RunDirectory(files.run(cell)).metrics():
        if line["split"] != "train" or (draws_itself and "reward_mean" not in line):
            continue
        iteration += 1
        completions = iteration * study.rollouts.completions if draws_itself else None
        for name, metric in CURVES.items():
            if name in line:
                yield CurveRow(cell, line["step"], completions, metric, line[name])


def _timings(files: StudyFiles, done: Iterable[CellKey]) -> list[ResultRow]:
    """Seconds by stage. Of judging that was interrupted they are those of the last call.

    Training is counted as in the report of a run: the reference cache, which the first of the cells that share it pays,
    stands apart, and loading is in neither. Logs that say nothing of it leave the whole stage.
    """
    rows = []
    for cell in done:
        seconds = read_json(files.cell(cell) / CELL_FILE)["seconds"]
        lines = RunDirectory(files.run(cell)).metrics()
        by_name = {
            "train_seconds": training_seconds(lines) or seconds.get("training"),
            "cache_seconds": cache_seconds(lines) or None,
            "judging_seconds": _judging(seconds),
        }
        if cell.arm == "reference":
            by_name["sampling_seconds"] = seconds.get("preferences")
        rows += [
            ResultRow(cell.task, cell.arm, cell.strength, cell.seed, name, value)
            for name, value in by_name.items()
            if value is not None
        ]
    return [*rows, *means_over_seeds(rows)]


def _judging(seconds: Mapping[str, float]) -> float:
    return round(sum(seconds.get(stage, 0.0) for stage in ("samples", "evaluation", "diversity")), 1)


def _about(
    study: Study, files: StudyFiles, done: Sequence[CellKey], planned: Sequence[CellKey], failures: Sequence[Failure]
) -> dict[str, Any]:
    machine = describe_machine(0)
    values: dict[str, Sequence[float]] = {REFERENCE: [], **baselines_of(study)}
    values |= {arm.name: arm.values for arm in study.arms}
    arms = [_arm(study, name, of_arm) for name, of_arm in values.items() if of_arm or name == REFERENCE]
    return {
        "schema": 1,
        "title": files.folder.resolve().name,
        "tdpo": machine["versions"]["tdpo"],
        "versions": machine["versions"],
        "hardware": machine["hardware"],
        "model": study.model.name,
        "budget": study.budget,
        "updated": now(),
        "tasks": [asdict(_task(study, files, task.label, done)) for task in study.tasks],
        "arms": [asdict(arm) for arm in arms],
        "seeds": study.seeds,
        "cells": {
            "done": len(done),
            "failed": len(failures),
            "waiting": len(planned) - len(done) - len(failures),
        },
        "failures": [failure.as_dict(files) for failure in failures],
    }


def _arm(study: Study, name: str, strengths: Sequence[float]) -> ArmFacts:
    kind, strength = ARMS[name], ARMS[name].strength
    if strength_kind(study, name) == "target":
        direction = study.target_direction or kind.direction
        strength = f"target of the {direction} KL, nats"
    return ArmFacts(name, kind.label, kind.what, strength, [strength_text(value) for value in strengths])


def _task(study: Study, files: StudyFiles, name: str, done: Sequence[CellKey]) -> TaskFacts:
    task = task_of(study, name)
    prompts = [read_json(files.cell(cell) / MEASURED_FILE)["prompts"] for cell in done if cell.task == name][:1]
    facts = TaskFacts(
        name,
        kind="preferences",
        description=f"preferences from {task.data.train}" if task.data is not None else "",
        reward="",
        modes=[],
        max_new_tokens=study.evaluation.max_new_tokens or 64,
        prompts=len(prompts[0]) if prompts else 0,
        samples_per_prompt=study.evaluation.samples_per_prompt,
        left_out=[ARMS[arm.name].label for arm in study.arms if not applies(arm.name, task)],
    )
    environment = task_environment(task)
    if environment is None:
        return facts
    modes = {mode for prompt in environment.held_out for mode in environment.modes_of(prompt)}
    return replace(
        facts,
        kind="environment",
        description=environment.description,
        reward=environment.reward_name,
        threshold=environment.threshold,
        modes=sorted(modes),
        max_new_tokens=study.evaluation.max_new_tokens or environment.max_new_tokens,
    )
