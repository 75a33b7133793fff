"""Rewards of one model by both engines, prompt by prompt: python docs/vllm_runs/paired.py URL SEED

URL is a vLLM server with the bundled model in float32. Draws 16 responses of up to 12 tokens to each of 24 held-out
prompts with each engine, and prints the mean rewards and the paired difference with a 95 % interval over prompts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tdpo.config import SamplingEngine
from tdpo.environments import score
from tdpo.environments.sentiment import sentiment_environment
from tdpo.models import bundled_folder, load_causal_lm, load_tokenizer
from tdpo.sampling.engines import response_sampler
from tdpo.sampling.sampler import SamplingSettings

PROMPTS, SAMPLES, TOKENS = 24, 16, 12
T = 2.07  # 97.5 % of Student's t with 23 degrees of freedom


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    environment = sentiment_environment()
    prompts = environment.held_out[:PROMPTS]
    texts = [prompt.rendered_from for prompt in prompts]
    model, tokenizer = load_causal_lm(str(bundled_folder()), dtype="float32"), load_tokenizer(str(bundled_folder()))
    settings = SamplingSettings(SAMPLES, TOKENS, seed=int(sys.argv[2]), batch_size=48)
    means = {}
    for engine in (SamplingEngine(), SamplingEngine(engine="vllm", url=sys.argv[1])):
        with tempfile.TemporaryDirectory() as folder:
            sampler = response_sampler(engine, folder=Path(folder), owner=folder, with_logps=True)
            sampler.prepare(model, tokenizer, [1], settings)
            drawn = sampler(model, tokenizer, texts, settings)
        rewards = score(environment, [prompts[r.prompt_index] for r in drawn], [r.text for r in drawn])
        means[engine.engine] = np.asarray(rewards).reshape(PROMPTS, SAMPLES).mean(axis=1)
    for name, values in {**means, "vllm − built-in": means["vllm"] - means["built-in"]}.items():
        half = T * values.std(ddof=1) / PROMPTS**0.5
        print(f"{name}: {values.mean():+.3f} [{values.mean() - half:+.3f}, {values.mean() + half:+.3f}]", flush=True)


if __name__ == "__main__":
    main()
