"""Trainers on `transformers.Trainer`: `TDPOTrainer` learns from preference pairs, `PPOTrainer` from rewards, and
`OnlineTDPOTrainer` from pairs of its own responses, ranked by rewards."""

# First: it says what is wrong where transformers is too old for the imports below.
from . import hooks as hooks  # isort: skip
from .offline.config import TDPOConfig
from .offline.trainer import TDPOTrainer
from .online.config import PPOConfig
from .online.pairs_config import OnlineTDPOConfig
from .online.pairs_trainer import OnlineTDPOTrainer
from .online.trainer import PPOTrainer

__all__ = ["OnlineTDPOConfig", "OnlineTDPOTrainer", "PPOConfig", "PPOTrainer", "TDPOConfig", "TDPOTrainer"]
