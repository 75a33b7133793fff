"""How much memory a run needs at its peak, from its recipe and its models without values.

Tensors of the models are counted one by one; what kernels and libraries need for themselves is not. docs/scaling.md
compares estimates with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import AnyRecipe, OnlineRecipe, PPORecipe, Recipe
from ..models import causal_lm_of, has_adapter, outline_causal_lm
from ..models.configurations import text_config
from ..models.devices import device_of
from ..models.precision import Precision, choose_precision, hold_weights, loaded_dtype
from ..models.quantized_sizes import bits_of_base, layers_to_quantize
from ..models.saved_activations import saved_bytes
from ..reference_cache.building import readable_bytes
from ..token_statistics.tiles import TILE
from ..training.policy import switch_off_dropout
from .disk_room import state_bytes
from .memory_batches import LearnedBatch
from .prerequisites import check_critic, check_policy

FLOAT = 4  # bytes: the head's sums and the gradients of adapters are float32
HEAD_VECTORS = 5  # of D numbers for each token: two expected weights, a hidden state, and gradients of both
HEAD_TILES = 3  # of `TILE` logits for each token
RECOMPUTED = 1  # layers whose activations are there at a time under gradient checkpointing


@dataclass(frozen=True)
class MemoryRoom:
    """Bytes on one device.

    Attributes:
        weights: of policy, reference, critic, and of copies that products are computed with.
        gradients: of what is trained.
        optimizer: its state.
        activations: what a micro-batch keeps for its backward pass; None where that depends on values.
        head: of the walk over the vocabulary, and copies of a head.
        cache: keys and values of the responses that are drawn together, and what is kept of those drawn; 0 for a recipe
            on pairs, whose reference cache is on the disk.
        collecting: weights that are there only while responses are drawn: an adapter folded in, shards made whole.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    head: int
    cache: int = 0
    collecting: int = 0

    @property
    def peak(self) -> int:
        """The largest of three moments: a backward pass, an optimizer's step, and the drawing of responses."""
        stays = self.weights + self.optimizer
        learning = stays + self.gradients + (self.activations or 0) + self.head
        step = stays + 2 * self.gradients  # an optimizer computes its steps beside the gradients
        return max(learning, step, stays + self.cache + self.collecting)

    def in_words(self) -> str:
        """The estimate for people."""
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "head")}
        parts |= {name: value for name in ("cache", "collecting") if (value := getattr(self, name))}
        said = ", ".join(
            f"{name} {'unknown without values' if value is None else readable_bytes(value)}"
            for name, value in parts.items()
        )
        return f"about {readable_bytes(self.peak)} at the peak ({said})"


def memory_of(recipe: AnyRecipe, models: ModelsOfRun, batch: LearnedBatch, devices: int = 1) -> MemoryRoom:
    """The memory of a recipe on each of `devices` that share the weights (FSDP2).

    Args:
        recipe: resolved.
        models: its models without values.
        batch: the largest micro-batch of one device.
        devices: 1 for weights that are whole.
    """
    settings, policy = recipe.optimization, models.policy
    precision = models.precision
    trained = [p for p in policy.parameters() if p.requires_grad]
    critic = [] if models.critic is None else list(models.critic.parameters())
    beside = _beside(recipe, models)
    kept = _held(models) + _bytes(beside) + _bytes(critic)
    products: torch.dtype = getattr(torch, precision.products)
    rounded = [p for p in (*policy.parameters(), *critic) if precision.is_mixed and p.dtype != products]
    copies = sum(weight.numel() for weight in rounded) * products.itemsize  # kept until the backward is done
    whole = 0 if devices == 1 else _gathered(policy)
    return MemoryRoom(
        weights=kept // devices + (copies if devices == 1 else 0) + whole,
        gradients=_bytes([*trained, *critic]) // devices,
        optimizer=state_bytes([*trained, *critic], settings.optimizer, None) // devices,
        activations=_activations(recipe, models, batch),
        head=_head(recipe, models, batch),
        cache=0 if isinstance(recipe, Recipe) else _drawn(recipe, policy, batch, devices),
        collecting=0 if isinstance(recipe, Recipe) else _folded(recipe, models) + (kept if devices > 1 else 0),
    )


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


