"""What both trainers add to `transformers.Trainer`: checkpoints that are whole or not used, checked norms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from ..runs.checkpoints import mark_complete
from .resume import whole_checkpoint


class CheckpointedTrainer(Trainer):
    """Resumes only from checkpoints that were written whole, and stops at a gradient that is not finite."""

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **more: Any
    ) -> Any:
        """As `transformers.Trainer.train`; True resumes from the newest checkpoint that was written whole.

        Raises:
            ValueError: no such checkpoint, or the one given was cut short while it was written.
        """
        checkpoint = whole_checkpoint(resume_from_checkpoint, Path(str(self.args.output_dir)))
        return super().train(resume_from_checkpoint=checkpoint, **more)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The mark comes last, so that a checkpoint cut short by a kill is never resumed from, but before older ones
        # are deleted, so that there always is one to resume from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self._outside_training():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        folder = Path(self._get_output_dir(trial=trial))
        self._save_own_state(folder / f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    @contextmanager
    def _outside_training(self) -> Iterator[None]:
        """What happens here is no training time."""
        yield

    def _save_own_state(self, checkpoint: Path) -> None:
        """Write into the checkpoint, on every process, what transformers knows nothing of."""

    def _check_gradient(self, logs: dict[str, float]) -> None:
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # a scaler skips such updates
            raise FloatingPointError(
                f"the gradient's norm became {norm} at step {self.state.global_step}, though the loss was finite; the "
                "weights are spoiled. Go back to the last checkpoint and lower the learning rate."
            )
