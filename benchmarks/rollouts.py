"""Speed of sampling for reinforcement learning: tdpo's sampler against transformers' own `generate`.

    python benchmarks/rollouts.py                                   # SmolLM2-135M, 32 prompts x 2 and 64 x 1
    python benchmarks/rollouts.py --dtype float32 --batches 16x4 --new-tokens 128
    python benchmarks/rollouts.py --batches 128x8 --rows 64         # as `tdpo pairs` does at its defaults
    python benchmarks/rollouts.py --quick --model some/small/model  # does it run?

All sample from the full distribution (temperature 1, no top-k, no top-p) for the first prompts of the sentiment
environment, prompts times samples in one batch or in batches of --rows, until the end token or --new-tokens. `generate`
runs the base model without an adapter, on prompts padded on the left. tdpo has a LoRA of rank 16 on every linear layer
but the head, with weights so small that responses are as long as the base model's. The adapter is folded into the
weights during the rollout (folding and restoring are part of the time), or left beside them. `tdpo pairs` has none; it
scores (by a trivial reward) and writes a file besides, once a process, and what it records is part of its time.

Read the table: `tokens/s` is the median over all rollouts of new tokens per second, from texts in to texts out. Only
the tokens of a response up to and including its end token count, and not the padding behind it. `/ generate` above 1
means faster than `generate`. `tokens/row` is the mean length, which should be about the same for all. MiB is the
highest resident memory, with --device cuda torch's peak on the GPU, over the state after the model was loaded and had
sampled two tokens. On a GPU steps are recorded as CUDA graphs (`sampling/recorded_steps.py`), and compiled where there
are many (`sampling/compiled_steps.py`): one contestant begins with that, and another does neither. --shape takes random
weights, so that nothing is downloaded, and a tokenizer of bytes: prompts are longer then, and nearly every response has
all --new-tokens.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
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

KEYS = ("tokens_per_second", "seconds", "tokens", "mebibytes")
QUICK = {"rounds": 1, "rollouts": 1, "batches": ["3x2"], "new_tokens": 4, "dtype": ["float32"]}
BASELINE = "generate, base model"
ADAPTER_SIZE = 1e-3  # of the entries of B

Rows = list[list[int]]  # the new tokens of every sequence


@dataclass(frozen=True)
class Task:
    """The input of a contestant for one rollout."""

    model: Any
    tokenizer: Any
    prompts: Sequence[Any]
    samples: int
    new_tokens: int
    seed: int = 0
    rows: int | None = None  # computed at once, of whole prompts; None is all

    @property
    def batch_size(self) -> int:
        return self.rows or self.samples * len(self.prompts)


# ---- the contestants ----


def run_generate(task: Task) -> Rows:
    """Sample with `model.generate` as its documentation does for a batch. Rows are cut behind their end token."""
    import torch

    from tdpo.sampling.sampler import encode_prompts

    torch.manual_seed(task.seed)
    encoded = encode_prompts(task.tokenizer, task.prompts)
    size = task.batch_size // task.samples
    return [row for start in range(0, len(encoded), size) for row in generated(task, encoded[start : start + size])]


def generated(task: Task, encoded: list[list[int]]) -> Rows:
    from tdpo.sampling.sampler import stop_token_ids

    stop = stop_token_ids(task.model, task.tokenizer)
    padded = task.tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
    inputs = padded.to(task.model.device)
    output = task.model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=True, temperature=1.0,
        top_k=0, top_p=1.0, max_new_tokens=task.new_tokens, num_return_sequences=task.samples,
        eos_token_id=sorted(stop) or None, pad_token_id=task.tokenizer.pad_token_id,
    )  # fmt: skip
    rows = [up_to_end(row, stop) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
    task.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return rows


def up_to_end(row: list[int], stop: frozenset[int]) -> list[int]:
    length = next((place + 1 for place, token in enumerate(row) if token in stop), len(row))
    return row[:length]


def run_tdpo(task: Task) -> Rows:
    from tdpo.sampling.sampler import SamplingSettings, sample

    settings = SamplingSettings(task.samples, task.new_tokens, seed=task.seed, batch_size=task.batch_size)
    return [completion.token_ids for completion in sample(task.model, task.tokenizer, task.prompts, settings)]


def run_tdpo_merged(task: Task) -> Rows:
    from tdpo.models import merged_adapter

    with merged_adapter(task.model) as merged:
        assert merged, "the adapter was left as it is"
        return run_tdpo(task)


def run_tdpo_compiled(task: Task) -> Rows:
    """As merged, in a process that has sampled so much that steps are compiled."""
    from tdpo.sampling import compiled_steps

    compiled_steps.AFTER_STEPS = dict.fromkeys(compiled_steps.AFTER_STEPS, 0)
    return run_tdpo_merged(task)


def run_tdpo_plain(task: Task) -> Rows:
    """As merged, with steps as the model takes them: what a graph saves, and from how many steps on."""
    from tdpo.sampling import recorded_steps

    recorded_steps.FROM_STEPS = sys.maxsize
    return run_tdpo_merged(task)


def run_pairs(task: Task) -> Rows:
    """As `tdpo pairs` does it once the model is loaded, from the prompts to the file."""
    from tdpo.environments import Environment, Prompt
    from tdpo.sampling.engines import BuiltIn
    from tdpo.sampling.pair_sampling import PairSettings, sample_pairs
    from tdpo.sampling.sampler import SamplingSettings

    rows: Rows = []

    class Recorded(BuiltIn):
        def __call__(self, *args: Any, **options: Any) -> list[Any]:
            responses = super().__call__(*args, **options)
            rows.extend(response.token_ids for response in responses)
            return responses

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text))) for text in completions]

    prompts = [Prompt(str(number), prompt) for number, prompt in enumerate(task.prompts)]
    environment = Environment("benchmark", prompts, [], reward, "distinct characters", task.new_tokens, "")
    settings = SamplingSettings(task.samples, task.new_tokens, seed=task.seed, batch_size=task.batch_size)
    # Random weights mostly give texts without a character, of which no pair can be made; every row is sampled by then.
    with TemporaryDirectory() as folder, suppress(ValueError):
        out = Path(folder) / "pairs.jsonl"
        sample_pairs(task.model, task.tokenizer, environment, out, PairSettings(settings, 1), sampler=Recorded())
    assert len(rows) == task.samples * len(task.prompts)
    return rows


@dataclass(frozen=True)
class Contestant:
    run: Callable[[Task], Rows]
    adapter: bool
    on_card: bool = False  # takes part on a GPU alone
    is_command: bool = False  # a process of its own: nothing is warm but imports


CONTESTANTS = {
    BASELINE: Contestant(run_generate, adapter=False),
    "tdpo, adapter merged": Contestant(run_tdpo_merged, adapter=True),
    "tdpo, adapter merged, compiled": Contestant(run_tdpo_compiled, adapter=True, on_card=True),
    "tdpo, adapter merged, plain steps": Contestant(run_tdpo_plain, adapter=True, on_card=True),
    "tdpo, adapter beside": Contestant(run_tdpo, adapter=True),
    "tdpo pairs": Contestant(run_pairs, adapter=False, is_command=True),
}


# ---- measuring ----


def measure(name: str, case: Case, arguments: Any, round_: int) -> Run:
    contestant = CONTESTANTS[name]
    task = make_task(arguments, case, contestant.adapter)
    contestant.run(replace(task, new_tokens=min(2, task.new_tokens)))  # imports, first allocations
    if contestant.on_card:
        contestant.run(task)  # what is compiled once is nobody's rollout
    memory = memory_of(arguments.device)
    seconds, lengths = [], []
    for rollout in range(1 if contestant.is_command else arguments.rollouts):
        seed = round_ * arguments.rollouts + rollout
        started = time.perf_counter()
        rows = contestant.run(replace(task, seed=seed))
        seconds.append(time.perf_counter() - started)
        lengths.append([len(row) for row in rows])
    tokens = [sum(of_rollout) for of_rollout in lengths]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": [n / s for n, s in zip(tokens, seconds, strict=True)],
        "lengths": lengths,
        "mebibytes": memory.read(),
    }


def memory_of(device: str) -> Any:
    if device == "cpu":
        return PeakMemory()
    from _card import CardMemory

    return CardMemory()


def make_task(arguments: Any, case: Case, adapter: bool) -> Task:
    from tdpo.environments._built_in import packaged_prompts

    model, tokenizer = load(arguments, case["dtype"])
    prompts = [prompt.prompt for prompt in packaged_prompts("sentiment")[0][: case["prompts"]]]
    return Task(
        with_adapter(model) if adapter else model,
        tokenizer,
        prompts,
        case["samples"],
        case["new tokens"],
        rows=arguments.rows,
    )


def load(arguments: Any, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer."""
    if arguments.shape:
        from _card import byte_tokenizer, random_model

        return random_model(arguments.shape, dtype, arguments.device).eval(), byte_tokenizer()
    from tdpo.models import load_causal_lm, load_tokenizer

    return load_causal_lm(arguments.model, dtype=dtype, device=arguments.device), load_tokenizer(arguments.model)


