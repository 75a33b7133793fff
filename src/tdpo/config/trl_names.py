"""What becomes of the names of TRL's `DPOConfig`: the table that the configuration, the converter and docs/from_trl.md
read. A name that is not here is one of `transformers.TrainingArguments`, or means the same in both (`beta`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from .loss_schema import LossName

# TRL's log names with ours, whose values they are.
LOG_NAMES = {
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
}
# What TRL logs and nothing here is: the fast paths compute no whole logits, and TRL averages the entropy's means of
# micro-batches (policy_entropy is that of all tokens).
NOT_LOGGED = ("logits/chosen", "logits/rejected", "mean_token_accuracy", "entropy")
TOKENS_LOG_NAME = "num_tokens"  # tokens trained on so far, which only those who ask for TRL's names get

# Values of `loss_type` that mean a loss of ours.
LOSSES: dict[str, LossName] = {"sigmoid": "dpo"}
# Those whose likeness here is another loss, with the difference.
OTHER_LOSSES: dict[str, str] = {
    "ipo": "divides each log-ratio by its response's length. loss='ipo' here sums them, as the paper's equation does, "
    "so that β has another scale: write loss='ipo' and choose beta anew",
    "sft": "averages over the tokens of a batch. loss='sft' here sums over each response: write loss='sft' and choose "
    "the learning rate anew",
    "simpo": "is of CPOConfig, where β begins at 0.1 and γ (simpo_gamma) at 0.5, and the chosen response's likelihood "
    "stands beside it unless cpo_alpha is 0. loss='simpo' is that with cpo_alpha=0: write loss='simpo' with beta and "
    "gamma",
    "robust": "subtracts the swapped pair's loss and divides by 1 − 2ε. loss='dpo' with label_smoothing=ε adds it "
    "and is another loss",
    "sigmoid_norm": "divides log-ratios by lengths. No loss here does: loss='dpo' sums them",
}


@dataclass(frozen=True)
class Taken:
    """A field that sets something here: what, in a sentence's end. `is_older`: TRL has removed or renamed it since."""

    effect: str
    is_older: bool = False


@dataclass(frozen=True)
class Fixed:
    """A field of which only the values in `same` mean what happens here in any case; `why` ends the sentence that
    refuses the others, and says what to use."""

    same: tuple[Any, ...]
    why: str
    is_older: bool = False


TAKEN = {
    "loss_type": Taken("`loss`: sigmoid is `dpo`; the other names are refused, with the loss that is nearest"),
    "precompute_ref_log_probs": Taken("`reference`: True is `cache`, False is `model`"),
    "precompute_ref_batch_size": Taken("the pairs of a forward that fills the reference cache"),
    "model_init_kwargs": Taken("the dtype and trust_remote_code of a model given by name"),
    "ref_model_init_kwargs": Taken("the same of a reference given by name", is_older=True),
    "pad_token": Taken("the tokenizer's pad token"),
    "remove_unused_columns": Taken("nothing: other columns are not read, with True and with False"),
    "dataset_num_proc": Taken("nothing: rows are tokenised in one process, with the same result"),
    "max_prompt_length": Taken("a check: a longer prompt is refused, not cut", is_older=True),
    "max_completion_length": Taken("a check: a longer response is refused, not cut", is_older=True),
}
_NO_OTHER_LOSS = "would be another loss, which is not here. Leave it out, and choose `loss`"
_FIXED_REFERENCE = (
    "would move the reference, which is fixed on pairs of a file. Leave it out, or see "
    "OnlineTDPOConfig(reference_update=)"
)
FIXED = {
    "disable_dropout": Fixed(
        (True,),
        "would leave the model's dropout on, under which policy and reference differ by noise. Leave it out (an "
        "adapter's own, lora_dropout, is kept)",
    ),
    "truncation_mode": Fixed(
        ("keep_start",), "would cut the beginnings of prompts. Shorten them in the data, or raise max_length"
    ),
    "padding_free": Fixed(
        (False,), "is called max_tokens_per_row here: max_tokens_per_row=8192 packs pairs into rows of that size"
    ),
    "pad_to_multiple_of": Fixed(
        ("auto",), "has no effect: rows are as long as the longest of their batch. Leave it out"
    ),
    "loss_weights": Fixed(([1], [1.0]), _NO_OTHER_LOSS),
    "ld_alpha": Fixed((1.0,), _NO_OTHER_LOSS),
    "f_divergence_type": Fixed(
        ("reverse_kl",),
        "transforms the ratio of whole responses. With sigmoid, forward_kl is loss='f_dpo_forward' here and "
        "js_divergence is loss='f_dpo_js': write that in place of loss_type. An exact KL at every token is in "
        "loss='tdpo1' and 'tdpo2'",
    ),
    "f_alpha_divergence_coef": Fixed((0.5,), _NO_OTHER_LOSS),
    "use_weighting": Fixed((False,), _NO_OTHER_LOSS),
    "discopop_tau": Fixed((0.05,), _NO_OTHER_LOSS),
    "router_aux_loss_coef": Fixed(
        (0.0, 0),
        "would add a router's loss, which depends on how an update is split into micro-batches. Write 0.0, or leave it "
        "out: no router's loss is added",
    ),
    "activation_offloading": Fixed((False,), "is not here: gradient_checkpointing=True saves memory in another way"),
    "sync_ref_model": Fixed((False,), _FIXED_REFERENCE),
    "ref_model_mixup_alpha": Fixed((0.6,), _FIXED_REFERENCE),
    "ref_model_sync_steps": Fixed((512,), _FIXED_REFERENCE),
    "reference_free": Fixed((False,), "would leave out the reference. loss='sft' is what has none", is_older=True),
    "rpo_alpha": Fixed((), _NO_OTHER_LOSS, is_older=True),
    "is_encoder_decoder": Fixed((False,), "is not here: models are causal ones. Leave it out", is_older=True),
    "label_pad_token_id": Fixed((-100,), "has no effect: there are no padded labels. Leave it out", is_older=True),
    "padding_value": Fixed((), "has no effect: padding is never counted. Leave it out", is_older=True),
    "generate_during_eval": Fixed(
        (False,), "is not part of training: `tdpo generate` and `tdpo evaluate` sample responses", is_older=True
    ),
    "model_adapter_name": Fixed((), "is not here: the active adapter is trained. Leave it out", is_older=True),
    "ref_adapter_name": Fixed(
        (), "is not here: the reference is the adapter's start, or another model as ref_model", is_older=True
    ),
    "force_use_ref_model": Fixed((True, False), "is no choice here: ref_model is used if given", is_older=True),
    "use_logits_to_keep": Fixed((True, False), "is no choice here: only responses reach the head", is_older=True),
    "use_liger_loss": Fixed((False,), "is not needed: no path here holds full logits. Leave it out", is_older=True),
    "tools": Fixed((), "is a column of the rows here: give each row its `tools`", is_older=True),
}
NAMES = (*TAKEN, *FIXED)

