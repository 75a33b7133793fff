"""The study: arms × strengths × seeds on several tasks, as typed sections; what `tdpo compare` reads.

A study holds what all of its runs share. The recipe of one run is made from it (`tdpo.comparison`), so whatever a
recipe refuses is refused here too, before anything runs.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ._sections import PositiveFloat, PositiveInt, Section, Seed, Text, key_problems, why_no_divisor
from .claims_schema import ArmName, Claim, claim_problems
from .environment_schema import EnvironmentChoice
from .own_responses_schema import Rollouts
from .ppo_schema import PPO
from .questions_schema import Contrast, arm_choice, question_problems
from .schema import Data, Evaluation, Model, Sampling, Training

ARM_NAMES: tuple[str, ...] = get_args(ArmName)
Budget = Annotated[int, Field(ge=2)]


class Task(Section):
    """What is learned: an environment, or preference rows, which have no reward and so no PPO."""

    name: Text | None = None
    """Short name, used in folders and figures; null is the environment's."""
    environment: EnvironmentChoice | None = None
    """Prompts and a reward. The preferences are made from the reference's own responses."""
    data: Data | None = None
    """Preference rows instead; accuracy, both KLs and diversity are measured, on the prompts of held-out rows."""

    @field_validator("environment")
    @classmethod
    def _holds_prompts_out(cls, environment: EnvironmentChoice | None) -> EnvironmentChoice | None:
        if environment is not None and not environment.holds_out:
            raise ValueError("holds no prompts out to judge with: set environment.held_out")
        return environment

    @field_validator("data")
    @classmethod
    def _one_source(cls, data: Data | None, info: ValidationInfo) -> Data | None:
        if "environment" not in info.data:
            return data
        if (data is None) == (info.data["environment"] is None):
            raise ValueError("is one of two: a task has either an environment or data, not both and not neither")
        if data is None:
            return data
        if info.data.get("name") is None:
            raise ValueError("has no name of its own: give the task a name")
        if data.eval is None and data.eval_fraction is None:
            raise ValueError("holds no rows out to judge with: set data.eval or data.eval_fraction")
        return data

    @property
    def label(self) -> str:
        """The task's name."""
        if self.name is not None:
            return self.name
        assert self.environment is not None
        return self.environment.label


