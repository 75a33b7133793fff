"""Trainers on `transformers.Trainer`: `TDPOTrainer` learns from preference pairs."""

from .config import TDPOConfig
from .offline import TDPOTrainer

__all__ = ["TDPOConfig", "TDPOTrainer"]
