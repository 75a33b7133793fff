"""The base of both configurations: defaults of `transformers.TrainingArguments` that suit here, and refused options."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property, wraps
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from ..config import Precision
from ..config.training_defaults import EPOCHS
from ..models.liger import why_no_liger

Config = TypeVar("Config")

# transformers 5.23 renamed these and warns of the old names, which older versions need.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# accelerate's names of what autocast computes in.
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}
# Options of TrainingArguments that both trainers refuse, and why: they would do nothing, or harm in silence.
REFUSED = {
    "label_names": "has no effect: rows have no labels",
    "include_for_metrics": "has no effect: functions of metrics get neither inputs nor losses of batches",
    "batch_eval_metrics": "has no effect: metrics are computed of a whole evaluation",
    "prediction_loss_only": "has no effect: every metric is computed in any case",
    "neftune_noise_alpha": "would put noise into policy and reference, which then differ from the start",
    "bf16_full_eval": "would evaluate the policy in another precision than the reference; load both in bfloat16",
    "fp16_full_eval": "would evaluate the policy in another precision than the reference; load both in float16",
}


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults: those of a recipe for the learning rate, the number of epochs and the
    precision; non-finite losses are never filtered from the logs, every step is logged, and gradient checkpointing is
    the non-reentrant kind, which adapters need."""

    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether code shipped with a model named by string may run."}
    )
    precision: Precision = "auto"
    learning_rate: float | None = field(  # type: ignore[assignment]  # a number when the trainer knows its model
        default=None,
        metadata={
            "help": "Peak learning rate. None: 1e-4 with adapters; 5e-6, for PPO 1e-6, where all weights are trained."
        },
    )
    num_train_epochs: float = field(default=EPOCHS, metadata={"help": "Passes over the training rows."})
    logging_steps: float = field(default=1, metadata={"help": "Log every so many updates."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide non-finite losses from the logs."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: rows are not tensors yet."})
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Passed to gradient_checkpointing_enable; non-reentrant unless given."}
    )

    def __post_init__(self) -> None:
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}
        for old, new in RENAMED.items():
            if hasattr(self, new) and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))
        if self.ddp_find_unused_parameters is None:
            # The head is used outside the forward that DDP watches: searching for unused parameters, it would take
            # the head for one and fail. Everything trained here is used.
            self.ddp_find_unused_parameters = False
        if self.ddp_backend is None and _launches_deepspeed(self) and not torch.accelerator.is_available():
            self.ddp_backend = "gloo"  # accelerate names none on a CPU, and takes every process for the only one
        super().__post_init__()
        if self.dataloader_pin_memory:  # a copy from pinned memory goes on while the host does; a CPU copies nothing
            self.accelerator_config.non_blocking = True  # type: ignore[union-attr]  # an object by now
        self._settle()
        problems = [*self._problems(), *self._common_problems()]
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems))

    @cached_property
    def _setup_devices(self) -> torch.device:
        """transformers' device, but the GPU that is current where a process trains alone: `device_of` chose it."""
        current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        device: torch.device = TrainingArguments._setup_devices.func(self)  # type: ignore[attr-defined]
        if device.type == "cuda" and "LOCAL_RANK" not in os.environ and current:
            self._n_gpu = 1
            device = torch.device("cuda", current)
            torch.cuda.set_device(device)
        return device

    def _settle(self) -> None:
        """Set what was left out and follows from other arguments."""

    def _problems(self) -> Iterator[str]:
        """What is wrong with the arguments of this trainer."""
        yield from ()

    def _common_problems(self) -> Iterator[str]:
        if self.remove_unused_columns:
            yield "remove_unused_columns=True would throw the rows away; leave it False"
        yield from (f"{name} {why}" for name, why in REFUSED.items() if getattr(self, name, None))
        yield from self._precision_problems()
        if self.use_liger_kernel and (why := why_no_liger(self.liger_kernel_config, self.device)):
            yield f"use_liger_kernel: {why}"
        if self.torch_compile and (why := why_no_compiler(self.torch_compile_backend, self.device.type)):
            yield f"torch_compile: {why}"
        if not self.average_tokens_across_devices:
            yield "average_tokens_across_devices=False has no effect: every row weighs the same on any device"
        if getattr(self.accelerator_config, "dispatch_batches", None):
            yield "dispatch_batches=True would cut batches apart by rows; leave it out"

    def _precision_problems(self) -> Iterator[str]:
        """Where `precision` contradicts transformers' bf16 and fp16, or accelerate's --mixed_precision."""
        asked = AUTOCAST.get(self.mixed_precision)
        if asked is not None and self.precision not in ("auto", f"{asked}-mixed"):
            yield (
                f"precision={self.precision!r} contradicts {self.mixed_precision}=True (or accelerate's "
                f"--mixed_precision), which means {asked}-mixed; leave one of them out"
            )


