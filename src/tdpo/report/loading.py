"""Run directories as the report sees them: everything that is there, and a note for everything that is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..guards.documents import DocumentError, load_yaml, parse_json
from .numbers import number

LOSS_NAMES = {"tdpo2": "TDPO2", "tdpo1": "TDPO1", "dpo": "DPO", "sft": "SFT", "ppo": "PPO"}
RUN_FILES = (
    "recipe.yaml",
    "environment.json",
    "data.json",
    "metrics.jsonl",
    "status.json",
    "evaluation.json",
    "samples.jsonl",
)


@dataclass(frozen=True)
class Run:
    """One run directory. A file that is missing or broken leaves an empty value here and a sentence in `notes`."""

    path: Path
    label: str
    index: int
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def loss(self) -> str:
        """The method by its public name (TDPO2, PPO), as evaluation or recipe state it; "" if neither does."""
        name = text_at(self.evaluation, "run", "loss") or text_at(self.recipe, "loss", "name")
        if not name and "ppo" in self.recipe:
            name = "ppo"
        return LOSS_NAMES.get(name.lower(), name)

    @property
    def is_ppo(self) -> bool:
        """Whether the run learned from rewards of its own responses, and not from pairs."""
        return self.loss == "PPO"

    @property
    def kl(self) -> dict[str, Any]:
        """How PPO was held to the reference, as recipe or evaluation state it."""
        return dict_at(self.recipe, "kl") or dict_at(self.evaluation, "run", "kl")

    @property
    def model(self) -> str:
        return text_at(self.evaluation, "run", "model") or text_at(self.recipe, "model", "name")

    def series(self, split: str, key: str) -> list[tuple[float, float | None]]:
        """(step, value) of every logged line that has `key`, by step; a value that is not finite becomes None."""
        points: dict[float, float | None] = {}  # a resumed run may log a step again: the later line counts
        for line in self.metrics:
            step = number(line.get("step"))
            if line.get("split", "train") == split and step is not None and line.get(key) is not None:
                points[step] = number(line[key])
        return sorted(points.items())


def at(mapping: Any, *keys: str) -> Any:
    """mapping[key][key]…, or None as soon as something on the way is missing or no mapping."""
    for key in keys:
        if not isinstance(mapping, dict):
            return None
        mapping = mapping.get(key)
    return mapping


def dict_at(mapping: Any, *keys: str) -> dict[str, Any]:
    value = at(mapping, *keys)
    return value if isinstance(value, dict) else {}


def text_at(mapping: Any, *keys: str) -> str:
    value = at(mapping, *keys)
    return value if isinstance(value, str) else ""


def load_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """Read every run directory and give each a label that no other has.

    Raises ValueError when there is no directory, or one is given twice, FileNotFoundError when one does not exist
    or holds none of a run's files. Anything else that is wrong with a run is said in the report instead.
    """
    if not run_dirs:
        raise ValueError("no run directory given: a report needs at least one, for instance runs/sentiment-tdpo2")
    paths = [Path(run_dir) for run_dir in run_dirs]
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
    if not any((path / name).exists() for name in RUN_FILES):
        raise FileNotFoundError(f"{path}: not a run directory; expected at least one of {', '.join(RUN_FILES)}")
    notes: list[str] = []
    recipe, recipe_text = _read_recipe(path / "recipe.yaml", notes)
    run = Run(
        path=path,
        label=path.resolve().name,
        index=index,
        recipe=recipe,
        recipe_text=recipe_text,
        environment=_read_json(path / "environment.json", notes, "versions, hardware and command are unknown"),
        data=_read_json(path / "data.json", notes, "what the training data held is unknown"),
        metrics=_read_lines(path / "metrics.jsonl", notes, "there are no training curves"),
        status=_read_status(path, notes),
        evaluation=_read_json(
            path / "evaluation.json", notes, f"run `tdpo evaluate {path}` to compare it with the base model"
        ),
        samples=_read_lines(path / "samples.jsonl", notes, "there are no generations to read"),
        completions=_read_completions(path / "completions.jsonl", notes),
        notes=notes,
    )
    notes.extend(_gaps(run))
    return run


def _read(path: Path, notes: list[str], consequence: str) -> str | None:
    if not path.exists():
        notes.append(f"{path.name} is missing: {consequence}.")
        return None
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}): {consequence}.")
        return None


def _read_json(path: Path, notes: list[str], consequence: str) -> dict[str, Any]:
    text = _read(path, notes, consequence)
    if text is None:
        return {}
    try:
        value = parse_json(text)
    except ValueError as error:
        notes.append(f"{path.name} is not valid JSON ({error}): {consequence}.")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} holds a {type(value).__name__} where an object is expected: {consequence}.")
        return {}
    return value


def _read_status(path: Path, notes: list[str]) -> dict[str, Any]:
    """status.json; a run that says it is running, though no process holds its lock, is dead and was interrupted."""
    status = _read_json(path / "status.json", notes, "whether training finished is unknown")
    return {**status, "state": "interrupted"} if status.get("state") == "running" and _is_let_go(path) else status


def _is_let_go(path: Path) -> bool:
    """Whether no process holds the run any more, as `RunDirectory.state` asks too; False where that is unknown."""
    try:
        import fcntl

        with (path / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _read_lines(path: Path, notes: list[str], consequence: str) -> list[dict[str, Any]]:
    text = _read(path, notes, consequence)
    if text is None:
        return []
    rows, broken = [], []
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken.append(line_number)
    if broken:
        which = f"line {broken[0]}" if len(broken) == 1 else f"{len(broken)} lines, the first is line {broken[0]}"
        notes.append(f"{path.name}: {which} is not a JSON object and was left out; an interrupted write does this.")
    if not rows:
        notes.append(f"{path.name} is empty: {consequence}.")
    return rows


def _read_completions(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Samples of a run's rollouts; only PPO writes them, and not if it was told not to."""
    return _read_lines(path, notes, "there are no responses from training to read") if path.exists() else []


