"""The live display of a study: the runs in progress, the finished ones, and an estimate of the time that is left.

Without a terminal it prints a line for each event.
"""

from __future__ import annotations

import time
from collections import defaultdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._console import duration, err, say

if TYPE_CHECKING:
    from rich.table import Table

    from ..comparison.running import Failure
    from ..config import Study
    from ..records.study_tables import CellKey

SECONDS_BETWEEN_LINES = 60.0
RECENT = 8


class Board:
    """An observer of `run_cells` that displays its events.

    The estimate of the time that is left uses the finished runs of the same arm, of this call and of earlier ones.
    """

    def __init__(self, study: Study) -> None:
        from ..comparison.cells import StudyFiles, cells_of
        from ..comparison.study import place_of, workers_of

        self.files = StudyFiles.of(study)
        self.cells = cells_of(study)
        self.workers, self.place = workers_of(study), place_of(study)
        self.running: dict[CellKey, tuple[float, str]] = {}
        self.left = set(self.cells)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.recent: list[tuple[str, str]] = []
        self.failures = 0
        self.began = self.last_print = time.monotonic()
        self.live: Any = None

    def __enter__(self) -> Board:
        self._take_in_finished()
        say(
            f"{len(self.cells)} runs in {self.files.folder}, {self.workers} at a time, on {self.place}. "
            "Ctrl-C stops and keeps what is done; the same command goes on."
        )
        if err().is_terminal:
            from rich.live import Live

            self.live = Live(console=err(), get_renderable=self._table, refresh_per_second=2)
            self.live.start()
        else:
            say(self._summary())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def _take_in_finished(self) -> None:
        from ..comparison.running import is_done
        from ..records.json_files import read_json
        from ..records.names import CELL_FILE

        for cell in self.cells:
            if is_done(self.files, cell):
                seconds = read_json(self.files.cell(cell) / CELL_FILE)["seconds"]
                self.seconds[cell.arm].append(sum(seconds.values()))
                self.left.discard(cell)

    # Events that the supervisor reports

    def started(self, cell: CellKey) -> None:
        self.running[cell] = (time.monotonic(), "starting")

    def moved(self, cell: CellKey, stage: str, done: int, total: int, note: str) -> None:
        share = f" {done}/{total}" if total else ""
        self.running[cell] = (self.running[cell][0], f"{stage}{share}{note and f' · {note}'}")

    def finished(self, cell: CellKey, seconds: float) -> None:
        self.seconds[cell.arm].append(seconds)
        self._ended(cell, f"{duration(seconds)}{self._numbers(cell)}")

    def failed(self, failure: Failure) -> None:
        self.failures += 1
        self._ended(failure.cell, f"FAILED ({failure.stage}): {failure.error}")

    def tick(self) -> None:
        now = time.monotonic()
        if self.live is None and now - self.last_print > SECONDS_BETWEEN_LINES:
            self.last_print = now
            say(f"{self._summary()}: {'; '.join(f'{self.files.name(c)} {s}' for c, (_, s) in self.running.items())}")

    def _ended(self, cell: CellKey, how: str) -> None:
        self.running.pop(cell, None)
        self.left.discard(cell)
        self.recent = [*self.recent, (self.files.name(cell), how)][-RECENT:]
        if self.live is None:
            self.last_print = time.monotonic()
            say(f"{self.files.name(cell)}: {how} · {self._summary()}")

    def _numbers(self, cell: CellKey) -> str:
        from ..records.json_files import read_json
        from ..records.names import MEASURED_FILE

        by_prompt = read_json(self.files.cell(cell) / MEASURED_FILE)["by_prompt"]
        labels = {"reward_mean": "reward", "reverse_kl": "reverse KL", "forward_kl": "forward KL"}
        means = {
            label: [v for v in by_prompt[key] if v is not None] for key, label in labels.items() if key in by_prompt
        }
        return "".join(f" · {name} {sum(values) / len(values):.2f}" for name, values in means.items() if values)

    # The display

    def seconds_left(self) -> float | None:
        """Estimate the seconds that are left, or return None before any run has finished."""
        means = {arm: sum(times) / len(times) for arm, times in self.seconds.items()}
        trained = [mean for arm, mean in means.items() if arm != "reference"] or list(means.values())
        if not trained:
            return None
        other = sum(trained) / len(trained)
        now = time.monotonic()
        total = sum(means.get(cell.arm, other) for cell in self.left)
        under_way = sum(min(now - since, means.get(cell.arm, other)) for cell, (since, _) in self.running.items())
        return max(0.0, total - under_way) / self.workers

    def _summary(self) -> str:
        done = len(self.cells) - len(self.left) - self.failures
        failed = f", {self.failures} failed" if self.failures else ""
        left = self.seconds_left()
        estimate = "" if left is None or not self.left else f", about {duration(left)} left"
        return f"{done} of {len(self.cells)} runs{failed} after {duration(time.monotonic() - self.began)}{estimate}"

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._summary(), title_justify="left", box=None, pad_edge=False)
        table.add_column("run", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for name, how in self.recent:
            table.add_row(Text(name), "", Text(how, style="red" if how.startswith("FAILED") else "dim"))
        for cell, (since, what) in self.running.items():
            table.add_row(Text(self.files.name(cell), style="bold"), duration(time.monotonic() - since), Text(what))
        return table
