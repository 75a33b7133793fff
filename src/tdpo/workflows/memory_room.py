"""How much memory a run needs at its peak, from its recipe and its models without values.

Tensors of the models are counted one by one; what kernels and libraries need for themselves is not. docs/scaling.md
compares estimates with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import AnyRecipe, OnlineRecipe, PPORecipe, Recipe
from ..models import causal_lm_of, has_adapter
from ..models.configurations import text_config
from ..models.devices import device_of
from ..models.precision import hold_weights
from ..models.quantized_sizes import layers_to_quantize
from ..models.saved_activations import saved_bytes
from ..reference_cache.building import readable_bytes
from ..token_statistics.tiles import tile_bounds
from ..training.policy import switch_off_dropout
from .disk_room import state_bytes
from .memory_batches import LearnedBatch
from .models_of_run import ModelsOfRun

FLOAT = 4  # bytes: the head's sums and the gradients of adapters are float32
HEAD_VECTORS = 5  # of D numbers for each token: two expected weights, a hidden state, and gradients of both
HEAD_TILES = 3  # of a tile's logits for each token
LEARNING, STEP = "the end of a forward pass", "an optimizer's step"
COLLECTING = "the drawing of responses, or the making of a cache"
# Numbers for each weight that an optimizer steps with, where it goes over the weights one by one.
STEPS = {"adamw_torch": 2, "rmsprop": 1, "adafactor": 3}
RECOMPUTED = 1  # layers whose activations are there at a time under gradient checkpointing


@dataclass(frozen=True)
class MemoryRoom:
    """Bytes on one device.

    Attributes:
        weights: of policy, reference and critic.
        gradients: of what is trained.
        optimizer: its state.
        activations: what a micro-batch keeps for its backward pass; None where that depends on values.
        head: of the walk over the vocabulary, and the gradient that it gives a head.
        rounded: copies of weights that autocast makes for their products; a backward pass lets go of them.
        waiting: gradients of an update's earlier micro-batches, while another one passes through the model.
        step: what an optimizer computes its step with, beside the gradients; before it, the second gradient of an
            embedding that is the head as well.
        cache: keys and values of the responses that are drawn together, and what is kept of those drawn; 0 for a recipe
            on pairs, whose reference cache is on the disk.
        collecting: weights that are there only while responses are drawn or a reference cache is made: an adapter
            folded in, shards made whole, the reference that is cached.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    head: int
    rounded: int = 0
    waiting: int = 0
    step: int = 0
    cache: int = 0
    collecting: int = 0

    @property
    def moments(self) -> dict[str, int]:
        """Bytes in the moments of which one has the most.

        A backward pass makes gradients while it gives activations back, so it has most at one of its ends.
        """
        held = self.weights + self.optimizer
        return {
            LEARNING: held + self.rounded + self.waiting + (self.activations or 0) + self.head,
            STEP: held + self.gradients + self.step,
            COLLECTING: held + self.cache + self.collecting,
        }

    @property
    def peak(self) -> int:
        """Bytes in the largest of the `moments`."""
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        """The name of the largest of the `moments`."""
        moments = self.moments
        return max(moments, key=moments.__getitem__)

    def in_words(self) -> str:
        """The estimate for people."""
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "head")}
        named = {
            "copies for autocast": self.rounded, "step": self.step, "cache": self.cache, "collecting": self.collecting,
        }  # fmt: skip
        parts |= {name: value for name, value in named.items() if value}
        said = ", ".join(
            f"{name} {'unknown without values' if value is None else readable_bytes(value)}"
            for name, value in parts.items()
        )
        return f"about {readable_bytes(self.peak)} at the peak, {self.peak_moment} ({said})"


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
    critic = [] if models.critic is None else list(models.critic.parameters())
    trained = [*(p for p in policy.parameters() if p.requires_grad), *critic]
    is_cached = _is_cached(recipe, devices)
    runs_beside = [] if is_cached else _beside(recipe, models)
    kept = _held(models) + _bytes(runs_beside) + _bytes(critic)
    products: torch.dtype = getattr(torch, precision.products)
    rounded = [p for p in (*policy.parameters(), *critic) if precision.is_mixed and p.dtype != products]
    gradients = _bytes(trained) // devices
    head = _head_weight(models)
    keeps_head = not _has_frozen_head(models) and (is_cached or isinstance(recipe, PPORecipe))
    room = MemoryRoom(
        weights=kept // devices + (0 if devices == 1 else _gathered(policy)) + (_bytes([head]) if keeps_head else 0),
        gradients=gradients,
        optimizer=state_bytes(trained, settings.optimizer, None) // devices,
        activations=None,
        head=_walk(models, batch) + (_bytes([head]) if head.requires_grad else 0),
        rounded=sum(p.numel() for p in rounded) * products.itemsize if devices == 1 else 0,
        waiting=gradients if batch.is_one_of_several else 0,
        step=max(
            _step(trained, settings.optimizer, device_of(recipe.model.device)) // devices, _second_gradient(models)
        ),
        cache=0 if isinstance(recipe, Recipe) else _drawn(recipe, policy, batch, devices),
        collecting=_collecting(recipe, models, kept, devices),
    )
    return replace(room, activations=_activations(recipe, models, batch))  # last: it changes dtypes of the models


