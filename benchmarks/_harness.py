"""The common parts of the benchmarks: alternating rounds in separate processes, peak memory, spread, result files.

A benchmark is a script that lists jobs (a contestant on a case) and measures one of them. The parent process starts the
script anew for every job of every round. So no contestant inherits the caches or the heap of another, and a slow minute
of the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "tdpo", "torch", "transformers", "trl", "peft", "accelerate", "triton", "liger-kernel", "cut-cross-entropy",
)  # fmt: skip
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "bf16", "sve")
# What would give one contestant's allocation pattern an advantage is taken out of every process alike.
ALLOCATOR_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
MIB = 2**20
NO_BFLOAT16_UNITS = (
    "This CPU has no bfloat16 units. PyTorch's own bfloat16 products are then many times slower than its float32 ones, "
    "and tdpo, which widens tiles to float32, escapes that: in bfloat16 the ratios below say as much about PyTorch's "
    "fallback as about the contestants. Compare them in float32."
)

Case = dict[str, Any]
Run = dict[str, Any]


class Unavailable(Exception):
    """A contestant cannot run on this machine, for the reason in the message. This is a result, not a failure."""


# ---- in the measured process ----


class PeakMemory:
    """Peak resident memory of this process in MiB over its state when this object was made.

    Linux resets the peak on request, so each stretch of work has its own. Elsewhere the peak only ever rises, and
    what an earlier stretch needed counts for the later ones as well.
    """

    def __init__(self) -> None:
        gc.collect()
        self.resettable = _reset_peak()
        self.before = _status("VmRSS") if self.resettable else _highest()

    def reset(self) -> None:
        if self.resettable:
            _reset_peak()

    def read(self) -> float:
        return ((_status("VmHWM") if self.resettable else _highest()) - self.before) / MIB


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def _highest() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- in the parent ----


@dataclass(frozen=True)
class Job:
    """One contestant on one case. `guess` is a rough duration of a run in seconds, to estimate the time left."""

    contestant: str
    case: Case
    guess: float = 1.0
    skipped: str | None = None

    def __str__(self) -> str:
        return f"{self.contestant} ({', '.join(f'{k} {v}' for k, v in self.case.items())})"


@dataclass
class Entry:
    """All runs of one job."""

    job: Job
    runs: list[Run] = field(default_factory=list)
    skipped: str | None = None
    failed: str | None = None

    def pooled(self, key: str) -> list[float]:
        """Return the values of `key` in all runs. A run may hold one value or a list of them."""
        values = [run[key] for run in self.runs if run.get(key) is not None]
        return [float(v) for value in values for v in (value if isinstance(value, list) else [value])]

    def median(self, key: str) -> float | None:
        values = self.pooled(key)
        return statistics.median(values) if values else None

    def as_dict(self, keys: Sequence[str]) -> dict[str, Any]:
        summary = {key: spread(values) for key in keys if (values := self.pooled(key))}
        why = {"skipped": self.skipped, "failed": self.failed}
        return {
            "contestant": self.job.contestant,
            "case": self.job.case,
            **{name: reason for name, reason in why.items() if reason},
            "summary": summary,
            "runs": self.runs,
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "min": min(values), "max": max(values), "quartile_1": low, "quartile_3": high}


class Measurements:
    """Runs jobs in alternating rounds, each in a process of its own, and writes the result file after every run."""

    def __init__(self, script: str, jobs: Iterable[Job], settings: argparse.Namespace, keys: Sequence[str]) -> None:
        self.script = Path(script)
        self.settings = settings
        self.keys = keys
        self.entries = [Entry(job, skipped=job.skipped) for job in jobs]
        self.derived: dict[str, Any] = {}
        self.complete = False
        # Before the first result is written: a tracked result file that changes would make the commit look dirty.
        self._start = {"versions": versions(), "hardware": {**hardware(), "load average before": os.getloadavg()}}

    def run(self, rounds: int) -> None:
        """Run all rounds, or those before Ctrl-C."""
        progress = Progress(rounds, self._takes_part)
        try:
            for round_ in range(rounds):
                for entry in self._takes_part():
                    progress.announce(round_, entry.job)
                    started = time.perf_counter()
                    self._run_once(entry, round_)
                    progress.done(entry.job, time.perf_counter() - started)
                    self.write()
            self.complete = True
        except KeyboardInterrupt:
            print("\ninterrupted: what was measured so far is kept", file=sys.stderr)
        self.write()

    def _takes_part(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.skipped and not entry.failed]

    def _run_once(self, entry: Entry, round_: int) -> None:
        job = json.dumps({"contestant": entry.job.contestant, "case": entry.job.case, "round": round_})
        command = [sys.executable, str(self.script), *sys.argv[1:], "--child", job]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
            entry.failed = said[-1]
            print(f"{entry.job} failed:\n{done.stderr[-4000:]}", file=sys.stderr)
            return
        outcome = json.loads(done.stdout.splitlines()[-1])
        if reason := outcome.get("skipped"):
            entry.skipped = reason
        else:
            entry.runs.append(outcome)

    def find(self, contestant: str, case: Case) -> Entry | None:
        return next((e for e in self.entries if e.job.contestant == contestant and e.job.case == case), None)

    def cases(self) -> list[Case]:
        cases: list[Case] = []
        for entry in self.entries:
            if entry.job.case not in cases:
                cases.append(entry.job.case)
        return cases

    def of_case(self, case: Case) -> list[Entry]:
        return [entry for entry in self.entries if entry.job.case == case]

    def write(self) -> Path:
        body = {"derived": self.derived, "entries": [entry.as_dict(self.keys) for entry in self.entries]}
        return write_result(self.settings, {"complete": self.complete, **self._start, **body})

    def finish(self) -> int:
        """Write the derived numbers too, print the name of the file, and return the exit status."""
        print(f"\nwritten: {self.write()}")
        failed = [entry for entry in self.entries if entry.failed]
        for entry in failed:
            print(f"FAILED: {entry.job}: {entry.failed}", file=sys.stderr)
        return 1 if failed else 0 if self.complete else 130


class Progress:
    """Prints a line for each run on stderr with the time left: the guesses, scaled by the durations so far."""

    def __init__(self, rounds: int, takes_part: Callable[[], list[Entry]]) -> None:
        self.rounds = rounds
        self.takes_part = takes_part
        self.guessed = self.spent = 0.0

    def announce(self, round_: int, job: Job) -> None:
        jobs = [entry.job for entry in self.takes_part()]
        in_this_round = jobs[jobs.index(job) :]
        left = sum(j.guess for j in in_this_round) + (self.rounds - round_ - 1) * sum(j.guess for j in jobs)
        scale = self.spent / self.guessed if self.guessed else 1.0
        print(f"round {round_ + 1} of {self.rounds}, about {_duration(left * scale)} left: {job}", file=sys.stderr)

    def done(self, job: Job, seconds: float) -> None:
        self.guessed += job.guess
        self.spent += seconds


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def child_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ALLOCATOR_SETTINGS)}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


# ---- command line ----


def make_parser(doc: str | None, name: str, rounds: int, quick: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Make a parser with the common options. `--quick` only changes defaults, so other options still apply."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds over all contestants (default {rounds})")
    parser.add_argument(
        "--quick", action="store_true", help=f"a try of seconds, not a measurement: {_as_options(quick)}"
    )
    parser.add_argument(
        "--output", type=Path, default=None, help=f"result file (default benchmarks/results/{name}.json)"
    )
    parser.add_argument("--child", type=json.loads, default=None, help=argparse.SUPPRESS)
    return parser


def _as_options(defaults: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return " ".join(f"--{name.replace('_', '-')} {text(value)}" for name, value in defaults.items())


def parse(parser: argparse.ArgumentParser, name: str, presets: Mapping[str, Mapping[str, Any]]) -> argparse.Namespace:
    """Parse the command line with the defaults of the presets (`--quick`, `--grid`) that it names."""
    arguments = parser.parse_args()
    for preset, defaults in presets.items():
        if getattr(arguments, preset):
            parser.set_defaults(**defaults)
            name = f"{name}-{preset}"
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if getattr(arguments, "device", "cpu") == "cuda" and not card():
        parser.error("--device cuda: torch finds no GPU here")
    arguments.output = arguments.output or RESULTS / f"{name}.json"
    return arguments


def answer(measure: Callable[[], Run]) -> None:
    """Measure in the child process, and print the run as the last line of stdout."""
    try:
        run = measure()
    except Unavailable as reason:
        run = {"skipped": str(reason)}
    print(f"\n{json.dumps(run)}", flush=True)


# ---- results ----


def write_result(settings: argparse.Namespace, body: Mapping[str, Any]) -> Path:
    """Write one result file: the command, the date, and `body` with versions, machine and results."""
    path: Path = settings.output
    options = {name: value for name, value in vars(settings).items() if name not in ("child", "output")}
    result = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(shlex.quote, sys.argv[1:])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": options,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "KMP_", "DNNL_"))},
        **body,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return path


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}, "commit": _commit()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> dict[str, Any]:
    import torch

    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpuinfo().get("model name", platform.processor() or "unknown"),
        "flags": cpu_flags(),
        "logical cpus": os.cpu_count(),
        "usable cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "torch cpu capability": torch.backends.cpu.get_cpu_capability(),
        "memory MiB": round(total_memory() / MIB),
        **card(),
    }


def card() -> dict[str, Any]:
    """The GPU with its driver, where there is one."""
    from _card import card as described

    return described()


def cpu_flags() -> dict[str, bool]:
    """Return those instruction sets of this CPU that matter here. "bf16" and "sve" are ARM's."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {flag: flag in flags for flag in CPU_FLAGS}


