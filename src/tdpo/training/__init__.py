"""Trainers on `transformers.Trainer`: `TDPOTrainer` learns from preference pairs, `PPOTrainer` from rewards."""

from .config import TDPOConfig
from .offline import TDPOTrainer
from .online import PPOTrainer
from .ppo_config import PPOConfig

__all__ = ["PPOConfig", "PPOTrainer", "TDPOConfig", "TDPOTrainer"]