def _is_cached(recipe: AnyRecipe, devices: int) -> bool:
    """Whether the reference is read from a disk while the policy learns; "auto" keeps one whose weights are shared."""
    if not isinstance(recipe, Recipe):
        return False
    choice = recipe.training.reference
    return choice == "cache" or (choice == "auto" and devices == 1)


def _beside(recipe: AnyRecipe, models: ModelsOfRun) -> list[Tensor]:
    """The weights of the reference, where it runs: none if it is the policy with its adapter off."""
    if models.reference is not None:
        return list(models.reference.parameters())
    trained = [p for p in models.policy.parameters() if p.requires_grad]
    moves = isinstance(recipe, OnlineRecipe) and recipe.online.reference_update is not None
    return trained if moves or not has_adapter(models.policy) else []  # a copy shares what is not trained


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


def _head_weight(models: ModelsOfRun) -> Any:
    return causal_lm_of(models.policy).get_output_embeddings().weight


def _has_frozen_head(models: ModelsOfRun) -> bool:
    """Whether policy and reference share a head that is not trained. Where not, what a cached reference said, or that
    of a rollout, is read with a copy of its head."""
    return has_adapter(models.policy) and models.reference is None and not _head_weight(models).requires_grad


def _walk(models: ModelsOfRun, batch: LearnedBatch) -> int:
    vocabulary, width = _head_weight(models).shape
    _, tile = next(tile_bounds(batch.counted, int(vocabulary)))
    return int(batch.counted * (HEAD_VECTORS * int(width) + HEAD_TILES * tile) * FLOAT)


def _second_gradient(models: ModelsOfRun) -> int:
    """Of a head that is the embedding too: the embedding's ends a backward pass, and is added to the head's."""
    head = _head_weight(models)
    is_tied = head is causal_lm_of(models.policy).get_input_embeddings().weight
    return _bytes([head]) if is_tied and head.requires_grad else 0


def _step(trained: list[Tensor], optimizer: str, device: torch.device) -> int:
    """What torch's optimizers compute a step with: on an accelerator for all weights at once, on a CPU for one after
    another. Fused and 8-bit ones, and plain descent, compute in place."""
    sizes = [_bytes([weight]) for weight in trained]
    numbers = STEPS.get(optimizer, 0)
    if device.type == "cpu" or optimizer == "adafactor":
        return numbers * max(sizes, default=0)
    return sum(sizes) if numbers else 0


def _drawn(recipe: PPORecipe | OnlineRecipe, policy: Any, batch: LearnedBatch, devices: int) -> int:
    """Keys and values, logits of one step, and what PPO keeps of a rollout; of the share of one device."""
    config, size = text_config(policy.config), next(policy.parameters()).element_size()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = max(1, recipe.rollouts.completions // devices)
    cache = 2 * config.num_hidden_layers * batch.drawn * batch.sequence * heads * head * size
    logits = batch.drawn * config.vocab_size * FLOAT
    kept = own * batch.response * config.hidden_size * FLOAT
    drawing = 0 if recipe.sampling.is_server else cache + logits
    return int(drawing + (kept if isinstance(recipe, PPORecipe) else 0))


def _collecting(recipe: AnyRecipe, models: ModelsOfRun, kept: int, devices: int) -> int:
    """Weights that are there beside the `kept` ones only while responses are drawn, or while a cache is made."""
    if isinstance(recipe, Recipe):
        is_another = _is_cached(recipe, devices) and models.reference is not None
        return _bytes(_beside(recipe, models)) if is_another else 0
    return _folded(recipe, models) + (kept if devices > 1 else 0)


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
