"""A study's folder as its report sees it: everything that is there, and a note for everything that is not."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...guards.documents import parse_json
from ...guards.texts import cell_text
from ..loading import dict_at, text_at
from ..numbers import join_words, number
from .methods import REFERENCE, in_order

ALL_SEEDS = "all"
FIELD_CHARACTERS = 16_000_000  # a response of any length; the csv module's own limit is 128 KiB


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
class Arm:
    """`strengths` from the tightest tie to the reference to the loosest; `kind` says what a strength is."""

    name: str
    label: str
    kind: str
    strengths: list[str]
    what: str = ""

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(arm, strength) of each of its cells; the reference has a single one, without a strength."""
        return [(self.name, strength) for strength in (self.strengths or [""])]


@dataclass(frozen=True)
class Task:
    name: str
    index: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"task-{self.index}"

    @property
    def description(self) -> str:
        return text_at(self.facts, "description")

    @property
    def reward(self) -> str:
        return text_at(self.facts, "reward") or "reward"

    @property
    def modes(self) -> list[str]:
        modes = self.facts.get("modes")
        return [str(mode) for mode in modes] if isinstance(modes, list) else []


Curve = list[tuple[float, float | None, float]]  # (step, scored completions, value) by step


@dataclass(frozen=True)
class Study:
    """`results` by (task, arm, strength, metric), then seed; `curves` by (task, arm, strength, metric), then seed."""

    path: Path
    about: dict[str, Any]
    claims: dict[str, Any]
    tasks: list[Task]
    arms: list[Arm]
    results: dict[tuple[str, str, str, str], dict[str, Estimate]]
    responses: list[Response]
    curves: dict[tuple[str, str, str, str], dict[str, Curve]]
    recipe_text: str
    notes: list[str]

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
    def cells(self) -> list[tuple[Arm, str]]:
        return [(arm, strength) for arm in self.arms for _, strength in arm.cells]

    def label(self, arm: str) -> str:
        return next((known.label for known in self.arms if known.name == arm), arm)


def load_study(path: Path) -> Study:
    """Read the folder of a study.

    Raises FileNotFoundError when it is no study's folder, ValueError when about.json is no JSON object. Whatever else
    is missing or broken is said in the report instead.
    """
    for name in ("about.json", "results.csv"):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} is no study's folder: it has no {name}; `tdpo compare` writes one, for instance "
                "tdpo compare recipes/study_quick.yaml"
            )
    notes: list[str] = []
    about = _json(path / "about.json", notes, "")
    if not about:
        raise ValueError(f"{path / 'about.json'} is no JSON object; give the study's `tdpo compare` command again")
    results = _results(path, notes)
    tasks = _tasks(about, {key[0] for key in results})
    recipe = path / "study.yaml"
    return Study(
        path,
        about,
        _json(path / "claims.json", notes, "no claim is judged"),
        tasks,
        _arms(about, {key[1:3] for key in results}),
        results,
        _responses(path, notes),
        _curves(path, notes),
        recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        notes,
    )


def _json(path: Path, notes: list[str], consequence: str) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: {consequence}.")
        return {}
    except ValueError as error:
        notes.append(f"{path.name} is not valid JSON ({error}): {consequence}.")
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path, notes: list[str], consequence: str) -> Iterator[dict[str, str]]:
    """The lines of a table; a missing file and lines with too few fields become notes."""
    if not path.is_file():
        notes.append(f"{path.name} is missing: {consequence}.")
        return
    broken = 0
    before = csv.field_size_limit(FIELD_CHARACTERS)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for line in csv.DictReader(file):
                if None in line or None in line.values():
                    broken += 1
                else:
                    yield {name: cell_text(cell) for name, cell in line.items()}
    except csv.Error as error:
        notes.append(f"{path.name} cannot be read to its end: {error}.")
    finally:
        csv.field_size_limit(before)
    if broken:
        notes.append(f"{path.name}: {broken} {'line has' if broken == 1 else 'lines have'} the wrong number of fields.")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _results(path: Path, notes: list[str]) -> dict[tuple[str, str, str, str], dict[str, Estimate]]:
    results: dict[tuple[str, str, str, str], dict[str, Estimate]] = {}
    timings = path / "timings.csv"  # apart from the results, since no two studies take equally long
    lines = [*_lines(path / "results.csv", notes, ""), *(_lines(timings, notes, "") if timings.exists() else ())]
    for line in lines:
        key = tuple(line.get(name, "") for name in ("task", "arm", "strength", "metric"))
        value, low, high = (_number(line.get(name)) for name in ("value", "low", "high"))
        if value is not None:
            limits = None if low is None or high is None else (low, high)
            results.setdefault(key, {})[line.get("seed", "")] = Estimate(value, limits)
    return results


