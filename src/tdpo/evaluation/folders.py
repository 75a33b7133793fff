"""Evaluate what no recipe made: a trainer's output_dir, a checkpoint, an adapter, a model.

Such a folder is judged with a recipe that is put together from the trainer's record, if there is one, and from what the
user says: which model it began as, and what it is judged on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import KLS_OF_EVALUATIONS, Recipe, load_recipe
from ..methods import METHODS
from ..models import check_folder, is_adapter_folder
from ..models.adapter_bases import adapter_base
from ..records.dotted import at, dict_at, text_at
from ..runs import RunDirectory
from ..runs.trained_folders import TrainedFolder
from .trained_model import TrainedModel, strengths

# An override of these is the user's word on how to judge.
JUDGING = (
    "evaluation", "environment", "data.eval", "data.eval_split",
    "sampling.engine", "sampling.url", "sampling.adapter_dir", "sampling.timeout",
)  # fmt: skip
# Those of a recipe that is put together besides: how rows become tokens, and how models are loaded.
READING = (
    "data.max_length", "data.counted_turns", "data.on_bad_rows",
    "model.dtype", "model.device", "model.trust_remote_code",
)  # fmt: skip
ASSUMED_LOSS = "dpo"
NOT_READ = "the rows that it was trained on"  # stands where a recipe names them; an evaluation reads no training rows
NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Asked:
    """What the user says of a folder: flags and overrides of `tdpo evaluate`, None where nothing was said."""

    data: str | None = None
    environment: str | None = None
    base: str | None = None
    reference: str | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class FolderEvaluation:
    """What `evaluate_run` needs for a folder without a recipe, and sentences for the user on what was assumed."""

    run: RunDirectory
    recipe: Recipe
    trained: TrainedModel
    remarks: list[str] = field(default_factory=list)


def evaluation_of(folder: TrainedFolder, asked: Asked) -> FolderEvaluation:
    """Put together how the model in `folder` is judged.

    Raises:
        ValueError: something is not known, or was asked for and has no effect; the message names the flag.
        RecipeError: an override is wrong.
    """
    settings, remarks = dict_at(folder.record, "settings"), list(folder.remarks)
    _check_overrides(asked, folder)
    base, reference = _models(folder, asked)
    method = text_at(folder.record, "method")
    loss = {key: value for key, value in dict_at(settings, "loss").items() if value is not None}
    values: dict[str, Any] = {
        "run_dir": str(folder.results.path),
        "model": {"name": base or reference or str(folder.model), **_dtype(settings)},
        "data": {"train": NOT_READ, **_reading(settings), "eval": asked.data or _held_out_file(settings)},
        "loss": loss or {"name": ASSUMED_LOSS},
    }
    if asked.environment is not None:
        values["environment"] = {"name": asked.environment}
    recipe = load_recipe(values, asked.overrides)
    assert isinstance(recipe, Recipe)
    if recipe.data.eval is None and recipe.environment is None:
        raise ValueError(_nothing_to_judge_on(folder))
    if recipe.data.eval is not None and not loss:
        remarks.append(_assumption(method, recipe))
    if at(settings, "online", "reference_update") is not None:
        remarks.append(KLS_OF_EVALUATIONS)
    described = _described(folder, method, recipe, assumed=not loss)
    own = recipe.data.eval is not None and recipe.data.eval == _held_out_file(settings)
    trained = TrainedModel(folder.model, reference, described, base, judged_on_own=own)
    return FolderEvaluation(folder.results, recipe, trained, remarks)


def _check_overrides(asked: Asked, folder: TrainedFolder) -> None:
    allowed = (*JUDGING, *READING, *(() if dict_at(folder.record, "settings", "loss") else ("loss",)))
    instead = {"model.name": "--base", "model.reference": "--reference"}
    for text in asked.overrides:
        key = text.partition("=")[0]
        if key in instead:
            raise ValueError(f"{text!r}: give {instead[key]} {text.partition('=')[2] or 'NAME'} instead")
        if not any(key == name or key.startswith(f"{name}.") for name in allowed):
            raise ValueError(
                f"{text!r} cannot be overridden here: it says how {folder.model} was trained; an evaluation can change "
                f"{', '.join(allowed)}"
            )
        if (key == "data.eval" and asked.data is not None) or (
            key.startswith("environment") and asked.environment is not None
        ):
            raise ValueError(f"{text!r} says again what a flag says; keep one of the two")


def _models(folder: TrainedFolder, asked: Asked) -> tuple[str | None, str | None]:
    """Where the base of an adapter is (None: where the adapter says), and the second model that is the reference."""
    if is_adapter_folder(folder.model):
        return _base_of_adapter(folder, asked), _reference_of_adapter(folder, asked)
    if asked.base is not None and asked.reference is not None:
        raise ValueError(
            f"--base {asked.base} has no effect beside --reference: {folder.model} is a whole model, which is "
            "compared with one other model; leave one of the two out"
        )
    reference = asked.reference or asked.base or _recorded_reference(folder, "--base")
    if reference is None:
        raise ValueError(_unknown_reference(folder, "--base"))
    return None, reference


def _base_of_adapter(folder: TrainedFolder, asked: Asked) -> str | None:
    if asked.base is not None:
        return asked.base
    if text_at(folder.record, "reference", "kind") == "adapter-off" and (name := _recorded_reference(folder, "--base")):
        return name
    try:
        check_folder(adapter_base(folder.model))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; or give --base NAME, the name or the folder where that model is now") from None
    return None


def _reference_of_adapter(folder: TrainedFolder, asked: Asked) -> str | None:
    """None: the adapter switched off."""
    if asked.reference is not None or text_at(folder.record, "reference", "kind") in ("", "adapter-off"):
        return asked.reference
    name = _recorded_reference(folder, "--reference")
    if name is None:
        raise ValueError(_unknown_reference(folder, "--reference"))
    return name


def _recorded_reference(folder: TrainedFolder, flag: str) -> str | None:
    """The reference by the name under which the trainer recorded it, if it did."""
    name = text_at(folder.record, "reference", "name") or None
    if name is not None and Path(name).is_absolute() and not Path(name).is_dir():
        raise FileNotFoundError(
            f"{folder.model} is compared with {name}, which is not there any more: give {flag} FOLDER, where that "
            "model is now"
        )
    return name


def _unknown_reference(folder: TrainedFolder, flag: str) -> str:
    if flag == "--base":
        return (
            f"{folder.model} is a whole model, and what it was before training is not known: give --base NAME, the "
            f"name or the folder of the model that it was trained from (a KL and a margin compare the two)"
            f"{_base_in_its_card(folder.model)}"
        )
    kind = text_at(folder.record, "reference", "kind")
    what = (
        "its reference was a model in memory"
        if kind == "second model"
        else "it began as an adapter that was in memory, and its base alone is another model"
    )
    return (
        f"the reference of {folder.model} is not known ({what}): save that model and give its folder as --reference "
        "FOLDER"
    )


def _base_in_its_card(model: Path) -> str:
    """A hint at the base that a README.md names, as those of TRL do. It is text of whoever made the folder."""
    for readme in (model / "README.md", model.parent / "README.md"):
        text = readme.read_text(encoding="utf-8", errors="replace")[:20_000] if readme.is_file() else ""
        if named := re.search(r"^base_model: *['\"]?([\w./-]+)", text, re.MULTILINE):
            return f". {readme} says: --base {named[1]}"
    return ""


def _dtype(settings: dict[str, Any]) -> dict[str, str]:
    # trust_remote_code is never taken from a record: whoever made the folder would decide what runs here.
    dtype = text_at(settings, "model", "dtype")
    return {"dtype": dtype} if dtype in ("float32", "bfloat16", "float16") else {}


def _reading(settings: dict[str, Any]) -> dict[str, Any]:
    data = dict_at(settings, "data")
    if not data:
        return {}
    return {"max_length": data.get("max_length") or NO_LIMIT, "counted_turns": data.get("counted_turns", "assistant")}


def _held_out_file(settings: dict[str, Any]) -> str | None:
    """The file of held-out rows that the trainer read, if it is still there."""
    file = text_at(settings, "data", "eval")
    return file if file and Path(file).is_file() else None


def _nothing_to_judge_on(folder: TrainedFolder) -> str:
    file = text_at(folder.record, "settings", "data", "eval")
    why = f" ({file}, which it was judged on, is not there)" if file else ""
    return (
        f"nothing to judge {folder.model} on{why}: give --data FILE, preferences that it was not trained on (prompt, "
        "chosen, rejected), or --environment NAME, whose held-out prompts it answers and whose reward judges the "
        "answers (`tdpo recipe` lists them under environment.name)"
    )


def _assumption(method: str, recipe: Recipe) -> str:
    loss = recipe.loss
    settings = f"{METHODS[loss.name].name}" + (f" with β {loss.beta:g}" if loss.beta is not None else "")
    why = (
        f"{METHODS[method].name} has no margin of pairs" if method in METHODS else "How it was trained is not recorded"
    )
    return f"{why}: accuracy and margin are those of {settings}; loss.name=… and loss.beta=… choose others."


def _described(folder: TrainedFolder, method: str, recipe: Recipe, *, assumed: bool) -> dict[str, Any]:
    """What evaluation.json says of the run. The method is left out where nobody knows it."""
    described: dict[str, Any] = {"name": folder.results_name}
    if method:
        described["loss"] = method
    if method == "ppo":
        described["kl"] = dict_at(folder.record, "settings", "kl")
    loss = strengths(recipe.loss)
    if not assumed:
        described |= loss
    elif recipe.data.eval is not None:
        described["margin_of"] = {"loss": recipe.loss.name, **loss}
    name = at(folder.record, "settings", "model", "name")
    return {**described, "model": name if isinstance(name, str) else recipe.model.name}
