"""The files of a study from what its finished cells left: tables, claims, and what the study was.

Everything but the seconds (timings.csv, about.json) depends on the cells alone, not on when or in which order they ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..config import Study
from ..records.files import now
from ..records.json_files import read_json, read_jsonl, write_json
from ..runs import RunDirectory, describe_machine
from .arms import ARM_KINDS, LABELS
from .bootstrap import cell_results, means_over_seeds
from .cells import MEASURED_FILE, StudyFiles, applies, cells_of, strength_text, task_environment, task_of
from .claims import judge_claims
from .running import CELL_FILE, Failure, is_done
from .tables import (
    CellKey,
    CurveRow,
    PromptRow,
    PromptTable,
    ResponseRow,
    ResultRow,
    write_curves,
    write_prompts,
    write_responses,
    write_results,
)

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
    measured = {cell: read_json(files.cell(cell) / MEASURED_FILE) for cell in done}
    table = PromptTable.from_rows(_prompt_rows(measured))
    results = [*cell_results(table), *_overall_rows(measured)]
    write_results(files.folder / "results.csv", results)
    write_prompts(files.folder / "prompts.csv", table)
    write_responses(files.folder / "responses.csv", (row for cell in done for row in _responses(study, files, cell)))
    write_curves(files.folder / "curves.csv", (row for cell in done for row in _curves(study, files, cell)))
    write_results(files.folder / "timings.csv", _timings(files, done))
    write_json(files.folder / "claims.json", judge_claims(table, planned))
    write_json(files.folder / "about.json", {**_about(study, files, done, planned, failures), **about})


def _prompt_rows(measured: Mapping[CellKey, dict[str, Any]]) -> Iterator[PromptRow]:
    for cell, found in measured.items():
        for metric, values in found["by_prompt"].items():
            for prompt, value in zip(found["prompts"], values, strict=True):
                yield PromptRow(cell, prompt, metric, value)


def _overall_rows(measured: Mapping[CellKey, dict[str, Any]]) -> list[ResultRow]:
    """What is not a mean over prompts: such numbers have no interval."""
    rows = [
        ResultRow(cell.task, cell.arm, cell.strength, cell.seed, metric, value)
        for cell, found in measured.items()
        for metric, value in found["overall"].items()
        if metric not in found["by_prompt"]
    ]
    return [*rows, *means_over_seeds(rows)]


def _responses(study: Study, files: StudyFiles, cell: CellKey) -> Iterator[ResponseRow]:
    environment = task_environment(task_of(study, cell.task))
    prompts = {} if environment is None else {prompt.id: prompt for prompt in environment.held_out}
    model = "base" if cell.arm == "reference" else "trained"
    for line in read_jsonl(files.run(cell) / "samples.jsonl"):
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
    """Training logs; a PPO run's also by responses scored so far, of which runs on preferences have all beforehand."""
    if cell.arm == "reference":
        return
    is_ppo = ARM_KINDS[cell.arm].kind == "ppo"
    iteration = 0
    for line in RunDirectory(files.run(cell)).metrics():
        if line["split"] != "train" or (is_ppo and "reward_mean" not in line):
            continue
        iteration += 1
        completions = iteration * study.rollouts.completions if is_ppo else None
        for name, metric in CURVES.items():
            if name in line:
                yield CurveRow(cell, line["step"], completions, metric, line[name])


def _timings(files: StudyFiles, done: Iterable[CellKey]) -> list[ResultRow]:
    """Seconds by stage; a cell that was interrupted has those of its last call for the stage under way."""
    rows = []
    for cell in done:
        seconds = read_json(files.cell(cell) / CELL_FILE)["seconds"]
        named = {"train_seconds": seconds.get("training"), "judging_seconds": _judging(seconds)}
        if cell.arm == "reference":
            named["sampling_seconds"] = seconds.get("preferences")
        rows += [
            ResultRow(cell.task, cell.arm, cell.strength, cell.seed, name, value)
            for name, value in named.items()
            if value is not None
        ]
    return [*rows, *means_over_seeds(rows)]


def _judging(seconds: Mapping[str, float]) -> float:
    return round(sum(seconds.get(stage, 0.0) for stage in ("samples", "evaluation", "diversity")), 1)


def _about(
    study: Study, files: StudyFiles, done: Sequence[CellKey], planned: Sequence[CellKey], failures: Sequence[Failure]
) -> dict[str, Any]:
    made_with = describe_machine(0)
    arms = [{"name": "reference", "strengths": []}, *(arm.model_dump() for arm in study.arms)]
    return {
        "schema": 1,
        "title": files.folder.resolve().name,
        "tdpo": made_with["versions"]["tdpo"],
        "versions": made_with["versions"],
        "hardware": made_with["hardware"],
        "model": study.model.name,
        "budget": study.budget,
        "updated": now(),
        "tasks": [_task(study, files, task.label, done) for task in study.tasks],
        "arms": [
            {
                "name": arm["name"],
                "label": LABELS[arm["name"]],
                "what": ARM_KINDS[arm["name"]].what,
                "strength": ARM_KINDS[arm["name"]].strength,
                "strengths": [strength_text(strength) for strength in arm["strengths"]],
            }
            for arm in arms
        ],
        "seeds": study.seeds,
        "cells": {
            "done": len(done),
            "failed": len(failures),
            "waiting": len(planned) - len(done) - len(failures),
        },
        "failures": [failure.as_dict(files) for failure in failures],
    }


def _task(study: Study, files: StudyFiles, name: str, done: Sequence[CellKey]) -> dict[str, Any]:
    task = task_of(study, name)
    environment = task_environment(task)
    left_out = [LABELS[arm.name] for arm in study.arms if not applies(arm.name, task)]
    prompts = [read_json(files.cell(cell) / MEASURED_FILE)["prompts"] for cell in done if cell.task == name][:1]
    described: dict[str, Any] = {
        "name": name,
        "kind": "preferences" if environment is None else "environment",
        "description": f"preferences from {task.data.train}" if task.data is not None else "",
        "reward": "",
        "threshold": None,
        "modes": [],
        "max_new_tokens": study.evaluation.max_new_tokens or 64,
    }
    if environment is not None:
        modes = {mode for prompt in environment.held_out for mode in environment.modes_of(prompt)}
        described |= {
            "description": environment.description,
            "reward": environment.reward_name,
            "threshold": environment.threshold,
            "modes": sorted(modes),
            "max_new_tokens": study.evaluation.max_new_tokens or environment.max_new_tokens,
        }
    return described | {
        "prompts": len(prompts[0]) if prompts else 0,
        "samples_per_prompt": study.evaluation.samples_per_prompt,
        "left_out": left_out,
    }
