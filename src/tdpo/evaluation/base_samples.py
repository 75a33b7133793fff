"""The base model's responses in a run directory. Another run with the same base takes them over instead of sampling."""

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
from ..sampling.engines import ResponseSampler
from ..sampling.sampler import SampledResponse, SamplingSettings, encode_prompts

FILE = "base_samples.json"


def samples_identity(
    policy: Any,
    reference: Reference,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    sampler: ResponseSampler,
) -> dict[str, Any]:
    """All that the base model's responses depend on: two evaluations with the same identity would sample the same ones.

    Rewards are no part of it, since they are computed anew from the responses.
    """
    model = causal_lm_of(policy if reference.model is None else reference.model)
    # An adapter that is switched off changes nothing, so the digest is the base model's own.
    prefix = getattr(policy.base_model, "prefix", "lora_") if reference.model is None else None
    inputs, names = [prompt.rendered_from for prompt in prompts], [prompt.id for prompt in prompts]
    encoded, stopping = encode_prompts(tokenizer, inputs, names), Stopping.of(model, tokenizer)
    return {
        "model": model_digest(model, adapter_prefix=prefix),
        "prompts": hashlib.sha256(json.dumps(encoded).encode()).hexdigest(),
        "stop_tokens": [*sorted(stopping.ids), *([stopping.text] if stopping.text else [])],
        "settings": asdict(settings),
        # The same arithmetic: other kernels round otherwise, and a token may tip over.
        "torch": f"{torch.__version__}, {next(model.parameters()).device.type}, {torch.get_num_threads()} threads",
        **sampler.identity,
    }


def keep_samples(run: RunDirectory, identity: Mapping[str, Any], responses: Sequence[SampledResponse]) -> None:
    """Write the responses, with what they depend on, into the run directory."""
    run.write_json(FILE, {"identity": identity, "completions": [asdict(response) for response in responses]})


def kept_samples(run: RunDirectory, identity: Mapping[str, Any]) -> list[SampledResponse] | None:
    """The responses in the run directory; None where there are none, or those of another model, prompt or setting."""
    content = run.read_json(FILE)
    if content is None or content["identity"] != identity:
        return None
    return [SampledResponse(**fields) for fields in content["completions"]]