def with_adapter(model: Any) -> Any:
    """Add a LoRA to `model` with weights as after an early update: small, but nowhere zero."""
    import torch

    from tdpo.models import LoraSettings, add_lora

    torch.manual_seed(0)
    model = add_lora(model, LoraSettings(rank=16)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=ADAPTER_SIZE)
    return model


def jobs(arguments: Any) -> list[Job]:
    cases = [
        {"prompts": prompts, "samples": samples, "new tokens": arguments.new_tokens, "dtype": dtype}
        for dtype, (prompts, samples) in product(arguments.dtype, map(parse_batch, arguments.batches))
    ]
    return [job(name, case, arguments.rollouts) for case in cases for name in arguments.contestants]


def parse_batch(text: str) -> tuple[int, int]:
    prompts, _, samples = text.partition("x")
    return int(prompts), int(samples)


def job(name: str, case: Case, rollouts: int) -> Job:
    slow = 1 if case["dtype"] == "float32" or has_bfloat16_units() else 10
    tokens = case["prompts"] * case["samples"] * (case["new tokens"] + 20)
    skipped = "a pair needs two responses" if CONTESTANTS[name].is_command and case["samples"] < 2 else None
    return Job(name, case, guess=10 + rollouts * slow * tokens * 3e-3, skipped=skipped)


