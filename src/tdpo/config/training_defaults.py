"""Defaults of training that follow from what is trained: one rule for recipes, studies and the Python trainers."""

from __future__ import annotations

from pathlib import Path

PAIRS, PPO = "pairs", "ppo"
# Peak learning rates. 5e-6 is of TDPO's paper; PPO learns from single tokens of its own and takes smaller steps. An
# adapter's few weights start at zero and take larger ones.
ALL_WEIGHTS = {PAIRS: 5e-6, PPO: 1e-6}
ADAPTER = {PAIRS: 1e-4, PPO: 1e-4}
VALUE_LEARNING_RATES = {"head": 1e-3, "model": 1e-5}  # of a critic that is a value head, or a model of its own
EPOCHS = 1.0  # passes over the pairs
PAIRS_PER_UPDATE = 16
COMPLETIONS_PER_UPDATE = 32


def learning_rate(method: str, *, adapter: bool) -> float:
    """The peak learning rate of `method` ("pairs" or "ppo") where none was chosen."""
    return (ADAPTER if adapter else ALL_WEIGHTS)[method]


def trains_adapter(model: str, has_lora: bool) -> bool:
    """Whether an adapter is trained: a new one, or the one that the folder `model` holds."""
    return has_lora or (Path(model).expanduser() / "adapter_config.json").is_file()
