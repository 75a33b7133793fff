"""Error of the forward KL and of its gradient, over KLs from 1e-5 to 10 nats, against a float64 oracle.

    python benchmarks/precision.py                              # V = 5000, 49152 and the bundled model's own states
    python benchmarks/precision.py --vocabulary 49152 --dtype bfloat16 --model none
    python benchmarks/precision.py --device cuda                # on a GPU: the head's kernels, in bfloat16 and float32
    python benchmarks/precision.py --quick                      # does it run?

Policy and reference share one head; the reference's hidden state is the policy's, moved in a random direction until
that token's KL has the wanted size. Synthetic logits have an entropy of about 3 nats, as those of language models;
the model's states are those of SmolLM2-135M on this repository's text. Operands are then rounded to the dtype that is
judged, and the oracle takes the same operands in float64. So only the computation is judged. Tokens are sorted by the
oracle's KL: rounding hidden states to bfloat16 moves small KLs, so decades hold unequal numbers of tokens.

Read the table: relative errors of the KL and of its gradient with respect to the hidden state (norm of the difference
over the norm), median and maximum over the tokens of a decade; `/ naive` is the ratio of the medians to the naive
code's in the same dtype. In bfloat16 the gradient is returned in bfloat16, whose rounding alone is an error of about
2e-3. Results that are not finite count as an error of 1e9 in the result file.

With `--device cuda` states, paths and oracle are on the GPU, and each run says whether the head's kernels computed it.
Nobody has run that yet. The last table holds the largest ratio of a path to the naive code, which are the published
lines, in bfloat16 over the decades from 1e-3 to 1 nat.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from _harness import Case, Job, Measurements, Run, Unavailable, answer, card, make_parser, parse, print_table
from _published import statistics_from_hidden
from _text import frozen_pages, token_stream
from tdpo import Head, TokenStats, frozen_head_token_stats, linear_token_stats, summarize_reference
from tdpo.token_statistics.implementations import KERNELS, implementation_for

DECADES = range(-5, 1)  # KLs of 1e-5 to 10 nats
JUDGED, MOST = range(-3, 0), 1 / 50  # KLs of 1e-3 to 1 nat: what a path's error may be of the published lines'
ENTROPY = 3.0
NOT_FINITE = 1e9
LARGEST = 1e6  # medians beyond are half or more of values that are not finite
NAIVE = "naive"
QUICK = {
    "rounds": 1, "vocabulary": [2000], "width": 64, "tokens_per_decade": 4, "dtype": ["float32"], "model": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Operands:
    """Both models' hidden states `[N, D]` and their one head `[V, D]`, in the dtype that is judged."""

    hidden: Tensor
    reference_hidden: Tensor
    weight: Tensor
    targets: Tensor


# ---- operands with KLs of wanted sizes ----


def make_operands(case: Case, seed: int, arguments: Any) -> Operands:
    make = torch.Generator().manual_seed(seed)
    tokens = arguments.tokens_per_decade * len(DECADES)
    if case["states"] == "synthetic":
        hidden, weight = synthetic_states(tokens, case["vocabulary"], arguments.width, make)
    else:
        hidden, weight = model_states(case["states"], tokens, seed)
    dtype, device = getattr(torch, case["dtype"]), case.get("device", "cpu")
    hidden, weight = hidden.to(device, dtype), weight.to(device, dtype)
    # Drawn on the CPU, as the states are: every device judges the same operands.
    direction = torch.randn(hidden.shape, generator=make, dtype=torch.float64).to(device)
    wanted = torch.logspace(DECADES[0], DECADES[-1] + 1, tokens, dtype=torch.float64).to(device)
    reference_hidden = moved(hidden.double(), weight.double(), direction, wanted).to(dtype)
    return Operands(hidden, reference_hidden, weight, torch.zeros(tokens, dtype=torch.long, device=device))


def synthetic_states(tokens: int, vocabulary: int, width: int, make: torch.Generator) -> tuple[Tensor, Tensor]:
    # Of V normal logits of spread s the softmax has an entropy near ln V − s²/2 (random energy model).
    spread = math.sqrt(2 * (math.log(vocabulary) - ENTROPY))
    weight = torch.randn(vocabulary, width, generator=make) * (spread / math.sqrt(width))
    return torch.randn(tokens, width, generator=make), weight


