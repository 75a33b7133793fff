"""What a GPU session measures, and the limit of every ratio that is to be shown."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """A command of the session, and what it takes in place of its arguments where there is no card."""

    name: str
    script: str
    arguments: str
    dry: str
    is_short: bool = False  # in any case

    def output(self, folder: Path, dry: bool) -> Path:
        return folder / f"gpu-{self.name}{'-dry' if dry else ''}.json"

    def command(self, folder: Path, dry: bool, short: bool = False) -> list[str]:
        """With `short` two rounds of what the limits need; of options that come twice, the later one counts."""
        given = self.dry if dry else f"--device cuda {self.arguments}"
        if short and not self.is_short:
            given += f" --rounds {SHORT_ROUNDS} {contestants(*needed(self.name))}"
        return [sys.executable, str(HERE / self.script), *split(given), "--output", str(self.output(folder, dry))]


SHORT_ROUNDS = 2  # the fewest in which contestants take turns


def needed(part: str) -> list[str]:
    """The contestants of a part that a limit is about."""
    return list(dict.fromkeys(name for limit in LIMITS if limit.part == part for name in (limit.of, *limit.over)))


def split(text: str) -> list[str]:
    """Arguments of a command line; names of contestants stand between bars."""
    words: list[str] = []
    for i, stretch in enumerate(text.split("|")):
        words += [stretch] if i % 2 else stretch.split()
    return words


# Each at its own defaults; as GPU users of TRL have it at best without further settings; both alike.
OURS, TRL = "tdpo TDPO2, LoRA, defaults", "TRL DPO, LoRA, defaults"
TRL_PRECOMPUTED = "TRL DPO, LoRA, defaults, precomputed"
BF16 = ("tdpo TDPO2, LoRA, bf16", "TRL DPO, LoRA, bf16")
LAYOUTS = ("tdpo TDPO2, LoRA, bf16, prompts shared", "tdpo TDPO2, LoRA, bf16, rows padded")  # no limit is about them
CHECKPOINTING = "tdpo TDPO2, LoRA, bf16, checkpointing"
LIGER = ("tdpo TDPO2, LoRA, Liger", "TRL DPO, LoRA, Liger")
LIGHT = ("tdpo TDPO2, LoRA, adapters as base, Liger", "TRL DPO, LoRA, adapters as base, Liger")
COMPILED, LIGHT_COMPILED = "tdpo TDPO2, LoRA, compiled", "tdpo TDPO2, LoRA, adapters as base, compiled"
FULL = ("tdpo TDPO2, full, defaults", "TRL DPO, full, reference model, defaults")
FULL_BF16 = ("tdpo TDPO2, full, bf16", "TRL DPO, full, reference model, bf16")
STEP = "--shape qwen3-1.7b --dtype bfloat16 --rounds 3 --steps 5"
TINY = "--shape tiny --dtype bfloat16 --rounds 1 --steps 1 --pairs 2 --prompt-tokens 16 --response-tokens 8"
HEAD = "--rounds 3 --iterations 5"


def contestants(*names: str) -> str:
    return "--contestants " + " ".join(f"|{name}|" for name in names)


TWO = contestants("tdpo pairs", "generate, base model")
PAIRS = f"--shape smollm2-135m --dtype bfloat16 --batches 128x8 --rows 64 --rounds 3 {TWO}"
DEFAULTS = contestants(OURS, TRL, TRL_PRECOMPUTED, *BF16, *LAYOUTS, CHECKPOINTING, "naive TDPO2, LoRA")
PARTS = [
    Part("head-4096", "head.py", f"--shape qwen3-1.7b --tokens 4096 {HEAD}", "--quick"),
    Part("step", "step.py", f"{STEP} --prompt-tokens 512 --response-tokens 512 {DEFAULTS}", f"{TINY} {DEFAULTS}"),
    Part(
        "step-liger", "step.py",
        f"{STEP} --prompt-tokens 512 --response-tokens 512 "
        f"{contestants(*LIGER, *LIGHT, COMPILED, LIGHT_COMPILED)}",
        f"{TINY} {contestants(*BF16)}",  # Liger and compilers are for a GPU
    ),
    Part("head-8192", "head.py", f"--shape llama-3-8b --tokens 8192 {HEAD}", "--quick"),
    Part(
        "rollouts", "rollouts.py",
        "--shape smollm2-135m --dtype bfloat16 --batches 128x8 --new-tokens 128 --rollouts 3 --rounds 2",
        "--quick --shape tiny",
    ),
    # The command at its defaults, and with longer responses: steps of both are recorded, and those of neither compiled.
    Part("pairs", "rollouts.py", f"{PAIRS} --new-tokens 32", f"--quick --shape tiny {TWO}"),
    Part("pairs-long", "rollouts.py", f"{PAIRS} --new-tokens 256", f"--quick --shape tiny {TWO}"),
    Part(
        "step-long-prompts", "step.py",
        f"{STEP} --prompt-tokens 1536 --response-tokens 256 {contestants(OURS, TRL, *BF16)}",
        f"{TINY} {contestants(OURS, TRL, *BF16)}",
    ),
    Part(
        "step-full", "step.py",
        "--shape qwen3-0.6b --dtype bfloat16 --rounds 3 --steps 5 --prompt-tokens 512 --response-tokens 512 "
        f"{contestants(*FULL, *FULL_BF16)}",
        f"{TINY} {contestants(*FULL, *FULL_BF16)}",
    ),
    Part(
        "precision", "precision.py", "--model none --vocabulary 49152 --dtype bfloat16 --rounds 2",
        "--quick --dtype bfloat16", is_short=True,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """A ratio of two contestants' medians that is to be at most so much, or a median alone where `over` is empty.

    `key` is of a median, or of what a benchmark derives for a contestant. Of several in `over` that counts which has
    the least median, and all must have been measured.
    """

    what: str
    part: str
    of: str
    over: tuple[str, ...]
    key: str
    limit: float
    head: str | None = None
    at_least: bool = False  # the ratio is to be at least so much


def alike(what: str, part: str, pair: tuple[str, str], seconds: float) -> list[Limit]:
    """Time and memory of a step against TRL's in the same configuration."""
    of, over = pair[0], pair[1:]
    return [
        Limit(what, part, of, over, "seconds", seconds),
        Limit(f"{what}, memory", part, of, over, "mebibytes", 0.8),
    ]


