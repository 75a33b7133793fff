"""Says in words what a key expects, and which key somebody meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ._sections import Section
from .online_schema import OnlineRecipe
from .ppo_schema import PPORecipe
from .schema import Recipe
from .study_schema import Study

SCHEMAS: tuple[type[Section], ...] = (Recipe, PPORecipe, OnlineRecipe, Study)

# Names that other trainers give to a key. A test checks that every value is a key of that recipe.
_IN_BOTH = {
    "output_dir": "run_dir",
    "model_name_or_path": "model.name",
    "ref_model": "model.reference",
    "torch_dtype": "model.dtype",
    "peft_config": "model.lora",
    "use_peft": "model.lora",
    "r": "model.lora.rank",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "target_modules": "model.lora.targets",
    "lora_target_modules": "model.lora.targets",
}
ALIASES: dict[type[Section], dict[str, str]] = {
    Recipe: {
        **_IN_BOTH,
        "bf16": "training.precision",
        "fp16": "training.precision",
        "mixed_precision": "training.precision",
        "dataset": "data.train",
        "dataset_name": "data.train",
        "train_file": "data.train",
        "train_dataset": "data.train",
        "eval_dataset": "data.eval",
        "max_seq_length": "data.max_length",
        "loss_type": "loss.name",
        "tau": "loss.beta",
        "simpo_gamma": "loss.gamma",
        "coef": "loss.kl.coefficient",
        "kl_coef": "loss.kl.coefficient",
        "kl_coefficient": "loss.kl.coefficient",
        "lr": "training.learning_rate",
        "num_train_epochs": "training.epochs",
        "num_epochs": "training.epochs",
        "steps": "training.max_steps",
        "per_device_train_batch_size": "training.micro_batch_size",
        "gradient_accumulation_steps": "training.batch_size",
        "lr_scheduler_type": "training.scheduler",
        "warmup_ratio": "training.warmup_steps",
        "warmup": "training.warmup_steps",
        "optim": "training.optimizer",
        "train_sampling_strategy": "training.group_by_length",
        "packing": "training.max_tokens_per_row",
        "num_generations": "sampling.samples_per_prompt",
        "max_completion_length": "sampling.max_new_tokens",
    },
    PPORecipe: {
        **_IN_BOTH,
        "bf16": "ppo.precision",
        "fp16": "ppo.precision",
        "mixed_precision": "ppo.precision",
        "dataset": "prompts.train",
        "dataset_name": "prompts.train",
        "train_file": "prompts.train",
        "train_dataset": "prompts.train",
        "eval_dataset": "prompts.eval",
        "reward_funcs": "rewards",
        "reward_model": "rewards",
        "reward_model_path": "rewards",
        "beta": "kl.coefficient",
        "coef": "kl.coefficient",
        "kl_coef": "kl.coefficient",
        "init_kl_coef": "kl.coefficient",
        "adap_kl_ctrl": "kl.controller",
        "kl_penalty": "kl.form",
        "kl_estimator": "kl.form",
        "rollout_batch_size": "rollouts.batch_size",
        "num_generations": "rollouts.samples_per_prompt",
        "response_length": "rollouts.max_new_tokens",
        "max_completion_length": "rollouts.max_new_tokens",
        "local_rollout_forward_batch_size": "rollouts.batch_size",
        "missing_eos_penalty": "rollouts.missing_end_penalty",
        "num_sample_generations": "rollouts.show_every",
        "lr": "ppo.learning_rate",
        "steps": "ppo.iterations",
        "max_steps": "ppo.iterations",
        "total_episodes": "ppo.iterations",
        "num_train_epochs": "ppo.iterations",
        "ppo_epochs": "ppo.epochs",
        "num_ppo_epochs": "ppo.epochs",
        "mini_batch_size": "ppo.minibatch_size",
        "num_mini_batches": "ppo.minibatch_size",
        "gradient_accumulation_steps": "ppo.minibatch_size",
        "per_device_train_batch_size": "ppo.micro_batch_size",
        "lam": "ppo.gae_lambda",
        "cliprange": "ppo.clip_range",
        "cliprange_value": "ppo.value_clip_range",
        "vf_coef": "ppo.value_coefficient",
        "ent_coef": "ppo.entropy_coefficient",
        "entropy_coef": "ppo.entropy_coefficient",
        "whiten_rewards": "ppo.normalize_rewards",
        "lr_scheduler_type": "ppo.scheduler",
        "warmup_ratio": "ppo.warmup_steps",
        "warmup": "ppo.warmup_steps",
        "optim": "ppo.optimizer",
        "eval_steps": "ppo.eval_every",
        "save_steps": "ppo.save_every",
    },
}
# Of other trainers' names for the keys of `ppo`, those whose key `online` has as well.
_OF_BOTH_ONLINE = {
    "precision", "iterations", "minibatch_size", "micro_batch_size", "learning_rate", "scheduler", "warmup_steps",
    "optimizer", "eval_every", "save_every",
}  # fmt: skip
ALIASES[OnlineRecipe] = {
    **{name: key for name, key in ALIASES[Recipe].items() if key.startswith(("loss.", "model.")) or key == "run_dir"},
    **{
        name: key.replace("ppo.", "online.")
        for name, key in ALIASES[PPORecipe].items()
        if not key.startswith(("ppo.", "kl.")) or key.removeprefix("ppo.") in _OF_BOTH_ONLINE
    },
    "sync_ref_model": "online.reference_update",
    "ref_model_sync_steps": "online.reference_update.every",
    "ref_model_mixup_alpha": "online.reference_update.weight",
    "epochs": "online.passes",
    "ppo_epochs": "online.passes",
    "num_ppo_epochs": "online.passes",
}
ALIASES[Study] = {
    **{name: key for name, key in ALIASES[Recipe].items() if key.startswith(("training.", "sampling.", "model."))},
    "output_dir": "study_dir",
    "run_dir": "study_dir",
    "betas": "arms[].strengths",
    "beta": "arms[].strengths",
    "kl": "arms[].set",
    "loss": "arms[].set",
    "methods": "arms",
    "num_workers": "workers",
}
# Sections that only the other kind of recipe has, with the section that takes their place.
COUNTERPARTS = {
    PPORecipe: {"data": "prompts", "loss": "kl", "training": "ppo", "online": "ppo", "sampling": "rollouts"},
    OnlineRecipe: {"data": "prompts", "kl": "loss.kl", "training": "online", "sampling": "rollouts"},
    Recipe: {"prompts": "data", "rewards": "environment", "kl": "loss.kl", "rollouts": "sampling", "ppo": "training"},
}
# Keys that people look for and that are left out on purpose, or have another name in this section.
_LEFT_OUT: dict[tuple[type[Section], str], str] = (
    {
        (schema, f"rollouts.{name}"): "there is no such key: the gradient is that of responses drawn from the policy "
        "itself, at temperature 1 from all tokens"
        for schema in (PPORecipe, OnlineRecipe)
        for name in ("temperature", "top_p", "top_k")
    }
    | {
        (
            schema,
            "loss.beta_target",
        ): "there is no such key: β cannot hold a KL (docs/the_two_kls.md); loss.kl.target holds one beside any loss"
        for schema in (Recipe, OnlineRecipe)
    }
    | {
        (schema, f"environment.{key}"): f"unknown key; did you mean environment.{meant}?"
        for schema in SCHEMAS
        for key, meant in {"eval": "held_out", "test": "held_out", "train": "prompts", "function": "reward"}.items()
    }
)


def schema_of(values: Mapping[str, Any]) -> type[Section]:
    """The schema of these values: a section `ppo` makes a recipe one of PPO, and `online` one on own pairs."""
    if "ppo" in values:
        return PPORecipe
    return OnlineRecipe if "online" in values else Recipe


def why_not_here(key: str, schema: type[Section]) -> str | None:
    """A sentence about an unknown key that belongs elsewhere; None for any other unknown key."""
    top = key.partition(".")[0]
    counterpart = COUNTERPARTS.get(schema, {}).get(top)
    if counterpart is None:
        return _LEFT_OUT.get((schema, key))
    if schema is Recipe:
        online = "" if top in ("kl", "ppo") else "; for pairs of own responses, a section online"
        return f"belongs to a PPO recipe: add a section ppo (`ppo: {{}}` is enough{online}), or see {counterpart}"
    if schema is OnlineRecipe:
        kind = "PPO recipe" if top == "kl" else "recipe for preferences"
        return f"belongs to a {kind}, not to one with a section online; see {counterpart}"
    if top == "online":
        return "makes a recipe one on pairs of own responses, and ppo one of PPO; keep one of the two"
    return f"belongs to a recipe for preferences, not for PPO (this one has a section ppo); see {counterpart}"


def fields(schema: type[Section] = Recipe) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a recipe with its field, sections before their keys, in the order of the file.

    The keys of a list's entries are `list[].key`.
    """

    def walk(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, field in section.model_fields.items():
            yield prefix + name, field
            inner, entry = section_of(field), entry_of(field)
            if inner is not None:
                yield from walk(inner, f"{prefix}{name}.")
            if entry is not None:
                yield from walk(entry, f"{prefix}{name}[].")

    return walk(schema, "")


def section_of(field: FieldInfo) -> type[Section] | None:
    """The class of the section that a field holds, also where it may be null; None where it holds no section."""
    arms = () if get_origin(field.annotation) is list else get_args(field.annotation)
    candidates = (field.annotation, *arms)
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, Section)), None)