def model_states(name: str, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """The model's hidden states at the tokens of some text, and its head."""
    from tdpo.models import find_head, load_causal_lm, load_tokenizer, response_hidden

    try:
        model, tokenizer = load_causal_lm(name, dtype="float32"), load_tokenizer(name)
    except (FileNotFoundError, ImportError) as error:
        raise Unavailable(str(error)) from error
    find = find_head(model)
    if find is None or find().bias is not None or find().scale != 1.0 or find().softcap is not None:
        raise Unavailable(f"the head of {name} is not a plain matrix")
    ids = token_stream(tokenizer, (seed + 1) * tokens)[seed * tokens : (seed + 1) * tokens]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, tokens, dtype=torch.long)}
    with torch.no_grad():
        return response_hidden(model, inputs, torch.arange(tokens)), find().weight.detach()


def moved(hidden: Tensor, weight: Tensor, direction: Tensor, wanted: Tensor) -> Tensor:
    """Move `hidden` along `direction` so far that KL(moved‖hidden) is `wanted`, token by token."""
    logits, slope = hidden @ weight.T, direction @ weight.T
    policy = logits.log_softmax(-1)
    low, high = torch.full_like(wanted, math.log(1e-6)), torch.full_like(wanted, math.log(1e3))
    for _ in range(20):  # the KL rises with the distance, so bisect its logarithm
        middle = (low + high) / 2
        reference = (logits + middle.exp()[:, None] * slope).log_softmax(-1)
        too_far = kl_of(reference, policy) > wanted
        low, high = torch.where(too_far, low, middle), torch.where(too_far, middle, high)
    return hidden + low.exp()[:, None] * direction


def kl_of(reference: Tensor, policy: Tensor) -> Tensor:
    return (reference.exp() * (reference - policy)).sum(-1)


# ---- the oracle and those it judges ----


def oracle(operands: Operands) -> tuple[Tensor, Tensor]:
    """KL(reference‖policy) `[N]` and its gradient (p − q)·W `[N, D]` in float64, with nothing taken from tdpo."""
    weight = operands.weight.double()
    policy = (operands.hidden.double() @ weight.T).log_softmax(-1)
    reference = (operands.reference_hidden.double() @ weight.T).log_softmax(-1)
    return kl_of(reference, policy), (policy.exp() - reference.exp()) @ weight


def naive(o: Operands) -> TokenStats:
    return statistics_from_hidden(o.hidden, o.weight, o.reference_hidden, o.weight, o.targets)


def dense(o: Operands) -> TokenStats:
    return linear_token_stats(
        o.hidden, Head(o.weight), o.reference_hidden, Head(o.weight), o.targets, impl="dense"
    )  # fmt: skip


def tiled(o: Operands) -> TokenStats:
    return linear_token_stats(
        o.hidden, Head(o.weight), o.reference_hidden, Head(o.weight), o.targets, impl="tiled"
    )  # fmt: skip


def frozen_with_summary(o: Operands) -> TokenStats:
    summary = summarize_reference(o.reference_hidden, Head(o.weight), o.targets)
    return frozen_head_token_stats(o.hidden, Head(o.weight), summary, o.targets)


PATHS: dict[str, Callable[[Operands], TokenStats]] = {
    NAIVE: naive,
    "dense": dense,
    "tiled": tiled,
    "frozen head with summary": frozen_with_summary,
}
KERNEL_PATHS = ("tiled", "frozen head with summary")  # on a GPU


def measure(path: str, case: Case, seed: int, arguments: Any) -> Run:
    operands = make_operands(case, seed, arguments)
    exact_kl, exact_gradient = oracle(operands)
    operands.hidden.requires_grad_()
    kl = PATHS[path](operands).forward_kl
    kl.sum().backward()
    assert operands.hidden.grad is not None
    error = (kl.detach().double() - exact_kl).abs() / exact_kl
    gradient_error = (operands.hidden.grad.double() - exact_gradient).norm(dim=1) / exact_gradient.norm(dim=1)
    large = exact_kl >= 10.0 ** DECADES[0]
    return {
        "kernels": path in KERNEL_PATHS and implementation_for("auto", operands.hidden, operands.weight) is KERNELS,
        "kl": rounded(exact_kl[large]),
        "kl_error": rounded(error[large]),
        "gradient_error": rounded(gradient_error[large]),
    }


def rounded(values: Tensor) -> list[float]:
    finite = values.nan_to_num(NOT_FINITE, NOT_FINITE, NOT_FINITE)
    return [float(f"{value:.3g}") for value in finite.tolist()]


# ---- reporting ----


def decades(measurements: Measurements) -> list[dict[str, Any]]:
    """Return one line for each case, decade and path that has tokens in the decade."""
    table: list[dict[str, Any]] = []
    for case, decade in product(measurements.cases(), DECADES):
        lines = [
            {"case": case, "decade": decade, "path": entry.job.contestant, **errors}
            for entry in measurements.of_case(case)
            if (errors := errors_in_decade(entry.runs, decade))
        ]
        naive_line = next((line for line in lines if line["path"] == NAIVE), None)
        for line in lines:
            for name in ("kl_error", "gradient_error"):
                if naive_line and 0 < naive_line[name]["median"] < LARGEST and line[name]["median"] < LARGEST:
                    line[name]["ratio to naive"] = line[name]["median"] / naive_line[name]["median"]
        table += lines
    return table


