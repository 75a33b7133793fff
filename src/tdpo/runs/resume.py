"""Whether a run may be continued with a recipe: only if that leaves its trajectory as it would have been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import AnyRecipe, PPORecipe, Recipe, flatten

# These keys change where and how often files are written, or the speed. Numbers change by rounding at most.
_BOOKKEEPING = ("micro_batch_size", "gradient_checkpointing", "save_total_limit", "report_to", "num_threads")


@dataclass(frozen=True)
class _Freedom:
    """The keys that may differ when a run of one kind is resumed; `length` only with a constant learning rate."""

    keys: frozenset[str]
    sections: tuple[str, ...]
    length: frozenset[str]


_PREFERENCES = _Freedom(
    keys=frozenset(
        [
            "run_dir",
            "model.device",
            *(f"training.{key}" for key in (*_BOOKKEEPING, "logging_steps", "eval_steps", "save_steps")),
        ]
    ),
    sections=("environment", "sampling", "evaluation"),
    length=frozenset({"training.epochs", "training.max_steps"}),
)


def _of_own_responses(section: str) -> _Freedom:
    """The environment is what such a run learns from: it may not differ."""
    return _Freedom(
        keys=frozenset(
            [
                "run_dir",
                "model.device",
                "rollouts.batch_size",
                "rollouts.show_every",
                *(f"sampling.{key}" for key in ("url", "adapter_dir", "timeout")),
                *(f"{section}.{key}" for key in (*_BOOKKEEPING, "eval_every", "save_every")),
            ]
        ),
        sections=("evaluation",),
        length=frozenset({f"{section}.iterations"}),
    )


def check_resumable(stored: AnyRecipe, recipe: AnyRecipe) -> dict[str, list[Any]]:
    """The keys that differ and may, each with [stored, new].

    Bookkeeping keys and sections that training does not read may differ. So may the length of the run where the
    learning rate is constant; any other schedule is laid out over the whole length. Raises ValueError that names every
    other difference, or says that the recipe is of the other kind.
    """
    if type(stored) is not type(recipe):
        raise ValueError(
            f"  the run is {_kind(stored)}, the recipe is {_kind(recipe)}\n"
            "resume with the run's own recipe, or start a new run with another run_dir=…"
        )
    free = _PREFERENCES if isinstance(stored, Recipe) else _of_own_responses(stored.OPTIMIZATION)
    before, after = flatten(stored), flatten(recipe)
    changed = {
        key: [before.get(key), after.get(key)]
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key)
    }
    constant = recipe.optimization.scheduler.startswith("constant")
    refusals = [
        f"  {key}: the run has {old!r}, the recipe {new!r}{_why(key, free)}"
        for key, (old, new) in changed.items()
        if not (key in free.keys or key.startswith(free.sections) or (key in free.length and constant))
    ]
    if refusals:
        lines = "\n".join(refusals)
        raise ValueError(f"{lines}\nset these keys back, or start a new run with another run_dir=…")
    return changed


def _kind(recipe: AnyRecipe) -> str:
    if isinstance(recipe, PPORecipe):
        return "one of PPO (`tdpo ppo`)"
    kind = "one on preferences" if isinstance(recipe, Recipe) else "one on pairs of own responses"
    return f"{kind} (`tdpo train`)"


def _why(key: str, free: _Freedom) -> str:
    return " (a falling learning rate is laid out over the whole length)" if key in free.length else ""
