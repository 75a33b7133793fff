"""A study's folder as its report sees it: everything that is there, and a note for everything that is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...methods import REFERENCE
from ...records.names import (
    ABOUT_FILE,
    CLAIMS_FILE,
    CURVES_FILE,
    QUESTIONS_FILE,
    RESPONSES_FILE,
    RESULTS_FILE,
    STUDY_FILE,
    TIMINGS_FILE,
)
from ...records.study_about import ArmFacts, TaskFacts, read_facts
from ...records.study_tables import ALL_SEEDS
from ..numbers import join_words
from ..reading import LenientFolder
from .arm_styles import in_order


class Estimate(NamedTuple):
    """A value with its interval (None where there is none)."""

    value: float
    limits: tuple[float, float] | None = None


class Response(NamedTuple):
    task: str
    arm: str
    strength: str
    seed: str
    prompt_id: str
    prompt: str
    sample: str
    text: str
    reward: float | None
    tokens: float | None
    finished: bool | None
    reverse_kl: float | None
    mode: str


@dataclass(frozen=True)
class ArmRecord:
    """`strengths` from the tightest tie to the reference to the loosest; `kind` says what a strength is."""

    name: str
    label: str
    kind: str
    strengths: list[str]
    what: str = ""

    @property
    def held(self) -> bool:
        """Whether its strengths are targets: KLs, in nats, at which it was held."""
        return "target" in self.kind and all(_number(strength) is not None for strength in self.strengths)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(arm, strength) of each of its cells; the reference has a single one, without a strength."""
        return [(self.name, strength) for strength in (self.strengths or [""])]


@dataclass(frozen=True)
class TaskRecord:
    index: int
    facts: TaskFacts

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def id(self) -> str:
        return f"task-{self.index}"

    @property
    def description(self) -> str:
        return self.facts.description or ""

    @property
    def reward(self) -> str:
        """What the reward is called."""
        return self.facts.reward or "reward"

    @property
    def modes(self) -> list[str]:
        return [str(mode) for mode in self.facts.modes or []]


Curve = list[tuple[float, float | None, float]]  # (step, scored completions, value) by step


@dataclass(frozen=True)
class StudyRecord:
    """A study as its folder shows it. `results` and `curves` are by (task, arm, strength, metric), then by seed."""

    path: Path
    about: dict[str, Any]
    claims: dict[str, Any]
    tasks: list[TaskRecord]
    arms: list[ArmRecord]
    results: dict[tuple[str, str, str, str], dict[str, Estimate]]
    responses: list[Response]
    curves: dict[tuple[str, str, str, str], dict[str, Curve]]
    recipe_text: str
    notes: list[str]
    answers: dict[str, Any] = field(default_factory=dict)

    def estimate(self, task: str, arm: str, strength: str, metric: str) -> Estimate | None:
        """The mean over seeds as the study states it; where it does not, that of the seeds, without an interval."""
        seeds = self.results.get((task, arm, strength, metric), {})
        if ALL_SEEDS in seeds:
            return seeds[ALL_SEEDS]
        if len(seeds) < 2:
            return next(iter(seeds.values()), None)
        return Estimate(sum(e.value for e in seeds.values()) / len(seeds))

    def has(self, task: str, metric: str) -> bool:
        return any(self.estimate(task, *cell, metric) for arm in self.arms for cell in arm.cells)

    @property
    def cells(self) -> list[tuple[ArmRecord, str]]:
        return [(arm, strength) for arm in self.arms for _, strength in arm.cells]

    def label(self, arm: str) -> str:
        return next((own.label for own in self.arms if own.name == arm), arm)


