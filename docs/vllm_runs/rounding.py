"""How far a server's rounding is from ours: python docs/vllm_runs/rounding.py URL DTYPE

URL is a vLLM server with the bundled model, started with `--dtype DTYPE` (float32, bfloat16 or float16; docs/vllm.md).
For each of 64 prompts a greedy completion of 16 tokens is compared with the forward of this model, computed in DTYPE
and in float32. Prints Markdown, in nats: the largest difference of a log-probability, its 99 % quantile over tokens and
its mean, and how far a token falls behind the most probable one. The start check's tolerance is for the largest.
"""

from __future__ import annotations

import sys

import torch

from tdpo.environments.sentiment import sentiment_environment
from tdpo.models import bundled_folder, load_causal_lm, load_tokenizer
from tdpo.sampling.sampler import encode_prompts
from tdpo.sampling.vllm.checks import TOLERANCES, greedy_differences, served_model
from tdpo.sampling.vllm.client import Client

PROMPTS = 64


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    client = Client(sys.argv[1], 600.0)
    served, tokenizer = served_model(client), load_tokenizer(str(bundled_folder()))
    prompts = [prompt.rendered_from for prompt in sentiment_environment().train[:PROMPTS]]
    encoded = encode_prompts(tokenizer, prompts)
    print("| server | here | largest | 99 % | mean | behind the likeliest | tolerance |\n|---|---|---|---|---|---|---|")
    for dtype in dict.fromkeys([sys.argv[2], "float32"]):
        model = load_causal_lm(str(bundled_folder()), dtype=dtype).eval()
        pairs = [greedy_differences(client, served, served.name, model, ids) for ids in encoded]
        differences, behind = (torch.cat(each) for each in zip(*pairs, strict=True))
        numbers = [differences.max(), differences.quantile(0.99), differences.mean(), behind.max()]
        tolerance = TOLERANCES[getattr(torch, dtype)]
        cells = [sys.argv[2], dtype, *(f"{float(number):.1e}" for number in numbers), f"{tolerance:g}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
