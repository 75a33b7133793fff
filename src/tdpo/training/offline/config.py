"""`TDPOConfig`: `transformers.TrainingArguments` plus what a preference loss needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...batches import CountedTurns
from ...scoring.options import HeadImpl, PrefixSharing
from ..arguments import Arguments, is_number

LossName = Literal["tdpo2", "tdpo1", "dpo", "sft"]
ReferenceSource = Literal["auto", "cache", "model"]

SAMPLING = ("random", "sequential", "group_by_length")
# What this trainer refuses beside `arguments.REFUSED`.
REFUSED = {"label_smoothing_factor": "smooths token labels, which pairs do not have; use label_smoothing"}


@dataclass
class TDPOConfig(Arguments):
    """Arguments of `TDPOTrainer`; everything of `TrainingArguments` besides, with the defaults of `Arguments`."""

    loss: LossName = field(
        default="tdpo2",
        metadata={"help": "tdpo2 (arXiv 2404.11999, eq. 17), tdpo1 (eq. 14), dpo, or sft (on the chosen responses)."},
    )
    beta: float = field(default=0.1, metadata={"help": "Inverse strength of the change, > 0; smaller moves further."})
    alpha: float = field(
        default=0.5, metadata={"help": "Weight of the sequence KL in tdpo2, ≥ 0; no effect (and refused) elsewhere."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Probability that a preference is flipped, in [0, 0.5)."}
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Tokens of prompt and response together; None for no limit."}
    )
    counted_turns: CountedTurns = field(
        default="assistant",
        metadata={
            "help": "Of a response of several turns, what is counted: the assistant's, or users' and tools' too (all)."
        },
    )
    reference: ReferenceSource = field(
        default="auto",
        metadata={
            "help": "Where the reference's part of a step comes from: cache (it runs once over the data, what it said "
            "is kept on disk), model (it runs in every step) or auto."
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of reference caches, on a disk that all nodes share; None is tdpo/reference in the user's "
            "cache folder."
        },
    )
    head_impl: HeadImpl = field(
        default="auto",
        metadata={
            "help": "How statistics are computed from hidden states: frozen (policy and reference share a head that is "
            "not trained), tiled, dense (full logits in float64, an oracle), or auto."
        },
    )
    prefix_sharing: PrefixSharing = field(
        default="auto",
        metadata={"help": "Compute a pair's prompt once: auto (where the model takes the mask), on or off."},
    )
    max_tokens_per_row: int | None = field(
        default=None,
        metadata={"help": "Pack pairs that share their prompt into rows of up to so many tokens; None: a pair a row."},
    )

    def _problems(self) -> Iterator[str]:
        found = []
        if self.loss not in get_args(LossName):
            found.append(f"loss must be one of {', '.join(get_args(LossName))}, got {self.loss!r}")
        if not (is_number(self.beta) and self.beta > 0):
            found.append(f"beta must be a finite number > 0, got {self.beta!r}")
        if not (is_number(self.alpha) and self.alpha >= 0):
            found.append(f"alpha must be a finite number ≥ 0, got {self.alpha!r}")
        if self.loss in ("dpo", "tdpo1", "sft") and self.alpha != type(self).alpha:
            found.append(f"alpha={self.alpha} has no effect with loss={self.loss!r}; leave it out or use loss='tdpo2'")
        for name in ("beta", "label_smoothing") if self.loss == "sft" else ():
            if getattr(self, name) != getattr(type(self), name):
                found.append(f"{name}={getattr(self, name)} has no effect with loss='sft'; leave it out")
        if not (is_number(self.label_smoothing) and 0 <= self.label_smoothing < 0.5):
            found.append(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing!r}")
        if self.max_length is not None and not (type(self.max_length) is int and self.max_length >= 2):
            found.append(f"max_length must be a whole number of at least 2 tokens or None, got {self.max_length!r}")
        if self.counted_turns not in get_args(CountedTurns):
            found.append(
                f"counted_turns must be one of {', '.join(get_args(CountedTurns))}, got {self.counted_turns!r}"
            )
        if self.head_impl not in get_args(HeadImpl):
            found.append(f"head_impl must be one of {', '.join(get_args(HeadImpl))}, got {self.head_impl!r}")
        if self.reference not in get_args(ReferenceSource):
            choices = ", ".join(get_args(ReferenceSource))
            found.append(f"reference must be one of {choices}, got {self.reference!r}")
        if self.reference == "model" and self.reference_cache_dir is not None:
            found.append("reference_cache_dir has no effect with reference='model'; leave one of them out")
        if self.prefix_sharing not in get_args(PrefixSharing):
            choices = ", ".join(get_args(PrefixSharing))
            found.append(f"prefix_sharing must be one of {choices}, got {self.prefix_sharing!r}")
        found += self._packing_problems()
        found += [f"{name} {why}" for name, why in REFUSED.items() if getattr(self, name, None)]
        strategy = self.train_sampling_strategy
        if strategy not in SAMPLING:
            found.append(f"train_sampling_strategy must be one of {', '.join(SAMPLING)}, got {strategy!r}")
        yield from found

    def _packing_problems(self) -> list[str]:
        tokens = self.max_tokens_per_row
        if tokens is None:
            return []
        if not (type(tokens) is int and tokens >= 2):
            return [f"max_tokens_per_row must be a whole number of at least 2 tokens or None, got {tokens!r}"]
        found = []
        if self.prefix_sharing == "off":
            found.append(
                f"max_tokens_per_row={tokens} has no effect with prefix_sharing='off', which pads rows; leave it out "
                "or use prefix_sharing='auto'"
            )
        if self.per_device_train_batch_size == self.per_device_eval_batch_size == 1:
            found.append(
                f"max_tokens_per_row={tokens} has no effect with per_device_train_batch_size=1 and "
                "per_device_eval_batch_size=1: pairs of one batch share rows; leave it out or raise them"
            )
        return found


def grouping_by_length() -> dict[str, Any]:
    """The argument that makes batches of pairs of similar lengths."""
    return {"train_sampling_strategy": "group_by_length"}


def groups_by_length(args: TDPOConfig) -> bool:
    """Whether the arguments ask for batches of pairs of similar lengths."""
    return bool(args.train_sampling_strategy == "group_by_length")
