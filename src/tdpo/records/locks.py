"""Lock files: whether a process is at work, and how another one waits for it.

The system releases a lock when its process ends, however it ends. `fcntl.flock` is used directly and not the package
filelock: whether somebody holds a lock must be asked without creating, writing or taking the file (a report may read a
folder that it must not write to), and filelock has no such question. Both lock the same way, so that processes of
earlier versions, which used filelock for the reference cache, and later ones see each other's locks.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .files import now, open_no_link

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind: nothing is protected there
    fcntl = None  # type: ignore[assignment]

SIGNATURE = b'{"process": '  # how what is written into a lock file begins
LOCK_TRIES, LOCK_PAUSE = 5, 0.02  # a process that only asks whether a lock is held holds it for a moment


@contextlib.contextmanager
def lock(path: Path, *, remove: bool = False) -> Iterator[bool]:
    """Try to take the lock file `path`; gives whether this process holds it now. `remove` deletes it afterwards."""
    if fcntl is None:
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_no_link(path, "a") as file:
        # Whoever held the lock may have removed the file that was opened here.
        if not _take(file) or not _is_at(file, path):
            yield False
            return
        _sign(file)
        try:
            yield True
        finally:
            _unsign(file)
            if remove:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def waiting_lock(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Take the lock file `path`, which stays; where another process holds it, call `on_wait` and wait for its end."""
    if fcntl is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_no_link(path, "a") as file:
        if not _take(file):
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        _sign(file)
        try:
            yield
        finally:
            _unsign(file)
            fcntl.flock(file, fcntl.LOCK_UN)


def shared_lock(path: Path) -> IO[Any] | None:
    """Take the lock file together with others, and set its time to now. The lock lasts until the file is closed.

    None where it cannot be taken: the folder is only to be read, or another process holds the lock alone.
    """
    if fcntl is None:
        return None
    try:
        with open_no_link(path, "ab") as file:
            kept = os.fdopen(os.dup(file.fileno()), "ab")
    except OSError:
        return None
    if not any(_try_to_lock(kept, fcntl.LOCK_SH, LOCK_PAUSE if tries else 0.0) for tries in range(LOCK_TRIES)):
        kept.close()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return kept


def is_locked(path: Path) -> bool | None:
    """Whether some process holds the lock file; None where that cannot be known. Writes nothing."""
    if fcntl is None:
        return None
    try:
        with path.open("rb") as file:
            if not _try_to_lock(file, fcntl.LOCK_SH):
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
            return False
    except OSError:
        return None


def is_shared(path: Path) -> bool:
    """Whether some process holds the lock file, alone or together with others. Writes nothing."""
    if fcntl is None:
        return False
    try:
        with path.open("rb") as file:
            return not _take(file)
    except OSError:
        return False


def holder(path: Path) -> str:
    """Who holds the lock file: "process 123 on host X since …"; "" where nobody does, or it does not say."""
    if not is_locked(path):
        return ""
    try:
        signature = json.loads(path.read_text(encoding="utf-8"))
        return f"process {signature['process']} on host {signature['host']} since {signature['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _sign(file: IO[Any]) -> None:
    """Say in a lock file who holds it. It is for people alone, so a full disk is no obstacle."""
    with contextlib.suppress(OSError):
        if _is_free_to_sign(file):
            os.truncate(file.fileno(), 0)
            signature = {"process": os.getpid(), "host": socket.gethostname(), "since": now()}
            os.write(file.fileno(), json.dumps(signature).encode())  # not through a buffer, which would fail again


def _unsign(file: IO[Any]) -> None:
    with contextlib.suppress(OSError):
        if _is_free_to_sign(file):
            os.truncate(file.fileno(), 0)


def _is_free_to_sign(file: IO[Any]) -> bool:
    """Whether the file is empty or holds a signature: anything else is somebody's own file of that name."""
    with Path(file.name).open("rb") as content:  # the lock's own handle can only append
        return content.read(len(SIGNATURE)) in (b"", SIGNATURE)


def _take(file: IO[Any]) -> bool:
    """Try to lock an open file for this process alone, a few times."""
    return any(_try_to_lock(file, fcntl.LOCK_EX, LOCK_PAUSE if tries else 0.0) for tries in range(LOCK_TRIES))


def _try_to_lock(file: IO[Any], how: int, pause: float = 0.0) -> bool:
    time.sleep(pause)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
