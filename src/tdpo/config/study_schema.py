"""The study: arms × strengths × seeds on several tasks, as typed sections; what `tdpo compare` reads.

A study holds what all of its runs share. The recipe of one run is made from it (`tdpo.comparison`), so whatever a
recipe refuses is refused here too, before anything runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..kl_choices import KLDirection
from ..methods import ARMS
from ._sections import PositiveFloat, PositiveInt, Section, Seed, Text, key_problems, why_no_divisor
from .claims_schema import ArmName, Claim, claim_problems
from .environment_schema import EnvironmentChoice
from .model_schema import Model
from .online_schema import Online
from .own_responses_schema import Rollouts
from .ppo_schema import PPO
from .questions_schema import Contrast, arm_choice, question_problems
from .sampling_engine import server_problems
from .schema import Data, Evaluation, Sampling, Training

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
    """A method over several strengths, or held at several KLs. The reference is an arm of every study without being
    named."""

    name: ArmName
    """On pairs made beforehand: `sft`, `dpo`, `tdpo1`, `tdpo2`, and `dpo_forward` and `dpo_reverse` with an exact KL
    beside the loss. On pairs of own responses: `online_dpo_forward`, `online_dpo_reverse`, `online_tdpo2`. On rewards:
    `ppo_reverse` (sampled KL in the reward, the classic), `ppo_reverse_exact` and `ppo_forward` (exact KL in the loss),
    `rloo_reverse` and `rloo_forward` (the same without a critic)."""
    strengths: list[PositiveFloat] = []  # noqa: RUF012  # pydantic copies it
    """Each is a run of its own: β for dpo, tdpo1 and tdpo2 (online as well), the coefficient of the KL for the others,
    the learning rate for sft."""
    targets: list[PositiveFloat] = []  # noqa: RUF012
    """In place of strengths: nats per response at which a KL is held, each a run of its own. Not for sft, dpo and
    tdpo1, which nothing holds at a KL. tdpo2 then has its forward KL beside the loss as well."""
    train_at: PositiveFloat = 1.0
    """With `meet_targets`: training holds the KL at so many times the target. The KL is larger on prompts that are
    trained on, and arms on pairs made beforehand hold it along the reference's responses, where it is larger than along
    the policy's own. With the ratio of the two the adapter needs little scaling afterwards."""
    set: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
    """Further keys of the recipe for this arm alone, dotted: {loss.alpha: 1.0}."""

    @field_validator("strengths", "targets")
    @classmethod
    def _none_twice(cls, values: list[float]) -> list[float]:
        _refuse_twice(values)
        return values

    @field_validator("strengths")
    @classmethod
    def _some_arms_have_nothing_else(cls, strengths: list[float], info: ValidationInfo) -> list[float]:
        name = info.data.get("name")
        if name is not None and not ARMS[name].target_key and not strengths:
            raise ValueError(f"is empty: give {name} at least one; nothing holds it at a KL, so it has no targets")
        return strengths

    @field_validator("targets")
    @classmethod
    def _strengths_or_targets(cls, targets: list[float], info: ValidationInfo) -> list[float]:
        if not {"name", "strengths"} <= info.data.keys():
            return targets
        name, strengths = info.data["name"], info.data["strengths"]
        can_be_held = bool(ARMS[name].target_key)
        if targets and not can_be_held:
            able = ", ".join(other for other in get_args(ArmName) if ARMS[other].target_key)
            raise ValueError(f"cannot be met: nothing holds {name} at a KL; give it strengths, or choose one of {able}")
        if can_be_held and bool(targets) == bool(strengths):
            raise ValueError("is one of two: an arm has either strengths or targets, not both and not neither")
        return targets

    @property
    def is_held(self) -> bool:
        """Whether its cells are held at KL targets."""
        return bool(self.targets)

    @property
    def values(self) -> list[float]:
        """The strengths or the targets of its cells."""
        return self.targets or self.strengths


