"""A trained adapter at another KL: scaled, and written as a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..config import AnyRecipe
from ..kl_choices import KLDirection
from ..models import is_adapter_folder
from ..models.adapter_scaling import check_plain_lora, save_scaled_adapter
from ..runs import RunDirectory
from .held_out_pairs import Progress
from .judged_models import JudgedModels
from .meeting_target import Meeting, scale_to_target
from .trained_model import TrainedModel


@dataclass(frozen=True)
class Scaled:
    """What was found, and on how many responses to how many prompts."""

    meeting: Meeting
    prompts: int
    responses: int


def scale_run(
    run: RunDirectory,
    recipe: AnyRecipe,
    trained: TrainedModel,
    out: Path,
    *,
    target: float,
    direction: KLDirection,
    progress: Progress | None = None,
) -> Scaled:
    """Write the trained adapter, scaled so that its exact KL on the held-out prompts is `target`, to the folder `out`.

    Args:
        run, recipe, trained: as for `evaluate_run`; the section `evaluation` says which prompts are answered, and how.
        target: nats per response.
        direction: of the KL. The reference is the one that the evaluation has.
        progress: called after each measurement, with the most there can be.

    Raises:
        ValueError: no adapter, or one that is not plain LoRA; no prompts to answer; the policy has not moved.
    """
    _check_can_be_scaled(trained.folder)
    recipe = run.with_models_found(recipe)
    judged = JudgedModels.trained(run, recipe, trained, None, None, None)
    environment = judged.environment()
    if environment is None:
        raise ValueError(
            "no prompts to measure the KL on: the recipe has no environment; name one (environment.name=...), or say "
            "how many prompts of the held-out pairs are answered (evaluation.max_prompts=32)"
        )
    prompts, settings = judged.prompts(environment), judged.settings(environment)
    settings = replace(settings, num_samples=recipe.evaluation.kl_samples_per_prompt or settings.num_samples)
    meeting = scale_to_target(
        judged.policy,
        judged.statistics,
        judged.tokenizer,
        [prompt.rendered_from for prompt in prompts],
        settings,
        target,
        direction,
        progress=progress,
    )
    save_scaled_adapter(trained.folder, out, meeting.factor)
    return Scaled(meeting, len(prompts), len(prompts) * settings.num_samples)


def scale_by(adapter: Path, out: Path, factor: float) -> None:
    """Write the adapter times `factor` to the folder `out`. Raises ValueError where `adapter` is a whole model."""
    _check_can_be_scaled(adapter)
    save_scaled_adapter(adapter, out, factor)


def _check_can_be_scaled(folder: Path) -> None:
    """Raise ValueError where it cannot, before models load."""
    if not is_adapter_folder(folder):
        raise ValueError(f"{folder} is a whole model and no adapter: nothing in it could be scaled")
    check_plain_lora(folder)
