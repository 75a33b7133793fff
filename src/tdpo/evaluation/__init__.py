"""Judging a run on held-out pairs and held-out prompts, the trained model beside its base."""

from .answer_probabilities import AnswerProbabilities, answer_log_probabilities
from .known_answers import metrics_of_lines
from .run import evaluate_base, evaluate_run

__all__ = ["AnswerProbabilities", "answer_log_probabilities", "evaluate_base", "evaluate_run", "metrics_of_lines"]
