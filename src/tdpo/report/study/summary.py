"""The study in words: what was compared, at what price, what came of the claims, what is missing."""

from __future__ import annotations

from ...methods import REFERENCE
from ...records.dotted import dict_at, text_at
from ...records.metric_names import named
from ..numbers import counted, join_words, number, show, show_duration
from .answers import Answers
from .claims import Claim, lowered, tally
from .curves import TaskCurves
from .frontiers import TaskFrontiers
from .provenance import changed_inputs, failures
from .samples import Samples
from .strengths import held_kl, targets_of
from .study_reading import ArmRecord, StudyRecord, seeds_of


def summary(study: StudyRecord, claims: list[Claim], answers: Answers | None = None) -> str:
    """One paragraph on what was compared and what came of it."""
    methods = [arm for arm in study.arms if arm.name != REFERENCE]
    tasks = [task.name for task in study.tasks]
    model = text_at(study.about, "model")
    start = f"{model}, the reference" if model else "the model they start from, the reference"
    sentences = [
        f"{counted(len(methods), 'method')} {'was' if len(methods) == 1 else 'were'} compared on "
        f"{counted(len(tasks), 'task')} ({join_words(tasks)}), starting from {start}.",
        *_ties(study, methods),
    ]
    budget = number(study.about.get("budget"))
    if budget is not None:
        sentences.append(f"Every training had the same budget: {show(int(budget))} scored responses.")
    sentences += _measured(study)
    if answers is not None:
        sentences.append(answers.summary)
    if claims or answers is None:
        sentences.append(tally(claims) if claims else "No claim was judged.")
    return " ".join(sentences)


def _ties(study: StudyRecord, methods: list[ArmRecord]) -> list[str]:
    """How methods were tied to the reference: held at targets, or at how many strengths; and with how many seeds."""
    seeds = counted(len(seeds_of(study)), "seed")
    held = [arm for arm in methods if arm.held]
    if held:
        kl, targets = lowered(named(held_kl(study)).title), targets_of(study)
        unit = "nat" if targets == ["1"] else "nats"
        at = f"{join_words(targets)} {unit} of {kl}, their distance from it"
        return [f"{len(held)} of them were held at {at}. Each ran with {seeds}."]
    counts = {len(arm.strengths) for arm in methods if arm.strengths}
    if not counts:
        return []
    most, least = max(counts), min(counts)
    words = counted(most, "strength") if most == least else f"{least} to {most} strengths"
    return [f"Each ran at {words} of its tie to the reference and with {seeds}."]


def _measured(study: StudyRecord) -> list[str]:
    sizes = {(task.facts.prompts, task.facts.samples_per_prompt) for task in study.tasks}
    if len(sizes) != 1:
        return []
    prompts, samples = sizes.pop()
    if number(prompts) is None or number(samples) is None:
        return []
    return [f"All were measured on {counted(prompts, 'held-out prompt')}, with {counted(samples, 'response')} to each."]


def glance(study: StudyRecord) -> list[tuple[str, str]]:
    """What the summary does not say, for the top of the page, as (name, value)."""
    about = study.about
    done = number(dict_at(about, "cells").get("done"))
    seconds = number(about.get("seconds"))
    facts = [
        ("Runs", show(int(done)) if done is not None else ""),
        ("Responses", show(len(study.responses)) if study.responses else ""),
        ("Time at work", show_duration(seconds) if seconds is not None else ""),
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
