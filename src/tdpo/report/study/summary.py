"""The study in words: what was compared, at what price, what came of the claims, what is missing."""

from __future__ import annotations

from ...methods import REFERENCE
from ...records.dotted import dict_at, text_at
from ..numbers import counted, join_words, number, show, show_duration
from .answers import Answers
from .claims import Claim, tally
from .curves import TaskCurves
from .frontiers import TaskFrontiers
from .provenance import changed_inputs, failures
from .samples import Samples
from .study_reading import StudyRecord, seeds_of


def summary(study: StudyRecord, claims: list[Claim], answers: Answers | None = None) -> str:
    """One paragraph on what was compared and what came of it."""
    methods = [arm.label for arm in study.arms if arm.name != REFERENCE]
    tasks, seeds = [task.name for task in study.tasks], seeds_of(study)
    model = text_at(study.about, "model")
    sentences = [
        f"{counted(len(methods), 'method')} ({join_words(methods)}) {'was' if len(methods) == 1 else 'were'} "
        f"compared on {counted(len(tasks), 'task')} ({join_words(tasks)})"
        + (f", starting from {model}, the reference." if model else ", with the model they start from, the reference.")
    ]
    strengths = {len(arm.strengths) for arm in study.arms if arm.strengths}
    if strengths:
        most, least = max(strengths), min(strengths)
        words = counted(most, "strength") if most == least else f"{least} to {most} strengths"
        sentences.append(f"Each ran at {words} of its tie to the reference and with {counted(len(seeds), 'seed')}.")
    budget = number(study.about.get("budget"))
    if budget is not None:
        sentences.append(f"Every training had the same budget: {show(int(budget))} scored completions.")
    sentences += _measured(study)
    if answers is not None:
        sentences.append(answers.summary)
    if claims or answers is None:
        sentences.append(tally(claims) if claims else "No claim was judged.")
    return " ".join(sentences)


def _measured(study: StudyRecord) -> list[str]:
    sizes = {(task.facts.prompts, task.facts.samples_per_prompt) for task in study.tasks}
    if len(sizes) != 1:
        return []
    prompts, samples = sizes.pop()
    if number(prompts) is None or number(samples) is None:
        return []
    return [f"All were measured on {counted(prompts, 'held-out prompt')}, with {counted(samples, 'response')} to each."]


def glance(study: StudyRecord) -> list[tuple[str, str]]:
    """A few facts for the top of the page, as (name, value)."""
    about = study.about
    done = number(dict_at(about, "cells").get("done"))
    budget, seconds = number(about.get("budget")), number(about.get("seconds"))
    facts = [
        ("Tasks", show(len(study.tasks))),
        ("Methods", show(sum(arm.name != REFERENCE for arm in study.arms))),
        ("Seeds", show(len(seeds_of(study)))),
        ("Cells", show(int(done)) if done is not None else ""),
        ("Budget a cell", f"{show(int(budget))} scored" if budget is not None else ""),
        ("Responses", show(len(study.responses)) if study.responses else ""),
        ("Duration", show_duration(seconds) if seconds is not None else ""),
    ]
    return [(name, value) for name, value in facts if value]


def notices(
    study: StudyRecord, frontiers: list[TaskFrontiers], curves: list[TaskCurves], samples: Samples | None
) -> list[tuple[str, list[str]]]:
    """What a reader should know before trusting the numbers, by subject."""
    cells = dict_at(study.about, "cells")
    state = []
    failed = int(number(cells.get("failed")) or len(failures(study)))
    waiting = int(number(cells.get("waiting")) or 0)
    if failed:
        state.append(f"{counted(failed, 'cell')} failed; every mean is over the seeds that are there.")
    if waiting:
        state.append(f"{counted(waiting, 'cell has', 'cells have')} not run yet: the numbers here are not final.")
    state += changed_inputs(study)
    if len(seeds_of(study)) == 1:
        state.append("With one seed, intervals tell how the prompts vary, and nothing about how training varies.")
    subjects = [("The study", state)] if state else []
    for shown, learned in zip(frontiers, curves, strict=True):
        gaps = [shown.missing] if shown.missing else []
        if not study.has(shown.task.name, "reward_mean") and not shown.missing:
            gaps.append("No reward: its frontiers show the accuracy on held-out pairs instead.")
        if not learned.figures and study.curves:
            gaps.append("No training curves.")
        if gaps:
            subjects.append((shown.task.name, gaps))
    if samples and samples.shown < samples.total:
        subjects.append(("Responses", [subset_words(samples)]))
    return subjects + ([("Files", study.notes)] if study.notes else [])


def subset_words(samples: Samples) -> str:
    """Which responses the page holds, where it does not hold all."""
    if samples.shown == samples.total:
        return f"All {show(samples.total)} responses are in this file."
    parts = [f"{_first(samples.per_prompt, 'response')} to a prompt"] if samples.per_prompt else []
    parts += [f"{_first(samples.prompts, 'prompt')} of a task"] if samples.prompts else []
    return (
        f"This file holds {show(samples.shown)} of {show(samples.total)} responses: {' and '.join(parts)} of every "
        "cell, all methods alike. responses.csv has all of them."
    )


def _first(count: int, name: str) -> str:
    return f"the first {name}" if count == 1 else f"the first {count} {name}s"
