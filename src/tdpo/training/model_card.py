"""The model card that lies beside every saved model: data, method, numbers, versions.

Settings come by section and key as in a recipe, whether a recipe or a trainer in Python has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import KLS_OF_TRAINING, ReferenceUpdate
from ..guards.texts import markdown_text, quoted_yaml
from ..kl_choices import KLTerm
from ..methods import METHODS, Method
from ..models.quantization import choice_in_words
from ..records.best_update import best_in_words
from ..records.metric_names import counted
from .how_to_load import base_of_card, how_to_load

SHOWN = (
    ("accuracy", "accuracy (margin > 0; a tie counts half)"),
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
Settings = Mapping[str, Any]
Best = Mapping[str, Any]
NAMELESS_MODEL = "A model"
SENTENCE = "Trained by tdpo with"
PEFT_FORM = "<!-- Provide a quick summary of what the model is/does. -->"


def pair_model_card(
    settings: Settings,
    data: Mapping[str, Any],
    train: Numbers,
    held_out: Numbers | None,
    versions: Mapping[str, Any],
    best: Best | None = None,
) -> str:
    """The card of a model that learned from pairs: Markdown with the metadata block that the hub reads.

    Args:
        settings: those of the run, by section and key as in a recipe.
        data: of each side, "train" and "eval", what data.json says.
        train: the numbers of the last training log of this model.
        held_out: those of its last evaluation, or None.
        versions: of the packages, by name.
        best: which update the model is of, where it is not the last one; see `loaded_best`.
    """
    method = METHODS[settings["loss"]["name"]]
    # Margins of other losses are of sums over a response, and would be compared with these.
    shown = (
        ("margin", "margin, β × nats per token") if method.is_per_token and row[0] == "margin" else row for row in SHOWN
    )
    metrics = (("loss", f"loss, {method.loss_unit}"), *shown)
    numbers = _numbers(metrics, "held-out pairs", train, held_out, best)
    return _card(settings, method, [*_method(settings, method), *_best(best)], _data(data), numbers, versions)


def own_responses_model_card(
    settings: Settings,
    source: str,
    prompts: int,
    train: Numbers,
    held_out: Numbers | None,
    versions: Mapping[str, Any],
    best: Best | None = None,
) -> str:
    """The card of a model that learned from its own responses to so many prompts of `source`, by PPO (where there is a
    section `ppo`) or from pairs of them; see `pair_model_card`."""
    method = METHODS["ppo" if "ppo" in settings else settings["loss"]["name"]]
    lines = _ppo_method(settings) if method.key == "ppo" else _online_method(settings, method)
    data = [f"- {counted(prompts, 'prompt')} of {markdown_text(source)}"]
    numbers = _numbers(PPO_SHOWN, "held-out prompts, one response each", train, held_out, best)
    return _card(settings, method, [*lines, *_best(best)], data, numbers, versions)


def _card(
    settings: Settings,
    method: Method,
    lines: list[str],
    data: list[str],
    numbers: list[str],
    versions: Mapping[str, Any],
) -> str:
    library = "peft" if settings["model"]["lora"] else "transformers"
    paper = f", arXiv {method.paper}" if method.paper else ""
    name = settings["model"]["name"]
    head = [
        "---",
        f"library_name: {library}",
        *([] if name is None else [f"base_model: {quoted_yaml(base_of_card(name))}"]),
        f"tags: [tdpo, {method.key}, preference-optimization]",
        "---",
        f"# {NAMELESS_MODEL if name is None else markdown_text(name)}, trained with {method.name}",
        "",
        f"{SENTENCE} {method.name} ({method.title}{paper}).",
        "",
    ]
    packages = [f"- {package} {version}" for package, version in versions.items() if version]
    sections = {
        "Loading": how_to_load(name, bool(settings["model"]["lora"]), bool(settings["model"].get("quantization"))),
        "Method": lines,
        "Data": data,
        "Numbers": numbers,
        "Versions": packages,
    }
    return "\n".join([*head, *(line for title, lines in sections.items() for line in _section(title, lines))])


def is_our_card(text: str) -> bool:
    """Whether a README.md is a card of tdpo, or the empty form that peft leaves beside an adapter."""
    return SENTENCE in text or PEFT_FORM in text


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _weights(settings: Settings) -> str:
    lora = settings["model"]["lora"]
    if isinstance(lora, str):
        weights = markdown_text(lora)
    else:
        weights = f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}" if lora else "all weights"
    quantization = settings["model"].get("quantization")  # older records have none
    if isinstance(quantization, Mapping):
        quantization = choice_in_words(quantization)
    base = f", base in {markdown_text(quantization)}, which is also the reference" if quantization else ""
    return f"- {weights}, dtype {settings['model']['dtype']}{base}"


def _reference(settings: Settings) -> str:
    name = settings["model"]["reference"]
    return "the policy before training" if name is None else markdown_text(name)


def _moving(update: Settings | None) -> str:
    return "" if update is None else f"; {ReferenceUpdate(**update).in_words()}. {KLS_OF_TRAINING}"


def _ppo_method(settings: Settings) -> list[str]:
    kl, ppo = settings["kl"], settings["ppo"]
    aim = f", held at {kl['target']:g} nats per sequence" if kl["controller"] != "fixed" else ""
    return [
        f"- KL constraint: {kl['direction']}, {kl['form']}, in the {kl['place']}, coefficient "
        f"{kl['coefficient']:g} at first{aim}",
        f"- reference: {_reference(settings)}",
        f"- advantages: {_advantages(ppo)}",
        _weights(settings),
        _iterations(settings, ppo, counted(ppo["epochs"], "epoch")),
    ]


def _online_method(settings: Settings, method: Method) -> list[str]:
    online, samples = settings["online"], settings["rollouts"]["samples_per_prompt"]
    ranked = "all" if method.key == "kl" else "the best against the worst"
    return [
        f"- {_loss(settings, method)}, on {ranked} of {samples} own responses to a prompt",
        *_kl_beside(settings),
        f"- reference: {_reference(settings)}{_moving(online.get('reference_update'))}",
        _weights(settings),
        _iterations(settings, online, counted(online["passes"], "pass", "passes")),
    ]


def _iterations(settings: Settings, optimization: Settings, passes: str) -> str:
    """How long it was trained, and how; `passes` over the responses of an iteration, in words."""
    completions = counted(settings["rollouts"]["completions"], "completion")
    return (
        f"- {counted(optimization['iterations'], 'iteration')} of {completions}, {passes} each, "
        f"{optimization['optimizer']}, {optimization['scheduler']} schedule, seed {settings['seed']}"
    )


def _advantages(ppo: Settings) -> str:
    if ppo["advantage"] == "gae":
        return "gae, with a critic"
    scaled = ", divided by the standard deviation of the group" if ppo["scale_by_group_std"] else ""
    return f"{ppo['advantage']}, without a critic{scaled}"


def _loss(settings: Settings, method: Method) -> str:
    loss = settings["loss"]
    beta = f", beta {loss['beta']:g}" if loss["beta"] is not None else ""
    alpha = f", alpha {loss['alpha']:g}" if loss["alpha"] is not None else ""
    gamma = f", gamma {loss['gamma']:g}" if loss.get("gamma") is not None else ""  # older records have none
    smoothing = f", label smoothing {loss['label_smoothing']:g}" if method.has_label_smoothing else ""
    return f"loss {loss['name']}{beta}{alpha}{gamma}{smoothing}"


def _kl_beside(settings: Settings) -> list[str]:
    """The KL beside the loss, or the one that is the loss; nothing where there is none."""
    loss = settings["loss"]
    if loss.get("kl") is None:
        return []
    term, place = KLTerm(**loss["kl"]), "the loss" if loss["name"] == "kl" else "beside the loss"
    return [f"- {place}: {term.weighted_in_words()}"]


def _method(settings: Settings, method: Method) -> list[str]:
    training = settings["training"]
    updates, epochs = training["max_steps"], training["epochs"]
    length = counted(updates, "update") if updates else counted(epochs, "epoch")
    return [
        f"- {_loss(settings, method)}",
        *_kl_beside(settings),
        f"- reference: {_reference(settings)}",
        _weights(settings),
        f"- {length} of {counted(training['batch_size'], 'pair')}, {training['optimizer']}, peak learning rate "
        f"{training['learning_rate']:g}, {training['scheduler']} schedule, seed {settings['seed']}",
    ]


def _best(best: Best | None) -> list[str]:
    return [] if best is None else [f"- the weights are those of {markdown_text(best_in_words(best))}"]


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for split in ("train", "eval"):
        if part := data.get(split):
            source = markdown_text(str(part["source"]))
            lines.append(
                f"- {split}: {counted(part['pairs'], 'pair')} from {source} ({counted(part['rows'], 'row')}, "
                f"{part['skipped']} skipped as broken, {part['truncated_rows']} truncated to {part['max_length']} "
                "tokens)"
            )
    return lines


def _numbers(
    shown: tuple[tuple[str, str], ...],
    held_out_name: str,
    train: Numbers,
    held_out: Numbers | None,
    best: Best | None,
) -> list[str]:
    # A trainer that logs once an iteration, or seldom, may have logged nothing before the best update.
    of_best = f"training log of update {train['step']}" if "step" in train else "training log (none until then)"
    log = "last training log" if best is None else of_best
    lines = [f"| | {log} | {held_out_name} |", "|---|---|---|"]
    for key, label in shown:
        lines.append(f"| {label} | {_number(train.get(key))} | {_number((held_out or {}).get(key))} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
