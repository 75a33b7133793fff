"""Time and memory of the head: one preference loss and its gradients, from hidden states.

    python benchmarks/head.py                              # N = 1024, V = 49152, float32 and bfloat16
    python benchmarks/head.py --tokens 4096 --dtype float32 --contestants "naive TDPO" tiled
    python benchmarks/head.py --grid                       # N 512 to 8192, V 32768 to 262144: hours
    python benchmarks/head.py --quick                      # does it run?
    python benchmarks/head.py --device cuda --shape qwen3-1.7b --tokens 4096

`--device cuda` has not been run by anybody yet: time is that of events around a step, memory is torch's own peak over
the state before, and the first two iterations (compilers, libraries) are warm-ups.

Every contestant starts from the same hidden states [N, D] and heads [V, D] and ends with gradients to the policy's
hidden states, and to its head where that is trained. The loss is TDPO2 (beta 0.1, alpha 0.5, 8 pairs), or for the
contestants so named DPO or the mean Jensen–Shannon divergence (JS, weight 0.5). Each runs in a process of its own,
rounds alternate, the first iteration is a warm-up for the time; memory is the highest resident memory of all
iterations, the first included, over the state before it.

Read the table: ms and MiB are medians, `/ naive` the ratio to "naive TDPO" with the same head (trained or frozen).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

import _mixture
from _card import SHAPES, card, settle_library, timed
from _card_peers import cut_cross_entropy, frozen_logp, liger_dpo
from _harness import (
    MIB,
    Case,
    Entry,
    Job,
    Measurements,
    PeakMemory,
    Run,
    Unavailable,
    answer,
    has_bfloat16_units,
    make_parser,
    note_bfloat16,
    number,
    parse,
    print_table,
    ratio,
    total_memory,
)  # fmt: skip
from _published import statistics_from_hidden, upcast
from _tiled_dpo import tiled_logp
from tdpo import (
    Head,
    TokenStats,
    dpo_loss,
    frozen_head_token_stats,
    linear_token_stats,
    score_pairs,
    summarize_reference,
    tdpo2_loss,
)  # fmt: skip

PAIRS, BETA, ALPHA = 8, 0.1, 0.5
BASELINE = "naive TDPO"
KEYS = ("milliseconds", "first_milliseconds", "mebibytes", "warm_mebibytes")
QUICK = {"rounds": 1, "iterations": 1, "tokens": [64], "vocabulary": [2000], "dtype": ["float32"]}
GRID = {
    "rounds": 2, "iterations": 1, "tokens": [512, 1024, 2048, 4096, 8192],
    "vocabulary": [32768, 49152, 131072, 262144],
}  # fmt: skip
MEMORY_SHARE = 0.6  # contestants that need more of the machine than this are left out


@dataclass
class Inputs:
    """The input of every contestant. `weight` requires a gradient if the head is trained."""

    hidden: Tensor
    weight: Tensor
    reference_hidden: Tensor
    reference_weight: Tensor
    targets: Tensor
    sequence_index: Tensor

    def forget_gradients(self) -> None:
        self.hidden.grad = self.weight.grad = None


def make_inputs(case: Case) -> Inputs:
    """Logits of spread 2 and KLs of a few tenths of a nat; a trained head is apart from its reference's, equal to it.

    A frozen head is one tensor for both models, as it is where only an adapter is trained.
    """
    tokens, vocabulary, width = case["tokens"], case["vocabulary"], case["width"]
    device = case.get("device", "cpu")
    make = torch.Generator(device).manual_seed(0)
    dtype, trained = getattr(torch, case["dtype"]), case["head"] == "trained"
    draw = {"generator": make, "device": device}
    hidden = torch.randn(tokens, width, **draw)
    reference_hidden = hidden + 0.3 * torch.randn(tokens, width, **draw)
    weight = torch.randn(vocabulary, width, **draw).mul_(2 / width**0.5).to(dtype)
    return Inputs(
        hidden.to(dtype).requires_grad_(),
        weight.clone().requires_grad_() if trained else weight,
        reference_hidden.to(dtype),
        weight,
        torch.randint(0, vocabulary, (tokens,), **draw),
        torch.arange(tokens, device=device) * 2 * PAIRS // tokens,
    )


# ---- contestants: statistics of the tokens, however they come about ----

Prepared = Any
Statistics = Callable[[Inputs, Prepared], TokenStats]


def naive(inputs: Inputs, _: Prepared) -> TokenStats:
    return statistics_from_hidden(
        inputs.hidden, inputs.weight, inputs.reference_hidden, inputs.reference_weight, inputs.targets
    )


def naive_dpo(inputs: Inputs, _: Prepared) -> TokenStats:
    index = inputs.targets[:, None]
    logp = upcast(inputs.hidden @ inputs.weight.T).log_softmax(-1).gather(1, index)[:, 0]
    with torch.no_grad():
        reference_logits = upcast(inputs.reference_hidden @ inputs.reference_weight.T)
        reference_logp = reference_logits.log_softmax(-1).gather(1, index)[:, 0]
    return TokenStats(logp, reference_logp, torch.zeros_like(reference_logp))


def compiler(_: Inputs) -> Prepared:
    """Return the naive code, compiled at its first call. The compiler is loaded before anything is measured."""
    try:
        torch.compile(lambda x: x.softmax(-1).log(), dynamic=False)(torch.ones(4))
    except Exception as error:  # no compiler, no Python headers, an unsupported platform: whatever it is, say it
        raise Unavailable(f"torch.compile does not work here: {str(error).strip().splitlines()[0]}") from error
    return torch.compile(statistics_from_hidden, dynamic=False)


def compiled(inputs: Inputs, function: Prepared) -> TokenStats:
    stats: TokenStats = function(
        inputs.hidden, inputs.weight, inputs.reference_hidden, inputs.reference_weight, inputs.targets
    )
    return stats


def trl_functions(_: Inputs) -> Prepared:
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE  # the width that TRL's own trainers use
    except ImportError as error:
        raise Unavailable(f"TRL with chunked functions is not installed: {error}") from error
    return ChunkedLogProbFunction.apply, ChunkedDivergenceFunction.apply, _CHUNKED_LOGPROB_CHUNK_SIZE


def trl_chunked(inputs: Inputs, functions: Prepared) -> TokenStats:
    """The log-probabilities of TRL's DPOTrainer and the forward KL (beta 0) of its DistillationTrainer."""
    chunked_logp, chunked_divergence, chunk = functions
    policy = (inputs.hidden, inputs.weight, None)
    reference = (inputs.reference_hidden, inputs.reference_weight, None)
    rest = (inputs.targets, 1.0, chunk, None, 1.0, ("log_probs",))
    logp = chunked_logp(*policy, *rest)[0]
    with torch.no_grad():
        reference_logp = chunked_logp(*reference, *rest)[0]
    return TokenStats(logp, reference_logp, chunked_divergence(*policy, *reference, 0.0)[0])


