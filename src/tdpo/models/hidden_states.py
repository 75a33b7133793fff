"""Hidden states without logits, for any architecture that transformers loads as a causal language model.

The head belongs to the mathematics, so the model's forward must stop before it. During one call,
the causal language model's `forward` is replaced by that of its body. The call still goes through every wrapper around
the model (DDP, FSDP, peft, autocast), so their hooks run as always.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..token_statistics import Head
from .block_attention import block_mask, is_block_mask
from .configurations import text_config
from .quantization import has_plain_weight
from .sharded_head import gather, is_fsdp_unit, modules_around
from .span_attention import install_span_attention
from .spans import SpanMask, with_spans


def causal_lm_of(model: Any) -> Any:
    """The `…ForCausalLM` inside DDP, FSDP, torch.compile and peft wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def response_hidden(model: Any, inputs: Mapping[str, Tensor], response_index: Tensor) -> Tensor:
    """Any model's hidden states `[N, D]` at the flat positions `response_index` `[N]` of `[R, T]` inputs, without the
    head."""
    lm = causal_lm_of(model)
    if hasattr(model, "_orig_mod"):  # what is made of a mask is no part of what is compiled
        inputs = {**inputs, "attention_mask": _attention_mask(inputs.get("attention_mask"), lm.dtype)}
    with _replaced_forward(lm, _body_forward(lm, response_index, keep_graph=is_fsdp_unit(model))):
        return model(**inputs)[0]


def select_logits(model: Any, inputs: Mapping[str, Tensor], response_index: Tensor) -> Tensor:
    """Logits `[N, V]` at `response_index` `[N]` from the model's own forward, for heads that `find_head` refuses."""
    logits = model(**inputs, use_cache=False).logits
    return logits.flatten(0, 1)[response_index]


@contextmanager
def _replaced_forward(lm: Any, forward: Callable[..., Any]) -> Iterator[None]:
    before = lm.__dict__.get("forward")
    lm.forward = forward
    try:
        yield
    finally:
        if before is None:
            del lm.forward
        else:
            lm.forward = before


def _body_forward(lm: Any, response_index: Tensor, keep_graph: bool = False) -> Callable[..., tuple[Tensor]]:
    body = lm.base_model
    takes = inspect.signature(body.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())

    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": _attention_mask(attention_mask, lm.dtype)}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        if "use_cache" in takes or takes_any:
            inputs["use_cache"] = False
        hidden = body(**inputs, return_dict=True).last_hidden_state
        selected = hidden.flatten(0, 1)[response_index]
        if keep_graph and torch.is_grad_enabled() and not selected.requires_grad:
            # Only the head is trained. FSDP2 scatters its gradient at the end of a backward pass through the model, so
            # the hidden states must take part in one.
            selected.requires_grad_()
        return (selected,)

    return forward


MADE = "_tdpo_made"  # attribute of a batch's mask: what was made of it, by dtype


def _attention_mask(mask: Tensor | None, dtype: torch.dtype) -> Any:
    """The mask in the form that attention takes; made once for all models that read a batch in one dtype.

    A boolean 4-D mask becomes an additive one, which every attention of transformers takes; ranges `[R, 3, T]` become
    blocks; a mask of padding stays as it is.
    """
    if mask is None or is_block_mask(mask) or mask.dim() == 2 or mask.dtype.is_floating_point:
        return mask
    made = mask.__dict__.setdefault(MADE, {})
    if dtype not in made:
        made[dtype] = block_mask(mask) if mask.dim() == 3 else _additive(mask, dtype)
    if mask.dim() == 3 or isinstance(made[dtype], SpanMask):
        install_span_attention()
    return made[dtype]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return with_spans(additive, mask)


def find_head(model: Any) -> Callable[[], Head] | None:
    """A function that gives the model's current `Head`, or None where logits are not cap(scale·(W·h + b)).

    Call the function after the model's forward, because only then can weights that FSDP2 shards be gathered.
    There is no list of architectures. A candidate (no scale, the scale fitted to the logits, the soft cap of the
    configuration) is accepted only if it reproduces the model's own logits on a probe.
    """
    lm = causal_lm_of(model)
    output = lm.get_output_embeddings()
    if output is None or getattr(lm, "base_model", lm) is lm or not _is_understood(output):
        return None
    observed = probe(model)
    if observed is None:
        return None
    hidden, logits = observed
    around = modules_around(model, output)
    for softcap in _softcaps(lm):
        with torch.no_grad():
            scale = _fit_scale(_live_head(around, 1.0, None)().logits(hidden), logits, softcap)
            head = _live_head(around, scale, softcap)
            if _same(head().logits(hidden), logits, lm.dtype):
                return head
    return None