# Arguments for loading a model that can be taken, and values of others that change nothing.
_LOADING = ("dtype", "torch_dtype", "trust_remote_code", "quantization_config")
_LOADING_SAME: dict[str, tuple[Any, ...]] = {
    "attn_implementation": (None, "sdpa"),
    "device_map": (None,),
    "revision": (None, "main"),
    "low_cpu_mem_usage": (None, True, False),
    "use_cache": (None, True, False),
}


def is_same(value: Any, same: tuple[Any, ...]) -> bool:
    """Whether `value` is one of these; 1 and True are two values."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in same)


def fixed_problem(name: str, value: Any) -> str | None:
    """Why this value of a fixed field is refused, in a sentence; None where it means what happens here."""
    field = FIXED[name]
    return None if value is None or is_same(value, field.same) else f"{name}={value!r} {field.why}"


def loss_of(loss_type: Any) -> tuple[LossName | None, str | None]:
    """Our loss for a `loss_type` (text or a list), or why there is none."""
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None, f"loss_type must be the name of a loss, or a list of one, got {loss_type!r}"
    if len(names) > 1:
        return None, f"loss_type={loss_type!r} mixes losses, and one is trained here: choose `loss`"
    name = names[0]
    if name in LOSSES:
        return LOSSES[name], None
    known = ", ".join(get_args(LossName))
    if name in OTHER_LOSSES:
        return None, f"loss_type={name!r} {OTHER_LOSSES[name]}"
    return None, f"loss_type={name!r} has no counterpart. `loss` is one of {known} ('sigmoid' is dpo)"


def smoothing_problem(label_smoothing: float) -> str | None:
    """Why a share of swapped pairs is refused beside TRL's sigmoid, which leaves it out."""
    if not label_smoothing:
        return None
    return (
        f"label_smoothing={label_smoothing} has no effect in TRL with loss_type='sigmoid', and has one here: leave it "
        "out for TRL's numbers, or write loss='dpo' in place of loss_type"
    )


def loading_problems(name: str, arguments: Any) -> Iterator[str]:
    """What of `model_init_kwargs` (or of the reference's) cannot be taken, each in a sentence."""
    if not isinstance(arguments, Mapping):
        yield f"{name} must be a dictionary of arguments for loading a model, got {arguments!r}"
        return
    for key, value in arguments.items():
        if key in _LOADING or is_same(value, _LOADING_SAME.get(key, ())):
            if key == "quantization_config" and value is not None and not hasattr(value, "to_dict"):
                yield f"{name}: quantization_config must be one of transformers', as BitsAndBytesConfig, got {value!r}"
            continue
        yield (
            f"{name}: {key}={value!r} cannot be passed on. Load the model with it yourself and pass the model in place "
            "of its name"
        )