def _read_recipe(path: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    text = _read(path, notes, "the settings of this run are unknown")
    if text is None:
        return {}, ""
    import yaml

    try:
        value = load_yaml(text)
    except DocumentError as error:
        notes.append(f"recipe.yaml {error}: it is shown as it is.")
        return {}, text
    except yaml.YAMLError as error:
        notes.append(f"recipe.yaml is not valid YAML ({error}): it is shown as it is.")
        return {}, text
    return (value if isinstance(value, dict) else {}), text


def _gaps(run: Run) -> list[str]:
    """Sentences on parts that are absent although their file is there."""
    notes = []
    if run.metrics and not any(line.get("split") == "eval" for line in run.metrics):
        batches = "responses to training prompts" if run.is_ppo else "training batches"
        notes.append(f"No evaluation during training was logged: the curves show {batches} only.")
    if run.evaluation and not run.evaluation.get("pairs") and not run.is_ppo:
        notes.append("No held-out pairs were evaluated: accuracy and KL on pairs are known from training only.")
    if run.evaluation and not run.evaluation.get("generations"):
        notes.append("No generations were evaluated: there is no reward to compare with the base model.")
    for key in sorted({key for line in run.metrics for key in line}):
        values = [line[key] for line in run.metrics if isinstance(line.get(key), float)]
        bad = [line for line in run.metrics if isinstance(line.get(key), float) and number(line[key]) is None]
        if bad:
            notes.append(
                f"{key} was not finite in {len(bad)} of {len(values)} logged lines "
                f"(first at step {bad[0].get('step')}): the curve has gaps there."
            )
    return notes


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
    seen: Counter[str] = Counter()
    for position, name in enumerate(names):
        seen[name] += 1
        names[position] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _with_direction(run: Run) -> str:
    direction = text_at(run.kl, "direction")
    return f"{run.loss}, {direction} KL" if run.is_ppo and direction else run.loss
