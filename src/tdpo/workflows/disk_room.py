"""How much a run will write, against what is free: a disk that is too small is known before hours of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import AnyRecipe, OnlineRecipe, Recipe
from ..models.precision import held_dtype, loaded_dtype
from ..records.files import free_bytes
from ..reference_cache.building import readable_bytes

# Numbers that an optimiser keeps for each trained weight, and the bytes of each (None: as the weight).
_STATES: dict[str, tuple[int, int | None]] = {
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "adamw_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
    "rmsprop": (1, None),
}  # adafactor and sgd keep next to nothing


@dataclass(frozen=True)
class DiskRoom:
    """What a run writes into its folder.

    Attributes:
        folder: the run directory.
        key: the recipe's section that says how often it saves.
        model: bytes of the trained model, which is an adapter alone where there is one.
        checkpoint: bytes of a checkpoint: the same, the optimiser's state, and a critic or a reference that moves.
        saves_after: updates (with own responses: iterations) between two checkpoints, None for none.
        limit: how many checkpoints are kept.
    """

    folder: Path
    key: str
    model: int
    checkpoint: int
    saves_after: int | None
    limit: int

    @classmethod
    def of(cls, recipe: AnyRecipe, policy: nn.Module, critic: nn.Module | None = None) -> DiskRoom:
        """The room for the run of a recipe, from its models without values (on the device "meta")."""
        settings: Any = recipe.optimization
        adapter = recipe.model.lora is not None or _is_adapter(policy)
        loaded = loaded_dtype(policy) if recipe.model.dtype == "auto" else recipe.model.dtype
        # Adapters are float32 whatever the model is (peft), and the outline has them so.
        dtype = None if adapter else getattr(torch, held_dtype(settings.precision, loaded, has_adapter=False))
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        kept = trained if adapter else list(policy.parameters())
        extra = [] if critic is None else list(critic.parameters())
        moves = isinstance(recipe, OnlineRecipe) and recipe.online.reference_update is not None
        beside = extra + (trained if moves else [])  # of a checkpoint: the critic, or the reference
        state = state_bytes(trained + extra, settings.optimizer, dtype)
        return cls(
            Path(recipe.run_dir),
            recipe.OPTIMIZATION,
            _bytes(kept, dtype),
            _bytes(kept + beside, dtype) + state,
            settings.save_steps if isinstance(recipe, Recipe) else settings.save_every,
            settings.save_total_limit or 0,
        )

    def bytes(self, length: int) -> int:
        """The most bytes that lie there at a time, in a run of `length` updates (with own responses: iterations)."""
        saves = 0 if self.saves_after is None else ceil(length / self.saves_after)
        # The oldest checkpoint goes when the newest is whole, and the model is written beside the last ones.
        return max(self.checkpoint * min(saves, self.limit + 1), self.checkpoint * min(saves, self.limit) + self.model)

    def in_words(self, length: int) -> str:
        """The estimate for people."""
        saves = 0 if self.saves_after is None else min(ceil(length / self.saves_after), self.limit + 1)
        parts = [f"model {readable_bytes(self.model)}"]
        if saves:
            parts.append(f"up to {saves} checkpoint{'s' * (saves > 1)} of {readable_bytes(self.checkpoint)}")
        return f"about {readable_bytes(self.bytes(length))} ({', '.join(parts)})"

    def check(self, length: int, *, on_disk: int = 0) -> None:
        """Raise OSError if the disk cannot hold what a run of `length` writes beyond the `on_disk` bytes of it."""
        free = free_bytes(self.folder)
        if self.bytes(length) - on_disk > free:
            raise OSError(
                f"run_dir {self.folder}: the run needs {self.in_words(length)}, and {readable_bytes(free)} are free "
                f"there. Free some, keep fewer checkpoints ({self.key}.save_total_limit=1), or choose another run_dir=…"
            )


def bytes_of_files(folders: Iterable[Path]) -> int:
    """The bytes of all files in these folders."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _is_adapter(model: nn.Module) -> bool:
    return any(not weight.requires_grad for weight in model.parameters()) and hasattr(model, "peft_config")


def _bytes(weights: Iterable[torch.Tensor], dtype: torch.dtype | None) -> int:
    return sum(weight.numel() * _size(weight, dtype) for weight in weights)


def state_bytes(trained: Iterable[torch.Tensor], optimizer: str, dtype: torch.dtype | None) -> int:
    """The bytes of an optimizer's state for these weights, held in `dtype` (None: each in its own)."""
    count, size = _STATES.get(optimizer, (0, None))
    return sum(weight.numel() * count * (size or _size(weight, dtype)) for weight in trained)


def _size(weight: torch.Tensor, dtype: torch.dtype | None) -> int:
    return weight.element_size() if dtype is None else dtype.itemsize
