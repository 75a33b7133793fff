"""Makes policy and tokenizer of what a trainer is called with, before anything is computed."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from ..models import (
    causal_lm_of,
    check_causal,
    check_quantized_training,
    check_whole_loss,
    has_adapter,
    load_causal_lm,
    load_tokenizer,
)
from ..models.adapter_bases import note_base
from ..models.liger import apply_liger
from ..models.precision import Precision, loaded_dtype
from ..models.quantization import is_quantized_model, settle_layers
from ..models.quantized_sizes import describe_quantization, why_little_is_quantized
from ..models.text_part import config_in_text, freeze_other_parts
from .arguments import Arguments, is_deepspeed
from .precision import hold_beside, settle_learning_rate, settle_precision

logger = logging.getLogger(__name__)

# Names under which models keep the rates of what they do at random in training mode: dropout, layer drop,
# drop path, jitter of a router.
RANDOM_RATE = re.compile(r"drop|jitter")


def prepare_tokenizer(processing_class: Any | None, model: Any, args: Arguments) -> Any:
    """The tokenizer that a trainer works with, which has a pad token.

    `processing_class` is a tokenizer, a processor with one, the name of a model that has one, or None: `model`'s own.

    Raises:
        ValueError: there is none, or it has neither a pad nor an end-of-sequence token.
        TypeError: `processing_class` is no tokenizer and has none.
    """
    if processing_class is None:
        name = model if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
        if not name:
            raise ValueError(
                "processing_class is missing and the model does not say where it came from: pass a tokenizer"
            )
        return load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    if isinstance(processing_class, str | Path):
        return load_tokenizer(processing_class, trust_remote_code=args.trust_remote_code)
    tokenizer = _tokenizer_of(processing_class)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError("the tokenizer has neither a pad nor an end-of-sequence token; set one")
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_of(processor: Any) -> Any:
    """`processor` where it is a tokenizer, or the tokenizer of a processor for several kinds of input."""
    from transformers import PreTrainedTokenizerBase

    if isinstance(processor, PreTrainedTokenizerBase):
        return processor
    inner, kind = getattr(processor, "tokenizer", None), type(processor).__name__
    if isinstance(inner, PreTrainedTokenizerBase):
        logger.info("processing_class is a %s: its tokenizer is used, as rows are text.", kind)
        return inner
    if hasattr(processor, "pad_token_id") and callable(processor):
        return processor  # a tokenizer of the user's own
    raise TypeError(
        f"processing_class is a {kind}, which is no tokenizer and has none: pass a tokenizer, a processor with a "
        "tokenizer, or the name of a model that has one"
    )


def prepare_policy(model: Any, peft_config: Any | None, args: Arguments) -> Any:
    """The policy: loaded, wrapped with an adapter where one is asked for, and definite in training mode.

    Of a model that reads images too, the language model alone is trained.

    Raises:
        ValueError: an adapter on top of an adapter, one that adds tokens, nothing to train, quantised weights that
            would be trained, a model that looks ahead or that asks for a loss beside that of its predictions.
        TypeError: `model` is no model.
    """
    if isinstance(model, str | Path):
        device = "cpu" if args.use_cpu else None  # a quantised base stays where it is loaded
        trust, trainable = args.trust_remote_code, peft_config is None
        model = load_causal_lm(model, trust_remote_code=trust, trainable=trainable, device=device)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass a name, a folder, or a loaded causal language model")
    if is_quantized_model(model):
        settle_layers(model)
        _check_whole_base(args)
        logger.info("The base is quantised, in %s. The reference is this base.", describe_quantization(model))
        if reason := why_little_is_quantized(causal_lm_of(model)):
            logger.warning("Of this model %s.", reason)
    check_causal(model)
    check_whole_loss(model)
    if peft_config is not None:
        if has_adapter(model):
            raise ValueError(
                "peft_config was given, but the model has an adapter already; merge it first or leave one out"
            )
        _refuse_prompt_learning(peft_config)
        from peft import get_peft_model

        set_seed(args.seed)  # adapters start at random
        model = get_peft_model(model, config_in_text(model, peft_config))
    elif has_adapter(model):
        _refuse_prompt_learning(model.active_peft_config)
    freeze_other_parts(model)
    if has_adapter(model):
        note_base(model)
    check_quantized_training(is_quantized_model(model), has_adapter(model))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "no weight of the model requires a gradient, so nothing would be trained. Load an adapter with "
            "is_trainable=True, or pass peft_config."
        )
    switch_off_dropout(model)
    return model


def _check_whole_base(args: Arguments) -> None:
    """Raise ValueError where a quantised base would be sharded over processes."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "") == "true"
    if launched or is_deepspeed(args) or getattr(args, "fsdp_plugin_args", None) is not None:
        raise ValueError(
            "a quantised base cannot be sharded here (FSDP, DeepSpeed): each process holds it whole. Launch without "
            "sharding, `accelerate launch --multi_gpu`, or leave the quantisation out."
        )


