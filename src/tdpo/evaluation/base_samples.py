"""The base model's samples in a run directory: another run with the same base takes them over instead of sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..chat_templates import Stopping
from ..environments import Prompt
from ..models import Reference, causal_lm_of
from ..reference_cache import model_digest
from ..runs import RunDirectory
from ..sampling.sampler import Completion, SamplingSettings, encode_prompts

FILE = "base_samples.json"


def samples_identity(
    policy: Any, reference: Reference, tokenizer: Any, prompts: Sequence[Prompt], settings: SamplingSettings
) -> dict[str, Any]:
    """All that the base model's samples depend on: two evaluations in which it is equal would sample the same.

    Rewards are no part of it: they are computed anew from the samples.
    """
    model = causal_lm_of(policy if reference.model is None else reference.model)
    # An adapter that is switched off changes nothing, so the digest is the base model's own.
    prefix = getattr(policy.base_model, "prefix", "lora_") if reference.model is None else None
    asked, names = [prompt.rendered_from for prompt in prompts], [prompt.id for prompt in prompts]
    encoded, stopping = encode_prompts(tokenizer, asked, names), Stopping.of(model, tokenizer)
    return {
        "model": model_digest(model, adapter_prefix=prefix),
        "prompts": hashlib.sha256(json.dumps(encoded).encode()).hexdigest(),
        "stop_tokens": [*sorted(stopping.ids), *([stopping.text] if stopping.text else [])],
        "settings": asdict(settings),
        # The same arithmetic: other kernels round otherwise, and a token may tip over.
        "torch": f"{torch.__version__}, {next(model.parameters()).device.type}, {torch.get_num_threads()} threads",
    }


def keep_samples(run: RunDirectory, identity: Mapping[str, Any], completions: Sequence[Completion]) -> None:
    """Write the samples, with what they depend on, into the run directory."""
    run.write_json(FILE, {"identity": identity, "completions": [asdict(completion) for completion in completions]})


def kept_samples(run: RunDirectory, identity: Mapping[str, Any]) -> list[Completion] | None:
    """The samples in the run directory, or None where there are none, or those of another model, prompt or setting."""
    found = run.read_json(FILE)
    if found is None or found["identity"] != identity:
        return None
    return [Completion(**fields) for fields in found["completions"]]
