"""Probes of a loaded model: its own forward on a few tokens decides, and no list of architectures."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

from .configurations import first_sentence, is_multimodal, text_config
from .hidden_states import causal_lm_of

# Relative to the largest logit. Rounding stays far below; a model that looks ahead changes even the logits of fresh
# weights by 1e-3.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
HALF_TOLERANCE = 2e-2
TOKENS = 8

# Models that passed `check_causal`. Sampling checks its model every time, and the forward may be one of many processes.
_passed: WeakSet[nn.Module] = WeakSet()


class CannotRunError(ValueError):
    """The model's forward fails on a few plain tokens."""


def check_causal(model: Any, what: str = "the model") -> None:
    """Raise ValueError unless `model` is a causal language model: no later token may change an earlier logit.

    Two rows that differ in their second half are compared in their first half. A model that passed is not run again.
    """
    lm = causal_lm_of(model)
    if not isinstance(lm, nn.Module) or lm in _passed:
        return
    config = getattr(lm, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{what} is an encoder-decoder ({type(lm).__name__}): its prompt goes through an encoder, and here prompt "
            "and response are one sequence. Give a decoder-only language model."
        )
    logits = _logits(model, lm, what)
    if logits is None:
        return  # a model that cannot be probed in this way fails, or not, where it is used
    first, second = logits[:, : TOKENS // 2].double()
    both = first.isfinite() & second.isfinite()
    size = float(logits[logits.isfinite()].abs().max()) if bool(logits.isfinite().any()) else 1.0
    change = float((first - second)[both].abs().max()) if bool(both.any()) else 0.0
    if change > TOLERANCE.get(next(lm.parameters()).dtype, HALF_TOLERANCE) * max(size, 1e-6):
        raise ValueError(
            f"{what} ({type(lm).__name__}) looks ahead: later tokens change the logits of earlier ones by "
            f"{change:.2g}. They are no probabilities of a next token, so neither log-probabilities nor KLs would mean "
            "anything. Give a causal language model (a decoder; for BERT and its kin one that was trained with "
            "is_decoder: true)."
        )
    _passed.add(lm)


def check_whole_loss(model: Any) -> None:
    """Raise ValueError where the model's configuration asks for a loss beside cross-entropy, such as a router's.

    The losses here are computed from hidden states, and the model's own loss is never called. A router's loss is a
    product of means over the tokens of a forward, so it would depend on how an update is split into micro-batches and
    on the layout of rows. Nothing else here does. So it is refused, and not silently left out.
    """
    lm = causal_lm_of(model)
    added = _auxiliary_loss(model, lm)
    if added is None:
        return
    flag = getattr(text_config(lm.config), "output_router_logits", None)
    what = "a router's auxiliary loss (output_router_logits: true)" if flag else "a loss beside that of its predictions"
    advice = (
        "Set output_router_logits to false in the model's config.json (model.config.output_router_logits = False in "
        "Python) to train without it; routers that should keep their balance are best left frozen, with an adapter on "
        "other weights"
        if flag
        else "Switch it off in the model's config.json to train without it"
    )
    raise ValueError(
        f"the model's configuration asks for {what}{added}. It cannot be part of this training: it depends on how an "
        f"update is split into micro-batches. {advice}."
    )


def _two_rows(lm: Any) -> Tensor:
    """Two rows `[2, TOKENS]` of made-up tokens with the same first half and different second halves."""
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    device = next(lm.parameters()).device
    ids = torch.arange(1, TOKENS + 1, device=device) * 7919
    other = ids.clone()
    other[TOKENS // 2 :] += 1 + torch.arange(TOKENS // 2, device=device)
    return torch.stack([ids, other]) % vocabulary


@torch.no_grad()
def _logits(model: Any, lm: Any, what: str) -> Tensor | None:
    """The model's own logits of `_two_rows`; None where it cannot take them, or its weights are not all there."""
    if any(weight.is_meta or not weight.numel() for weight in lm.parameters()):
        return None  # sharded or not loaded
    was_training = model.training
    model.eval()
    try:
        ids = _two_rows(lm)
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits.float() if logits.shape[:2] == ids.shape else None
    except (TypeError, AttributeError, NotImplementedError) as error:
        if not is_multimodal(lm.config):
            return None
        reason = first_sentence(error)
        raise CannotRunError(f"{what} ({type(lm).__name__}) cannot be run on text alone: {reason}") from error
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        raise CannotRunError(
            f"{what} ({type(lm).__name__}) cannot be run on {TOKENS} tokens: {first_sentence(error)} Do the sizes in "
            "its config.json fit its weights?"
        ) from error
    finally:
        model.train(was_training)


@torch.no_grad()
def _auxiliary_loss(model: Any, lm: Any) -> str | None:
    """What the model's own loss adds to the cross-entropy of its logits, in words; None where it adds nothing.

    Only a model whose configuration mentions a router is run with labels. Other differences of a model's loss (a scale,
    smoothing) are variants of the same cross-entropy.
    """
    config = text_config(lm.config)
    if not any("router" in name or "aux_loss" in name for name in vars(config)):
        return None
    was_training = model.training
    model.eval()
    try:
        ids = _two_rows(lm)
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model that cannot be run is judged by its configuration
        return "" if getattr(config, "output_router_logits", False) else None
    finally:
        model.train(was_training)
    if getattr(output, "aux_loss", None) is None or output.loss is None:
        return None
    plain = functional.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
    added = float(output.loss) - float(plain)
    return f", which adds {added:.3g} to the model's own loss" if abs(added) > 1e-5 * max(1.0, float(plain)) else None
