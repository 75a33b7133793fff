"""Locks between processes: asked for without a trace, waited for, and released by a death."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tdpo.records.locks import is_locked, lock, waiting_lock

HOLDER = """
import sys, time
from pathlib import Path
from tdpo.records.locks import lock
with lock(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@contextmanager
def other_process_with(path: Path) -> Iterator[subprocess.Popen[str]]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    try:
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_asking_leaves_no_file_and_a_kill_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert is_locked(path) is None and not path.exists()
    with other_process_with(path) as holder:
        assert is_locked(path) is True
        with lock(path) as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert is_locked(path) is False
    with lock(path) as mine:
        assert mine and is_locked(path)


def test_who_waits_is_told_once_and_then_has_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "cache.lock"
    with other_process_with(path) as holder:
        told: list[str] = []

        def on_wait() -> None:
            told.append("waiting")
            holder.kill()

        with waiting_lock(path, on_wait):
            assert told == ["waiting"] and is_locked(path)
    with waiting_lock(path, lambda: told.append("again")):
        pass
    assert told == ["waiting"] and is_locked(path) is False


def test_a_process_of_an_earlier_version_which_used_filelock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "cache.lock"
    with FileLock(path):
        assert is_locked(path)
    with waiting_lock(path):
        try:
            FileLock(path).acquire(timeout=0)
        except Timeout:
            return
    raise AssertionError("filelock took a lock that was taken")