def _responses(path: Path, notes: list[str]) -> list[Response]:
    words = ("task", "arm", "strength", "seed", "prompt_id", "prompt", "sample", "text")
    found = []
    for line in _lines(path / "responses.csv", notes, "there are no responses to read"):
        finished = line.get("finished", "").strip().lower()
        reward, tokens, kl = (_number(line.get(name)) for name in ("reward", "tokens", "reverse_kl"))
        known = None if not finished else finished in ("1", "1.0", "true")
        task, arm, strength, seed, prompt_id, prompt, sample, text = (line.get(word, "") for word in words)
        found.append(
            Response(task, arm, strength, seed, prompt_id, prompt, sample, text, reward, tokens, known, kl,
                     line.get("mode", ""))
        )  # fmt: skip
    return found


def _curves(path: Path, notes: list[str]) -> dict[tuple[str, str, str, str], dict[str, Curve]]:
    curves: dict[tuple[str, str, str, str], dict[str, Curve]] = {}
    for line in _lines(path / "curves.csv", notes, "there are no training curves"):
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


def _tasks(about: dict[str, Any], seen: set[str]) -> list[Task]:
    """The tasks that about.json names, then those that only have results."""
    listed = about.get("tasks")
    facts = {text_at(task, "name"): task for task in listed or [] if text_at(task, "name")}
    names = [*facts, *sorted(seen - set(facts))]
    return [Task(name, index, facts.get(name, {})) for index, name in enumerate(names)]


def _arms(about: dict[str, Any], seen: set[tuple[str, str]]) -> list[Arm]:
    listed = about.get("arms")
    facts = {text_at(arm, "name"): arm for arm in listed or [] if text_at(arm, "name")}
    arms = []
    for name in in_order({*facts, *(arm for arm, _ in seen)}):
        about_arm = dict_at(facts, name)
        given = about_arm.get("strengths")
        strengths = [str(s) for s in given] if isinstance(given, list) else []
        strengths += sorted({s for arm, s in seen if arm == name and s} - set(strengths))
        kind = text_at(about_arm, "strength")
        label = text_at(about_arm, "label") or name
        ordered = [] if name == REFERENCE else _tightest_first(strengths, rising="rate" in kind or name == "sft")
        arms.append(Arm(name, label, kind, ordered, text_at(about_arm, "what")))
    return arms


def _tightest_first(strengths: list[str], *, rising: bool) -> list[str]:
    """A large β or KL coefficient holds tightly, as a small learning rate does. Strengths that are no numbers stay."""
    values = [_number(s) for s in strengths]
    if None in values:
        return strengths
    return sorted(strengths, key=lambda s: float(s), reverse=not rising)


def seeds_of(study: Study) -> list[str]:
    listed = study.about.get("seeds")
    if isinstance(listed, list) and listed:
        return [str(seed) for seed in listed]
    return sorted({seed for seeds in study.results.values() for seed in seeds} - {ALL_SEEDS})


def counted(count: Any, one: str, many: str = "") -> str:
    """3 tasks, 1 task."""
    known = number(count)
    return f"{int(known) if known is not None else count} {one if known == 1 else many or one + 's'}"


def named_list(names: list[str]) -> str:
    return join_words(names) if names else "none"
