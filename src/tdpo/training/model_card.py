"""The model card that lies beside every saved model: data, method, numbers, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..config import Recipe

PAPERS = {
    "tdpo2": ("TDPO2", "Token-level Direct Preference Optimization", "2404.11999"),
    "tdpo1": ("TDPO1", "Token-level Direct Preference Optimization", "2404.11999"),
    "dpo": ("DPO", "Direct Preference Optimization", "2305.18290"),
}
SHOWN = (
    ("loss", "loss, nats"),
    ("accuracy", "accuracy (margin > 0)"),
    ("margin", "margin"),
    ("chosen_forward_kl", "KL(reference‖policy), chosen, nats per sequence"),
    ("rejected_forward_kl", "KL(reference‖policy), rejected, nats per sequence"),
    ("chosen_reverse_kl", "KL(policy‖reference) over the chosen text, nats per sequence"),
)


def model_card(
    recipe: Recipe,
    data: Mapping[str, Any],
    train: Mapping[str, float],
    held_out: Mapping[str, float] | None,
    versions: Mapping[str, Any],
) -> str:
    """Markdown with the metadata block that the hub reads."""
    name, title, arxiv = PAPERS[recipe.loss.name]
    library = "peft" if recipe.model.lora else "transformers"
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            f"base_model: {json.dumps(recipe.model.name)}",
            f"tags: [tdpo, {recipe.loss.name}, preference-optimization]",
            "---",
            f"# {recipe.model.name}, trained with {name}",
            "",
            f"Trained by tdpo with {name} ({title}, arXiv {arxiv}).",
            "",
            "## Method",
            "",
            *_method(recipe),
            "",
            "## Data",
            "",
            *_data(data),
            "",
            "## Numbers",
            "",
            *_numbers(train, held_out),
            "",
            "## Versions",
            "",
            *[f"- {package} {version}" for package, version in versions.items() if version],
            "",
        ]
    )


def _method(recipe: Recipe) -> list[str]:
    loss, training = recipe.loss, recipe.training
    alpha = f", alpha {loss.alpha:g}" if loss.alpha is not None else ""
    lora = recipe.model.lora
    weights = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}" if lora else "all weights"
    length = f"{training.max_steps} updates" if training.max_steps else f"{training.epochs:g} epochs"
    reference = recipe.model.reference or "the policy before training"
    return [
        f"- loss {loss.name}, beta {loss.beta:g}{alpha}, label smoothing {loss.label_smoothing:g}",
        f"- reference: {reference}",
        f"- {weights}, dtype {recipe.model.dtype}",
        f"- {length} of {training.batch_size} pairs, {training.optimizer}, peak learning rate "
        f"{training.learning_rate:g}, {training.scheduler} schedule, seed {recipe.seed}",
    ]


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for split in ("train", "eval"):
        if part := data.get(split):
            lines.append(
                f"- {split}: {part['pairs']} pairs from {part['source']} ({part['rows']} rows, {part['skipped']} "
                f"skipped as broken, {part['truncated_rows']} truncated to {part['max_length']} tokens)"
            )
    return lines


def _numbers(train: Mapping[str, float], held_out: Mapping[str, float] | None) -> list[str]:
    lines = ["| | last training log | held-out pairs |", "|---|---|---|"]
    for key, label in SHOWN:
        lines.append(f"| {label} | {_number(train.get(key))} | {_number((held_out or {}).get(key))} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
