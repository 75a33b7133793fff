"""Judging a run: held-out pairs and generations, base and trained model side by side."""

from .run import evaluate_base, evaluate_run

__all__ = ["evaluate_base", "evaluate_run"]
