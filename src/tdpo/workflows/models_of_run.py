"""The models of a run without values, for an estimate of what they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import AnyRecipe
from ..models import has_adapter, outline_causal_lm
from ..models.devices import device_of
from ..models.precision import Precision, choose_precision, hold_weights, loaded_dtype
from ..models.quantized_sizes import bits_of_base
from .prerequisites import check_critic, check_policy


@dataclass(frozen=True)
class ModelsOfRun:
    """The models of a run on the device "meta", in the dtypes that they are held in.

    Attributes:
        policy: with its adapter.
        reference: another model than the policy's start; None where that is the reference.
        critic: a body of its own, or None.
        precision: of the training.
        bits: of a weight in the layers of the policy's base that are quantised; None where none is.
    """

    policy: Any
    reference: nn.Module | None
    critic: nn.Module | None
    precision: Precision
    bits: float | None = None

    @classmethod
    def of(cls, recipe: AnyRecipe) -> ModelsOfRun | None:
        """The models that the recipe names; None where weights are stored quantised, which have no outline.

        Raises:
            FileNotFoundError, ValueError: as loading the models and adding the adapter, and as `device_of`.
        """
        policy, name = check_policy(recipe.model), recipe.model.reference
        if policy is None:
            return None
        trust = recipe.model.trust_remote_code
        reference = None if name is None else outline_causal_lm(name, trust_remote_code=trust)
        critic = check_critic(recipe, policy)
        loaded = loaded_dtype(policy) if recipe.model.dtype == "auto" else recipe.model.dtype
        adapters = "float32" if has_adapter(policy) else None
        device = device_of(recipe.model.device)
        precision = choose_precision(recipe.optimization.precision, loaded, adapters=adapters, device=device)
        for model in (policy, reference):
            if model is not None:
                hold_weights(model, precision.weights)
        if critic is not None and recipe.optimization.precision == "auto":
            hold_weights(critic, "float32")
        return cls(policy, reference, critic, precision, bits_of_base(recipe.model.name, recipe.model.quantization))