class Study(Section):
    """One study. Paths are relative to the folder the command is started in."""

    study_dir: Text
    """Folder that everything is written to: runs, tables, claims, report."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1]  # noqa: RUF012
    """Every arm and strength is run with each of them: training prompts, pairs, rollouts, training and held-out
    samples."""
    budget: Budget = 256
    """Responses that a run may have scored: those that its preferences are made from, or those that it draws itself."""
    training_prompts: PositiveInt | None = None
    """Prompts of a task that are trained on: drawn anew for every seed from all of its training prompts, and the same
    for every arm. Times `sampling.samples_per_prompt` they are the budget; null is as many as that makes."""
    target_direction: KLDirection | None = None
    """Which exact KL is held at the targets of all arms, so that they meet on one axis whatever KL they are held by;
    null is each arm's own."""
    meet_targets: bool = False
    """After training, multiply the adapter of each run at a target by the one factor at which its held KL is the
    target, on prompts that are not trained on: held-out ones beyond `evaluation.max_prompts`, or where these are few,
    training prompts that the seed has not drawn. Needs adapters (`model.lora`)."""
    model: Model = Model()
    tasks: Annotated[list[Task], Field(min_length=1)]
    arms: Annotated[list[Arm], Field(min_length=1)]
    best_of: list[Annotated[int, Field(ge=2)]] = []  # noqa: RUF012
    """Baselines without training: the best of so many responses of the reference, by reward."""
    temperatures: list[PositiveFloat] = []  # noqa: RUF012
    """Baselines without training: the reference at these temperatures, times `evaluation.temperature`."""
    sampling: Sampling = Sampling()
    training: Training = Training()
    rollouts: Rollouts = Rollouts()
    """Of the arms that learn from their own responses."""
    online: Online = Online()
    """Of the arms on pairs of own responses; the number of iterations follows from the budget."""
    ppo: PPO = PPO()
    """Of the arms on rewards; the number of iterations follows from the budget."""
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
    """Runs at a time; null is one on each GPU that `model.device` allows, and on the CPU one for each `study.threads`
    cores."""
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

    @field_validator("best_of", "temperatures")
    @classmethod
    def _none_twice(cls, values: list[Any]) -> list[Any]:
        _refuse_twice(values)
        return values

    @field_validator("sampling")
    @classmethod
    def _sampling_fits_the_budget(cls, sampling: Sampling, info: ValidationInfo) -> Sampling:
        budget, prompts, samples = (
            info.data.get("budget"),
            info.data.get("training_prompts"),
            sampling.samples_per_prompt,
        )
        reason = why_no_divisor(samples, "budget", budget)
        if reason is not None:
            raise key_problems(("sampling.samples_per_prompt", reason))
        if budget is not None and prompts is not None and prompts * samples != budget:
            reason = (
                f"{prompts} prompts with {samples} responses to each (sampling.samples_per_prompt) are "
                f"{prompts * samples} scored responses, and the budget is {budget}; make the product the budget, "
                "or leave this key out"
            )
            raise key_problems(("training_prompts", reason))
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
        if reason is not None and any(ARMS[arm.name].kind in ("ppo", "online") for arm in info.data.get("arms", ())):
            raise key_problems(("rollouts.completions", reason))
        if rollouts.prompts is not None:
            raise key_problems(("rollouts.prompts", "is the study's own: set training_prompts instead"))
        return rollouts

    @field_validator("online", "ppo")
    @classmethod
    def _budget_sets_the_iterations(cls, section: Any, info: ValidationInfo) -> Any:
        name = info.field_name
        if "iterations" in section.model_fields_set:
            raise key_problems((f"{name}.iterations", "follows from budget / rollouts.completions; remove it"))
        _refuse_threads(section.num_threads, f"{name}.num_threads")
        return section

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
        kinds = {ARMS[arm.name].kind for arm in self.arms}
        idle: dict[str, str] = {}
        if not kinds & {"ppo", "online"}:
            idle["rollouts"] = "has no effect: no arm is one of PPO or draws responses itself; remove it"
        if "online" not in kinds:
            idle["online"] = "has no effect: no arm learns from pairs of its own responses; remove it"
        if "ppo" not in kinds:
            idle["ppo"] = "has no effect: no arm is one of PPO; remove it"
        if "preferences" not in kinds:
            only = "PPO, which has the section ppo" if kinds == {"ppo"} else "on own responses"
            idle["training"] = f"has no effect: all arms are {only}; remove it"
        if all(task.environment is None for task in self.tasks):
            reason = "has no effect: no task has a reward; remove it"
            idle |= dict.fromkeys(("sampling", "budget", "training_prompts", "best_of"), reason)
        if not any(arm.is_held for arm in self.arms):
            idle |= dict.fromkeys(("target_direction", "meet_targets"), "has no effect: no arm has targets; remove it")
        return idle

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Study:
        written = {key for key in self.model_fields_set if getattr(self, key) not in (None, [], False)}
        problems = [(key, reason) for key, reason in self.idle_sections.items() if key in written]
        if all(task.environment is None for task in self.tasks):
            names = [arm.name for arm in self.arms]
            for number, name in enumerate(names):
                if ARMS[name].kind in ("ppo", "online"):
                    what = "PPO" if ARMS[name].kind == "ppo" else name
                    reason = f"can learn no task: {what} needs a reward, and all tasks are rows without one; remove it"
                    problems.append((f"arms[{number}].name", reason))
        for number, arm in enumerate(self.arms):
            if arm.train_at != 1.0 and not (self.meet_targets and arm.is_held):
                reason = "has no effect: only what is moved onto its target afterwards (meet_targets) is held elsewhere"
                problems.append((f"arms[{number}].train_at", reason))
        if self.meet_targets and self.model.lora is None:
            problems.append(("meet_targets", "scales adapters, and this study trains all weights: set model.lora"))
        if self.meet_targets and any(task.environment is None for task in self.tasks):
            problems.append(("meet_targets", "needs prompts, and a task of rows has none; remove it"))
        hot = [self.evaluation.temperature * temperature for temperature in self.temperatures]
        problems += server_problems(self.sampling.engine, self.model, hot)
        if problems:
            raise key_problems(*problems)
        return self


def _refuse_threads(threads: int | None, key: str) -> None:
    if threads is not None:
        raise key_problems((key, "is the study's own: set threads instead"))


def _refuse_twice(values: Iterable[float]) -> None:
    """Raise ValueError where two values are written alike: they would be one cell."""
    counts = Counter(f"{value:g}" for value in values)
    twice = [as_text for as_text, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"names {twice[0]} twice; give each once")
