"""What both trainers add to `transformers.Trainer`: only whole checkpoints are resumed from, norms are checked, and
what was done is recorded beside the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ..models import has_adapter, whole
from ..models.devices import describe_device
from ..models.precision import Precision
from ..models.quantization import in_words, is_quantized_model, settings_of, write_note
from ..records.folders import remove
from ..records.full_disk import telling_of_a_full_disk
from ..records.json_files import read_json, write_json
from ..runs.checkpoints import checkpoint_step, is_checkpoint, mark_complete, rotate_checkpoints
from ..runs.inputs import require_same_inputs, write_inputs
from ..scoring.readings import Reading, read
from .arguments import other_values
from .best_model import loaded_best
from .compiling import RecompileWatch
from .resumption import check_form, reading, whole_checkpoint
from .run_record import RunRecord, card_may_replace
from .saving import optimizer_bytes, quiet_about_the_bundled_base, weights_bytes
from .sharding import whole_model_saved

logger = logging.getLogger(__name__)

LOSS_FILE = "training_loss.json"


class CheckpointedTrainer(Trainer):
    """Resumes only from checkpoints that were written whole, with the inputs that they were trained with, and stops at
    a gradient that is not finite."""

    # Digests of what is trained with, by name; recorded in every checkpoint, beside those of the trainer's own data.
    inputs: Mapping[str, str] = {}
    # What is computed in; with another precision a resumed run would be another run.
    precision: Precision | None = None
    # Whether a checkpoint may be resumed from though its inputs were others.
    accept_changes = False
    # What is written for `tdpo evaluate` and `tdpo report`; None where a recipe says it all.
    record: RunRecord | None = None
    _losses: list[tuple[Tensor, Callable[[], str]]]
    logs_before_best = 0  # where the best model was loaded at the end: how many logs there were then
    _loss_before = 0.0  # the sum over the updates before this call of `train`
    _known_inputs: Mapping[str, str] | None = None  # of this call; digests of many rows take a moment

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.looks_ahead = self.args.device.type != "cpu"
        self.add_callback(RecompileWatch())
        logger.info("%s", self.describe_device())
        self._begin()

    def describe_device(self) -> str:
        """Where this process trains, in a sentence for the log."""
        args = self.args
        process = f", process {args.process_index + 1} of {args.world_size}" if args.world_size > 1 else ""
        return f"Training on {describe_device(args.device)}{process}."

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **more: Any
    ) -> Any:
        """As `transformers.Trainer.train`; True resumes from the newest checkpoint that was written whole.

        Raises:
            ValueError: no such checkpoint, or the one given was cut short while it was written.
            DamagedCheckpoint: one of its files is missing, cut short or cannot be read.
            ChangedInputs: it was trained with other data, and `accept_changes` is off.
        """
        checkpoint = whole_checkpoint(resume_from_checkpoint, Path(str(self.args.output_dir)))
        self._begin()
        self._loss_before, self._known_inputs = 0.0, None
        if checkpoint is not None:
            check_form(Path(checkpoint), is_sharded=self.is_fsdp_enabled)
            if not self.accept_changes:
                require_same_inputs(Path(checkpoint), self._all_inputs())
            self._loss_before = _loss_until(Path(checkpoint))
        # transformers would apply Liger once more, and to the policy alone.
        with self._recorded(checkpoint), other_values(self.args, use_liger_kernel=False):
            result = super().train(resume_from_checkpoint=checkpoint, **more)
        return result._replace(training_loss=result.metrics.get("train_loss", result.training_loss))

    def _begin(self) -> None:
        """Forget the update within which an earlier call of `train` was interrupted."""
        self._known_loss: Tensor | None = None  # of all updates since the last log, once it was read
        self._losses = []  # of the micro-batches of an update, each with what is said if it is not finite
        self._epoch: Iterator[Any] | None = None  # that batches are taken from
        self._ahead: tuple[Iterator[Any] | None, Any] = None, None  # the batches of the next update, and of which epoch

    def _recorded(self, checkpoint: str | None) -> Any:
        """A context in which the record says that a training runs, and after which it says how it ended."""
        if self.record is None:
            return nullcontext()
        name = None if checkpoint is None else Path(checkpoint)
        step = None if name is None else checkpoint_step(name) if is_checkpoint(name.name) else 0
        return self.record.of_training(
            inputs=self._all_inputs(), data=self.described_data(), seed=self.args.seed, resumed_at=step
        )

    def begin_record(self, content: Mapping[str, Any]) -> None:
        """Record from now on what is done, beginning with `content`; see `RunRecord`."""
        self.record = RunRecord(str(self.args.output_dir), content)
        self.add_callback(self.record)

    def end_record(self) -> None:
        """Record nothing: somebody else does."""
        if self.record is not None:
            self.remove_callback(self.record)
        self.record = None

    def described_data(self) -> dict[str, Any]:
        """The content of data.json: what was read for each side, and what became of it."""
        return {}

    def model_card(self) -> str:
        """The card of the model as it is now: method, data, numbers, versions; Markdown."""
        raise NotImplementedError

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """As transformers', with the model card and the record beside it. A README.md of your own stays as it is.

        A sharded model is written whole; checkpoints of it are what they are asked to be.
        """
        folder = Path(str(self.args.output_dir if output_dir is None else output_dir))
        writes_card = self.record is not None and self.args.should_save and card_may_replace(folder)
        form = nullcontext() if _internal_call else whole_model_saved(self.accelerator)
        with quiet_about_the_bundled_base(), form:
            super().save_model(str(folder), _internal_call)
        if self.args.should_save and has_adapter(self.model):
            write_note(self.model, folder)
        if self.record is None or not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)  # of a sharded checkpoint, whose weights other code writes later
        self.record.of_saved(folder, self.model_card() if writes_card else None)
        if not _internal_call:
            self.record.remember_model(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As transformers', but of DeepSpeed's copy of the weights: a tied head is there twice, and the model, which
        ZeRO-2 leaves whole, knows that it is one."""
        super()._save(output_dir, None if self.is_deepspeed_enabled else state_dict)

    def create_model_card(self, *args: Any, **more: Any) -> None:
        """The card that is pushed to the hub; the one of `model_card`, whatever the arguments."""
        folder = Path(str(self.args.output_dir))
        if self.record is None:
            super().create_model_card(*args, **more)
        elif self.is_world_process_zero() and card_may_replace(folder):
            self.record.of_saved(folder, self.model_card())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # transformers knows the updates of this call only; the run has had others
            # What came after the last log is this process's own.
            sums = self._loss_before + self._mean(self._total_loss_scalar)
            logs["train_loss"] = sums / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.logs_before_best = len(self.state.log_history)
        if self.record is not None:
            self.record.remember_best(loaded_best(self))

    def _loss_sum(self) -> float:
        """The sum of the losses of all updates so far: those before a resumption, the logged ones, and those since."""
        return self._loss_before + self._mean(self._total_loss_scalar + float(getattr(self, "_tr_loss", 0.0)))

    def _total(self, sums: Tensor) -> Tensor:
        """A vector summed over processes, float64."""
        if self.args.world_size == 1:
            return sums
        reduced: Tensor = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        return reduced.cpu()

    def _mean(self, value: float) -> float:
        """The mean of the values of all processes."""
        return float(self._total(torch.tensor([value], dtype=torch.float64))) / self.args.world_size

    def _largest(self, value: float) -> float:
        """The largest of the values of all processes."""
        if self.args.world_size == 1:
            return value
        return float(self.accelerator.gather(torch.tensor([value], device=self.args.device)).max())

    def _all_inputs(self) -> dict[str, str]:
        if self._known_inputs is None:
            precision = {} if self.precision is None else {"precision": self.precision.dtypes()}
            base = {"base": in_words(settings_of(self.model))} if is_quantized_model(self.model) else {}
            self._known_inputs = {**self.inputs, **self._own_inputs(), **precision, **base}
        return dict(self._known_inputs)

    def _own_inputs(self) -> dict[str, str]:
        """Digests of the data that this trainer was given."""
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            remove(checkpoint)  # one that was cut off, or a link: what is written starts empty
        self.accelerator.wait_for_everyone()
        size = weights_bytes(model) + (0 if self.args.save_only_model else optimizer_bytes(self.optimizer))
        with telling_of_a_full_disk(checkpoint, size):
            # The mark comes last, so that a checkpoint cut short by a kill is never resumed from, but before older
            # ones are deleted, so that there always is one to resume from: transformers must not delete any.
            with self._outside_training(), other_values(self.args, save_total_limit=None):
                super()._save_checkpoint(model, trial)
            self._save_own_state(checkpoint)
            loss_sum = self._loss_sum()
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_inputs(checkpoint, self._all_inputs())
                write_json(checkpoint / LOSS_FILE, {"sum": loss_sum, "updates": self.state.global_step})
                mark_complete(checkpoint)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(
                folder, self.args.save_total_limit, self.state.global_step, None if best is None else Path(best)
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(resume_from_checkpoint, "the weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint, "the state of optimizer and scheduler (optimizer.pt, scheduler.pt)"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint, "the random state (rng_state*.pth)"):
            super()._load_rng_state(checkpoint)

    @contextmanager
    def _outside_training(self) -> Iterator[None]:
        """Inside, the clock of the training speed stands still."""
        yield

    def _save_own_state(self, checkpoint: Path) -> None:
        """Write into the checkpoint, on every process, what transformers knows nothing of."""

    # ---- numbers of an update, read together ----

    def _readings(self) -> list[Reading]:
        """What the device sums up while it trains."""
        return []

    def _watch(self, loss: Tensor, explain: Callable[[], str], *, at_once: bool = False) -> None:
        """Raise FloatingPointError with what `explain` says if the loss of a micro-batch is not finite.

        In training it is looked at with everything else that an update has measured, before the optimizer's step:
        asking now would mean waiting for the device. `at_once` asks now.
        """
        self._losses.append((loss.detach(), explain))
        if at_once:
            self._read_update()

    def _read_update(self, *others: Tensor) -> Tensor:
        """Read what the micro-batches since the last update measured, and the scalars `others`: one wait for all.

        Raises FloatingPointError for a loss that is not finite.
        """
        watched, self._losses = self._losses, []
        numbers = read(self._readings(), *(loss for loss, _ in watched), *others)
        for loss, (_, explain) in zip(numbers.tolist(), watched, strict=False):
            if not math.isfinite(loss):
                raise FloatingPointError(explain())
        return numbers[len(watched) :]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As transformers', or what `_look_ahead` has brought of this epoch."""
        of_epoch, ahead = self._ahead
        self._epoch, self._ahead = epoch_iterator, (None, None)
        if of_epoch is not epoch_iterator or ahead is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        assert len(ahead[0]) <= num_batches, "an epoch's last update has all batches that are left"
        return ahead

    def _look_ahead(self) -> None:
        """Lay out the batches of the next update, and copy them, while the device computes this one."""
        if self.looks_ahead and self._epoch is not None:
            count = self.args.gradient_accumulation_steps
            self._ahead = self._epoch, super().get_batch_samples(self._epoch, count, self.args.device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As transformers', read together with what the update has measured. No step was made with it yet."""
        norm = super()._get_grad_norm(model, grad_norm)
        self._look_ahead()
        scalars = [whole(norm)] if isinstance(norm, Tensor) else []  # of shards it is a DTensor
        numbers = self._read_update(*scalars, self._tr_loss)
        self._known_loss = numbers[-1].to(self._tr_loss.dtype)
        return numbers.tolist()[0] if scalars else norm

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *args: Any, **more: Any) -> None:
        """As transformers', which would ask the device for the loss that has been read already."""
        if self.args.world_size > 1 or self._known_loss is None or not self.control.should_log:
            super()._maybe_log_save_evaluate(tr_loss, *args, **more)
            return
        on_host, self._known_loss = self._known_loss, None
        if self.state.global_step > self._globalstep_last_logged:
            tr_loss.zero_()  # in place, as transformers does; before a checkpoint of this step sums up all losses
        super()._maybe_log_save_evaluate(on_host, *args, **more)

    def _check_gradient(self, logs: dict[str, float]) -> None:
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # a scaler skips such updates
            raise FloatingPointError(
                f"the gradient's norm became {norm} at step {self.state.global_step}, though the loss was finite; the "
                "weights are spoiled. Go back to the last checkpoint and lower the learning rate."
            )


def _loss_until(checkpoint: Path) -> float:
    """The sum of the losses of all updates until a checkpoint; of an earlier version's, of those that were logged."""
    path = checkpoint / LOSS_FILE
    if path.exists():
        return float(read_json(path)["sum"])
    total, last = 0.0, 0
    for line in read_json(checkpoint / "trainer_state.json").get("log_history", ()):
        if "loss" in line and "step" in line:
            total, last = total + line["loss"] * (line["step"] - last), line["step"]
    return total
