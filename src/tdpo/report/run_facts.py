"""How each run was made: a column a run of settings, data, times and machine, and where recipes differ."""

from __future__ import annotations

import datetime as dt
from typing import Any

from ..methods import METHODS, method_named
from ..records.best_update import best_in_words
from ..records.dotted import at, dict_at, flatten, text_at
from ..records.run_times import cache_seconds, training_seconds
from .numbers import MISSING, counted, join_words, number, show, show_duration
from .run import Run
from .tables import Cell, Row, Table, plain

DATA_FACTS = ("source", "rows", "pairs", "skipped", "truncated rows")  # said first, and even when zero
SPLITS = {"train": "Training data", "eval": "Evaluation data"}


def provenance_table(runs: list[Run]) -> Table:
    """What was run and how: one column a run, one row a fact that any run knows."""
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for entry in facts for name in entry))
    rows = [Row(name, "", [Cell(entry.get(name) or MISSING) for entry in facts]) for name in names]
    rows = [row for row in rows if any(cell.text not in ("", MISSING) for cell in row.cells)]
    return Table("What was run", [run.label for run in runs], rows, [run.index for run in runs])


def _facts(run: Run) -> dict[str, str]:
    recipe, hardware = run.recipe, at(run.machine, "hardware")
    steps, planned = at(run.status, "step"), at(run.status, "max_steps")
    facts = {
        "Folder": str(run.path),
        "State": text_at(run.status, "state"),
        "Method": _method(run),
        "Model": run.model,
        "Weights": f"of {best_in_words(run.best)}" if run.best else "",
        "Trained part": _trained_part(recipe),
        "Reference": _reference(run),
    }
    for split, title in SPLITS.items():
        facts[title] = ", ".join(f"{name} {value}" for name, value in data_facts(run, split).items())
    facts |= {
        "Updates": "" if steps is None else f"{show(steps)} of {show(planned)}" if planned else show(steps),
        "Responses sampled": _rollouts(run),
        "Batch": plain(_of_run(run, "minibatch_size") or _of_run(run, "batch_size")),
        "Learning rate": plain(_of_run(run, "learning_rate")),
        "Precision": text_at(run.machine, "precision", "text"),
        "Training time": show_duration(wall_seconds(run)) if wall_seconds(run) is not None else "",
        "Reference cache": _cache_time(run),
        "Evaluation time": show_duration(run.evaluation.get("seconds")) if run.evaluation.get("seconds") else "",
        "Median throughput": _throughput(run),
        "Peak memory": _peak(run),
        "Machine": _machine(hardware),
        "Seed": plain(at(run.machine, "seed") if "seed" in run.machine else recipe.get("seed")),
        "Started": plain(run.machine.get("started")),
        "Resumed": _resumptions(run),
        "Versions": ", ".join(f"{k} {plain(v)}" for k, v in flatten(run.machine.get("versions")).items() if v),
    }
    return facts


def data_facts(run: Run, split: str) -> dict[str, str]:
    """What data.json says of one split, whatever the tokenisation reports, but for most zeros.

    Lists of rows become their number.
    """
    facts = {}
    for key, value in flatten(at(run.data, split)).items():
        count = len(value) if isinstance(value, list | dict) else value
        shown = show(count) if isinstance(count, float) else plain(count)
        name = key.replace("_", " ").replace(".", ": ")
        if shown and (count or name in DATA_FACTS):
            facts[name] = shown
    first = {name: facts[name] for name in DATA_FACTS if name in facts}
    return first | facts


def _resumptions(run: Run) -> str:
    resumed = run.machine.get("resumed")
    steps = [plain(at(entry, "step")) for entry in resumed] if isinstance(resumed, list) else []
    return f"at update {join_words(steps)}" if steps else ""


def completions_scored(run: Run) -> float | None:
    """How many own responses were scored in the iterations that were logged; None where that is not known."""
    size = number(at(run.recipe, "rollouts", "completions"))
    rewards = run.series("train", "reward_mean")
    return size * len(rewards) if run.on_own_responses and size is not None and rewards else None


def _of_run(run: Run, key: str) -> Any:
    """A key of the section of the recipe that says how weights are updated."""
    values = (at(run.recipe, section, key) for section in ("ppo", "online", "training"))
    return next((value for value in values if value is not None), None)


def _reference(run: Run) -> str:
    if run.reference_moves:
        update = dict_at(run.recipe, "online", "reference_update")
        weight = plain(update.get("weight"))
        return (
            f"the start of training, moved every {counted(update.get('every'), 'iteration')} (policy's share {weight})"
        )
    return plain(at(run.recipe, "model", "reference")) or ("the start of training" if run.recipe else "")


def _rollouts(run: Run) -> str:
    size, passes = at(run.recipe, "rollouts", "completions"), _of_run(run, "epochs") or _of_run(run, "passes")
    if not run.on_own_responses or number(size) is None:
        return ""
    iterations = _of_run(run, "iterations")
    return (
        f"{counted(iterations, 'iteration')} of {show(size)}, each learned from in {counted(passes, 'pass', 'passes')}"
    )


def _method(run: Run) -> str:
    if run.is_ppo:
        return ", ".join([METHODS["ppo"].name, *_advantage(run), *_held_by(run.kl)])
    settings = {**dict_at(run.recipe, "loss"), **dict_at(run.evaluation, "run")}
    signs = {"beta": "β", "alpha": "α", "gamma": "γ"}
    method = method_named(run.loss)
    if method is not None and not method.has_alpha:  # recipes of earlier versions have an α that had no effect
        del signs["alpha"]
    parts = [f"{run.loss} on pairs of its own responses" if run.on_own_pairs else run.loss] if run.loss else []
    parts += [f"{sign} = {show(settings[key])}" for key, sign in signs.items() if number(settings.get(key)) is not None]
    return ", ".join([*parts, *_kl_beside(settings.get("kl"))])


