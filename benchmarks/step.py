"""Time and memory of a whole training step: tdpo's trainer, TRL's DPO trainer and a plain loop with naive code.

    python benchmarks/step.py                                   # SmolLM2-135M, prompts of 128 and of 32 tokens
    python benchmarks/step.py --dtype float32 --prompt-tokens 32 --contestants "tdpo TDPO2, LoRA" "TRL DPO, LoRA"
    python benchmarks/step.py --quick --model some/small/model  # does it run?
    python benchmarks/step.py --device cuda --shape qwen3-1.7b --prompt-tokens 512 --response-tokens 512

All train on the same token ids: --pairs pairs a step, each with one prompt and two responses of exact lengths, cut
from this repository's own text. AdamW, gradients clipped at 1, the model loaded in the dtype asked for; on a CPU no
gradient checkpointing and no autocast. Adapters are LoRA of rank 16 on every linear layer but the head.

Read the table: `s/step` is the median from the batch in hand to the weights updated; `prepare s` is what comes before
the first step, once: trainer, adapter, and the reference's share where it is computed in advance. MiB is the highest
resident memory of preparation and steps over the state after the policy was loaded, so a reference model, a cache and
the optimizer's state count. `tokens/s` counts both whole sequences of every pair, however often a prompt is computed.
With --device cuda steps are timed between two waits for the GPU, MiB is torch's peak there, and more contestants take
part (benchmarks/README.md says what each is): both trainers at their own defaults, both alike, with Liger, and
compiled. Nobody has run it on a card yet. --shape builds random weights of a known shape, and a tokenizer of bytes, so
that nothing is downloaded. Products are not counted there.
`GFLOP` is what the matrix products of one step come to (attention's left out), `products s` how long they would
take alone, at the rate of a product of a layer's size measured between the steps: no step can be much faster.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from _harness import (
    Case,
    Entry,
    Job,
    Measurements,
    PeakMemory,
    Run,
    answer,
    default_dtypes,
    has_bfloat16_units,
    make_parser,
    note_bfloat16,
    number,
    parse,
    print_table,
    ratio,
)
from _step_contestants import BASELINES, CONTESTANTS, ON_CPU, PEER, Pair, Task
from _text import frozen_pages, token_stream

KEYS = (
    "seconds", "tokens_per_second", "prepare_seconds", "mebibytes", "step_mebibytes", "prepare_mebibytes",
    "gigaflop", "product_seconds",
)  # fmt: skip
QUICK = {
    "rounds": 1, "steps": 1, "pairs": 2, "prompt_tokens": [8], "response_tokens": 6, "dtype": ["float32"],
}  # fmt: skip
AGREEMENT = 1e-2  # how far two TDPO2 contestants' losses may lie apart after one update in float32

# ---- the same tokens for all ----


def make_pairs(tokenizer: Any, count: int, prompt_tokens: int, response_tokens: int) -> list[Pair]:
    """Make `count` pairs of exact lengths, each from a different place in the text."""
    length, start = prompt_tokens + 2 * response_tokens, 0
    ids = token_stream(tokenizer, count * (length + 1))
    pairs = []
    for _ in range(count):
        prompt, responses = ids[start : start + prompt_tokens], ids[start + prompt_tokens : start + length]
        pairs.append((prompt, responses[:response_tokens], responses[response_tokens:]))
        start += length + 1  # the text repeats itself; the odd step makes its repetitions differ
    return pairs


# ---- one contestant's run ----


def count_products() -> Any:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def added_product(_: Any, left: Sequence[int], right: Sequence[int], **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    # In place, as chunked heads use it, it is not among those that the counter knows.
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product})


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class BareProduct:
    """One product of the size of an MLP layer of SmolLM2-135M, timed for how fast the machine multiplies just now."""

    def __init__(
        self, dtype: str, device: str = "cpu", *, tokens: int = 2048, wide: int = 1536, narrow: int = 576
    ) -> None:
        import torch

        if device == "cuda":
            tokens, wide, narrow = 8192, 8192, 4096  # busy enough
        made = {"dtype": getattr(torch, dtype), "device": device}
        self.x, self.weight = (torch.randn(rows, narrow, **made) for rows in (tokens, wide))
        self.gigaflop, self.device = 2e-9 * tokens * wide * narrow, device

    def rates(self, repeats: int = 6) -> list[float]:
        """Measure GFLOP/s of each repetition but the first."""
        import torch

        rates = []
        for _ in range(repeats):
            started = time.perf_counter()
            torch.nn.functional.linear(self.x, self.weight)
            wait(self.device)
            rates.append(self.gigaflop / (time.perf_counter() - started))
        return rates[1:]


@dataclass
class Clock:
    """Seconds and peak memory of every step, memory of what came before the first, and the first's matrix products."""

    memory: Any
    product: BareProduct
    device: str = "cpu"
    started: float = field(default_factory=time.perf_counter)
    prepare_seconds: float = 0.0
    prepare_mebibytes: float = 0.0
    seconds: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)
    counter: Any = None  # of the first step's products; None where it would be in the way
    rates: list[float] = field(default_factory=list)

    def begin(self) -> None:
        if not self.seconds:
            if self.counter is not None:
                self.counter.__enter__()  # the first step warms up and is not timed
            self.prepare_seconds = time.perf_counter() - self.started
            self.prepare_mebibytes = self.memory.read()
        else:
            self.rates += self.product.rates()
        self.memory.reset()
        wait(self.device)
        self.started = time.perf_counter()

    def end(self) -> None:
        if not self.seconds and self.counter is not None:
            self.counter.__exit__(None, None, None)
        wait(self.device)
        self.seconds.append(time.perf_counter() - self.started)
        self.mebibytes.append(self.memory.read())