def errors_in_decade(runs: list[Run], decade: int) -> dict[str, Any]:
    errors: dict[str, list[float]] = {"kl_error": [], "gradient_error": []}
    for run in runs:
        for kl, kl_error, gradient_error in zip(run["kl"], run["kl_error"], run["gradient_error"], strict=True):
            if 10.0**decade <= kl < 10.0 ** (decade + 1):
                errors["kl_error"].append(kl_error)
                errors["gradient_error"].append(gradient_error)
    if not errors["kl_error"]:
        return {}
    summary = {name: {"median": statistics.median(v), "max": max(v)} for name, v in errors.items()}
    return {"tokens": len(errors["kl_error"]), **summary}


def largest_ratios(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Path → the largest ratio of its median error of the KL to the naive code's, in bfloat16 from 1e-3 to 1 nat."""
    largest: dict[str, float] = {}
    for line in lines:
        ratio, judged = line["kl_error"].get("ratio to naive"), line["decade"] in JUDGED and line["path"] != NAIVE
        if judged and line["case"]["dtype"] == "bfloat16" and ratio is not None:
            largest[line["path"]] = max(ratio, largest.get(line["path"], 0.0))
    return largest


def report(measurements: Measurements) -> None:
    lines = measurements.derived["decades"] = decades(measurements)
    ratios = measurements.derived["published lines"] = largest_ratios(lines)
    header = ["KL in nats, path", "tokens", "KL median", "max", "/ naive", "gradient median", "max", "/ naive"]
    for case in measurements.cases():
        rows = [row(line) for line in lines if line["case"] == case]
        if rows:
            print_table(", ".join(f"{key} {value}" for key, value in case.items()), header, rows)
        for entry in measurements.of_case(case):
            if entry.skipped:
                print(f"{entry.job} was left out: {entry.skipped}")
    if ratios:
        title = "KL error / published lines, bfloat16, 1e-3 to 1 nat, the largest"
        print_table(title, ["", "ratio", "at most"], [[path, f"{r:.2g}", f"{MOST:.2g}"] for path, r in ratios.items()])


def row(line: dict[str, Any]) -> list[str]:
    cells = [f"1e{line['decade']:+} to 1e{line['decade'] + 1:+}  {line['path']}", str(line["tokens"])]
    for name in ("kl_error", "gradient_error"):
        errors = line[name]
        ratio = errors.get("ratio to naive")
        cells += [shown(errors["median"]), shown(errors["max"]), "–" if ratio is None else f"{ratio:.2g}"]
    return cells


def shown(error: float) -> str:
    return f"{error:.1e}" if error < LARGEST else "not finite"


def jobs(arguments: Any) -> list[Job]:
    states: list[Case] = [{"states": "synthetic", "vocabulary": v} for v in arguments.vocabulary]
    states += [{"states": arguments.model}] if arguments.model != "none" else []
    there = {"device": "cuda"} if arguments.device == "cuda" else {}
    cases: list[Case] = [{**state, "dtype": dtype, **there} for state, dtype in product(states, arguments.dtype)]
    return [
        Job(path, case, guess=5 + arguments.tokens_per_decade * case.get("vocabulary", 60_000) * 4e-5)
        for case in cases
        for path in PATHS
    ]


def main() -> int:
    parser = make_parser(__doc__, "precision", 3, QUICK)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[5000, 49152], help="V (default 5000 49152)")
    parser.add_argument("--width", type=int, default=576, help="D of the synthetic states (default 576)")
    parser.add_argument("--tokens-per-decade", type=int, default=16, help="in each round (default 16)")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--model", default="smollm2-135m", help="whose states to take as well, or none (the bundled)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: written to gpu-precision.json")
    on_card = parser.parse_known_args()[0].device == "cuda"
    arguments = parse(parser, "gpu-precision" if on_card else "precision", {"quick": QUICK})
    if on_card and not card():
        parser.error("--device cuda: torch finds no GPU here")
    if child := arguments.child:
        answer(lambda: measure(child["contestant"], child["case"], child["round"], arguments))
        return 0
    measurements = Measurements(__file__, jobs(arguments), arguments, keys=())
    with frozen_pages():
        measurements.run(arguments.rounds)
    report(measurements)
    return measurements.finish()


if __name__ == "__main__":
    raise SystemExit(main())
