"""Judging a run on held-out pairs and held-out prompts, the trained model beside its base."""

from .run import evaluate_base, evaluate_run

__all__ = ["evaluate_base", "evaluate_run"]
