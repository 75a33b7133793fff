"""Everything that is to be shown on one GPU, in one go: the kernels' tests, every table with its limits, all tests.

    python benchmarks/gpu_session.py                  # on a machine with one card: an hour or two
    python benchmarks/gpu_session.py --minutes 9 --only kernels head --folder out   # a part of it, in so much time
    python benchmarks/gpu_session.py --judge --folder out   # the table of what is in the folder; runs nothing
    python benchmarks/gpu_session.py --dry-run        # without a card: tiny shapes on the CPU; shows that it runs

What matters most comes first. Each part is a command of its own and writes its own file into --folder (names begin with
gpu-) after every single run, with card, driver and versions. Rounds alternate over the contestants, so ratios are of
one card in one hour. A part that fails, or that the time ends, is named; what it has measured counts. After every part
the table of limits is printed and written to gpu-session.json: a ratio whose parts were not all measured is "not
measured", never a number.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _harness import RESULTS, hardware, number, print_table, versions

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Part:
    """A command of the session, and what it takes in place of its arguments where there is no card."""

    name: str
    script: str
    arguments: str
    dry: str

    def output(self, folder: Path, dry: bool) -> Path:
        return folder / f"gpu-{self.name}{'-dry' if dry else ''}.json"

    def command(self, folder: Path, dry: bool) -> list[str]:
        given = self.dry if dry else f"--device cuda {self.arguments}"
        return [sys.executable, str(HERE / self.script), *split(given), "--output", str(self.output(folder, dry))]


# The tests of the kernels alone; whether the rest means anything depends on them.
KERNEL_TESTS = map(str, sorted((ROOT / "tests/token_statistics").glob("test_cuda_*.py")))
TESTS = {
    "kernels": [sys.executable, "-m", "pytest", *KERNEL_TESTS],
    # In the environment that runs this, and not in one that make would have to install.
    "tests": ["make", "test-gpu", "-o", "install", f"BIN={Path(sys.executable).parent}"],
}


def split(text: str) -> list[str]:
    """Arguments of a command line; names of contestants stand between bars."""
    words: list[str] = []
    for i, stretch in enumerate(text.split("|")):
        words += [stretch] if i % 2 else stretch.split()
    return words


OURS, TRL = "tdpo TDPO2, LoRA, bf16", "TRL DPO, LoRA, bf16, checkpointing"
LIGER = ("tdpo TDPO2, LoRA, Liger", "TRL DPO, LoRA, Liger")
COMPILED = "tdpo TDPO2, LoRA, compiled"
FULL = ("tdpo TDPO2, full", "TRL DPO, full, reference model")
STEP = "--shape qwen3-1.7b --dtype bfloat16 --rounds 3 --steps 5 --contestants"
TINY = (
    "--shape tiny --dtype float32 --rounds 1 --steps 1 --pairs 2 --prompt-tokens 16 --response-tokens 8 --contestants"
)
ON_CPU = "|tdpo TDPO2, LoRA| |TRL DPO, LoRA|"
PAIRS = (
    "--shape smollm2-135m --dtype bfloat16 --batches 128x8 --rows 64 --rounds 3 "
    "--contestants |tdpo pairs| |generate, base model|"
)
HEAD = "--rounds 3 --iterations 5"
PARTS = [
    Part("head-4096", "head.py", f"--shape qwen3-1.7b --tokens 4096 {HEAD}", "--quick"),
    Part(
        "step", "step.py",
        f"{STEP} |{OURS}| |{TRL}| |{LIGER[0]}| |{LIGER[1]}| |{COMPILED}| |TRL DPO, LoRA, bf16| |naive TDPO2, LoRA| "
        "--prompt-tokens 512 --response-tokens 512",
        f"{TINY} {ON_CPU}",
    ),
    Part("head-8192", "head.py", f"--shape llama-3-8b --tokens 8192 {HEAD}", "--quick"),
    Part(
        "rollouts", "rollouts.py",
        "--shape smollm2-135m --dtype bfloat16 --batches 128x8 --new-tokens 128 --rollouts 3 --rounds 2",
        "--quick --shape tiny",
    ),
    # The command at its defaults, and with responses so long that compiling pays.
    Part("pairs", "rollouts.py", f"{PAIRS} --new-tokens 32", "--quick --shape tiny"),
    Part("pairs-long", "rollouts.py", f"{PAIRS} --new-tokens 256", "--quick --shape tiny"),
    Part(
        "step-long-prompts", "step.py", f"{STEP} |{OURS}| |{TRL}| --prompt-tokens 1536 --response-tokens 256",
        f"{TINY} {ON_CPU}",
    ),
    Part(
        "step-full", "step.py",
        f"--shape qwen3-0.6b --dtype bfloat16 --rounds 3 --steps 5 --contestants |{FULL[0]}| |{FULL[1]}| "
        "--prompt-tokens 512 --response-tokens 512",
        f"{TINY} |{FULL[0]}| |{FULL[1]}|",
    ),
]  # fmt: skip
# Whether kernels are right comes before how fast they are; all other tests take longest.
ORDER = ["kernels", *(part.name for part in PARTS), "tests"]


@dataclass(frozen=True)
class Limit:
    """A ratio of two contestants' medians that is to be at most so much, or a median alone where `over` is None."""

    what: str
    part: str
    of: str
    over: str | None
    key: str
    limit: float
    head: str | None = None
    at_least: bool = False  # the ratio is to be at least so much


