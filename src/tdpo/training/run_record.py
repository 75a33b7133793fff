"""What a trainer that is used in Python leaves beside its model: `tdpo evaluate` and `tdpo report` then need no recipe.

In `output_dir`: trainer.json (method, settings, reference, inputs, where the model was saved), environment.json,
data.json and status.json, beside the metrics.jsonl that every trainer writes. In each folder of a saved model: a copy
of trainer.json, and the model card. A run from a recipe has a recipe.yaml instead, and its trainer records nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..models.folder_files import CARD_FILE
from ..records.files import write_text
from ..records.json_files import write_json
from ..records.names import DATA_FILE, MACHINE_FILE, TRAINER_FILE
from ..runs import RunDirectory, describe_machine, versions
from .best_model import lines_of_the_model
from .model_card import is_our_card

logger = logging.getLogger(__name__)

SCHEMA = 1


class RunRecord(TrainerCallback):
    """The record of one trainer.

    Args:
        folder: the trainer's `output_dir`.
        content: what trainer.json says: "trainer", "method", "settings" by section and key as in a recipe,
            "reference".
    """

    def __init__(self, folder: str | Path, content: Mapping[str, Any]) -> None:
        self.run = RunDirectory(folder)
        self.content: dict[str, Any] = {"schema": SCHEMA, **content, "inputs": {}, "model": None, "best": None}
        self._is_training = False

    @contextmanager
    def of_training(
        self, *, inputs: Mapping[str, str], data: Mapping[str, Any], seed: int, resumed_at: int | None
    ) -> Iterator[None]:
        """While it lasts, the folder is locked and its status is "running"; then it is what the training came to.

        Args:
            inputs: digests of the data, by name.
            data: the content of data.json.
            seed: of the run.
            resumed_at: the update that the training continues from; None where it begins.

        Raises:
            RunError: another process trains in this folder.
        """
        if not self.run.writes:
            yield
            return
        if self.run.is_run():
            logger.warning(
                "%s is the run of a recipe: what this trainer does is not recorded there. Give it an output_dir of its "
                "own.",
                self.run.path,
            )
            yield
            return
        with self.run.locked():
            self.content |= {"inputs": dict(inputs), "best": None}
            self._write()
            self.run.write_json(MACHINE_FILE, self._machine(seed, resumed_at))
            self.run.write_json(DATA_FILE, dict(data))
            self.run.set_status("running", step=resumed_at or 0)
            self._is_training = True
            try:
                with self.run.recording_the_end():
                    yield
            finally:
                self._is_training = False

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._is_training:
            self.run.set_status("running", step=state.global_step, max_steps=state.max_steps)

    def of_saved(self, folder: Path, card: str | None) -> None:
        """Write the record, and the card where one is given, beside a model that was saved in `folder`."""
        home, place = self.run.path.resolve(), folder.resolve()
        if card is not None:
            write_text(folder / CARD_FILE, card)
        if place != home:
            write_json(folder / TRAINER_FILE, {**self.content, "model": None})

    def remember_model(self, folder: Path) -> None:
        """Note in `output_dir` where the trained model was saved."""
        home, place = self.run.path.resolve(), folder.resolve()
        # A folder that moves takes what lies inside it along.
        self.content["model"] = str(place.relative_to(home) if place.is_relative_to(home) else place)
        if (home / TRAINER_FILE).exists() or place == home:
            self._write()

    def remember_best(self, best: Mapping[str, Any] | None) -> None:
        """Note which update the model is of where it is not the last one; see `loaded_best`."""
        self.content["best"] = None if best is None else dict(best)
        if self._is_training:
            self._write()

    def _write(self) -> None:
        self.run.write_json(TRAINER_FILE, self.content)

    def _machine(self, seed: int, resumed_at: int | None) -> dict[str, Any]:
        machine = describe_machine(seed, _command())
        before = None if resumed_at is None else self.run.read_json(MACHINE_FILE)
        if before is None:
            return machine
        return {**before, "resumed": [*before.get("resumed", []), {**machine, "step": resumed_at}]}


def card_may_replace(folder: Path) -> bool:
    """Whether `folder` has no README.md yet, or one that nobody wrote by hand. Ask before a model is saved there."""
    readme = folder / CARD_FILE
    return not readme.exists() or is_our_card(readme.read_text(encoding="utf-8", errors="replace"))


def _command() -> list[str]:
    """What started this process. A notebook has no command that anybody typed."""
    script, *arguments = sys.argv or [""]
    if "ipykernel" in script:
        return ["a notebook"]
    return ["python", Path(script).name, *arguments] if script.endswith(".py") else [Path(script).name or "python"]


def numbers_for_the_card(trainer: Any) -> dict[str, Any]:
    """The arguments of a card that a trainer's logs give: "train", the last training log of the model that it holds;
    "held_out", the last evaluation of that model without "eval_", or None; "versions" of packages; "best"."""
    best = trainer.record.content["best"]
    lines = lines_of_the_model(trainer.state.log_history, best, trainer.logs_before_best)
    train = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_runtime" in line or "eval_reward_mean" in line]
    without = {name.removeprefix("eval_"): value for name, value in held_out[-1].items()} if held_out else None
    return {"train": train[-1] if train else {}, "held_out": without, "versions": versions(), "best": best}