def _kl_beside(kl: Any) -> list[str]:
    """The KL beside a loss: 0.10 × reverse KL along both responses. Nothing where the recipe has none."""
    direction = text_at(kl, "direction")
    if not direction:
        return []
    name = "Jensen–Shannon divergence" if direction == "js" else f"{direction} KL"
    side = text_at(kl, "on")
    where = "both responses" if side == "both" else f"the {side} response"
    return [f"{show(at(kl, 'coefficient'))} × {name} along {where}"]


def _advantage(run: Run) -> list[str]:
    """Where PPO's advantages come from, if not from a critic."""
    names = {"rloo": "leave-one-out advantages (RLOO), no critic", "group": "advantages within groups, no critic"}
    name = text_at(run.recipe, "ppo", "advantage")
    return [names[name]] if name in names else []


def _held_by(kl: dict[str, Any]) -> list[str]:
    """How PPO is held to the reference: reverse KL, sampled, taken off the reward, coefficient …"""
    place = {"reward": "taken off the reward", "loss": "added to the loss"}
    parts = []
    if direction := text_at(kl, "direction"):
        parts.append(f"{direction} KL")
        parts += [text_at(kl, "form"), place.get(text_at(kl, "place"), text_at(kl, "place"))]
    if number(kl.get("coefficient")) is not None:
        is_held = kl.get("controller") in ("adaptive", "dual")
        adaptive = f", adapted to hold {show(kl.get('target'))} nats" if is_held else ""
        parts.append(f"coefficient {plain(kl['coefficient'])}{adaptive}")
    return [part for part in parts if part]


def _trained_part(recipe: dict[str, Any]) -> str:
    if "model" not in recipe or not isinstance(recipe["model"], dict) or "lora" not in recipe["model"]:
        return ""
    lora = recipe["model"]["lora"]
    if not isinstance(lora, dict):
        return "all weights" if lora is None else plain(lora)
    few = recipe["model"].get("quantization")
    base = f", base in {plain(few.get('bits'))} bits" if isinstance(few, dict) else ""
    targets = plain(lora.get("targets"))
    return f"LoRA, rank {plain(lora.get('rank'))}, alpha {plain(lora.get('alpha'))}, on {targets}{base}"


def _machine(hardware: Any) -> str:
    if not isinstance(hardware, dict):
        return ""
    memory, devices = number(hardware.get("memory_gib")), hardware.get("gpu")
    devices = devices if isinstance(devices, list) else [devices]
    parts = [
        *(plain(at(device, "name") or device) for device in devices),
        plain(hardware.get("cpu")),
        f"{show(hardware['cores'])} cores" if number(hardware.get("cores")) is not None else "",
        f"{memory:g} GiB" if memory is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def wall_seconds(run: Run) -> float | None:
    """Seconds of training as the console says them, else from the start to the status file's last word."""
    seconds = training_seconds(run.metrics)
    if seconds is not None:
        return seconds
    try:
        started = dt.datetime.fromisoformat(text_at(run.machine, "started"))
        return (dt.datetime.fromisoformat(text_at(run.status, "updated")) - started).total_seconds()
    except (ValueError, TypeError):  # no date, or one with and one without a time zone
        return None


def _cache_time(run: Run) -> str:
    """What the reference cache cost, which is no part of the training time: the first run of several pays it."""
    seconds = cache_seconds(run.metrics)
    if seconds is None:
        return ""
    return f"made before training in {show_duration(seconds)}" if seconds else "made by an earlier run"


def _values(run: Run, key: str) -> list[float]:
    return sorted(value for _, value in run.series("train", key) if value is not None)


def _median(run: Run, key: str, unit: str) -> str:
    values = _values(run, key)
    return f"{show(values[len(values) // 2])} {unit}" if values else ""


def _throughput(run: Run) -> str:
    if not run.on_own_responses:
        return _median(run, "tokens_per_second", "tokens per second")
    learning = _median(run, "learning_tokens_per_second", "tokens per second learning")
    sampling = _median(run, "generation_tokens_per_second", "sampling")
    return ", ".join(part for part in (learning, sampling) if part)


def _peak(run: Run) -> str:
    values = _values(run, "peak_memory_mib")
    return f"{show(values[-1])} MiB" if values else ""


def recipe_differences(runs: list[Run]) -> tuple[Table, Table] | None:
    """The settings in which recipes that have them differ, and those in which these agree and that others lack; None
    when there is nothing to compare."""
    recipes = [flatten(run.recipe) for run in runs]
    if sum(bool(recipe) for recipe in recipes) < 2:
        return None
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe if key != "run_dir"))
    differing: list[Row] = []
    partial: list[Row] = []
    for key in keys:
        values = [(plain(recipe[key]) or "none") if key in recipe else MISSING for recipe in recipes]
        if len(set(values)) > 1:
            differ = len(set(values) - {MISSING}) > 1
            (differing if differ else partial).append(Row(key, "", [Cell(value) for value in values]))
    labels = [run.label for run in runs]
    colors: list[int | None] = [run.index for run in runs]
    return (
        Table("Settings that differ", labels, differing, colors),
        Table("Settings that not every recipe has", labels, partial, colors),
    )