def why_no_compiler(backend: str | None, device: str) -> str | None:
    """Why torch.compile cannot be used; None if it can, as far as that is seen without compiling."""
    if backend not in (None, "inductor"):
        return None
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        return "torch compiles for a GPU with Triton, which is not installed: pip install triton"
    if os.environ.get("CXX") or any(map(shutil.which, ("g++", "gcc", "clang++", "clang"))):
        return None
    return "torch finds no C++ compiler: install g++, or name a compiler in CXX"


def refuses_old_names(**new_names: str) -> Callable[[type[Config]], type[Config]]:
    """Makes a configuration raise TypeError for an argument by its old name, and name the new one (old="new")."""

    def guarded(config: type[Config]) -> type[Config]:
        make: Any = config.__init__

        @wraps(make)
        def checked(self: Any, *args: Any, **arguments: Any) -> None:
            for old, new in new_names.items():
                if old in arguments:
                    raise TypeError(f"{config.__name__}: {old} is now called {new}; write {new}={arguments[old]!r}")
            make(self, *args, **arguments)

        config.__init__ = checked  # type: ignore[method-assign]
        return config

    return guarded


def names_all_unknown(config: type[Config]) -> type[Config]:
    """Makes a configuration raise one TypeError for all arguments that it does not have, with those that were meant."""
    make: Any = config.__init__

    @wraps(make)
    def checked(self: Any, *args: Any, **arguments: Any) -> None:
        names = [option.name for option in fields(config) if option.init]  # type: ignore[arg-type]
        unknown = [name for name in arguments if name not in names]
        if unknown:
            raise TypeError(f"{config.__name__}: " + "; ".join(_unknown(name, names) for name in unknown))
        make(self, *args, **arguments)

    config.__init__ = checked  # type: ignore[method-assign]
    return config


def _unknown(name: str, names: list[str]) -> str:
    meant = get_close_matches(name, names, 1, 0.75)
    return f"unexpected argument {name!r}" + (f" (did you mean {meant[0]}?)" if meant else "")


@contextmanager
def other_values(args: Any, **values: Any) -> Iterator[None]:
    """Inside, the attributes of `args` have these values: for methods of transformers' and accelerate's that read them
    and take no parameter."""
    before = {name: getattr(args, name) for name in values}
    try:
        for name, value in values.items():
            setattr(args, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


def one_process_a_device(args: Arguments, warn: Any) -> None:
    """Keep transformers from wrapping the model in DataParallel where it sees several devices."""
    if args.n_gpu > 1:
        warn("One process trains on one device; start %d with `accelerate launch`.", args.n_gpu)
        args._n_gpu = 1


def _launches_deepspeed(args: Any) -> bool:
    """Whether this is a process of a launch, and `is_deepspeed` will hold once transformers has read the arguments."""
    asked = bool(args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1")
    return asked and "LOCAL_RANK" in os.environ


def is_deepspeed(args: Any) -> bool:
    """Whether DeepSpeed trains, by these arguments or by accelerate's launcher."""
    return getattr(args, "deepspeed_plugin", None) is not None
