"""Time and memory of the head, one TDPO2 loss and its gradients: tiled statistics against naive full logits.

    python benchmarks/head.py                                   # N = 1024, V = 49152, D = 576, float32
    python benchmarks/head.py --dtype bfloat16 --tokens 512

Prints a table and writes benchmarks/results/head-<dtype>.json with versions and hardware. Each contestant runs
in a process of its own, alternating; memory is the process's peak minus its state before the first run.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONTESTANTS = ("naive", "tiled", "tiled, head frozen")


def one_process(name: str, tokens: int, vocabulary: int, width: int, dtype: str) -> dict[str, float]:
    """Run one contestant twice in this process; the second time counts."""
    import torch

    from tdpo import Head, TokenStats, linear_token_stats, score_pairs, tdpo2_loss

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(tokens, width).to(kind).requires_grad_()
    reference_hidden = (hidden.detach() + 0.03 * torch.randn(tokens, width)).to(kind)
    weight = (0.08 * torch.randn(vocabulary, width)).to(kind)
    reference_weight = weight.clone()
    weight.requires_grad_("frozen" not in name)
    targets = torch.randint(0, vocabulary, (tokens,))
    sequence = torch.arange(tokens) * 16 // tokens

    def stats() -> Any:
        if name != "naive":
            return linear_token_stats(hidden, Head(weight), reference_hidden, Head(reference_weight), targets)
        with torch.no_grad():
            reference_p = (reference_hidden @ reference_weight.T).softmax(-1)
        logp = (hidden @ weight.T).log_softmax(-1)
        reference_logp = reference_p.log()
        kl = (reference_p * (reference_logp - logp)).sum(-1)
        index = targets[:, None]
        return TokenStats(
            logp.gather(1, index)[:, 0].float(), reference_logp.gather(1, index)[:, 0].float(), kl.float()
        )

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        started = time.perf_counter()
        scores = score_pairs(stats(), sequence, 8)
        tdpo2_loss(scores, beta=0.1, alpha=0.5).per_pair.mean().backward()
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"milliseconds": seconds * 1e3, "mebibytes": (peak - before) / 2**10}


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians over alternating runs."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for round_ in range(arguments.rounds):
        for name in CONTESTANTS:
            print(f"round {round_ + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--only", name], capture_output=True, text=True, check=True
            )
            runs[name].append(json.loads(done.stdout))
    return {
        name: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for name, results in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.tokens, arguments.vocabulary, arguments.width)
    if arguments.only:
        print(json.dumps(one_process(arguments.only, *shape, arguments.dtype)))
        return
    import torch

    medians = compare(arguments)
    naive = medians["naive"]
    print(f"{'':20}{'ms':>10}{'/ naive':>9}{'MiB':>10}{'/ naive':>9}")
    for name, m in medians.items():
        time_ratio = m["milliseconds"] / naive["milliseconds"]
        memory_ratio = m["mebibytes"] / naive["mebibytes"]
        print(f"{name:20}{m['milliseconds']:10.0f}{time_ratio:9.2f}{m['mebibytes']:10.0f}{memory_ratio:9.2f}")
    result = {
        "command": " ".join(["python benchmarks/head.py", *sys.argv[1:]]),
        "tokens, vocabulary, width": shape,
        "dtype": arguments.dtype,
        "medians": medians,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    path = Path(__file__).parent / "results" / f"head-{arguments.dtype}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