def _live_head(around: Sequence[nn.Module], scale: float, softcap: float | None) -> Callable[[], Head]:
    def head() -> Head:
        gather(around)
        weight, bias = _effective_weight(around[0])
        return Head(weight, bias, scale=scale, softcap=softcap)

    return head


def _is_understood(output: Any) -> bool:
    """Whether `_effective_weight` accounts for everything that adapters on the output layer can do once trained.

    The probe cannot tell, because a fresh adapter changes nothing: DoRA, IA3, biases and dropout on this layer
    look like a plain head until they are trained. Quantised weights are no numbers to multiply by.
    """
    if type(output).__module__.partition(".")[0] != "peft":
        return has_plain_weight(output)
    from peft.tuners.lora import Linear
    from peft.utils import ModulesToSaveWrapper

    if type(output) is ModulesToSaveWrapper:
        return has_plain_weight(output.original_module)
    plain_adapters = type(output) is Linear and not (
        output.lora_variant or any(output.lora_bias.values()) or output.merged
    )
    plain_adapters = plain_adapters and has_plain_weight(output.get_base_layer())
    return plain_adapters and all(isinstance(d, nn.Identity) for d in output.lora_dropout.values())


def _effective_weight(output: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of an output layer as it acts now, adapters on it included."""
    if hasattr(output, "modules_to_save") and hasattr(output, "original_module"):
        disabled = output.disable_adapters or not output.active_adapters
        active = output.original_module if disabled else output.modules_to_save[output.active_adapters[0]]
        return active.weight, getattr(active, "bias", None)
    if hasattr(output, "get_delta_weight"):
        base = output.get_base_layer()
        weight = base.weight
        if not output.disable_adapters:
            for adapter in output.active_adapters:
                if adapter in output.lora_A:
                    weight = weight + output.get_delta_weight(adapter).to(weight.dtype)
        return weight, getattr(base, "bias", None)
    return output.weight, getattr(output, "bias", None)


def has_quantized_head(model: Any) -> bool:
    """Whether the weight of the model's output layer is quantised, so that its logits come from the layer alone."""
    output = causal_lm_of(model).get_output_embeddings()
    while hasattr(output, "get_base_layer"):
        output = output.get_base_layer()
    output = getattr(output, "original_module", output)
    return getattr(output, "weight", None) is not None and not has_plain_weight(output)


@torch.no_grad()
def probe(model: Any) -> tuple[Tensor, Tensor] | None:
    """Hidden states and the model's own logits at the positions of a made-up input; None if it gives no such things."""
    lm = causal_lm_of(model)
    device = next(lm.parameters()).device
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, 9, device=device) * 7919 % vocabulary)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    index = torch.arange(8, device=device)
    was_training = model.training
    model.eval()
    try:
        return response_hidden(model, inputs, index), select_logits(model, inputs, index).float()
    except (TypeError, AttributeError):
        return None
    finally:
        model.train(was_training)


def _softcaps(lm: Any) -> list[float | None]:
    cap = getattr(text_config(lm.config), "final_logit_softcapping", None)
    return [float(cap), None] if cap else [None]


def _fit_scale(raw: Tensor, logits: Tensor, softcap: float | None) -> float:
    """The factor between raw and observed logits, by least squares; exactly 1.0 if it is 1.0 up to rounding."""
    inside = raw.isfinite() & logits.isfinite()  # a masked vocabulary has logits of -inf
    if softcap is not None:
        inside &= logits.abs() < 0.95 * softcap
        logits = softcap * torch.atanh((logits.double() / softcap).clamp(-0.999, 0.999))
    raw64 = raw.double()[inside]
    scale = float((raw64 * logits.double()[inside]).sum() / raw64.square().sum().clamp_min(1e-30))
    return 1.0 if math.isclose(scale, 1.0, rel_tol=2e-3) else scale


def _same(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    # Half-precision models round their logits to 8 or 11 bits. 1 % of the range is far above that, and
    # far below the effect of a missing bias, norm or soft cap.
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2
    finite = theirs.isfinite()
    if not torch.equal(ours[~finite], theirs[~finite]):
        return False
    ours, theirs = ours[finite], theirs[finite]
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1.0))