FROZEN = "frozen head with summary"
PRODUCTS, COMPILED_LINES, SAME_KERNELS = "two bare products", "torch.compile naive TDPO", "frozen DPO, same kernels"
LIMITS = [
    Limit("head frozen, N 4096 / its two bare products", "head-4096", FROZEN, PRODUCTS, "milliseconds", 1.5, "frozen"),
    Limit("the same, MiB", "head-4096", FROZEN, None, "mebibytes", 450, "frozen"),
    Limit("head frozen, N 8192 / its two bare products", "head-8192", FROZEN, PRODUCTS, "milliseconds", 1.2, "frozen"),
    Limit("the same, MiB", "head-8192", FROZEN, None, "mebibytes", 900, "frozen"),
    Limit("head trained / compiled lines", "head-4096", "tiled", COMPILED_LINES, "milliseconds", 1.15, "trained"),
    Limit("the same, memory", "head-4096", "tiled", COMPILED_LINES, "mebibytes", 1 / 8, "trained"),
    Limit("head frozen / plain DPO, same kernels", "head-4096", FROZEN, SAME_KERNELS, "milliseconds", 1.1, "frozen"),
    Limit("LoRA step, defaults / TRL's DPO", "step", OURS, TRL, "seconds", 0.7),
    Limit("LoRA step, both with Liger", "step", *LIGER, "seconds", 0.75),
    Limit("LoRA step, compiled / TRL's best", "step", COMPILED, LIGER[1], "seconds", 0.7),
    Limit("prompts of 1536, responses of 256, defaults", "step-long-prompts", OURS, TRL, "seconds", 0.45),
    Limit("all weights, 0.6B shape / TRL's DPO", "step-full", *FULL, "seconds", 0.7),
    Limit("memory, LoRA step, defaults", "step", OURS, TRL, "mebibytes", 0.8),
    Limit("memory, LoRA step, both with Liger", "step", *LIGER, "mebibytes", 0.8),
    Limit("memory, all weights", "step-full", *FULL, "mebibytes", 0.8),
    Limit(
        "sampling / transformers' generate", "rollouts", "tdpo, adapter merged, compiled", "generate, base model",
        "tokens_per_second", 2.5, at_least=True,
    ),
    *(
        Limit(
            f"tdpo pairs, {tokens} tokens / transformers' generate", part, "tdpo pairs", "generate, base model",
            "tokens_per_second", 2.5, at_least=True,
        )
        for part, tokens in (("pairs", 32), ("pairs-long", 256))
    ),
]  # fmt: skip
# What the table asks for and no part measures; it is said with the table.
ELSEWHERE = [
    "waits for the device in one update: tests/training/test_device_waits.py, by CUDA's own reports (make test-gpu)",
    "error of the KL against float64 on the card: benchmarks/precision.py --device cuda",
]


def median_of(result: dict[str, Any], contestant: str, key: str, head: str | None) -> float | None:
    """The median of a contestant in a result file; None where it was not measured."""
    for entry in result.get("entries", ()):
        if entry["contestant"] == contestant and head in (None, entry["case"].get("head")):
            summary = entry["summary"].get(key)
            return None if summary is None else float(summary["median"])
    return None


