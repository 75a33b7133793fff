"""What `TDPOTrainer` makes of the arguments that TRL's `DPOTrainer` has: taken, or refused with what to use instead."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_utils import denumpify_detensorize

from ...batches import TokenizedPair
from ...models import load_causal_lm
from ...scoring.pair_metrics import PAIR_METRICS
from ..policy import check_same_tokens, load_beside, prepare_policy, prepare_tokenizer
from .config import TDPOConfig

logger = logging.getLogger(__name__)

PairFunction = Callable[[EvalPrediction], Mapping[str, Any]]
# Arguments of earlier DPOTrainers that are no fields of the configuration, and what to use.
EARLIER = {
    "tokenizer": "is called processing_class",
    "model_init": "is not taken: pass the model itself, or its name",
    "preprocess_logits_for_metrics": "is not taken: there are no logits to pass to compute_metrics",
    "optimizer_cls_and_kwargs": "is not taken: pass optimizers, or optim in the configuration",
}


def check_call(args: TDPOConfig, data_collator: Any, others: Collection[str]) -> None:
    """Refuse what cannot be taken, all at once.

    Raises:
        TypeError: arguments that do not exist, or a data set in the place of the collator.
        ValueError: a collator of another kind than TRL's own.
    """
    options = {option.name for option in fields(args)}
    unknown = [_why_not_here(name, options) for name in others]
    if isinstance(data_collator, Sequence | Mapping) or hasattr(data_collator, "column_names"):
        unknown.append("the fourth argument is data_collator, as in TRL: write train_dataset=… for the rows")
        data_collator = None
    refused = [] if data_collator is None else _collator_problems(data_collator, args)
    if unknown or refused:
        raise (TypeError if unknown else ValueError)("TDPOTrainer: " + "; ".join([*unknown, *refused]))
    if args.dataset_num_proc not in (None, 1):
        logger.info("dataset_num_proc=%d: rows are tokenised in one process.", args.dataset_num_proc)


def _why_not_here(name: str, options: Collection[str]) -> str:
    if name in EARLIER:
        return f"{name} {EARLIER[name]}"
    where = f" (it belongs into args: TDPOConfig({name}=…))" if name in options else ""
    return f"unexpected argument {name!r}{where}"


def _collator_problems(collator: Any, args: TDPOConfig) -> list[str]:
    """Why a collator cannot be taken. TRL's own pads and cuts as is done here in any case."""
    if type(collator).__name__ != "DataCollatorForPreference":
        return [
            f"data_collator={type(collator).__name__} is not taken: rows are laid out by prefix_sharing and "
            "max_tokens_per_row. Change the rows themselves before they are passed"
        ]
    asked = {
        "max_length": (getattr(collator, "max_length", None), args.max_length),
        "truncation_mode": (getattr(collator, "truncation_mode", None), "keep_start"),
        "pad_to_multiple_of": (getattr(collator, "pad_to_multiple_of", None), None),
    }
    return [
        f"the data_collator has {name}={its!r}, and here it is {ours!r}. Leave the collator out"
        + (f", and write TDPOConfig(max_length={its!r})" if name == "max_length" else "")
        for name, (its, ours) in asked.items()
        if its != ours and not (name == "max_length" and its is None)
    ]


@dataclass(frozen=True)
class Prepared:
    """What a trainer works with: the tokenizer, the policy, and the reference as it was given or loaded."""

    tokenizer: Any
    policy: Any
    ref_model: Any


def prepare_models(
    model: Any,
    ref_model: Any,
    processing_class: Any,
    peft_config: Any,
    args: TDPOConfig,
    quantization_config: Any | None = None,
) -> Prepared:
    """Tokenizer, policy and reference of a call.

    Raises as `prepare_tokenizer`, `load_models` and `prepare_policy`, and ValueError for a reference that would be
    loaded in another precision than the policy.
    """
    tokenizer = with_pad_token(prepare_tokenizer(processing_class, model, args), args.pad_token)
    check_same_tokens(tokenizer, ref_model, args)
    model, ref_model = load_models(model, ref_model, args, peft_config is None, quantization_config)
    policy = prepare_policy(model, peft_config, args)
    if args.ref_model_init_kwargs and ref_model.dtype != policy.dtype:
        raise ValueError(
            f"ref_model_init_kwargs load the reference in {ref_model.dtype}, and the policy is in {policy.dtype}: they "
            "would differ before the first update. Give both the same dtype"
        )
    return Prepared(tokenizer, policy, load_beside(ref_model, policy, args))