def entry_of(field: FieldInfo) -> type[Section] | None:
    """The class of the sections that a field holds a list of, also where it may be null; None where it holds none."""
    lists = [arm for arm in (field.annotation, *get_args(field.annotation)) if get_origin(arm) is list]
    entries = (entry for arm in lists for entry in get_args(arm))
    return next((entry for entry in entries if isinstance(entry, type) and issubclass(entry, Section)), None)


def meaning(field: FieldInfo) -> str:
    """The documentation of a key in one line; of a section, the class's documentation comes first."""
    section = section_of(field) or entry_of(field)
    texts = [section.__doc__ if section else None, field.description]
    return " ".join(" ".join(text.split()) for text in texts if text)


def expected(field: FieldInfo) -> str:
    """The values that a field accepts, in words such as "a number > 0 or null"."""
    return _in_words(field.annotation, field.metadata)


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}


def _in_words(annotation: Any, metadata: list[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        constraints = [item for e in extra for item in (e.metadata if isinstance(e, FieldInfo) else [e])]
        return _in_words(inner, [*metadata, *constraints])
    if origin in (Union, UnionType):
        *first, last = (_in_words(arm, metadata) for arm in get_args(annotation))
        return ", or ".join([" or ".join(first), last])
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if origin is dict and get_args(annotation)[1] is float:
        return "a number for each name, such as {dpo: 1, sft: -1}"
    if origin is dict:
        return "dotted keys with values, such as {loss.alpha: 1.0}"
    if origin is list:
        entry = _in_words(get_args(annotation)[0], []).removeprefix("one of ")
        return f"a list [..] of {entry.replace('a section', 'sections', 1)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        keys = ", ".join(annotation.model_fields)
        return f"a section with the key{'s' * (', ' in keys)} {keys}"
    bounds = [
        f"{sign} {getattr(item, attribute)}"
        for item in metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, attribute, None) is not None and annotation in (int, float)
    ]
    return " ".join([_NAMES[annotation], " and ".join(bounds)]).strip()


def got(value: Any) -> str:
    """A value as somebody wrote it, shortened; text is called text, so that it is not taken for a number."""
    try:
        shown = shorten(repr(value), 60)
    except ValueError:  # Python writes out no integer of thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {shown}"
    return shown


def shorten(text: str, most: int = 200) -> str:
    """`text`, or its beginning where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _as_entry(value: str | Mapping[str, Any], entry: type[Section]) -> str:
    pairs = value.items() if isinstance(value, Mapping) else [(next(iter(entry.model_fields)), value)]
    return "{" + ", ".join(f"{name}: {inner}" for name, inner in pairs) + "}"


def nearest_key(unknown: str, schema: type[Section] = Recipe) -> str | None:
    """The key that somebody who wrote `unknown` (a full dotted path) into such a recipe most likely meant."""
    keys = [path for path, _ in fields(schema)]
    section, _, last = unknown.rpartition(".")
    if last in ALIASES[schema]:
        return ALIASES[schema][last]
    same_name = [path for path in keys if path.rpartition(".")[2] == last]
    if same_name:
        return same_name[0]
    siblings = [path for path in keys if path.rpartition(".")[0] == section]
    matches = get_close_matches(unknown, siblings, 1, 0.7) or get_close_matches(unknown, keys, 1, 0.7)
    if matches:
        return matches[0]
    by_name = {path.rpartition(".")[2]: path for path in reversed(keys)}
    names = get_close_matches(last, by_name, 1, 0.75)
    return by_name[names[0]] if names else None


def advice(key: str, value: Any, field: FieldInfo) -> str:
    """An end for an error message: what somebody who gave `value` to `key` probably meant; "" without an idea."""
    section = section_of(field)
    if section is not None:
        if isinstance(value, str) and "name" in section.model_fields:
            return f"; did you mean {key}.name: {value}?"
        named = [name for name, inner in section.model_fields.items() if value in _choices(inner)]
        if named:
            return f"; did you mean {key}.{named[0]}: {value}?"
        needs_nothing = not any(inner.is_required() for inner in section.model_fields.values())
        return f"; {key}: {{}} takes its defaults" if value is None and needs_nothing else ""
    entry = entry_of(field)
    if entry is not None:
        return f"; a list of one is written [{_as_entry(value, entry)}]" if isinstance(value, str | Mapping) else ""
    if get_origin(field.annotation) is list and isinstance(value, str):
        return f"; a list of one is written [{value}]"
    matches = get_close_matches(value.lower(), _choices(field), 1, 0.6) if isinstance(value, str) else []
    return f"; did you mean {matches[0]}?" if matches else ""


def _choices(field: FieldInfo) -> list[str]:
    """The names among which a field chooses; none where it takes any value."""
    arms = (field.annotation, *get_args(field.annotation))
    return [str(choice) for arm in arms if get_origin(arm) is Literal for choice in get_args(arm)]
