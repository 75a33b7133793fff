"""Trainers on `transformers.Trainer`: `TDPOTrainer` learns from preference pairs, `PPOTrainer` from rewards."""

# First: it says what is wrong where transformers is too old for the imports below.
from . import hooks as hooks  # isort: skip
from .config import TDPOConfig
from .offline import TDPOTrainer
from .online import PPOTrainer
from .ppo_config import PPOConfig

__all__ = ["PPOConfig", "PPOTrainer", "TDPOConfig", "TDPOTrainer"]
