"""The place of each micro-batch in a run. Everything follows from seed and place, so that a run can be resumed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ...environments import Prompt
from .arguments import OnlineArguments


@dataclass(frozen=True)
class Place:
    """The place of a micro-batch, counted from 0: iteration, update within it, and `part` within the update."""

    iteration: int
    update: int
    part: int


class Schedule:
    """The order of a run. It is the same on every process, except for the units that each one holds."""

    def __init__(self, args: OnlineArguments) -> None:
        self.args = args

    def __len__(self) -> int:
        """Micro-batches of the run, over all processes."""
        return self.args.total_updates * self.args.gradient_accumulation_steps * self.args.world_size

    def loader(self) -> DataLoader[Any]:
        """A loader of {"place": index}, one a micro-batch; accelerate deals them out to the processes in turn."""
        indices: Any = range(len(self))
        return DataLoader(indices, batch_size=1, collate_fn=_as_place)

    def place(self, index: int) -> Place:
        """The place of the micro-batch with this index in the loader."""
        update, part = divmod(index // self.args.world_size, self.args.gradient_accumulation_steps)
        iteration, within = divmod(update, self.args.updates_per_iteration)
        return Place(iteration, within, part)

    def prompts(self, prompts: Sequence[Prompt], iteration: int) -> tuple[list[Prompt], int]:
        """This process's prompts of an iteration, and the number of the first among those of all processes."""
        count = self.args.completions // self.args.samples_per_prompt
        own = count // self.args.world_size
        first = own * self.args.process_index
        return prompts_of_iteration(prompts, count, iteration, self.args.seed)[first : first + own], first

    def units(self, count: int, iteration: int, update: int) -> list[int]:
        """Which of this process's `count` units an update learns from, in an order drawn for its epoch.

        They are dealt out as evenly as they can be; with fewer units than updates, some updates have none.
        """
        epoch, minibatch = divmod(update, self.args.updates_per_epoch)
        order = list(range(count))
        random.Random(f"{self.args.seed}/minibatches/{iteration}/{epoch}/{self.args.process_index}").shuffle(order)
        return _share(order, minibatch, self.args.updates_per_epoch)

    def part(self, units: Sequence[int], part: int) -> Sequence[int]:
        """The units of one micro-batch of an update."""
        return _share(units, part, self.args.gradient_accumulation_steps)


def prompts_of_iteration(prompts: Sequence[Prompt], count: int, iteration: int, seed: int) -> list[Prompt]:
    """An iteration's part of an endless order that the seed draws: all prompts, all in another order, and so on."""
    first_turn, place = divmod(iteration * count, len(prompts))
    turns = -(-(place + count) // len(prompts))
    order: list[int] = []
    for turn in range(first_turn, first_turn + turns):
        shuffled = list(range(len(prompts)))
        random.Random(f"{seed}/prompts/{turn}").shuffle(shuffled)
        order += shuffled
    return [prompts[i] for i in order[place : place + count]]


class EndOfIteration(TrainerCallback):
    """Makes transformers log at the end of each iteration, and never else."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = state.global_step % self.updates == 0


def _share(values: Sequence[int], number: int, shares: int) -> list[int]:
    """One of so many parts, which are equal where the values can be divided."""
    return list(values[number * len(values) // shares : (number + 1) * len(values) // shares])


def _as_place(indices: Sequence[int]) -> dict[str, int]:
    return {"place": indices[0]}  # a number, which stays on the host