FROZEN = "frozen head with summary"
PRODUCTS, COMPILED_LINES = ("two bare products",), ("torch.compile naive TDPO",)
SAME_KERNELS = ("frozen DPO, same kernels",)
LIMITS = [
    Limit("head frozen, N 4096 / its two bare products", "head-4096", FROZEN, PRODUCTS, "milliseconds", 1.5, "frozen"),
    Limit("the same, MiB", "head-4096", FROZEN, (), "mebibytes", 450, "frozen"),
    Limit("head frozen, N 8192 / its two bare products", "head-8192", FROZEN, PRODUCTS, "milliseconds", 1.2, "frozen"),
    Limit("the same, MiB", "head-8192", FROZEN, (), "mebibytes", 900, "frozen"),
    Limit("head trained / compiled lines", "head-4096", "tiled", COMPILED_LINES, "milliseconds", 1.15, "trained"),
    # Over a state that holds the last step's gradients, as the limit was set: the head's own, 594 MiB here, would be
    # more than half of what is divided.
    Limit("the same, memory", "head-4096", "tiled", COMPILED_LINES, "warm_mebibytes", 1 / 8, "trained"),
    Limit("head frozen / plain DPO, same kernels", "head-4096", FROZEN, SAME_KERNELS, "milliseconds", 1.1, "frozen"),
    *alike("LoRA step, each at its defaults / TRL's DPO", "step", (OURS, TRL), 0.7),
    *alike("LoRA step, ours at its defaults / TRL's, reference precomputed", "step", (OURS, TRL_PRECOMPUTED), 0.7),
    *alike("LoRA step, ours at its defaults / TRL's, no checkpointing either", "step", (OURS, BF16[1]), 0.7),
    *alike("LoRA step, alike: autocast, no checkpointing", "step", BF16, 0.7),
    *alike("LoRA step, alike: autocast, checkpointing", "step", (CHECKPOINTING, TRL_PRECOMPUTED), 0.7),
    *alike("LoRA step, alike: Liger", "step-liger", LIGER, 0.75),
    *alike("LoRA step, alike: Liger, adapters in bfloat16", "step-liger", LIGHT, 0.75),
    Limit("LoRA step, ours compiled / TRL's best", "step-liger", COMPILED, (LIGER[1], LIGHT[1]), "seconds", 0.7),
    Limit(
        "the same, ours with adapters in bfloat16", "step-liger", LIGHT_COMPILED, (LIGER[1], LIGHT[1]), "seconds", 0.7
    ),
    *alike("prompts of 1536, responses of 256, each at its defaults", "step-long-prompts", (OURS, TRL), 0.45),
    *alike("prompts of 1536, responses of 256, alike", "step-long-prompts", BF16, 0.45),
    *alike("all weights, 0.6B shape, each at its defaults", "step-full", FULL, 0.7),
    *alike("all weights, 0.6B shape, alike", "step-full", FULL_BF16, 0.7),
    Limit(
        "sampling / transformers' generate", "rollouts", "tdpo, adapter merged, compiled", ("generate, base model",),
        "tokens_per_second", 2.5, at_least=True,
    ),
    *(
        Limit(
            f"tdpo pairs, {tokens} tokens / transformers' generate", part, "tdpo pairs", ("generate, base model",),
            "tokens_per_second", 2.5, at_least=True,
        )
        for part, tokens in (("pairs", 32), ("pairs-long", 256))
    ),
    *(
        Limit(f"error of the KL, {path} / published lines", "precision", path, (), "published lines", 1 / 50)
        for path in ("tiled", FROZEN)
    ),
]  # fmt: skip
# What the table asks for and no part measures; it is said with the table.
ELSEWHERE = [
    "waits for the device in one update: the part waits passes where there are at most two, by CUDA's own reports",
]


def value_of(result: dict[str, Any], contestant: str, key: str, head: str | None) -> float | None:
    """The median of a contestant in a result file, or what was derived; None where it was not measured."""
    if key in result.get("derived", ()):
        derived = result["derived"][key].get(contestant)
        return None if derived is None else float(derived)
    for entry in result.get("entries", ()):
        if entry["contestant"] == contestant and head in (None, entry["case"].get("head")):
            summary = entry["summary"].get(key)
            return None if summary is None else float(summary["median"])
    return None


def judged(limit: Limit, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A line of the table; `value` is None where something was not measured."""
    result = results.get(limit.part, {})
    value = value_of(result, limit.of, limit.key, limit.head)
    if limit.over:
        others = [value_of(result, name, limit.key, limit.head) for name in limit.over]
        value = None if value is None or not all(others) else value / min(other for other in others if other)
    met = None if value is None else value >= limit.limit if limit.at_least else value <= limit.limit
    return {"what": limit.what, "part": limit.part, "value": value, "limit": limit.limit, "met": met}


def shown(value: float) -> str:
    """A measured value of the table; a ratio of errors may be far below a hundredth."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"
