"""A time limit for computations that may not end: a chat template is somebody else's program."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.1  # seconds after which the watching thread compares the deadlines again


class _Overtime(BaseException):
    """Raised within the computation. It is no Exception, so that no `except Exception` of a library catches it."""


class _Watch:
    """Interrupts threads after their deadline. One background thread watches all of them.

    Entering and leaving costs a lock and a dictionary entry.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}
        self._thread: threading.Thread | None = None

    def enter(self, seconds: float) -> None:
        with self._lock:
            self._deadlines[threading.get_ident()] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():  # the first time, and in a forked process
                self._thread = threading.Thread(target=self._watch_deadlines, name="tdpo-time-limit", daemon=True)
                self._thread.start()

    def leave(self) -> bool:
        """Whether the thread is in time; if not, `_Overtime` will be raised in it at any moment."""
        with self._lock:
            return self._deadlines.pop(threading.get_ident(), None) is not None

    def _watch_deadlines(self) -> None:
        while True:
            time.sleep(INTERVAL)
            with self._lock:
                now = time.monotonic()
                for thread in [thread for thread, deadline in self._deadlines.items() if deadline < now]:
                    del self._deadlines[thread]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Overtime))


_watch = _Watch()  # one for the process, so that its thread is started once


def within(seconds: float, compute: Callable[[], T]) -> T:
    """The result of `compute()`, or TimeoutError if it takes longer than `seconds`.

    It is interrupted between two steps of Python, not within one. Calls must not be nested.
    """
    interrupted = False
    try:
        _watch.enter(seconds)
        try:
            return compute()
        except _Overtime:
            interrupted = True
            raise
        finally:
            while not interrupted and not _watch.leave():
                time.sleep(INTERVAL / 100)  # the interruption is on its way
    except _Overtime:
        raise TimeoutError(f"it was not done after {seconds:g} seconds") from None