# ---- measuring ----


def measure(name: str, case: Case, arguments: Any) -> Run:
    import peft  # noqa: F401
    import trl.trainer.dpo_trainer  # noqa: F401  # loaded everywhere, so that imports are nobody's memory

    import tdpo.training  # noqa: F401
    from tdpo.models import check_folder, load_tokenizer

    contestant, device = CONTESTANTS[name], arguments.device
    steps = 1 + arguments.steps
    shape = case["prompt tokens"], case["response tokens"]
    product = BareProduct(case["dtype"], device)
    if arguments.shape:
        from _card import byte_tokenizer, random_model

        model, tokenizer = random_model(arguments.shape, case["dtype"], device), byte_tokenizer()
    else:
        model = load_model(check_folder(arguments.model), case["dtype"]).to(device)
        tokenizer = load_tokenizer(arguments.model)
    pairs = make_pairs(tokenizer, steps * case["pairs"], *shape)
    with tempfile.TemporaryDirectory() as folder:
        # A counter is a dispatch mode. What torch.compile meets first within one it never compiles: FlexAttention would
        # compute whole matrices of scores in every step, and a compiled contestant would not be compiled.
        clock = Clock(memory_of(device), product, device, counter=count_products() if device == "cpu" else None)
        task = Task(model, tokenizer, pairs, case["pairs"], contestant.tuning, folder, clock, device)
        outcome = contestant.train(task)
    assert len(clock.seconds) == steps == len(outcome.losses), (len(clock.seconds), len(outcome.losses))
    tokens = case["pairs"] * 2 * sum(shape)
    gigaflop = None if clock.counter is None else 1e-9 * clock.counter.get_total_flops()
    return {
        "seconds": clock.seconds[1:],
        "first_seconds": clock.seconds[0],
        "tokens_per_second": [tokens / s for s in clock.seconds[1:]],
        "prepare_seconds": clock.prepare_seconds,
        "mebibytes": max(clock.prepare_mebibytes, *clock.mebibytes),
        "step_mebibytes": max(clock.mebibytes),
        "prepare_mebibytes": clock.prepare_mebibytes,
        "gigaflop": gigaflop,
        "product_seconds": None if gigaflop is None else gigaflop / statistics.median(clock.rates),
        "losses": outcome.losses,
        "response_tokens": outcome.response_tokens,
        "body_tokens": outcome.body_tokens,
        "notes": outcome.notes,
    }


def memory_of(device: str) -> Any:
    """What reads the peak of memory."""
    if device == "cpu":
        return PeakMemory()
    from _card import CardMemory

    return CardMemory()


