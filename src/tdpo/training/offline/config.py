"""`TDPOConfig`: `transformers.TrainingArguments` plus what a preference loss needs."""

# ruff: noqa: RUF009  # FIELDS.field calls dataclasses.field, which ruff does not see

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from ...config import (
    BadRows,
    LogNames,
    Loss,
    LossName,
    Precision,
    PrefixSharing,
    Recipe,
    RecipeFields,
    ReferenceSource,
    RepeatedRows,
    TurnsToCount,
)
from ...config.training_defaults import PAIRS_PER_UPDATE
from ...scoring.options import HeadImpl
from ..arguments import names_all_unknown
from ..loss_arguments import LossArguments
from .trl_arguments import TRLArguments

# Each field that is a key of a recipe, whose default, range and help it has. The loss's strengths are numbers here,
# where a recipe's null stands for their defaults; and there may be no limit of length.
FIELDS = RecipeFields(
    Recipe,
    {
        "loss": "loss.name",
        "beta": "loss.beta",
        "alpha": "loss.alpha",
        "gamma": "loss.gamma",
        "label_smoothing": "loss.label_smoothing",
        "max_length": "data.max_length",
        "counted_turns": "data.counted_turns",
        "on_bad_rows": "data.on_bad_rows",
        "repeated_rows": "data.repeated_rows",
        "reference": "training.reference",
        "reference_cache_dir": "training.reference_cache_dir",
        "prefix_sharing": "training.prefix_sharing",
        "max_tokens_per_row": "training.max_tokens_per_row",
        "log_names": "training.log_names",
        "precision": "training.precision",
    },
    nullable={"alpha": False, "max_length": True},
)
SAMPLING = ("random", "sequential", "group_by_length")
# What this trainer refuses beside `arguments.REFUSED`.
REFUSED = {"label_smoothing_factor": "smooths token labels, which pairs do not have; use label_smoothing"}


@names_all_unknown
@dataclass
class TDPOConfig(LossArguments, TRLArguments):
    """Arguments of `TDPOTrainer`; everything of `TrainingArguments` besides, with the defaults of `Arguments`.

    The fields below have the names, the defaults and the ranges of a recipe's sections `loss`, `data` and `training`
    (docs/recipe.md, docs/python_fields.md); `head_impl` is no key of a recipe. The names of TRL's `DPOConfig` are
    understood too (`TRLArguments`, docs/from_trl.md). `loss` and `log_names` are None until both are known: tdpo2, or
    what TRL's `loss_type` says; tdpo's own names, or TRL's beside them where one of TRL's names was used. `beta` and
    `gamma` are None until the loss is known.

    Raises:
        TypeError: arguments that do not exist; all of them are named.
        ValueError: values out of range, without effect beside the others, or TRL's without a counterpart; all of them
            are named.
    """

    loss: LossName = FIELDS.field("loss", None)
    beta: float = FIELDS.field("beta")
    alpha: float = FIELDS.field("alpha", Loss.DEFAULT_ALPHA)
    gamma: float | None = FIELDS.field("gamma")
    label_smoothing: float = FIELDS.field("label_smoothing")
    max_length: int | None = FIELDS.field("max_length")
    counted_turns: TurnsToCount = FIELDS.field("counted_turns")
    on_bad_rows: BadRows = FIELDS.field("on_bad_rows")
    repeated_rows: RepeatedRows = FIELDS.field("repeated_rows")
    reference: ReferenceSource = FIELDS.field("reference")
    reference_cache_dir: str | None = FIELDS.field("reference_cache_dir")
    head_impl: HeadImpl = field(
        default="auto",
        metadata={
            "help": "How statistics are computed from hidden states: frozen (policy and reference share a head that is "
            "not trained), tiled, dense (full logits in float64, an oracle), or auto."
        },
    )
    prefix_sharing: PrefixSharing = FIELDS.field("prefix_sharing")
    max_tokens_per_row: int | None = FIELDS.field("max_tokens_per_row")
    log_names: LogNames = FIELDS.field("log_names", None)
    precision: Precision = FIELDS.field("precision")
    per_device_train_batch_size: int = field(
        default=PAIRS_PER_UPDATE,
        metadata={"help": "Pairs per forward and process; with accumulation and all processes, those of an update."},
    )

    def _problems(self) -> Iterator[str]:
        yield from self._trl_problems()
        yield from FIELDS.problems(self)
        if self.head_impl not in get_args(HeadImpl):
            yield f"head_impl must be one of {', '.join(get_args(HeadImpl))}, got {self.head_impl!r}"
        yield from self._kl_problems()
        yield from self._strength_problems()
        if self.reference == "model" and self.reference_cache_dir is not None:
            yield "reference_cache_dir has no effect with reference='model'; leave one of them out"
        yield from self._packing_problems()
        yield from (f"{name} {why}" for name, why in REFUSED.items() if getattr(self, name, None))
        if self.train_sampling_strategy not in SAMPLING:
            yield (
                f"train_sampling_strategy must be one of {', '.join(SAMPLING)}, got {self.train_sampling_strategy!r}"
            )

    def _packing_problems(self) -> Iterator[str]:
        tokens = self.max_tokens_per_row
        if tokens is None:
            return
        if self.prefix_sharing == "off":
            yield (
                f"max_tokens_per_row={tokens} has no effect with prefix_sharing='off', which pads rows; leave it out "
                "or use prefix_sharing='auto'"
            )
        if self.per_device_train_batch_size == self.per_device_eval_batch_size == 1:
            yield (
                f"max_tokens_per_row={tokens} has no effect with per_device_train_batch_size=1 and "
                "per_device_eval_batch_size=1: pairs of one batch share rows; leave it out or raise them"
            )


def grouping_by_length() -> dict[str, Any]:
    """The argument that makes batches of pairs of similar lengths."""
    return {"train_sampling_strategy": "group_by_length"}


def groups_by_length(args: TDPOConfig) -> bool:
    """Whether the arguments ask for batches of pairs of similar lengths."""
    return bool(args.train_sampling_strategy == "group_by_length")
