"""What a recipe asks of model and machine, checked before any work: the device, adapters, packages, folders, room.

Training checks all of it at its start, and `tdpo doctor` each on its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..config import AnyRecipe, Model, PPORecipe, Recipe
from ..installation import PACKAGES_BY_CHOICE
from ..models import (
    BUNDLED,
    LoraSettings,
    add_lora,
    cache_folder,
    check_quantized_training,
    check_vocabulary,
    configuration_of,
    has_adapter,
    is_adapter_folder,
    outline_causal_lm,
)
from ..models.bundled import converted_folder
from ..models.configurations import check_not_quantized
from ..models.devices import device_of
from ..models.liger import why_no_liger
from ..models.model_loading import will_be_quantized
from ..models.quantization import why_no_package
from ..records.folders import require_writable
from ..reference_cache.storage import MANIFEST
from ..training.arguments import why_no_compiler
from ..training.online.critic import FROZEN, Critic
from .disk_room import DiskRoom


def check_prerequisites(recipe: AnyRecipe) -> DiskRoom | None:
    """Raise what would stop the recipe's training later. Return what it will write, or None if that is unknown.

    Raises:
        ModuleNotFoundError: a package is missing that the recipe names.
        OSError: a folder cannot be written to.
        ValueError: there is no such device, or Liger or the compiler cannot run on it; adapter, reference or critic do
            not fit the model.
    """
    for sentence in missing_packages(recipe):
        raise ModuleNotFoundError(sentence)
    for reason in speedups(recipe, device_of_recipe(recipe)).values():
        if reason is not None:
            raise ValueError(reason)
    for key, folder in written_folders(recipe).items():
        require_writable(folder, key)
    policy = check_policy(recipe.model)
    return None if policy is None else DiskRoom.of(recipe, policy, check_critic(recipe, policy))


def device_of_recipe(recipe: AnyRecipe) -> torch.device:
    """Where the recipe's models run. Raises ValueError where there is no such device, or one for several processes."""
    choice, processes = recipe.model.device, int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and ":" in choice:
        raise ValueError(
            f"model.device: {choice} is one GPU, and each of the {processes} processes that were launched has its own; "
            "leave it auto"
        )
    return device_of(choice)


def speedups(recipe: AnyRecipe, device: torch.device) -> dict[str, str | None]:
    """Liger and the compiler, where the recipe asks for them: why each cannot run on the device, or None."""
    settings = recipe.optimization
    reasons = {}
    if settings.liger:
        reasons["liger"] = why_no_liger(None, device)
    if settings.compile:
        reasons["compile"] = why_no_compiler(None, device.type)
    return {key: why and f"{recipe.OPTIMIZATION}.{key}: {why}" for key, why in reasons.items()}


def missing_packages(recipe: AnyRecipe) -> Iterator[str]:
    """Yield a sentence about each package that is not installed and that the recipe's base, optimiser or trackers
    need."""
    if recipe.model.quantization is not None and (reason := why_no_package()) is not None:
        yield f"model.quantization: {reason}"
    settings = recipe.optimization
    for key, values in (("optimizer", [settings.optimizer]), ("report_to", settings.report_to)):
        for value in values:
            package = PACKAGES_BY_CHOICE.get(value)
            if package is not None and not _is_installed(package):
                where = f"{recipe.OPTIMIZATION}.{key}"
                yield f"{where}: {value} needs {package}, which is not installed; pip install {package}"


def _is_installed(package: str) -> bool:
    also = {"tensorboard": ("tensorboardX",)}  # transformers takes either
    return any(find_spec(name) is not None for name in (package, *also.get(package, ())))


def written_folders(recipe: AnyRecipe) -> dict[str, Path]:
    """Return the folders that the recipe must be able to write to, by the key or the variable that sets each."""
    folders = {"run_dir": Path(recipe.run_dir)}
    if isinstance(recipe, Recipe) and recipe.training.reference != "model":
        own = recipe.training.reference_cache_dir
        key = "TDPO_CACHE" if own is None else "training.reference_cache_dir"
        root = cache_folder() / "reference" if own is None else Path(own).expanduser()
        is_needed = own is not None or recipe.training.reference == "cache"  # "auto" can do without
        if is_needed and not any(root.glob(f"*/{MANIFEST}")):  # where there are caches, this run's may be among them
            folders[key] = root
    if BUNDLED in _models_of(recipe):
        with suppress(FileNotFoundError):  # the model is not on this machine; the checks of models say so
            if not (converted_folder() / "config.json").exists():
                folders["TDPO_CACHE"] = converted_folder()
    return folders


def _models_of(recipe: AnyRecipe) -> set[str | None]:
    critic = recipe.ppo.value_model if isinstance(recipe, PPORecipe) else None
    return {recipe.model.name, recipe.model.reference, critic}


def check_policy(model: Model, say: Callable[[str], None] = lambda _: None) -> Any | None:
    """Check that the policy can be trained as the section says and has the vocabulary of its reference.

    Returns the policy without the values of its weights, with its adapter; None for quantised weights. `say` is told
    that an adapter fits.

    Raises:
        FileNotFoundError, ValueError: as loading the models and adding the adapter.
    """
    trust = model.trust_remote_code
    policy = outline_causal_lm(model.name, trust_remote_code=trust)
    adapter = model.lora is not None or has_adapter(policy)
    check_quantized_training(will_be_quantized(model.name, trust_remote_code=trust), adapter)
    if model.quantization is not None and not has_adapter(policy):
        check_not_quantized(configuration_of(model.name, trust_remote_code=trust), model.name)
    if policy is None:
        return None
    if model.reference is not None:
        reference = outline_causal_lm(model.reference, trust_remote_code=trust)
        if reference is not None:
            check_vocabulary(policy, reference)
    if model.lora is not None:
        lora = model.lora
        policy = add_lora(policy, LoraSettings(lora.rank, lora.alpha, lora.dropout, lora.targets))
        say(f"adapters of rank {lora.rank} fit {len(policy.base_model.targeted_module_names)} layers of the model")
    return policy


def check_critic(recipe: AnyRecipe, policy: Any) -> Any | None:
    """Return the body of PPO's critic without values, where it has one of its own. Raises as the critic would."""
    if not isinstance(recipe, PPORecipe) or recipe.ppo.value_model is None:
        return None
    name, trust = recipe.ppo.value_model, recipe.model.trust_remote_code
    if is_adapter_folder(Path(name).expanduser()) or will_be_quantized(name, trust_remote_code=trust):
        raise ValueError(f"ppo.value_model {name}: {FROZEN}")
    body = outline_causal_lm(name, trust_remote_code=trust)
    if body is not None:
        Critic.of(policy, body)
    return body