def judged(limit: Limit, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A line of the table; `value` is None where something was not measured."""
    result = results.get(limit.part, {})
    value = median_of(result, limit.of, limit.key, limit.head)
    if limit.over is not None:
        over = median_of(result, limit.over, limit.key, limit.head)
        value = value / over if value is not None and over else None
    met = None if value is None else value >= limit.limit if limit.at_least else value <= limit.limit
    return {"what": limit.what, "part": limit.part, "value": value, "limit": limit.limit, "met": met}


def run(command: Sequence[str], seconds_left: float | None) -> str:
    """Run a part, with what it prints on this terminal; returns "done", "failed", or "ended by the time"."""
    try:
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=heed_ctrl_c)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error}", file=sys.stderr)
        return "failed"
    try:
        return "failed" if process.wait(seconds_left) else "done"
    except subprocess.TimeoutExpired:
        return "ended by the time"
    finally:
        stop(process)


def heed_ctrl_c() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C, and its children would be so too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """End a part that still runs as Ctrl-C does, upon which it writes and says what it has so far."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def results_in(folder: Path, dry: bool, since: float | None) -> dict[str, dict[str, Any]]:
    """The result files of the parts; with `since`, only those that were written after it."""
    files = {part.name: part.output(folder, dry) for part in PARTS}
    return {
        name: json.loads(file.read_text("utf-8"))
        for name, file in files.items()
        if file.exists() and (since is None or file.stat().st_mtime >= since)
    }


def report(folder: Path, dry: bool, ends: dict[str, str], seconds: dict[str, float], since: float | None) -> None:
    """Print the table of limits, and write it with how the parts ended."""
    lines = [judged(limit, results_in(folder, dry, since)) for limit in LIMITS]
    rows = [
        [line["what"], "not measured" if line["value"] is None else number(line["value"], 2), number(line["limit"], 2),
         {True: "met", False: "MISSED", None: ""}[line["met"]]]
        for line in lines
    ]  # fmt: skip
    title = "A dry run on a CPU: these numbers say nothing" if dry else f"On {hardware().get('card', 'no card')}"
    print_table(title, ["", "measured", "limit", ""], rows)
    body = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "dry run": dry, "versions": versions(),
        "hardware": hardware(), "ends": ends, "seconds": seconds, "limits": lines, "elsewhere": ELSEWHERE,
    }  # fmt: skip
    output = folder / f"gpu-session{'-dry' if dry else ''}.json"
    output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; the table then says nothing")
    parser.add_argument("--only", nargs="+", default=None, metavar="PART", help=f"beginnings of {', '.join(ORDER)}")
    parser.add_argument("--minutes", type=float, default=None, help="for all parts together (default: no limit)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results (default benchmarks/results)")
    parser.add_argument("--judge", action="store_true", help="run nothing: the table of the results in the folder")
    arguments = parser.parse_args()
    dry, folder = arguments.dry_run, arguments.folder.absolute()
    chosen = [name for name in ORDER if arguments.only is None or name.startswith(tuple(arguments.only))]
    if idle := [text for text in arguments.only or () if not any(name.startswith(text) for name in ORDER)]:
        parser.error(f"--only {' '.join(idle)}: the parts are {', '.join(ORDER)}")
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.judge:
        report(folder, dry, {}, {}, None)
        return 0
    if not dry and "card" not in hardware():
        parser.error("torch finds no GPU here; --dry-run shows on a CPU that the parts run")
    return measure([name for name in chosen if not (dry and name in TESTS)], folder, dry, arguments.minutes)


def measure(chosen: Sequence[str], folder: Path, dry: bool, minutes: float | None) -> int:
    """Run the parts one after the other; returns the exit status."""
    # This checkout's code, whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began, seconds = time.time(), dict[str, float]()
    ends = dict.fromkeys(chosen, "not begun")
    commands = {**TESTS, **{part.name: part.command(folder, dry) for part in PARTS}}
    for name in chosen:
        left = None if minutes is None else 60 * minutes - (time.time() - began)
        if left is not None and left <= 0:
            break
        print(f"\n=== {name}: {' '.join(commands[name])}", flush=True)
        started = time.perf_counter()
        ends[name] = run(commands[name], left)
        seconds[name] = time.perf_counter() - started
        report(folder, dry, ends, seconds, since=began)
    print("\nNot in this table:", *(f"  {sentence}" for sentence in ELSEWHERE), sep="\n")
    for name, end in ends.items():
        if end != "done":
            print(f"{end.upper()}: {name}", file=sys.stderr)
    return 0 if all(end == "done" for end in ends.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