# ---- reporting ----


def report(measurements: Measurements) -> list[str]:
    """Print the tables, and return what is wrong with the measurements, if anything."""
    note_bfloat16(measurements)
    problems = []
    for case in measurements.cases():
        entries = [entry for entry in measurements.of_case(case) if entry.runs]
        title = ", ".join(f"{key} {value}" for key, value in case.items())
        header = ["", "tokens/s", "/ generate", "from", "to", "s/rollout", "tokens/row", "MiB"]
        if entries:
            print_table(title, header, [row(entry, measurements.find(BASELINE, case)) for entry in entries])
        problems += [problem for entry in entries for problem in check_lengths(entry)]
    measurements.derived["problems"] = problems
    return problems


def row(entry: Entry, baseline: Entry | None) -> list[str]:
    speeds = entry.pooled("tokens_per_second")
    rows = entry.job.case["prompts"] * entry.job.case["samples"]
    return [
        entry.job.contestant,
        number(entry.median("tokens_per_second")),
        ratio(entry, baseline, "tokens_per_second"),
        number(min(speeds)),
        number(max(speeds)),
        number(entry.median("seconds"), 2),
        number(statistics.mean(entry.pooled("tokens")) / rows, 1),
        number(entry.median("mebibytes")),
    ]


def check_lengths(entry: Entry) -> list[str]:
    """Check that every rollout returned all its sequences, none of them empty and none longer than allowed."""
    case = entry.job.case
    return [
        f"{entry.job} gave {len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens"
        for run in entry.runs
        for lengths in run["lengths"]
        if len(lengths) != case["prompts"] * case["samples"]
        or not 1 <= min(lengths) <= max(lengths) <= case["new tokens"]
    ]


def main() -> int:
    from _card import BODIES

    parser = make_parser(__doc__, "rollouts", 2, QUICK)
    parser.add_argument("--model", default="smollm2-135m", help="bundled name or folder (default smollm2-135m)")
    parser.add_argument(
        "--batches", nargs="+", default=["32x2", "64x1"], metavar="PROMPTSxSAMPLES", help="(default 32x2 64x1)"
    )
    parser.add_argument("--rows", type=int, default=None, help="sequences computed at once (default all of a batch)")
    parser.add_argument("--new-tokens", type=int, default=32, help="at most, of each sequence (default 32)")
    parser.add_argument("--rollouts", type=int, default=1, help="timed rollouts in each process (default 1)")
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16"], default=default_dtypes(),
        help="of the weights (default both, but float32 alone where the CPU has no bfloat16 units)",
    )  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it runs (default cpu)")
    parser.add_argument(
        "--shape", choices=BODIES, default=None, help="random weights of a known shape, in place of --model's"
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=None, help="(default all that fit)")
    arguments = parse(parser, "rollouts", {"quick": QUICK})
    if arguments.rows and any(arguments.rows < samples for _, samples in map(parse_batch, arguments.batches)):
        parser.error(f"--rows {arguments.rows} must hold all samples of a prompt")
    on_card = arguments.device == "cuda"
    fitting = [name for name, contestant in CONTESTANTS.items() if on_card or not contestant.on_card]
    arguments.contestants = arguments.contestants or fitting
    if child := arguments.child:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        answer(lambda: measure(child["contestant"], child["case"], arguments, child["round"]))
        return 0
    measurements = Measurements(__file__, jobs(arguments), arguments, KEYS)
    measurements.run(arguments.rounds)
    problems = report(measurements)
    status = measurements.finish()
    for problem in problems:
        print(f"WRONG: {problem}")
    return 1 if problems else status


if __name__ == "__main__":
    raise SystemExit(main())