def has_bfloat16_units() -> bool:
    flags = cpu_flags()
    return any(flags[name] for name in ("avx512_bf16", "amx_bf16", "bf16"))


def default_dtypes() -> list[str]:
    """Return the dtypes for which this CPU has units."""
    return ["float32", "bfloat16"] if has_bfloat16_units() else ["float32"]


def note_bfloat16(measurements: Measurements) -> None:
    """Note, on the screen and in the result, what bfloat16 times on this machine cannot show."""
    if any(case.get("dtype") == "bfloat16" for case in measurements.cases()) and not has_bfloat16_units():
        measurements.derived["note on bfloat16"] = NO_BFLOAT16_UNITS
        print(f"\n{NO_BFLOAT16_UNITS}")


def _cpuinfo() -> dict[str, str]:
    """Return the entries of the first processor in /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    block = path.read_text().split("\n\n")[0] if path.exists() else ""
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in block.splitlines())}


def total_memory() -> int:
    """Return how many bytes this process may use: those of the machine, or those that its control group allows."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(physical, int(text)) if re.fullmatch(r"\d+", text) else physical


# ---- tables ----


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with the first column aligned to the left and all others to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}")
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def ratio(entry: Entry, baseline: Entry | None, key: str) -> str:
    """Return the entry's median of `key` divided by the baseline's."""
    ours, theirs = entry.median(key), baseline.median(key) if baseline else None
    return number(ours / theirs, 2) if ours is not None and theirs else "–"