def tiled(inputs: Inputs, _: Prepared) -> TokenStats:
    tokens = len(inputs.targets)
    return linear_token_stats(
        inputs.hidden, Head(inputs.weight), inputs.reference_hidden, Head(inputs.reference_weight), inputs.targets,
        learned_tokens={"forward_kl": range(-(-tokens // 2), tokens)},  # the rejected ones, as the trainer says
    )  # fmt: skip


def summary(inputs: Inputs) -> Prepared:
    return summarize_reference(inputs.reference_hidden, Head(inputs.reference_weight), inputs.targets)


def frozen_with_summary(inputs: Inputs, prepared: Prepared) -> TokenStats:
    return frozen_head_token_stats(inputs.hidden, Head(inputs.weight), prepared, inputs.targets)


def reference_logp_of(inputs: Inputs) -> Prepared:
    return summary(inputs).reference_logp


def tiled_dpo(inputs: Inputs, reference_logp: Prepared) -> TokenStats:
    return TokenStats(
        tiled_logp(inputs.hidden, inputs.weight, inputs.targets), reference_logp, torch.zeros_like(reference_logp)
    )


def frozen_dpo(inputs: Inputs, reference_logp: Prepared) -> TokenStats:
    logp = frozen_logp(inputs.hidden, inputs.weight, inputs.targets)
    return TokenStats(logp, reference_logp, torch.zeros_like(reference_logp))


def cce_dpo(inputs: Inputs, logp: Prepared) -> TokenStats:
    policy = logp(inputs.hidden, inputs.weight, inputs.targets)
    with torch.no_grad():
        reference = logp(inputs.reference_hidden, inputs.reference_weight, inputs.targets)
    return TokenStats(policy, reference, torch.zeros_like(reference))


def liger_loss(inputs: Inputs, loss: Prepared) -> Tensor:
    value: Tensor = loss(inputs.hidden, inputs.weight, inputs.reference_hidden, inputs.reference_weight, inputs.targets)
    return value


def mean_mixture(inputs: Inputs, divergence: _mixture.MeanDivergence) -> Tensor:
    return divergence(inputs.hidden, inputs.weight, inputs.reference_hidden, inputs.reference_weight)


@dataclass(frozen=True)
class Contestant:
    """`logits` counts the float32 [N, V] that the contestant holds at most; a tiled one holds none."""

    statistics: Statistics | None
    loss: str = "TDPO2"
    heads: tuple[str, ...] = ("trained", "frozen")
    prepare: Callable[[Inputs], Prepared] = lambda _: None
    logits: int = 0
    devices: tuple[str, ...] = ("cpu", "cuda")
    mean_loss: Callable[[Inputs, Prepared], Tensor] | None = None  # instead of statistics
    bare: Callable[[Inputs], None] | None = None  # products alone, without a loss

    def step(self, inputs: Inputs, prepared: Prepared) -> float | None:
        """Compute one loss and its gradients, and return the value of the loss."""
        if self.bare is not None:
            self.bare(inputs)
            return None
        mean = self._mean_loss(inputs, prepared)
        mean.backward()
        return mean.item()

    def _mean_loss(self, inputs: Inputs, prepared: Prepared) -> Tensor:
        if self.mean_loss is not None:
            return self.mean_loss(inputs, prepared)
        assert self.statistics is not None
        scores = score_pairs(self.statistics(inputs, prepared), inputs.sequence_index, PAIRS)
        loss = tdpo2_loss(scores, beta=BETA, alpha=ALPHA) if self.loss == "TDPO2" else dpo_loss(scores, beta=BETA)
        return loss.per_pair.mean()


@torch.no_grad()
def bare_products(inputs: Inputs) -> None:
    """Compute both models' logits and the policy's backward products in the operands' dtype: a floor for others."""
    inputs.reference_hidden @ inputs.reference_weight.T
    z = inputs.hidden @ inputs.weight.T
    inputs.hidden.grad = z @ inputs.weight
    if inputs.weight.requires_grad:
        inputs.weight.grad = z.T @ inputs.hidden


@torch.no_grad()
def two_products(inputs: Inputs) -> None:
    """The policy's logits and their contraction with the head: a floor for a frozen head with a summary."""
    inputs.hidden.grad = (inputs.hidden @ inputs.weight.T) @ inputs.weight


CONTESTANTS: dict[str, Contestant] = {
    BASELINE: Contestant(naive, logits=8),
    "naive DPO": Contestant(naive_dpo, loss="DPO", logits=5),
    "torch.compile naive TDPO": Contestant(compiled, prepare=compiler, logits=4),
    "TRL chunked": Contestant(trl_chunked, prepare=trl_functions),
    "bare matrix products": Contestant(None, loss="", logits=1, bare=bare_products),
    "tiled": Contestant(tiled),
    "frozen head with summary": Contestant(frozen_with_summary, heads=("frozen",), prepare=summary),
    "tiled DPO": Contestant(tiled_dpo, loss="DPO", prepare=reference_logp_of, devices=("cpu",)),
    "two bare products": Contestant(None, loss="", heads=("frozen",), logits=1, devices=("cuda",), bare=two_products),
    "frozen DPO, same kernels": Contestant(
        frozen_dpo, loss="DPO", heads=("frozen",), prepare=reference_logp_of, devices=("cuda",)
    ),
    "Liger fused linear DPO": Contestant(
        None, loss="DPO", prepare=lambda _: liger_dpo(PAIRS, BETA), devices=("cuda",), mean_loss=liger_loss
    ),
    "cut-cross-entropy DPO": Contestant(cce_dpo, loss="DPO", prepare=lambda _: cut_cross_entropy(), devices=("cuda",)),
    **{
        name: Contestant(None, loss="JS", prepare=prepare, logits=logits, devices=("cuda",), mean_loss=mean_mixture)
        for name, prepare, logits in (
            ("naive JS", lambda _: _mixture.published, 14),
            ("TRL chunked JS", lambda _: _mixture.trl_chunked(), 0),
            ("tiled JS", lambda _: _mixture.tiled, 0),
        )
    },
}


# ---- measuring ----


def measure(name: str, case: Case, iterations: int) -> Run:
    contestant, inputs = CONTESTANTS[name], make_inputs(case)
    prepared = contestant.prepare(inputs)
    if case.get("device") == "cuda":
        return measure_on_card(contestant, inputs, prepared, iterations)
    memory = PeakMemory()
    seconds, peaks, loss = [], [], None
    for _ in range(1 + iterations):
        inputs.forget_gradients()
        memory.reset()
        started = time.perf_counter()
        loss = contestant.step(inputs, prepared)
        seconds.append(time.perf_counter() - started)
        peaks.append(memory.read())
    milliseconds = [1e3 * s for s in seconds]
    return {
        "milliseconds": milliseconds[1:],
        "first_milliseconds": milliseconds[0],
        "mebibytes": max(peaks),
        "warm_mebibytes": max(peaks[1:]),
        "loss": loss,
    }


def measure_on_card(contestant: Contestant, inputs: Inputs, prepared: Prepared, iterations: int) -> Run:
    def step() -> float | None:
        inputs.forget_gradients()
        return contestant.step(inputs, prepared)

    settle_library(inputs.weight)
    measured = [timed(step) for _ in range(2 + iterations)]
    return {
        "milliseconds": [milliseconds for milliseconds, _, _ in measured[2:]],
        "first_milliseconds": measured[0][0],
        "mebibytes": max(mebibytes for _, mebibytes, _ in measured),
        "warm_mebibytes": max(mebibytes for _, mebibytes, _ in measured[2:]),
        "loss": measured[-1][2],
    }


def jobs(arguments: Any) -> list[Job]:
    shapes = product(arguments.vocabulary, arguments.tokens, arguments.dtype, arguments.heads)
    there = {"device": "cuda"} if arguments.device == "cuda" else {}
    cases = [
        {"tokens": n, "vocabulary": v, "width": arguments.width, "dtype": d, "head": h, **there}
        for v, n, d, h in shapes
    ]
    return [
        job(name, case, arguments.iterations)
        for case in cases
        for name in arguments.contestants
        if case["head"] in CONTESTANTS[name].heads and arguments.device in CONTESTANTS[name].devices
    ]


def job(name: str, case: Case, iterations: int) -> Job:
    needed = CONTESTANTS[name].logits * case["tokens"] * case["vocabulary"] * 4
    on_card = case.get("device") == "cuda"
    limit = MEMORY_SHARE * (card().get("card memory MiB", 0) * MIB if on_card else total_memory())
    why = None
    if needed > limit:
        why = f"would need about {needed / MIB:.0f} MiB, more than {MEMORY_SHARE:.0%} of this machine's memory"
    step = case["tokens"] * case["vocabulary"] * case["width"] * 5e-11  # seconds, on two cores of a small server
    slow = 4 if name == "TRL chunked" else 1
    if on_card:
        return Job(name, case, guess=15, skipped=why)
    if case["dtype"] == "bfloat16" and "tiled" not in name and "frozen" not in name and not has_bfloat16_units():
        slow *= 20
    return Job(name, case, guess=5 + slow * step * (1 + iterations), skipped=why)


# ---- reporting ----


def print_case(measurements: Measurements, case: Case) -> None:
    entries = measurements.of_case(case)
    baseline = measurements.find(BASELINE, case)
    rows = [
        row(entry, baseline) if entry.runs else [entry.job.contestant, "–", "–", "–", "–", "–", *ranges(entry)]
        for entry in entries
    ]
    title = f"N = {case['tokens']}, V = {case['vocabulary']}, D = {case['width']}, {case['dtype']}, head {case['head']}"
    print_table(title, ["", "ms", "/ naive", "MiB", "/ naive", "MiB warm", "ms from", "to"], rows)
    for entry in entries:
        if entry.skipped:
            print(f"  {entry.job.contestant} was left out: {entry.skipped}")


def row(entry: Entry, baseline: Entry | None) -> list[str]:
    time_ = entry.median("milliseconds")
    return [
        entry.job.contestant,
        number(time_, 1 if (time_ or 0) < 100 else 0),
        ratio(entry, baseline, "milliseconds"),
        number(entry.median("mebibytes")),
        ratio(entry, baseline, "mebibytes"),
        number(entry.median("warm_mebibytes")),
        *ranges(entry),
    ]


def ranges(entry: Entry) -> list[str]:
    times = entry.pooled("milliseconds")
    return [number(min(times)), number(max(times))] if times else ["–", "–"]


def claims(measurements: Measurements) -> list[dict[str, Any]]:
    """Return the numbers for the project's claims about the head: its cost relative to DPO, and memory over V."""
    checks = []
    pairs = (
        ("frozen head with summary", "tiled DPO"),
        ("tiled", "tiled DPO"),
        ("tiled", "bare matrix products"),
        ("frozen head with summary", "two bare products"),
        ("frozen head with summary", "frozen DPO, same kernels"),
        ("tiled", "torch.compile naive TDPO"),
        ("tiled JS", "naive JS"),
        ("tiled JS", "TRL chunked JS"),
    )
    for case in measurements.cases():
        for ours, theirs in pairs:
            a, b = measurements.find(ours, case), measurements.find(theirs, case)
            if a and b and a.runs and b.runs:
                value = (a.median("milliseconds") or 0) / (b.median("milliseconds") or 1)
                checks.append({"claim": f"time of {ours} / {theirs}", "case": case, "value": value})
    return checks + memory_growth(measurements)


def memory_growth(measurements: Measurements) -> list[dict[str, Any]]:
    """Return memory at the largest vocabulary over that at the smallest, without the head's own gradient [V, D]."""
    sizes = sorted({case["vocabulary"] for case in measurements.cases()})
    if len(sizes) < 2:
        return []
    checks = []
    for entry in measurements.entries:
        if not entry.runs or entry.job.case["vocabulary"] != sizes[-1]:
            continue
        small = measurements.find(entry.job.contestant, {**entry.job.case, "vocabulary": sizes[0]})
        if small and small.runs:
            value = memory_without_gradient(entry) / max(memory_without_gradient(small), 1.0)
            claim = f"memory of {entry.job.contestant} at V = {sizes[-1]} / V = {sizes[0]}, head gradient subtracted"
            checks.append({"claim": claim, "case": entry.job.case, "value": value})
    return checks


def memory_without_gradient(entry: Entry) -> float:
    case, memory = entry.job.case, entry.median("mebibytes") or 0.0
    if case["head"] == "frozen":
        return memory
    return memory - case["vocabulary"] * case["width"] * getattr(torch, case["dtype"]).itemsize / MIB


def report(measurements: Measurements) -> None:
    if "card" not in measurements.derived:
        note_bfloat16(measurements)
    for case in measurements.cases():
        print_case(measurements, case)
    measurements.derived["claims"] = claims(measurements)
    rows = [
        [c["claim"], f"{c['case']['tokens']}", f"{c['case']['vocabulary']}", c["case"]["dtype"], c["case"]["head"],
         number(c["value"], 3)]
        for c in measurements.derived["claims"]
    ]  # fmt: skip
    if rows:
        print_table("Derived", ["", "N", "V", "dtype", "head", "ratio"], rows)


def main() -> int:
    parser = make_parser(__doc__, "head", 5, QUICK)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024], help="N, response tokens (default 1024)")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49152], help="V (default 49152)")
    parser.add_argument("--width", type=int, default=576, help="D, the hidden size (default 576)")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--heads", nargs="+", choices=["trained", "frozen"], default=["trained", "frozen"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--iterations", type=int, default=3, help="timed ones in each process (default 3)")
    parser.add_argument("--grid", action="store_true", help="all N and V of the grid, 2 rounds of 1 iteration: hours")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default=None, help="D and V of a known model, in bfloat16")
    shape = parser.parse_known_args()[0].shape
    if shape:
        parser.set_defaults(width=SHAPES[shape][0], vocabulary=[SHAPES[shape][1]], dtype=["bfloat16"])
    arguments = parse(parser, "head", {"grid": GRID, "quick": QUICK})
    if child := arguments.child:
        answer(lambda: measure(child["contestant"], child["case"], arguments.iterations))
        return 0
    if min(arguments.tokens) < 2 * PAIRS:
        parser.error(f"--tokens must be at least {2 * PAIRS}: one for each response")
    measurements = Measurements(__file__, jobs(arguments), arguments, KEYS)
    if arguments.device == "cuda":
        measurements.derived["card"] = card()
    measurements.run(arguments.rounds)
    report(measurements)
    return measurements.finish()


if __name__ == "__main__":
    raise SystemExit(main())