class Arm(Section):
    """A method over several strengths: β for dpo, tdpo1 and tdpo2, the KL coefficient for PPO, the learning rate for
    sft. The reference is an arm of every study without being named."""

    name: ArmName
    """`sft`, `dpo`, `tdpo1`, `tdpo2`; `ppo_reverse` (sampled KL in the reward, the classic), `ppo_reverse_exact` and
    `ppo_forward` (exact KL in the loss)."""
    strengths: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Each is a run of its own."""
    set: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
    """Further keys of the recipe for this arm alone, dotted: {loss.alpha: 1.0}."""

    @field_validator("strengths")
    @classmethod
    def _no_strength_twice(cls, strengths: list[float]) -> list[float]:
        counts = Counter(f"{strength:g}" for strength in strengths)
        twice = [as_text for as_text, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"names {twice[0]} twice; give each strength once")
        return strengths


class Study(Section):
    """One study. Paths are relative to the folder the command is started in."""

    study_dir: Text
    """Folder that everything is written to: runs, tables, claims, report."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1]  # noqa: RUF012
    """Every arm and strength is run with each of them: pairs, rollouts, training and held-out samples."""
    budget: Budget = 256
    """Responses that a run may have scored: those that its preferences are made from, or those that PPO draws."""
    model: Model = Model()
    tasks: Annotated[list[Task], Field(min_length=1)]
    arms: Annotated[list[Arm], Field(min_length=1)]
    sampling: Sampling = Sampling()
    training: Training = Training()
    rollouts: Rollouts = Rollouts()
    ppo: PPO = PPO()
    """Of `tdpo ppo`; the number of iterations follows from the budget."""
    evaluation: Evaluation = Evaluation(samples_per_prompt=8, max_prompts=40)
    """Its seed is added to each of `seeds`."""
    embeddings: Text | None = "minilm"
    """Sentence embeddings for diversity: `minilm` (a package, no download), a sentence-transformers name or folder, or
    null for none."""
    claims: Annotated[list[Claim] | None, Field(min_length=1)] = None
    """What is asked of the results; null takes the built-in claims (docs/the_study.md). They may change once all runs
    are there: the same command judges anew."""
    questions: Annotated[list[Contrast] | None, Field(min_length=1)] = None
    """Contrasts of arms at measured points (docs/the_study.md). A study with questions has claims only if it names
    them. They may change once all runs are there: the same command answers anew."""
    workers: PositiveInt | None = None
    """Runs at a time; null is one for each `study.threads` cores, and one on a GPU."""
    threads: PositiveInt = 1
    """CPU threads of each run. Changes rounding, and so the numbers, a little."""

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("names a seed twice; give each once")
        return seeds

    @field_validator("tasks", "arms")
    @classmethod
    def _no_name_twice(cls, parts: list[Any]) -> list[Any]:
        names = [part.label if isinstance(part, Task) else part.name for part in parts]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"names {twice[0]} twice; give each a name of its own")
        return parts

    @field_validator("sampling")
    @classmethod
    def _sampling_fits_the_budget(cls, sampling: Sampling, info: ValidationInfo) -> Sampling:
        reason = why_no_divisor(sampling.samples_per_prompt, "budget", info.data.get("budget"))
        if reason is not None:
            raise key_problems(("sampling.samples_per_prompt", reason))
        return sampling

    @field_validator("training")
    @classmethod
    def _study_has_the_threads(cls, training: Training) -> Training:
        _refuse_threads(training.num_threads, "training.num_threads")
        return training

    @field_validator("rollouts")
    @classmethod
    def _rollouts_fit_the_budget(cls, rollouts: Rollouts, info: ValidationInfo) -> Rollouts:
        reason = why_no_divisor(rollouts.completions, "budget", info.data.get("budget"))
        if reason is not None and any(arm.name.startswith("ppo") for arm in info.data.get("arms", ())):
            raise key_problems(("rollouts.completions", reason))
        return rollouts

    @field_validator("ppo")
    @classmethod
    def _budget_sets_the_iterations(cls, ppo: PPO) -> PPO:
        if "iterations" in ppo.model_fields_set:
            raise key_problems(("ppo.iterations", "follows from budget / rollouts.completions; remove it"))
        _refuse_threads(ppo.num_threads, "ppo.num_threads")
        return ppo

    @field_validator("evaluation")
    @classmethod
    def _rows_need_a_number_of_prompts(cls, evaluation: Evaluation, info: ValidationInfo) -> Evaluation:
        rows = [task.label for task in info.data.get("tasks", ()) if task.data is not None]
        if evaluation.samples_per_prompt < 2:
            raise key_problems(("evaluation.samples_per_prompt", "must be at least 2: diversity compares responses"))
        if rows and evaluation.max_prompts is None:
            reason = f"is null, but task {rows[0]} has rows and no environment: say how many of its held-out prompts"
            raise key_problems(("evaluation.max_prompts", reason))
        return evaluation

    @field_validator("claims")
    @classmethod
    def _claims_can_be_judged(cls, claims: list[Claim] | None, info: ValidationInfo) -> list[Claim] | None:
        if claims is None or not {"tasks", "arms", "embeddings"} <= info.data.keys():
            return claims
        problems = claim_problems(
            claims,
            [arm.name for arm in info.data["arms"]],
            has_reward=any(task.environment is not None for task in info.data["tasks"]),
            has_embeddings=info.data["embeddings"] is not None,
        )
        if problems:
            raise key_problems(*problems)
        return claims

    @field_validator("questions")
    @classmethod
    def _questions_can_be_answered(
        cls, questions: list[Contrast] | None, info: ValidationInfo
    ) -> list[Contrast] | None:
        if questions is None or not {"tasks", "arms", "embeddings"} <= info.data.keys():
            return questions
        problems = question_problems(
            questions,
            arm_choice(info.data["arms"], info.data.get("best_of"), info.data.get("temperatures")),
            [task.label for task in info.data["tasks"]],
            has_reward=any(task.environment is not None for task in info.data["tasks"]),
            has_embeddings=info.data["embeddings"] is not None,
        )
        if problems:
            raise key_problems(*problems)
        return questions

    @property
    def idle_sections(self) -> dict[str, str]:
        """Sections that no run of this study reads, each with the reason."""
        on_rewards = [arm.name for arm in self.arms if arm.name.startswith("ppo")]
        idle: dict[str, str] = {}
        if not on_rewards:
            idle |= dict.fromkeys(("rollouts", "ppo"), "has no effect: no arm is one of PPO; remove it")
        if len(on_rewards) == len(self.arms):
            idle["training"] = "has no effect: all arms are PPO, which has the section ppo; remove it"
        if all(task.environment is None for task in self.tasks):
            idle |= dict.fromkeys(("sampling", "budget"), "has no effect: no task has a reward; remove it")
        return idle

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Study:
        problems = [(key, reason) for key, reason in self.idle_sections.items() if key in self.model_fields_set]
        if all(task.environment is None for task in self.tasks):
            reason = "can learn no task: PPO needs a reward, and all tasks are rows without one; remove it"
            at = enumerate(self.arms)
            problems += [(f"arms[{number}].name", reason) for number, arm in at if arm.name.startswith("ppo")]
        if problems:
            raise key_problems(*problems)
        return self


def _refuse_threads(threads: int | None, key: str) -> None:
    if threads is not None:
        raise key_problems((key, "is the study's own: set threads instead"))
