"""The model card that lies beside every saved model: data, method, numbers, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import AnyRecipe, PPORecipe, Recipe
from ..guards.texts import markdown_text, quoted_yaml
from ..methods import METHODS, Method
from .how_to_load import base_of_card, how_to_load

SHOWN = (
    ("accuracy", "accuracy (margin > 0)"),
    ("margin", "margin"),
    ("chosen_forward_kl", "KL(reference‖policy), chosen, nats per sequence"),
    ("rejected_forward_kl", "KL(reference‖policy), rejected, nats per sequence"),
    ("chosen_reverse_kl", "KL(policy‖reference) over the chosen text, nats per sequence"),
)


PPO_SHOWN = (
    ("reward_mean", "reward, mean"),
    ("reward_std", "reward, standard deviation"),
    ("reverse_kl", "KL(policy‖reference), nats per sequence"),
    ("forward_kl", "KL(reference‖policy) on the policy's samples, nats per sequence"),
    ("length_mean", "length, tokens"),
    ("finished_share", "finished, share"),
)
Numbers = Mapping[str, float]


def model_card(
    recipe: Recipe, data: Mapping[str, Any], train: Numbers, held_out: Numbers | None, versions: Mapping[str, Any]
) -> str:
    """Markdown with the metadata block that the hub reads."""
    method = METHODS[recipe.loss.name]
    metrics = (("loss", f"loss, {method.loss_unit}"), *SHOWN)
    numbers = _numbers(metrics, "held-out pairs", train, held_out)
    return _card(recipe, method, _method(recipe, method), _data(data), numbers, versions)


def ppo_model_card(
    recipe: PPORecipe, prompts: int, train: Numbers, held_out: Numbers | None, versions: Mapping[str, Any]
) -> str:
    """The card of a model that PPO trained on so many prompts."""
    data = [f"- {prompts} prompts of {_source(recipe)}"]
    numbers = _numbers(PPO_SHOWN, "held-out prompts", train, held_out)
    return _card(recipe, METHODS["ppo"], _ppo_method(recipe), data, numbers, versions)


def _card(
    recipe: AnyRecipe,
    method: Method,
    settings: list[str],
    data: list[str],
    numbers: list[str],
    versions: Mapping[str, Any],
) -> str:
    library = "peft" if recipe.model.lora else "transformers"
    paper = f", arXiv {method.paper}" if method.paper else ""
    head = [
        "---",
        f"library_name: {library}",
        f"base_model: {quoted_yaml(base_of_card(recipe.model.name))}",
        f"tags: [tdpo, {method.key}, preference-optimization]",
        "---",
        f"# {markdown_text(recipe.model.name)}, trained with {method.name}",
        "",
        f"Trained by tdpo with {method.name} ({method.title}{paper}).",
        "",
    ]
    packages = [f"- {package} {version}" for package, version in versions.items() if version]
    sections = {
        "Loading": how_to_load(recipe.model),
        "Method": settings,
        "Data": data,
        "Numbers": numbers,
        "Versions": packages,
    }
    return "\n".join([*head, *(line for title, lines in sections.items() for line in _section(title, lines))])


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _weights(recipe: AnyRecipe) -> str:
    lora = recipe.model.lora
    weights = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}" if lora else "all weights"
    return f"- {weights}, dtype {recipe.model.dtype}"


def _reference(recipe: AnyRecipe) -> str:
    name = recipe.model.reference
    return "the policy before training" if name is None else markdown_text(name)


def _source(recipe: PPORecipe) -> str:
    return markdown_text(
        recipe.environment.label if recipe.environment else str(recipe.prompts and recipe.prompts.train)
    )


def _ppo_method(recipe: PPORecipe) -> list[str]:
    kl, ppo, rollouts = recipe.kl, recipe.ppo, recipe.rollouts
    aim = f", held at {kl.target:g} nats per sequence" if kl.controller == "adaptive" else ""
    return [
        f"- KL constraint: {kl.direction}, {kl.form}, in the {kl.place}, coefficient {kl.coefficient:g} at first{aim}",
        f"- reference: {_reference(recipe)}",
        _weights(recipe),
        f"- {ppo.iterations} iterations of {rollouts.completions} completions, {ppo.epochs} epochs each, "
        f"{ppo.optimizer}, {ppo.scheduler} schedule, seed {recipe.seed}",
    ]


def _method(recipe: Recipe, method: Method) -> list[str]:
    loss, training = recipe.loss, recipe.training
    beta = f", beta {loss.beta:g}" if loss.beta is not None else ""
    alpha = f", alpha {loss.alpha:g}" if loss.alpha is not None else ""
    smoothing = f", label smoothing {loss.label_smoothing:g}" if method.has_label_smoothing else ""
    length = f"{training.max_steps} updates" if training.max_steps else f"{training.epochs:g} epochs"
    return [
        f"- loss {loss.name}{beta}{alpha}{smoothing}",
        f"- reference: {_reference(recipe)}",
        _weights(recipe),
        f"- {length} of {training.batch_size} pairs, {training.optimizer}, peak learning rate "
        f"{training.learning_rate:g}, {training.scheduler} schedule, seed {recipe.seed}",
    ]


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for split in ("train", "eval"):
        if part := data.get(split):
            source = markdown_text(str(part["source"]))
            lines.append(
                f"- {split}: {part['pairs']} pairs from {source} ({part['rows']} rows, {part['skipped']} "
                f"skipped as broken, {part['truncated_rows']} truncated to {part['max_length']} tokens)"
            )
    return lines


def _numbers(
    shown: tuple[tuple[str, str], ...], held_out_name: str, train: Numbers, held_out: Numbers | None
) -> list[str]:
    lines = [f"| | last training log | {held_out_name} |", "|---|---|---|"]
    for key, label in shown:
        lines.append(f"| {label} | {_number(train.get(key))} | {_number((held_out or {}).get(key))} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
