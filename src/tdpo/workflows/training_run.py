"""From a recipe and a run directory to a trained model, whatever the method.

`run_training` has the order of things; what a method does differently is a `Method`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from ..config import AnyRecipe, Optimizing, Precision, Recording
from ..models.product_speed import why_slow
from ..recipe_data.input_digests import recipe_inputs, settle_inputs
from ..records.run_times import cache_seconds, training_seconds
from ..runs import RunDirectory, checkpoint_step
from ..sampling.engines import BUILT_IN
from ..training.arguments import Arguments
from ..training.callbacks import GracefulStop, Progress, RunStatus, Say
from ..training.resumption import checkpoint_to_resume
from ..training.sharding import check_sharding
from ..training.trackers import open_trackers
from .disk_room import bytes_of_files
from .policy_of_recipe import load_policy
from .precision_of_run import precision_of_run, settle_record
from .prerequisites import check_prerequisites
from .trained_model import last_log, save_trained, versions_of, without_prefix

logger = logging.getLogger(__name__)
Numbers = dict[str, float]
MakeTrainer = Callable[[Any, list[TrainerCallback], Precision], Any]  # of policy, callbacks and precision


@dataclass(frozen=True)
class TrainingData:
    """What a recipe trains on, read and checked before the model's weights load.

    Attributes:
        tokenizer: of the recipe's model.
        train: what the trainer learns from.
        held_out: what it is judged on; None where nothing is held out.
        inputs: digests of both, by what they are called, made when they are asked for.
        described: the content of data.json.
        remarks: sentences for the user.
        amount: how much there is to do, for the user.
        length: the updates of the whole run; with own responses the iterations.
    """

    tokenizer: Any
    train: Any
    held_out: Any | None
    inputs: Callable[[], dict[str, str]]
    described: dict[str, Any]
    remarks: list[str]
    amount: str
    length: int


class RunOptions(TypedDict, total=False):
    """Arguments of `run_training` that are passed on to it."""

    resume: bool
    last_good: bool
    accept_changes: bool
    progress: Progress | None
    callbacks: Sequence[TrainerCallback]
    judge_held_out: bool


class Method(ABC):
    """What one method does differently on the way from its recipe to a trained model.

    Attributes:
        recipe: the resolved recipe.
    """

    recipe: AnyRecipe

    @property
    @abstractmethod
    def recording(self) -> Recording:
        """The recipe's section that has the number of threads."""

    @property
    @abstractmethod
    def optimizing(self) -> Optimizing:
        """The recipe's section that has the precision."""

    @abstractmethod
    def read(self) -> TrainingData:
        """Read, check and describe what the recipe trains on."""

    @abstractmethod
    def arguments(self, **changes: Any) -> Arguments:
        """The recipe as the trainer's configuration, with other values for fields that are keys.

        Raises ValueError for what the trainer, or the way in which it was launched, refuses.
        """

    @abstractmethod
    def prepare(self, data: TrainingData) -> MakeTrainer:
        """Load what the trainer needs beside the policy; returns what makes the trainer."""

    @abstractmethod
    def note(self, logs: dict[str, Any]) -> str | None:
        """A training log in a few words, for a progress bar; None for any other log."""

    @abstractmethod
    def card(self, data: TrainingData, train: Numbers, held_out: Numbers | None, versions: dict[str, Any]) -> str:
        """The model card."""


def run_training(
    method: Method,
    run: RunDirectory,
    *,
    resume: bool = False,
    last_good: bool = False,
    accept_changes: bool = False,
    progress: Progress | None = None,
    say: Say = logger.info,
    callbacks: Sequence[TrainerCallback] = (),
    judge_held_out: bool = True,
) -> dict[str, Any]:
    """Train as the method's recipe says and leave model, metrics and model card in the run directory.

    Data and rewards are read and checked before the model's weights load. The first Ctrl-C (or SIGTERM) lets the
    update under way finish, writes a checkpoint and raises KeyboardInterrupt; a second one stops at once.

    Args:
        method: what is done, with its resolved recipe.
        run: the recipe's directory, as `RunDirectory.training` gives it.
        resume: continue from the newest complete checkpoint, or from the start where there is none.
        last_good: where that is damaged, continue from the newest one that is not.
        accept_changes: continue also with other data, weights or functions than the checkpoint was trained with.
        progress: called after every update.
        say: told what is being done, in sentences.
        callbacks: further transformers callbacks.
        judge_held_out: evaluate on what is held out at the end; False where an evaluation follows that does it anyway.

    Returns:
        {"steps", "seconds" of training with its evaluations and what earlier calls trained, "cache_seconds" that this
        run spent on a reference cache before it (None without one), "train": last logged numbers, "eval": held-out
        numbers or None, "model": path}
    """
    recipe = method.recipe
    if method.recording.num_threads:
        torch.set_num_threads(method.recording.num_threads)
    checkpoint = checkpoint_to_resume(run, last_good=last_good, say=say) if resume else None
    room = check_prerequisites(recipe)
    check_sharding(method.arguments())
    data = method.read()
    if room is not None:
        room.check(data.length, on_disk=bytes_of_files(run.checkpoints().complete) if resume else 0)
    if checkpoint is not None:
        inputs = {**recipe_inputs(recipe), **data.inputs()}
        settle_inputs(run, checkpoint, inputs, accept=accept_changes, say=say)
    run.write_json("data.json", data.described)
    for sentence in data.remarks:
        say(sentence)
    make_trainer = method.prepare(data)
    set_seed(recipe.seed)  # after everything that may draw numbers, before the adapter that does
    stop = GracefulStop(say)
    policy = load_policy(recipe.model)
    is_resumed = checkpoint is not None
    choice = precision_of_run(run, method.optimizing.precision, policy, is_resumed=is_resumed)
    trainer = make_trainer(policy, [stop, RunStatus(run, progress, method.note), *callbacks], choice)
    with closing(getattr(trainer, "sampler", BUILT_IN)):  # that of own responses has an adapter on a server
        run.begin()  # all that can be checked is: only now a run that this one replaces is moved aside
        precision = settle_record(run, trainer.precision, is_resumed=is_resumed)
        trainer.inputs, trainer.accept_changes = recipe_inputs(recipe), accept_changes
        trainer.end_record()  # recipe.yaml and the run directory say it all
        trainer.remove_callback(PrinterCallback)  # the caller's progress shows what it would print
        say(trainer.describe_device())
        say(trainer.describe())
        say(precision.describe())
        if slow := why_slow(precision.products, trainer.args.device):
            say(f"{slow}.")
        say(f"Continuing from {checkpoint}." if checkpoint else f"{data.amount}.")
        judged = data.held_out is not None and judge_held_out
        resumed_at = None if checkpoint is None else checkpoint_step(checkpoint)
        with open_trackers(trainer, run, resumed_at=resumed_at, say=say):
            with stop.listening():
                result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            stop.raise_if_asked()
            numbers = {"train": last_log(trainer), "eval": without_prefix(trainer.evaluate()) if judged else None}
    card = method.card(data, numbers["train"] or {}, numbers["eval"], versions_of(run))
    place = save_trained(trainer, run, card)
    run.let_go_of_replaced()
    lines = run.metrics()
    seconds = {
        "seconds": training_seconds(lines) or result.metrics["train_runtime"],
        "cache_seconds": cache_seconds(lines),
    }
    return {"steps": trainer.state.global_step, **seconds, "model": place, **numbers}