def load_model(folder: str, dtype: str) -> Any:
    """The model with weights in memory of its own: safetensors maps them from the file until they are touched."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def jobs(arguments: Any) -> list[Job]:
    shapes = product(arguments.dtype, arguments.prompt_tokens)
    return [
        job(name, case, arguments.steps)
        for dtype, prompt in shapes
        for case in [
            {
                "pairs": arguments.pairs, "prompt tokens": prompt, "response tokens": arguments.response_tokens,
                "dtype": dtype,
            }
        ]
        for name in arguments.contestants
    ]  # fmt: skip


def job(name: str, case: Case, steps: int) -> Job:
    tokens = case["pairs"] * 2 * (case["prompt tokens"] + case["response tokens"])
    slow = (3 if "naive" in name else 1) * (2 if "full" in name else 1)
    if case["dtype"] == "bfloat16" and not has_bfloat16_units():
        slow *= 10
    return Job(name, case, guess=15 + (1 + steps) * slow * tokens * 4e-3)


# ---- reporting ----


def report(measurements: Measurements) -> list[str]:
    """Print the tables, and return what is wrong with the measurements, if anything."""
    note_bfloat16(measurements)
    problems = []
    for case in measurements.cases():
        title = ", ".join(f"{key} {value}" for key, value in case.items())
        rows = [row(entry, baseline_of(measurements, entry)) for entry in measurements.of_case(case) if entry.runs]
        header = [
            "",
            "s/step",
            "/ TRL",
            "from",
            "to",
            "tokens/s",
            "MiB",
            "/ TRL",
            "MiB steps",
            "prepare s",
            "GFLOP",
            "products s",
        ]
        if rows:
            print_table(title, header, rows)
        problems += check_tokens(measurements.of_case(case), case)
        problems += check_losses(measurements, case)
    notes = {e.job.contestant: e.runs[0]["notes"] for e in measurements.entries if e.runs}
    print("\nSet-ups:", *(f"  {name}: {note}" for name, note in notes.items()), sep="\n")
    measurements.derived["problems"] = problems
    return problems


def baseline_of(measurements: Measurements, entry: Entry) -> Entry | None:
    names = BASELINES[CONTESTANTS[entry.job.contestant].tuning]
    return next((found for name in names if (found := measurements.find(name, entry.job.case)) and found.runs), None)


def row(entry: Entry, baseline: Entry | None) -> list[str]:
    times = entry.pooled("seconds")
    return [
        entry.job.contestant,
        number(entry.median("seconds"), 2),
        ratio(entry, baseline, "seconds"),
        number(min(times), 2),
        number(max(times), 2),
        number(entry.median("tokens_per_second")),
        number(entry.median("mebibytes")),
        ratio(entry, baseline, "mebibytes"),
        number(entry.median("step_mebibytes")),
        number(entry.median("prepare_seconds"), 1),
        number(entry.median("gigaflop")),
        number(entry.median("product_seconds"), 2),
    ]


def check_tokens(entries: Sequence[Entry], case: Case) -> list[str]:
    """Check that every contestant counted exactly the response tokens of its input."""
    expected = case["pairs"] * 2 * case["response tokens"]
    return [
        f"{entry.job} trained on {run['response_tokens']} response tokens a step, not on {expected}"
        for entry in entries
        for run in entry.runs
        if run["response_tokens"] != expected
    ]


def check_losses(measurements: Measurements, case: Case) -> list[str]:
    """Check that the losses of tdpo's and of the naive TDPO2 agree after one update; the first ones are all log 2."""
    disagreements = []
    for entry in measurements.of_case(case):
        tuning = CONTESTANTS[entry.job.contestant].tuning
        peer = measurements.find(PEER[tuning], case)
        if not (CONTESTANTS[entry.job.contestant].tdpo2 and entry.runs and peer and peer.runs and peer is not entry):
            continue
        [ours, theirs] = [e.runs[0]["losses"][1] for e in (entry, peer)]
        print(f"  second loss of {entry.job.contestant} {ours:.6f}, of {PEER[tuning]} {theirs:.6f}")
        if case["dtype"] == "float32" and abs(ours - theirs) > AGREEMENT:
            disagreements.append(
                f"{entry.job}: second loss {ours}, but {theirs} for {PEER[tuning]}: not the same computation"
            )
    return disagreements


def main() -> int:
    from _card import BODIES

    parser = make_parser(__doc__, "step", 2, QUICK)
    parser.add_argument("--model", default="smollm2-135m", help="bundled name or folder (default smollm2-135m)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a step (default 8)")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128, 32], help="(default 128 32)")
    parser.add_argument("--response-tokens", type=int, default=64, help="of each response (default 64)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process, after one more (default 3)")
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16"], default=default_dtypes(),
        help="of the weights (default both, but float32 alone where the CPU has no bfloat16 units: steps of minutes)",
    )  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it runs (default cpu)")
    parser.add_argument(
        "--shape", choices=BODIES, default=None, help="random weights of a known shape, in place of --model's"
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=None, help="(default all that fit)")
    arguments = parse(parser, "step", {"quick": QUICK})
    arguments.contestants = arguments.contestants or (list(CONTESTANTS) if arguments.device == "cuda" else ON_CPU)
    if child := arguments.child:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        answer(lambda: measure(child["contestant"], child["case"], arguments))
        return 0
    measurements = Measurements(__file__, jobs(arguments), arguments, KEYS)
    with frozen_pages():
        measurements.run(arguments.rounds)
    problems = report(measurements)
    status = measurements.finish()
    for problem in problems:
        print(f"WRONG: {problem}")
    return 1 if problems else status


if __name__ == "__main__":
    raise SystemExit(main())
