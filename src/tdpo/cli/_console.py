"""Output of the commands: results on stdout, everything else on stderr, and progress bars with an estimate."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from ..guards.texts import printable

if TYPE_CHECKING:
    from rich.console import Console

Update = Callable[[int, int, str], None]
_SECONDS_BETWEEN_LINES = 30.0


@cache
def out() -> Console:
    """Return the console for results on stdout. Emoji codes are not replaced: `:x:` may be part of a file name."""
    return _console()


@cache
def err() -> Console:
    """Return the console for messages and progress on stderr. Only the first process of a distributed run prints."""
    return _console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def _console(**options: Any) -> Console:
    """Return a console that escapes control characters in everything that it prints, tables and bars included.

    So no name, key, response or quotation in an error moves the cursor or changes a colour.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Printable(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                is_plain = segment.control is None and not segment.text.isprintable()
                yield Segment(printable(segment.text), segment.style) if is_plain else segment

    return Printable(highlight=False, emoji=False, **options)


def say(text: str, style: str = "") -> None:
    """Print a message on stderr. Brackets in it are not markup, and long lines are not wrapped."""
    err().print(printable(text), style=style, markup=False, soft_wrap=True)


def write(text: str, style: str = "") -> None:
    """Print a result on stdout. Control characters are escaped, brackets are not markup, and lines are not wrapped."""
    out().print(printable(text), style=style, markup=False, soft_wrap=True)


class _MessageHandler(logging.Handler):
    """Prints log records as messages."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)


class _Printable(logging.Formatter):
    """Escapes control characters in the output of another formatter."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return printable(self.inner.format(record))


def say_logs() -> None:
    """Print log records and warnings of tdpo and of libraries, with control characters escaped."""
    # Wherever it is installed it advises, when peft loads it, to install what would fetch and run code of the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.lastResort = _MessageHandler(logging.WARNING)  # used where the caller has set up no handler
    warnings.formatwarning = lambda message, category, *_: printable(f"{category.__name__}: {message}") + "\n"
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        to_terminal = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
        if to_terminal and not isinstance(handler.formatter, _Printable):
            handler.setFormatter(_Printable(handler.formatter))


def duration(seconds: float) -> str:
    """Format a duration: 5.2 s, 3 min 12 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def progress(label: str) -> Iterator[Update]:
    """Show the progress of one stage, reported by update(done, total, note).

    It is a bar on a terminal, and otherwise a line every 30 seconds.
    """
    with _bar(label) if err().is_terminal else _lines(label) as update:
        yield update


@contextlib.contextmanager
def progress_in_stages(label: str) -> Iterator[Callable[..., None]]:
    """Show the progress of several stages, each with a bar of its own: update(stage, done, total, note="")."""
    with contextlib.ExitStack() as stack:
        updates: dict[str, Update] = {}

        def update(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in updates:
                stack.close()
                updates[stage] = stack.enter_context(progress(f"{label}: {stage}"))
            updates[stage](done, total, note)

        yield update


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Update]:
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

    from ._progress_line import progress_line

    console = err()
    stroke = "━" if console.encoding.lower().startswith("utf") else "-"

    class Line(ProgressColumn):
        """The whole line: columns of their own would shrink one another, the count and the time left too."""

        def render(self, task: Task) -> Text:
            total = None if task.total is None else int(task.total)
            left = None if total is None else task.time_remaining
            return progress_line(
                console.width, task.description, int(task.completed), total,
                elapsed=task.finished_time if task.finished else task.elapsed, left=left, note=task.fields["note"],
                bar=stroke,
            )  # fmt: skip

    with Progress(Line(), console=console) as bar:
        task = bar.add_task(label, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


@contextlib.contextmanager
def _lines(label: str) -> Iterator[Update]:
    started = last_print = time.monotonic()
    first = None  # (done, when) of the first report: the time before it was spent on loading and says nothing of speed
    line = None

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last_print, first, line
        now = time.monotonic()
        first = first or (done, now)
        left = ""
        if first[0] < done < total:
            left = f", about {duration((now - first[1]) / (done - first[0]) * (total - done))} left"
        line = f"{label}: {done} of {total} after {duration(now - started)}{left}{note and f' · {note}'}"
        if now - last_print >= _SECONDS_BETWEEN_LINES:
            say(line)
            last_print, line = now, None

    yield update
    if line is not None:
        say(line)


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers and those log messages that do not concern the user."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Deprecations between libraries and advice about absent accelerators do not concern the user of a command.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
    from transformers.utils import logging as library_logging

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    say_logs()  # once more: transformers has set up a handler of its own


def number(value: Any, digits: int = 3) -> str:
    """Format a number for a table; "–" for None."""
    return "–" if value is None else f"{float(value):.{digits}f}"
