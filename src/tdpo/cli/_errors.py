"""Errors as messages for people: what is wrong and what to do. The exit code is 2 for bad input and 1 for a failure."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import typer

from ..installation import module_command
from ._console import say

BAD_INPUT, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143
INPUT_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


LESS_MEMORY = (
    "less is needed with training.micro_batch_size=1, training.gradient_checkpointing=true, a smaller max_length; "
    "for PPO with ppo.micro_batch_size=1, ppo.gradient_checkpointing=true, a smaller rollouts.batch_size"
)


# Advice for errors of the machine that name no file.
MACHINE_ADVICE = {
    errno.ENOSPC: "free space on the disk that is written to, then give the same command again",
    errno.EDQUOT: "free space within the quota of the disk that is written to, then give the same command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free memory",
}


class CommandError(ValueError):
    """The user asked a command for something that it cannot do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send. It is handled like Ctrl-C."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `command` so that its errors end in a message and an exit code, with `debug` also in a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        _treat_sigterm_like_ctrl_c()
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt as interrupt:
            terminated = isinstance(interrupt, Terminated)
            say("terminated." if terminated else "interrupted.", style="bold yellow")
            raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, BrokenPipeError) and error.filename is None:
                raise  # the reader of the output has gone: see `ends_with_the_reader`
            raise typer.Exit(report(error, debug=bool(kwargs.get("debug")))) from None

    return run


@contextlib.contextmanager
def ends_with_the_reader() -> Iterator[None]:
    """End quietly if the reader of the output went away, and with a message if the disk of the output is full."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if error.errno != errno.EPIPE:
            say(f"error: the output cannot be written: {error.strerror}", style="bold red")
        sys.exit(FAILURE)


def _drop_output() -> None:
    """Discard the rest of the output, or the interpreter complains about it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: Exception, *, debug: bool) -> int:
    """Print the message of `error` and return the exit code."""
    message, code = explain(error)
    if debug:
        say("".join(traceback.format_exception(error)).rstrip())
    say(f"error: {message}", style="bold red")
    if not debug and not is_ours(error):
        say(f"This was not expected; {_where_the_traceback_is(error)}")
    return code


def _where_the_traceback_is(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", suffix=".txt", prefix="tdpo-traceback-", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as full:
        return f"--debug prints the traceback, which could not be kept ({full.strerror})."
    return f"the traceback is in {file.name} (--debug prints it)."


def explain(error: Exception) -> tuple[str, int]:
    """Return the message for the user and the exit code."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tdpo"):
        return f"{error.name} is not installed; {module_command(error.name)}", FAILURE
    if is_out_of_memory(error):
        return f"out of memory: {text.splitlines()[0]}\n{LESS_MEMORY}", FAILURE
    if is_ours(error):
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        elif isinstance(error, OSError) and error.errno in MACHINE_ADVICE:
            text = f"{error.strerror}; {MACHINE_ADVICE[error.errno]}"
        return text, BAD_INPUT if isinstance(error, INPUT_ERRORS) else FAILURE
    return f"{type(error).__name__}: {text}", FAILURE


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a device or on the machine. For the latter torch raises a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def is_ours(error: BaseException) -> bool:
    """Return whether the message of `error` was written for the user.

    It was if the error is of a class of tdpo, was raised in the code of tdpo, or is about a file.
    """
    if type(error).__module__.partition(".")[0] == "tdpo":
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True  # the operating system's message about a file that the user named
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in MACHINE_ADVICE):
        return True
    if not isinstance(error, (ValueError, ImportError, OSError)):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).partition(".")[0] == "tdpo"


def _treat_sigterm_like_ctrl_c() -> None:
    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # only the main thread may set handlers
        if sys.flags.dev_mode:
            raise
