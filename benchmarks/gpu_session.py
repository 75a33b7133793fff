"""Everything that is to be shown on one GPU, in one go: the kernels' tests, every table with its limits, all tests.

    python benchmarks/gpu_session.py                  # on a machine with one card: two or three hours, by a guess
    python benchmarks/gpu_session.py --minutes 9 --only kernels head --folder out   # a part of it, in so much time
    python benchmarks/gpu_session.py --short          # what the table needs, in two rounds: half an hour, by a guess
    python benchmarks/gpu_session.py --judge --folder out   # the table of what is in the folder; runs nothing
    python benchmarks/gpu_session.py --judge --pages  # and puts the table of benchmarks/results into both READMEs
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _gpu_limits import ELSEWHERE, LIMITS, PARTS, judged, shown
from _gpu_pages import cards, fill_pages
from _harness import RESULTS, hardware, print_table, versions

ROOT = Path(__file__).parents[1]


# The tests of the kernels alone; whether the rest means anything depends on them.
KERNEL_TESTS = map(str, sorted((ROOT / "tests/token_statistics").glob("test_cuda_*.py")))
PYTEST = [sys.executable, "-m", "pytest"]
TESTS = {
    "kernels": [*PYTEST, *KERNEL_TESTS],
    "graphs": [*PYTEST, "tests/sampling/test_recorded_steps.py", "tests/sampling/test_compiled_steps.py"],
    "waits": [*PYTEST, "tests/training/test_device_waits.py"],
    # In the environment that runs this, and not in one that make would have to install.
    "tests": ["make", "test-gpu", "-o", "install", f"BIN={Path(sys.executable).parent}"],
}


# Whether kernels and recorded steps are right comes before how fast they are; all other tests take longest.
ORDER = ["kernels", "graphs", *(part.name for part in PARTS), "waits", "tests"]


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
    results = results_in(folder, dry, since)
    lines = [judged(limit, results) for limit in LIMITS]
    rows = [
        [line["what"], "not measured" if line["value"] is None else shown(line["value"]), f"{line['limit']:.3g}",
         "" if dry else {True: "met", False: "MISSED", None: ""}[line["met"]]]
        for line in lines
    ]  # fmt: skip
    on = "; ".join(cards(results)) or "no card: nothing is measured yet"
    title = "A dry run on a CPU: these numbers say nothing" if dry else f"On {on}"
    print_table(title, ["", "measured", "limit", ""], rows)
    body = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "dry run": dry, "versions": versions(),
        "hardware": hardware(), "cards": cards(results), "ends": ends, "seconds": seconds, "limits": lines,
        "elsewhere": ELSEWHERE,
    }  # fmt: skip
    output = folder / f"gpu-session{'-dry' if dry else ''}.json"
    output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; the table then says nothing")
    parser.add_argument(
        "--only", nargs="+", default=None, metavar="PART", help=f"of {', '.join(ORDER)}, or their beginnings"
    )
    parser.add_argument("--minutes", type=float, default=None, help="for all parts together (default: no limit)")
    parser.add_argument(
        "--short", action="store_true", help="two rounds of the contestants that the table needs: where time is short"
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results (default benchmarks/results)")
    parser.add_argument("--judge", action="store_true", help="run nothing: the table of the results in the folder")
    parser.add_argument("--pages", action="store_true", help="with --judge: write the table into both READMEs")
    arguments = parser.parse_args()
    dry, folder = arguments.dry_run, arguments.folder.absolute()
    chosen = [name for name in ORDER if arguments.only is None or any(names(text, name) for text in arguments.only)]
    if idle := [text for text in arguments.only or () if not any(names(text, name) for name in ORDER)]:
        parser.error(f"--only {' '.join(idle)}: the parts are {', '.join(ORDER)}")
    if arguments.pages and (dry or not arguments.judge or folder != RESULTS):
        parser.error("--pages goes with --judge alone: the pages show what lies in benchmarks/results")
    if arguments.short and (dry or arguments.judge):
        parser.error("--short has no effect here: --judge runs nothing, and a --dry-run is tiny in any case")
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.judge:
        report(folder, dry, {}, {}, None)
        if arguments.pages:
            fill_pages(ROOT, results_in(folder, dry, None))
        return 0
    if not dry and "card" not in hardware():
        parser.error("torch finds no GPU here; --dry-run shows on a CPU that the parts run")
    chosen = [name for name in chosen if not (dry and name in TESTS)]
    return measure(chosen, folder, dry, arguments.minutes, arguments.short)


def names(text: str, part: str) -> bool:
    """Whether the user's word means this part: by its name, or as a beginning where no part has that name."""
    return part == text if text in ORDER else part.startswith(text)


def measure(chosen: Sequence[str], folder: Path, dry: bool, minutes: float | None, short: bool = False) -> int:
    """Run the parts one after the other; returns the exit status."""
    # This checkout's code, whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began, seconds = time.time(), dict[str, float]()
    ends = dict.fromkeys(chosen, "not begun")
    commands = {**TESTS, **{part.name: part.command(folder, dry, short) for part in PARTS}}
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