def settled(policy: Any, reference: Any | None, args: Arguments, method: str) -> tuple[Any, Precision, Any | None]:
    """The policy and its reference (a name, a model or None) in the precision that `args` asks for, and what it is.

    What follows from the policy is written into `args`: the precision for transformers, and the learning rate of
    `method` where none was chosen. Raises ValueError as `settle_precision`.
    """
    loaded = loaded_dtype(policy)
    reference = load_beside(reference, policy, args)  # rounded as the policy was, if it was
    precision = settle_precision(policy, args)
    settle_learning_rate(policy, args, method)
    place_on_device(policy, args)
    reference = hold_beside(reference, loaded, precision)
    if args.use_liger_kernel:  # in both, and before a cache is made: they would differ by rounding before any update
        for model in (policy, reference):
            if model is not None:
                _use_liger(model, args)
    return policy, precision, reference


def _use_liger(model: Any, args: Arguments) -> None:
    """Put Liger's kernels into a model where it trains: on the host, where a reference may lie, they do not run."""
    place_on_device(model, args)
    device = next(model.parameters()).device
    if device.type != args.device.type:
        raise ValueError(
            f"use_liger_kernel: Liger's kernels run on {args.device}, and this model is on {device} while it is "
            "examined, as one that is sharded (FSDP, DeepSpeed) is. Leave it out, or train without sharding."
        )
    count = apply_liger(model, args.liger_kernel_config)
    logger.info("Liger's kernels compute %d parts of %s.", count, type(causal_lm_of(model)).__name__)


def place_on_device(model: Any, args: Arguments) -> None:
    """Move a model to where it trains before it is probed: there probes are faster, and their answers hold.

    Models that are sharded, or that lie on several devices or are quantised, are placed by others.
    """
    shards = bool(args.fsdp) or is_deepspeed(args) or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    is_placed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
    if args.place_model_on_device and not shards and not is_placed and args.device.type != "cpu":
        model.to(args.device)


def load_beside(model: Any, policy: Any, args: Arguments) -> Any:
    """A reference or a critic that is given by name, loaded in the policy's precision; anything else as it is."""
    if not isinstance(model, str | Path):
        return model
    dtype, device = str(policy.dtype).removeprefix("torch."), "cpu" if args.use_cpu else None  # as `prepare_policy`
    return load_causal_lm(model, dtype=dtype, trust_remote_code=args.trust_remote_code, device=device)


# Models of one family give some reserved entries other names; two vocabularies differ in most of them.
MOST_RENAMED = 0.01


def check_same_tokens(tokenizer: Any, reference: Any, args: Arguments) -> None:
    """Raise ValueError where a reference that is given by name gives the entries of the vocabulary to other tokens.

    Vocabularies of one size would pass every other check, and each KL would compare unlike tokens.
    """
    if not isinstance(reference, str | Path) or not hasattr(tokenizer, "get_vocab"):
        return
    try:
        other = load_tokenizer(reference, trust_remote_code=args.trust_remote_code)
    except (FileNotFoundError, ValueError):
        logger.info("The reference %s has no tokenizer of its own; it is taken to have the policy's.", reference)
        return
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (tokenizer, other))
    shared = sorted(ours.keys() & theirs.keys())
    renamed = [i for i in shared if ours[i] != theirs[i]]
    if len(renamed) > MOST_RENAMED * len(shared):
        i = renamed[0]
        raise ValueError(
            f"the reference {reference} has other tokens than the policy: {len(renamed)} of {len(shared)} entries "
            f"differ, as {i} does, {ours[i]!r} in the policy and {theirs[i]!r} in the reference. A KL over the "
            "vocabulary compares entry with entry; choose a reference with the policy's tokenizer."
        )


def _refuse_prompt_learning(peft_config: Any) -> None:
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(
            f"{type(peft_config).__name__} puts tokens of its own before the prompt, which the response's positions "
            "do not know of; use an adapter that changes weights, such as LoraConfig"
        )


def switch_off_dropout(model: nn.Module) -> None:
    """Make the model say the same in training as in evaluation; adapters keep the dropout they were asked for.

    The reference is a definite distribution: under dropout even an untrained policy differs from it, and what
    is penalised is noise. Rates are zeroed wherever they are kept: in dropout modules, in the attributes and
    the configurations that functional dropout reads when it is called (and so in the saved configuration).
    """
    for module in _outside_adapters(model):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, float) and RANDOM_RATE.search(name):
                    setattr(holder, name, 0.0)


def _outside_adapters(model: nn.Module) -> Iterator[nn.Module]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, BaseTunerLayer):
        yield from _outside_adapters(model.get_base_layer())
        return
    yield model
    for child in model.children():
        yield from _outside_adapters(child)
