"""Evaluate a finished run: `evaluation.json`, `samples.jsonl` and `answers.jsonl` in its directory."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from ..config import AnyRecipe
from ..config import Reward as RewardEntry
from ..runs import RunDirectory
from .held_out_sources import check_something_held_out
from .judged_models import JudgedModels, Progress
from .trained_model import TrainedModel, model_of_run


def evaluate_run(
    run: RunDirectory,
    recipe: AnyRecipe,
    *,
    trained: TrainedModel | None = None,
    base_from: RunDirectory | None = None,
    judge: RewardEntry | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the run's model with its base on held-out pairs and held-out prompts; write what was found.

    Args:
        run: a run whose training has finished, or the folder that results are written to.
        recipe: its recipe; the `evaluation` section says how to sample.
        trained: the model and what it is compared with; None: those of the run, as its recipe names them.
        base_from: another run that was evaluated. Its responses of the base model are taken over if they are those
            that would be sampled here: same base, prompts, settings and seed. The numbers are the same either way.
        judge: what scores the responses, in place of the environment's reward where there is one. With a judge the
            prompts of held-out pairs are answered too: the first `evaluation.max_prompts`, or all where that is null.
        progress: called with a stage's name and how far it is.

    Returns:
        The content of evaluation.json.

    Raises:
        RunError: no trained model yet.
        ValueError: neither held-out rows nor held-out prompts with a reward to evaluate on; or `sampling` names a
            server that does not serve these models.
        ServerError: that server is gone or slow, or answers what it should not.
        FunctionError, RewardError, FileNotFoundError: the judge cannot be loaded, or failed on a response.
    """
    started = time.perf_counter()
    check_something_held_out(recipe)
    recipe = run.with_models_found(recipe)
    trained = trained or model_of_run(run, recipe)
    judged = JudgedModels.trained(run, recipe, trained, base_from, judge, progress)
    with closing(judged):
        environment = judged.environment()
        if environment is not None:
            judged.prepare(environment)
        result: dict[str, Any] = {
            "schema": 1,
            "settings": None,
            "run": {**trained.described},
            "pairs": judged.pairs(own=trained.judged_on_own),
            "generations": None,
            "difference": None,
        }
        if environment is not None:
            result |= judged.responses(environment)
    result["versions"] = (run.read_json("environment.json") or {}).get("versions", {})
    result["seconds"] = round(time.perf_counter() - started, 1)
    run.write_json("evaluation.json", result)
    return result


def evaluate_base(run: RunDirectory, recipe: AnyRecipe, *, progress: Progress | None = None) -> None:
    """Sample responses of the base model alone to the held-out prompts; `evaluate_run` takes them over (`base_from`).

    Writes base_samples.json, and samples.jsonl with the model "base", whose KLs are zero.

    Raises:
        ValueError: as `evaluate_run`.
    """
    with closing(JudgedModels.base(run, recipe, None, progress)) as judged:
        judged.base_alone()