def load_study(path: Path) -> StudyRecord:
    """Read the folder of a study.

    Raises FileNotFoundError when it is no study's folder, ValueError when about.json is no JSON object. Whatever else
    is missing or broken is said in the report instead.
    """
    for name in (ABOUT_FILE, RESULTS_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} is no study's folder: it has no {name}; `tdpo compare` writes one, for instance "
                "tdpo compare recipes/study_quick.yaml"
            )
    files = LenientFolder(path)
    about = files.json(ABOUT_FILE, "")
    if not about:
        raise ValueError(f"{path / ABOUT_FILE} is no JSON object; give the study's `tdpo compare` command again")
    results = _results(files)
    recipe = path / STUDY_FILE
    return StudyRecord(
        path,
        about,
        files.json(CLAIMS_FILE, "no claim is judged"),
        _tasks(about, {key[0] for key in results}),
        _arms(about, {key[1:3] for key in results}),
        results,
        _responses(files),
        _curves(files),
        recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        files.notes,
        files.json(QUESTIONS_FILE, "no question is answered") if (path / QUESTIONS_FILE).exists() else {},
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _results(files: LenientFolder) -> dict[tuple[str, str, str, str], dict[str, Estimate]]:
    results: dict[tuple[str, str, str, str], dict[str, Estimate]] = {}
    timings = files.table(TIMINGS_FILE, "") if (files.path / TIMINGS_FILE).exists() else ()
    for line in (*files.table(RESULTS_FILE, ""), *timings):
        key = tuple(line.get(name, "") for name in ("task", "arm", "strength", "metric"))
        value, low, high = (_number(line.get(name)) for name in ("value", "low", "high"))
        if value is not None:
            limits = None if low is None or high is None else (low, high)
            results.setdefault(key, {})[line.get("seed", "")] = Estimate(value, limits)
    return results


def _responses(files: LenientFolder) -> list[Response]:
    words = ("task", "arm", "strength", "seed", "prompt_id", "prompt", "sample", "text")
    responses = []
    for line in files.table(RESPONSES_FILE, "there are no responses to read"):
        finished = line.get("finished", "").strip().lower()
        reward, tokens, kl = (_number(line.get(name)) for name in ("reward", "tokens", "reverse_kl"))
        is_finished = None if not finished else finished in ("1", "1.0", "true")
        task, arm, strength, seed, prompt_id, prompt, sample, text = (line.get(word, "") for word in words)
        responses.append(
            Response(task, arm, strength, seed, prompt_id, prompt, sample, text, reward, tokens, is_finished, kl,
                     line.get("mode", ""))
        )  # fmt: skip
    return responses


def _curves(files: LenientFolder) -> dict[tuple[str, str, str, str], dict[str, Curve]]:
    curves: dict[tuple[str, str, str, str], dict[str, Curve]] = {}
    for line in files.table(CURVES_FILE, "there are no training curves"):
        step, value = _number(line.get("step")), _number(line.get("value"))
        if step is None or value is None:
            continue
        key = (line.get("task", ""), line.get("arm", ""), line.get("strength", ""), line.get("metric", ""))
        seed = curves.setdefault(key, {}).setdefault(line.get("seed", ""), [])
        seed.append((step, _number(line.get("completions")), value))
    for seeds in curves.values():
        for curve in seeds.values():
            curve.sort(key=lambda point: point[0])
    return curves


def _tasks(about: dict[str, Any], with_results: set[str]) -> list[TaskRecord]:
    """The tasks that about.json names, then those that only have results."""
    facts = read_facts(TaskFacts, about.get("tasks"))
    names = [*facts, *sorted(with_results - set(facts))]
    return [TaskRecord(index, facts.get(name, TaskFacts(name))) for index, name in enumerate(names)]


def _arms(about: dict[str, Any], with_results: set[tuple[str, str]]) -> list[ArmRecord]:
    """The arms that about.json names and those that only have results, in the order of all figures."""
    facts = read_facts(ArmFacts, about.get("arms"))
    arms = []
    for name in in_order({*facts, *(arm for arm, _ in with_results)}):
        own = facts.get(name, ArmFacts(name))
        strengths = [str(strength) for strength in own.strengths or []]
        strengths += sorted({strength for arm, strength in with_results if arm == name and strength} - set(strengths))
        kind = own.strength or ""
        loosens = name == "sft" or any(word in kind for word in ("rate", "target", "temperature")) or kind == "n"
        ordered = [] if name == REFERENCE else _tightest_first(strengths, rising=loosens)
        arms.append(ArmRecord(name, own.label or name, kind, ordered, own.what or ""))
    return arms


def _tightest_first(strengths: list[str], *, rising: bool) -> list[str]:
    """A large β or KL coefficient holds tightly, as a small learning rate or target does. Strengths that are no numbers
    stay."""
    values = [_number(s) for s in strengths]
    if None in values:
        return strengths
    return sorted(strengths, key=lambda s: float(s), reverse=not rising)


def seeds_of(study: StudyRecord) -> list[str]:
    listed = study.about.get("seeds")
    if isinstance(listed, list) and listed:
        return [str(seed) for seed in listed]
    return sorted({seed for seeds in study.results.values() for seed in seeds} - {ALL_SEEDS})


def named_list(names: list[str]) -> str:
    return join_words(names) if names else "none"