def _beside(recipe: AnyRecipe, models: ModelsOfRun) -> list[Tensor]:
    """The weights of a reference that runs beside the policy; none of one that is read from a cache."""
    if models.reference is not None:
        return list(models.reference.parameters())
    trained = [p for p in models.policy.parameters() if p.requires_grad]
    if isinstance(recipe, OnlineRecipe) and recipe.online.reference_update is not None:
        return trained  # of a copy, which shares what is not trained
    is_read = isinstance(recipe, Recipe) and recipe.training.reference != "model"
    return [] if is_read or has_adapter(models.policy) else trained


def _held(models: ModelsOfRun) -> int:
    """The policy's weights; those of a quantised base in few bits, and one layer at a time as it is computed with."""
    weights = _bytes(models.policy.parameters())
    if models.bits is None:
        return weights
    layers = layers_to_quantize(models.policy)
    packed = int(models.bits / 8 * sum(weight.numel() for weight in layers))
    return weights - _bytes(layers) + packed + max((_bytes([layer]) for layer in layers), default=0)


def _activations(recipe: AnyRecipe, models: ModelsOfRun, batch: LearnedBatch) -> int | None:
    """Counted on policy and critic, which pass a micro-batch before its backward. Their products are then in the dtype
    of the run; they are not as before afterwards."""
    policy, products = models.policy, models.precision.products
    counted: list[int] = []
    for model in [policy] if models.critic is None else [policy, models.critic]:
        if models.precision.is_mixed:
            hold_weights(model, products)
        if models.precision.rounds_adapters and has_adapter(model):
            for weight in model.parameters():
                weight.data = weight.data.to(getattr(torch, products))
        switch_off_dropout(model.train())
        kept = saved_bytes(model, batch.rows, batch.tokens)
        if kept is None:
            return None
        counted.append(kept)
    if recipe.optimization.gradient_checkpointing:  # which the trainer switches on for the policy alone
        text = text_config(policy.config)
        inputs = batch.rows * batch.tokens * text.hidden_size * _size(products)
        counted[0] = text.num_hidden_layers * inputs + RECOMPUTED * counted[0] // text.num_hidden_layers
    return sum(counted)


def _head(recipe: AnyRecipe, models: ModelsOfRun, batch: LearnedBatch) -> int:
    weight = causal_lm_of(models.policy).get_output_embeddings().weight
    width = int(weight.shape[1])
    walk = batch.counted * (HEAD_VECTORS * width + HEAD_TILES * TILE) * FLOAT
    if has_adapter(models.policy) and not weight.requires_grad:
        return walk
    # A head that is trained has a gradient of its own sums, and the reference's is kept beside it.
    return walk + weight.numel() * (FLOAT + _size(models.precision.weights))


def _drawn(recipe: PPORecipe | OnlineRecipe, policy: Any, batch: LearnedBatch, devices: int) -> int:
    """Keys and values, logits of one step, and what PPO keeps of a rollout; of the share of one device."""
    config, size = text_config(policy.config), next(policy.parameters()).element_size()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = max(1, recipe.rollouts.completions // devices)
    together = min(recipe.rollouts.batch_size, own)
    cache = 2 * config.num_hidden_layers * together * batch.sequence * heads * head * size
    logits = together * config.vocab_size * FLOAT
    kept = own * batch.response * config.hidden_size * FLOAT
    drawing = 0 if recipe.sampling.is_server else cache + logits
    return int(drawing + (kept if isinstance(recipe, PPORecipe) else 0))


def _folded(recipe: PPORecipe | OnlineRecipe, models: ModelsOfRun) -> int:
    """The weights of adapted layers with their adapter, beside those without; nothing is folded into few bits."""
    if recipe.sampling.is_server or not recipe.rollouts.merge_adapter or models.bits is not None:
        return 0
    layers: list[Any] = [module for module in models.policy.modules() if hasattr(module, "lora_A")]
    return _bytes(layer.get_base_layer().weight for layer in layers)


def _gathered(policy: Any) -> int:
    """What FSDP2 holds whole at a time while it learns: two layers, the embedding and the head."""
    lm = causal_lm_of(policy)
    ends = {id(p): p for e in (lm.get_input_embeddings(), lm.get_output_embeddings()) for p in e.parameters()}
    layers = text_config(policy.config).num_hidden_layers
    return _bytes(ends.values()) + 2 * (_bytes(policy.parameters()) - _bytes(ends.values())) // layers


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _size(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)