def load_models(
    model: Any, ref_model: Any, args: TDPOConfig, trainable: bool, quantization_config: Any | None = None
) -> tuple[Any, Any]:
    """Policy and reference, loaded where they are names and the configuration says how; otherwise as they are.

    Args:
        model, ref_model: a name, a folder or a model; the reference may be None.
        args: its `model_init_kwargs` and `ref_model_init_kwargs` are used.
        trainable: whether an adapter that `model` names will be trained.
        quantization_config: how to quantise the policy while it is loaded; None: as `model_init_kwargs` say.

    Raises:
        ValueError: arguments for loading what is loaded already.
    """
    return (
        _as_asked(model, "model", "model_init_kwargs", args, trainable, quantization_config),
        _as_asked(ref_model, "ref_model", "ref_model_init_kwargs", args, False),
    )


def _as_asked(
    model: Any, what: str, option: str, args: TDPOConfig, trainable: bool, quantization: Any | None = None
) -> Any:
    arguments: Any = getattr(args, option) or {}
    if quantization is not None:
        if arguments.get("quantization_config") is not None:
            raise ValueError(f"quantization_config is given twice, also in {option}: leave one of them out")
        arguments, option = {**arguments, "quantization_config": quantization}, "quantization_config"
    if not arguments:
        return model
    if not isinstance(model, str | Path):
        state = "is None" if model is None else "is loaded already"
        raise ValueError(f"{option} has no effect: {what} {state}. Leave it out, or pass {what} by name")
    dtype = arguments.get("dtype", arguments.get("torch_dtype")) or "auto"
    return load_causal_lm(
        model,
        dtype=str(dtype).removeprefix("torch."),
        trust_remote_code=bool(arguments.get("trust_remote_code", args.trust_remote_code)),
        trainable=trainable,
        quantization=arguments.get("quantization_config"),
        device="cpu" if args.use_cpu else None,
    )


def with_pad_token(tokenizer: Any, pad_token: str | None) -> Any:
    """The tokenizer, or a copy of it with another pad token. Raises ValueError where it does not know the token."""
    if pad_token is None or tokenizer.pad_token == pad_token:
        return tokenizer
    if pad_token not in tokenizer.get_vocab():
        raise ValueError(f"pad_token={pad_token!r} is no token of the tokenizer. Leave it out, or name one that it has")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = pad_token
    return tokenizer


def check_parts(pairs: Sequence[TokenizedPair], args: TDPOConfig) -> None:
    """Raise ValueError where `max_prompt_length` or `max_completion_length` would have cut something: nothing here cuts
    a prompt, and a response is cut by `max_length` alone. Limits that no row reaches change nothing."""
    for option, what, longest in (
        ("max_prompt_length", "prompt", lambda pair: len(pair.prompt_ids)),
        ("max_completion_length", "response", lambda pair: max(map(len, pair.responses))),
    ):
        limit = getattr(args, option)
        longer = [pair for pair in pairs if limit is not None and longest(pair) > limit]
        if longer:
            pair = max(longer, key=longest)
            raise ValueError(
                f"{option}={limit}: {len(longer)} of {len(pairs)} pairs have a longer {what}, the longest with "
                f"{longest(pair)} tokens ({pair.source}:{pair.row}). It is not cut here: shorten the rows, or leave "
                f"{option} out (max_length={args.max_length} limits prompt and response together)"
            )


def numbers_of(function: PairFunction | None, table: Tensor) -> dict[str, float]:
    """What the user's `compute_metrics` makes of an evaluation.

    Args:
        function: None, or called with transformers' EvalPrediction. Its `predictions` are a dictionary of arrays `[P]`,
            a number for each pair under the names of the logs (margin, chosen_logp, …); `label_ids` is None.
        table: `[P, len(PAIR_METRICS)]`, as `pair_metrics` makes it.

    Raises:
        TypeError: the function returns no mapping. An error of its own gets a note about what it was given.
    """
    if function is None:
        return {}
    columns: dict[str, np.ndarray] = dict(zip(PAIR_METRICS, table.numpy().T, strict=True))
    try:
        numbers = function(EvalPrediction(predictions=columns, label_ids=None))  # type: ignore[arg-type]
    except Exception as error:
        error.add_note(
            "compute_metrics gets no logits, as TRL's does: predictions is a dictionary of arrays with a number for "
            f"each pair ({', '.join(PAIR_METRICS)}), and label_ids is None."
        )
        raise
    if not isinstance(numbers, Mapping):
        raise TypeError(f"compute_metrics must return a dictionary of numbers by name, got {type(numbers).__name__}")
    return dict(denumpify_detensorize(dict(numbers)))  # trackers and metrics.jsonl take plain numbers
